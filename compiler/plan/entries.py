"""Lists of a plan that name things with their options: its passes, its exports, and the passes that a pass holds.

    passes:
      - score: {criterion: l2}             # a name with options,
      - prune: 50%                         # a name with the value of the main option,
      - shrink                             # or a bare name
      - repeat:
          steps: 8
          passes: [score, select, shrink]  # an option of type `Passes`: the same once more

What is wrong with an entry is told where it stands, and doesn't keep others from being looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import (
    SerializationInfo,
    ValidationInfo,
    is_instance_schema,
    plain_serializer_function_ser_schema,
    with_info_plain_validator_function,
)

from prunec.compiler.errors import Span, nearest
from prunec.compiler.pass_base import PASSES, Pass
from prunec.compiler.plan.options import faults, label, told
from prunec.compiler.plan.source import MAX_FAULTS, MAX_TOLD, Fault, Keys, plain, shown

INSIDE: Final = "inside"
"""The key of a validation's context that says that the pass stands inside another one, which may give its amounts."""

PASS: Final = "pass"
"""The definition of an entry of `passes` in the schema of a plan."""

_Made = TypeVar("_Made", bound=BaseModel)

Entry = tuple[str, Mapping[str, Any], _Made, Keys]
"""The name, the options as they are written, what was made of them, and the place of the name."""


@dataclass(frozen=True)
class Kind(Generic[_Made]):
    """What a list may name: the word for it, the names, the class for each, and the context that validates options."""

    word: str
    names: Collection[str]
    find: Callable[[str], type[_Made]]
    context: Mapping[str, Any]


def passes_of(context: Mapping[str, Any]) -> Kind[Pass]:
    """The passes that are installed."""
    return Kind("pass", PASSES.names(), PASSES.named, context)


def made_entries(entries: Any, key: str, kind: Kind[_Made], found: list[Fault]) -> list[Entry[_Made]]:
    """Make what the list at `key` names. What can't be made is left out, and the reason is added to `found`."""
    if not isinstance(entries, list):
        found.append(Fault((key,), f"{key} must be a list, got {shown(entries)}"))
        return []
    made = []
    for i, entry in enumerate(entries):
        if len(found) >= MAX_FAULTS:
            break
        try:
            name, value = _named(entry, (key, i), kind.word)
            if name not in kind.names:
                hint = nearest(name, kind.names) if len(found) < MAX_TOLD else None
                raise _Refused([Fault((key, i, name), f"unknown {kind.word} {shown(name)}", hint, True)])
            made.append(_make(kind.find(name), value, (key, i, name), kind.context))
        except _Refused as refused:
            found += refused.faults
    return made


class _Refused(Exception):
    """Carries the faults of one entry out of its making; never leaves this module."""

    def __init__(self, found: list[Fault]) -> None:
        super().__init__(found)
        self.faults = found


def _named(entry: Any, keys: Keys, word: str) -> tuple[str, Any]:
    """The name of a list's entry and the value beside it."""
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and len(entry) == 1:
        return next(iter(entry.items()))
    if not isinstance(entry, dict) or not entry:
        message = f"{label(keys)} must be a name, or a name with its options; got {shown(entry)}"
        raise _Refused([Fault(keys, message)])
    first, second = list(entry)[:2]
    listed = [shown(key) for key in list(entry)[:MAX_TOLD]] + ["..."] * (len(entry) > MAX_TOLD)
    message = f"one entry names one {word}, this one has the keys {', '.join(listed)}"
    indent = f"indent the options of '{first}' deeper than its name" if entry[first] is None else None
    raise _Refused([Fault((*keys, second), message, indent or nearest(second, [first]), on_key=True)])


def _make(made: type[_Made], value: Any, keys: Keys, context: Mapping[str, Any]) -> Entry[_Made]:
    name = str(keys[-1])
    short: str | None = getattr(made, "shorthand", None)
    options = {} if value is None else value
    if not isinstance(options, dict):
        if short is None:
            valid = ", ".join(made.model_fields)
            hint = f"options of {name}: {valid}" if valid else f"{name} has no options"
            raise _Refused([Fault(keys, f"{name} must be followed by a mapping of options, got {shown(value)}", hint)])
        options = {short: value}
    try:
        return name, options, made.model_validate(options, context=dict(context)), keys
    except ValidationError as error:
        raise _Refused(faults(error, options, keys, made)) from error


# -- passes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanPass:
    """One entry of `passes`: the options as the plan has them, and the pass made from them."""

    name: str
    options: Mapping[str, Any]
    pass_: Pass
    at: Span | None = field(default=None, compare=False)

    def written(self, context: Mapping[str, Any]) -> str | dict[str, Any]:
        """The entry as plain JSON values, with paths as the context wants them."""
        held = {key for key in type(self.pass_).model_fields if _is_placed(getattr(self.pass_, key))}
        spelled = self.pass_.model_dump(mode="json", include=held, by_alias=True, context=dict(context))
        options = {**plain(self.options).data, **spelled}
        return {self.name: options} if options else self.name

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """An instance is taken unchanged: entries are made before pydantic validates what holds them."""
        return is_instance_schema(cls)


def _is_placed(value: object) -> bool:
    """Whether an option's value depends on the folder of the plan: a path, or passes, which may hold some."""
    return isinstance(value, Path) or (isinstance(value, tuple) and any(isinstance(each, PlanPass) for each in value))


class _Nested:
    """Makes the passes that another pass holds."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """`_nested` makes the value, `_written` its JSON."""
        write = plain_serializer_function_ser_schema(_written, info_arg=True)
        return with_info_plain_validator_function(_nested, serialization=write)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A list of the entries that stand in the schema of a plan."""
        return {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/{PASS}"}}


Passes = Annotated[tuple[PlanPass, ...], _Nested()]
"""The type of an option called `passes`: the passes that a pass holds."""


def _nested(value: Any, info: ValidationInfo) -> tuple[PlanPass, ...]:
    if isinstance(value, tuple) and all(isinstance(each, PlanPass) for each in value):
        return value
    found: list[Fault] = []
    made = made_entries(value, "passes", passes_of({**(info.context or {}), INSIDE: True}), found)
    if not (found or made):
        found.append(Fault(("passes",), "passes must name at least one pass"))
    if found:
        raise told([replace(fault, keys=fault.keys[1:]) for fault in found])
    return tuple(PlanPass(name, options, pass_) for name, options, pass_, _ in made)


def _written(passes: Sequence[PlanPass], info: SerializationInfo) -> list[str | dict[str, Any]]:
    return [each.written(info.context or {}) for each in passes]


# -- the schema ------------------------------------------------------------------------------------------------------


def forms(name: str, made: type[BaseModel], ref: JsonSchemaValue, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """JSON schemas of one entry: a name with options, a name with the value of its main option, or a bare name."""
    short: str | None = getattr(made, "shorthand", None)
    values = [ref]
    if short:
        values.append(definitions[ref["$ref"].rpartition("/")[2]]["properties"][short])
    bare = not any(option.is_required() for option in made.model_fields.values())
    if bare:
        values.append({"type": "null"})
    mapping = {
        "type": "object",
        "properties": {name: {"anyOf": values}},
        "required": [name],
        "additionalProperties": False,
    }
    return [mapping, {"const": name}] if bare else [mapping]
