"""A plan's text as plain values, and where each of them stands.

    seed: 3            data       {"seed": 3}
                       values     {("seed",): plan.yaml:1:7}
                       keys       {("seed",): plan.yaml:1:1}

YAML and JSON (which is YAML here) are read as a node graph, never constructed: a tag can't make an object, and nothing
in a file runs. Scalars follow YAML 1.2 (`no` is text, `1e-4` a number, `1:30` text). `--set KEY=VALUE` is a source too:
what it sets stands in the file called `--set`, so that a complaint about it shows the option that was typed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.reader import Reader

from prunec.compiler.errors import PlanError, Span
from prunec.compiler.ir.gc_pause import gc_paused

Keys = tuple[str | int, ...]
"""Where a value stands in a plan: `("passes", 1, "select", "ratio")`."""

MAX_DEPTH: Final = 100
MAX_LINE: Final = 400
"""A longer line (JSON without line breaks) isn't shown in an error."""
MAX_VALUES: Final = 2_000_000
MAX_ALIASED: Final = 100_000
"""How many values aliases and merges may stand for: a few nested ones can stand for more than there is memory."""
MAX_BYTES: Final = 64_000_000
MAX_TOLD: Final = 10
"""How many of a plan's faults are told in full."""
MAX_FAULTS: Final = 1000
"""With so many, no more are looked for."""

_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final[Mapping[str, Callable[[str], Any]]] = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": lambda text: text == "true",
    _TAG + "int": int,
    _TAG + "float": float,
    _TAG + "str": str,
}
_COLLECTIONS: Final = frozenset({_TAG + "map", _TAG + "seq"})
_MERGE: Final = _TAG + "merge"
_LINE_BREAK: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_SET: Final = "--set"
_Mark = Any  # yaml.Mark, or its like in C
_Entry = tuple[yaml.Node, yaml.Node]
_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
_INT64: Final = range(-(2**63), 2**63)
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]  # the loader in C, where there is one, is eight times faster
    """PyYAML's loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _name, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|false)\Z", ["t", "f"]),
    ("int", r"[-+]?[0-9]+\Z", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", list("-+.0123456789")),
    ("merge", r"<<\Z", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


class PlanErrors(PlanError):
    """Everything that is wrong with one plan; `at`, `message` and `hint` are the first error's."""

    def __init__(self, errors: Sequence[PlanError]) -> None:
        first = errors[0]
        super().__init__(first.message, at=first.at, hint=first.hint)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        rest = len(self.errors) - MAX_TOLD
        more = [f"and {rest:,} more"] if rest > 0 else []
        count = f"{len(self.errors):,} errors"
        return "\n".join(
            [*map(str, self.errors[:MAX_TOLD]), *more, count if rest < MAX_FAULTS / 2 else f"{count}, or more"]
        )


@dataclass(frozen=True)
class Fault:
    """Something wrong at `keys`; `on_key` where the key is to be shown and not its value."""

    keys: Keys
    message: str
    hint: str | None = None
    on_key: bool = False


_Place = tuple["_Reader", yaml.Node] | Span
"""Where something stands: a node of a text, whose span is made when it is asked for, or a span."""


def _span_at(place: _Place | None) -> Span | None:
    return place[0].span(place[1]) if isinstance(place, tuple) else place


@dataclass(frozen=True)
class Source:
    """Plain values, and the places of keys and values where they came from a text."""

    file: str
    data: Any
    keys: Mapping[Keys, _Place] = field(default_factory=dict, repr=False)
    values: Mapping[Keys, _Place] = field(default_factory=dict, repr=False)

    def locate(self, keys: Keys, *, on_key: bool = False) -> Span | None:
        """The place of the value (or key) that `keys` lead to; where the text is shorter, that of what is around it."""
        found = self._follow(keys)
        place = self.keys.get(found) if on_key or not isinstance(self._value(found), str | int | float) else None
        return _span_at(place or self.values.get(found))

    def error(self, fault: Fault) -> PlanError:
        """The fault with its place; where there is no text, its keys stand before the message."""
        at = self.locate(fault.keys, on_key=fault.on_key)
        where = dotted(self._follow(fault.keys))
        message = fault.message if at or not where else f"{where}: {fault.message}"
        return PlanError(message, at=at, hint=fault.hint)

    def errors(self, faults: Iterable[Fault]) -> PlanError:
        """One error for all the faults, in the order of the text. Needs at least one."""
        errors = sorted(map(self.error, faults), key=_order)
        return errors[0] if len(errors) == 1 else PlanErrors(errors)

    def with_override(self, text: str) -> Source:
        """This source with one `KEY=VALUE` of the command line laid over it.

        Mappings that are missing on the way are made (whether their keys are valid is for the plan to say). Raises
        `PlanError` where the key leads nowhere.
        """
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            at = Span(_SET, 1, 1, max(len(text), 1), text[:MAX_LINE])
            raise PlanError("expected KEY=VALUE, such as seed=1 or passes.0.score.criterion=l2", at=at)
        new = parse(value, _SET, prefix=f"{key}=")
        return _Override(self, text, new).apply(parts)

    def _follow(self, keys: Keys) -> Keys:
        found: Keys = ()
        value = self.data
        for key in keys:
            if holds(value, key):
                value = value[key]
                found = (*found, key)
        return found

    def _value(self, keys: Keys) -> Any:
        value = self.data
        for key in keys:
            value = value[key]
        return value


def read(path: Path) -> Source:
    """Read and parse a file; every error is a `PlanError`."""
    text = read_text(path, "the plan")
    # JSON may be indented with tabs, YAML may not; inside JSON's strings there are none.
    return parse(text.replace("\t", " ") if path.suffix == ".json" else text, str(path))


def read_text(path: Path, what: str) -> str:
    """A file's text. Raises `PlanError` where it can't be read, is too large or isn't UTF-8; `what` is its name."""
    try:
        if path.is_fifo() and not path.resolve().is_relative_to("/proc"):  # a shell's own pipe has somebody who writes
            raise PlanError(f"can't read {what} {path}: it is a pipe, which may wait for ever")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError is a name that no file can have
        raise PlanError(f"can't read {what} {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise PlanError(f"can't read {what} {path}: it is larger than {MAX_BYTES // 10**6} MB")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
        line = data[: error.start].count(b"\n") + 1
        at = Span(str(path), line, len(before) - before.rfind("\n"))
        raise PlanError(
            f"can't read {what}: it isn't UTF-8 text (byte 0x{data[error.start]:02x})", at=at, hint="save it as UTF-8"
        ) from error


@gc_paused()
def parse(text: str, file: str, *, prefix: str = "") -> Source:
    """Parse a text; `prefix` stands before it on its first line where it is shown."""
    return _Reader(file, _LINE_BREAK.split(prefix + text)).read(" " * len(prefix) + text)


def plain(value: Any) -> Source:
    """A source without places, from Python values: a copy of them, checked to be plain."""
    return Source("", _plain(value, ()))


def dotted(keys: Keys) -> str:
    """The spelling of `--set` for a place in a plan: `passes.1.select.ratio`."""
    return ".".join(map(str, keys))


def shown(value: Any, limit: int = 60) -> str:
    """A value as an error message quotes it, in the plan's spelling and cut to `limit` characters."""
    if isinstance(value, str):
        text = f"'{value}'"
    else:
        text = json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True)
class _Override:
    """One `KEY=VALUE` of the command line: `text` as typed, `new` its parsed value."""

    source: Source
    text: str
    new: Source

    def apply(self, parts: list[str]) -> Source:
        keys: list[str | int] = []
        data = self._put(self.source.data, parts, keys)
        path = tuple(keys)
        spans = {path[: i + 1]: self._span(parts, i) for i in range(len(path)) if isinstance(path[i], str)}
        old_keys = {key: span for key, span in self.source.keys.items() if key[: len(path)] != path}
        old_values = {key: span for key, span in self.source.values.items() if key[: len(path)] != path}
        return Source(
            self.source.file,
            data,
            {**spans, **old_keys, **{path + key: span for key, span in self.new.keys.items()}},
            {**spans, **old_values, **{path + key: span for key, span in self.new.values.items()}},
        )

    def _put(self, old: Any, parts: list[str], keys: list[str | int]) -> Any:
        """`old` with the value at `parts[len(keys):]` replaced; the keys that were walked are appended to `keys`."""
        if len(keys) == len(parts):
            return self.new.data
        part = parts[len(keys)]
        if isinstance(old, list):
            index = self._index(old, parts, keys)
            keys.append(index)
            return [*old[:index], self._put(old[index], parts, keys), *old[index + 1 :]]
        if old is None or old == part:  # `shrink:` and `shrink` are short for `shrink: {}`
            old = {part: {}} if old == part else {}
        if not isinstance(old, dict):
            where = dotted(tuple(keys))
            raise PlanError(
                f"'{where}' is {shown(old)}, it has no key '{part}'",
                at=self._span(parts, len(keys)),
                hint=f"set the whole of it: {where}=VALUE",
            )
        keys.append(part)
        return {**old, part: self._put(old.get(part), parts, keys)}

    def _index(self, old: list[Any], parts: list[str], keys: list[str | int]) -> int:
        part, where, at = parts[len(keys)], dotted(tuple(keys)), self._span(parts, len(keys))
        if not (part.isascii() and part.isdecimal() and len(part) < 19):
            names = [name for entry in old for name in (entry if isinstance(entry, dict) else [entry])]
            hint = f"'{part}' is entry {names.index(part)}: {where}.{names.index(part)}" if part in names else None
            raise PlanError(f"'{where}' is a list: expected the number of an entry, got '{part}'", at=at, hint=hint)
        if int(part) >= len(old):
            hint = f"the entries are 0 to {len(old) - 1}" if old else "the list is empty"
            raise PlanError(f"'{where}' has no entry {part}", at=at, hint=hint)
        return int(part)

    def _span(self, parts: list[str], i: int) -> Span:
        column = 1 + len(self.text) - len(self.text.lstrip()) + sum(len(part) + 1 for part in parts[:i])
        return Span(_SET, 1, column, len(parts[i]), self.text)


@dataclass(eq=False)
class _Reader:
    """Walks the node graph of one text."""

    file: str
    lines: list[str]
    keys: dict[Keys, _Place] = field(default_factory=dict)
    values: dict[Keys, _Place] = field(default_factory=dict)
    open: list[yaml.Node] = field(default_factory=list)
    merged: dict[yaml.MappingNode, list[_Entry] | None] = field(default_factory=dict)
    """What `_entries` gave; None while it is being found out."""
    written: int = 0
    """How many values stand in the text."""
    aliased: int = 0
    """How many entries of mappings have been merged into others."""

    def read(self, text: str) -> Source:
        self._check_characters(text)
        try:
            self._check_depth(text)
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from error
        if node is None:
            return Source(self.file, None, values={(): Span(self.file, 1, 1)})
        return Source(self.file, self._value(node, ()), self.keys, self.values)

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> PlanError:
        """The parser's own words, at the bracket or quote that was left open where it ran into the end of the text."""
        mark = error.problem_mark or error.context_mark
        if mark and error.context_mark and not self._line(mark.line)[mark.column :].strip():
            mark = error.context_mark
        hint = "YAML is indented with spaces, not tabs" if mark and "\t" in self._line(mark.line) else None
        words = ", ".join(filter(None, (error.context, error.problem)))
        return self._error(f"not valid YAML: {words}", mark, mark, hint)

    def _check_characters(self, text: str) -> None:
        found = Reader.NON_PRINTABLE.search(text)
        if found:
            before = _LINE_BREAK.split(text[: found.start()])
            at = Span(self.file, len(before), len(before[-1]) + 1)
            raise PlanError(f"the character U+{ord(found[0]):04X} may not stand in a plan", at=at)

    def _check_depth(self, text: str) -> None:
        """Composing recurses in C, without a guard: a file of brackets alone would end the process."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            self.written += isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent)
            if depth > MAX_DEPTH:
                raise self._error(_DEEP, event.start_mark, event.end_mark)
            if self.written > MAX_VALUES:
                raise self._error(f"holds more than {MAX_VALUES:,} values", event.start_mark, event.end_mark)

    def _count(self, node: yaml.Node) -> None:
        """Refuse aliases and merges that stand for too much, at the node where that shows."""
        if len(self.values) - self.written + self.aliased > MAX_ALIASED:
            raise self._node_error(f"aliases stand for more than {MAX_ALIASED:,} values", node)

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        self.values[keys] = self, node
        if node.tag not in _SCALARS and node.tag not in _COLLECTIONS:
            hint = "a plan is data: write plain values"
            raise self._node_error(f"the tag {shown(node.tag)} isn't allowed", node, hint)
        if node in self.open:
            raise self._node_error("a value can't contain itself", node)
        if len(keys) > MAX_DEPTH:
            raise self._node_error(_DEEP, node)
        self._count(node)
        self.open.append(node)
        value = self._plain(node, keys)
        self.open.pop()
        return value

    def _plain(self, node: yaml.Node, keys: Keys) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*keys, i)) for i, item in enumerate(node.value)]
        try:
            value = _SCALARS[node.tag](node.value)
        except (KeyError, ValueError) as error:
            kind = node.tag.removeprefix(_TAG)
            raise self._node_error(f"the tag '!!{kind}' doesn't fit {shown(node.value)}", node) from error
        if fault := _out_of_range(value):
            raise self._node_error(f"{shown(node.value)} {fault}", node)
        return value

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in self._entries(node):
            key = self._key(key_node)
            inner = (*keys, key)
            if key in result:
                first = _span_at(self.keys[inner])
                hint = f"first on line {first.line}" if first else None
                raise self._node_error(f"the key {shown(key)} stands here twice", key_node, hint)
            self.keys[inner] = self, key_node
            result[key] = self._value(value_node, inner)
        return result

    def _entries(self, node: yaml.MappingNode, depth: int = 0) -> list[_Entry]:
        """A mapping's own entries, then what it merges from others (`<<: *base`) and doesn't have itself."""
        known = self.merged.get(node)
        if known is not None:
            return known
        if depth > MAX_DEPTH:
            raise self._node_error(_DEEP, node)
        self.merged[node] = None
        found = [entry for entry in node.value if entry[0].tag != _MERGE]
        seen = {self._key(key) for key, _ in found}
        for base in self._bases(node):
            for entry in self._entries(base, depth + 1):
                self.aliased += 1
                if self._key(entry[0]) not in seen:
                    seen.add(self._key(entry[0]))
                    found.append(entry)
            self._count(base)
        self.merged[node] = found
        return found

    def _bases(self, node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
        for value in (value for key, value in node.value if key.tag == _MERGE):
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for base in dict.fromkeys(bases):
                if not isinstance(base, yaml.MappingNode) or base in self.open or self.merged.get(base, ()) is None:
                    raise self._node_error("'<<' takes another mapping, or a list of them", value)
                yield base

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._node_error("a key must be text", node)
        if node.tag != _TAG + "str":
            text = shown(node.value)
            raise self._node_error(f"a key must be text, got {text[1:-1]}", node, f"write it as {text}")
        return str(node.value)

    def _node_error(self, message: str, node: yaml.Node, hint: str | None = None) -> PlanError:
        return self._error(message, node.start_mark, node.end_mark, hint)

    def _error(self, message: str, start: _Mark | None, end: _Mark | None, hint: str | None = None) -> PlanError:
        at = self._span(start, end) if start and end else Span(self.file, 1, 1)
        return PlanError(message, at=at, hint=hint)

    def span(self, node: yaml.Node) -> Span:
        """The first line of a node."""
        return self._span(node.start_mark, node.end_mark)

    def _span(self, start: _Mark, end: _Mark) -> Span:
        line = self._line(start.line)
        stop = end.column if end.line == start.line else len(line.rstrip())
        text = line if len(line) <= MAX_LINE else ""
        return Span(self.file, start.line + 1, start.column + 1, max(stop - start.column, 1), text)

    def _line(self, number: int) -> str:
        return self.lines[number] if number < len(self.lines) else ""


def holds(value: Any, key: str | int) -> bool:
    """Whether `value[key]` exists."""
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)


def _order(error: PlanError) -> tuple[bool, int, int]:
    """A sort key: places in the file first, in their order, then `--set` options."""
    return (error.at.file == _SET, error.at.line, error.at.column) if error.at else (False, 0, 0)


def _out_of_range(value: Any) -> str | None:
    """What is wrong with a number that no pass could use; None where nothing is."""
    if type(value) is int and value not in _INT64:
        return "is beyond the whole numbers of 64 bits"
    return "is beyond the floating-point numbers of 64 bits" if value in (math.inf, -math.inf) else None


def _plain(value: Any, keys: Keys) -> Any:
    if len(keys) > MAX_DEPTH:
        raise PlanError(f"{shown(dotted(keys))}: {_DEEP}")
    if type(value) is int and (fault := _out_of_range(value)):
        raise PlanError(f"{dotted(keys) or 'the plan'}: {shown(str(value)[:60])} {fault}")
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise PlanError(f"{dotted(keys) or 'the plan'}: a key must be text, got {wrong!r}")
        return {key: _plain(item, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*keys, i)) for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise PlanError(f"{dotted(keys) or 'the plan'}: expected a plain value, got one of type {type(value).__name__}")
