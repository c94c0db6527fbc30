"""The slim model as Python source that a person reads and trains on, and its weights as safetensors.

    Program
      call_module layer1.0.conv1 (x)              class Net(nn.Module):
      call_function F.relu (layer1_0_conv1)  -->      def __init__(self) -> None:
      output                                              self.layer1 = nn.ModuleDict({"0": Parts({"conv1": ...})})
                                                      def forward(self, x: torch.Tensor):
                                                          layer1_0_conv1 = self.layer1["0"].conv1(x)
                                                          ...

Parameters keep the names that they have in the original. The file holds its own reader of safetensors, so that it
needs torch alone. `forward` falls into paragraphs, one for a block of the original, and drops a paragraph's tensors
at its end, as the blocks' own functions did: a variable per node must not cost memory.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, starmap
from pathlib import Path
from typing import Any, Final, Union

import jinja2
import safetensors.torch
import torch
from torch import fx, nn

from prunec.compiler.emit.expressions import RESERVED, ExpressionWriter, attribute_path, is_attribute
from prunec.compiler.errors import ModelError
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.inputs import names_of, tensors_in
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.operations import operation_of
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.train_eval import MODES, ByMode, Mode, has_both, needed
from prunec.compiler.text.constructors import check_constructor, parameter_dtype
from prunec.compiler.text.literals import literal, quote
from prunec.compiler.version import __version__

WEIGHTS = "model.safetensors"
WIDTH = 110
PARAGRAPH = 12
"""After this many statements a paragraph ends as soon as it has tensors to delete."""

# The spec's names of data types; what torch can't hold isn't written either.
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

Tree = dict[str, Union[str, "Tree"]]
"""A part's name -> the text that makes it, or its own parts."""


@dataclass(frozen=True)
class Splice:
    """The part of a larger model that a program is, and the arguments that were decided when it was traced."""

    name: str
    frozen: Mapping[str, Any]
    fixed: tuple[str, ...] = ()
    """Those of them that are as the plan says, whatever the model gives."""


Classes = tuple[Sequence[int], Sequence[str]]
"""Of each class that was kept, its position in the original's output; and their names, none where nobody knows them."""


def emit_source(
    program: Program, *, weights: str = WEIGHTS, splice: Splice | None = None, classes: Classes | None = None
) -> str:
    """The source of a file with the model's class and `load()`; the same program always gives the same text.

    Raises `ModelError` where the graph calls something that can't be imported from torch or torchvision.
    """
    parts = _collect(program)
    writer = ExpressionWriter(program.graph, parts.tables)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    signature = ", ".join(writer.argument(node) for node in placeholders)
    body = list(_body(program.graph, writer))
    packages = writer.packages | {type(module).__module__ for module in program.state.values() if operation_of(module)}
    construction = [*_construction(parts), *parts.ties, *parts.frozen]
    source = _template().render(
        name=class_name(program.name),
        version=__version__,
        inputs=_describe_inputs(placeholders),
        weights=weights,
        file=weights.removesuffix(".safetensors"),
        splice=splice,
        frozen=literal(dict(splice.frozen)) if splice else "",
        fixed=literal(splice.fixed) if splice else "",
        classes=literal(tuple(classes[0])) if classes else "",
        class_names=literal(tuple(classes[1])) if classes and classes[1] else "",
        training=program.training,
        both=has_both(program.graph),
        imports=writer.imports,
        packages=sorted(packages),
        records=list(starmap(_record, writer.records.items())),
        uses_parts=any("Parts(" in line for line in construction),
        construction=construction,
        signature=signature,
        body=body,
        dtypes=DTYPES.items(),
    )
    ast.parse(source)
    return source


def _record(name: str, fields: Sequence[str]) -> str:
    return f"{name} = namedtuple({quote(name)}, [{', '.join(map(quote, fields))}])"


def save_weights(program: Program, path: Path) -> None:
    """Write the safetensors file that the emitted class loads: exactly the keys of its `state_dict`.

    A tied tensor is written under each of its names, as `state_dict` lists it; loading fills the one copy twice.
    """
    seen: set[int] = set()
    tensors = {}
    for name, tensor in saved_tensors(program).items():
        if tensor.dtype not in DTYPES.values():
            raise ModelError(f"'{name}' has the type {tensor.dtype}, which no weight file holds")
        storage = tensor.untyped_storage().data_ptr()
        plain = tensor.detach().cpu().contiguous()
        tensors[name] = plain.clone() if storage in seen else plain  # safetensors takes no shared memory
        seen.add(storage)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))  # `save_file` bars others from reading


_WEIGHT_ORDER: Final = "I64 F64 C64 F32 I32 BF16 F16 I16 I8 U8 BOOL".split()
"""The types in the order in which the format has the tensors: large elements first, which keeps all of them aligned."""


def weights_size(program: Program) -> int:
    """The bytes of the file that `save_weights` would write: a size, a header in JSON, padded to 8, and the tensors."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    tensors = [(_WEIGHT_ORDER.index(codes[t.dtype]), name, t) for name, t in saved_tensors(program).items()]
    start = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for place, name, tensor in sorted(tensors, key=lambda entry: (entry[0], entry[1].encode())):
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _WEIGHT_ORDER[place], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8 + start


def saved_tensors(program: Program) -> dict[str, torch.Tensor]:
    """The `state_dict` of the emitted class."""
    return dict(program.saved)


def class_name(name: str) -> str:
    """A legal class name that hides no name which the emitted file uses."""
    legal = re.sub(r"\W", "_", name) or "Model"
    legal = f"_{legal}" if legal[0].isdigit() else legal
    return f"{legal}Model" if legal in RESERVED | {"Path", "json"} or keyword.iskeyword(legal) else legal


# --- the constructor ---------------------------------------------------------------------------------------------


@dataclass
class _Parts:
    """What `__init__` makes: a tree of constructor texts, then the statements that tie and freeze parameters."""

    tree: Tree = field(default_factory=dict)
    ties: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    first_names: dict[int, str] = field(default_factory=dict)
    """id of a module or tensor -> the first name that it was met under."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Path of a part that holds others by key -> the class of torch that does so."""

    def add(self, name: str, text: str) -> None:
        """Put a part in its place."""
        branch, last = self._place(name)
        branch[last] = text

    def tie(self, name: str, thing: nn.Module | torch.Tensor) -> bool:
        """Whether the thing has an earlier name; then a statement ties the two."""
        first = self.first_names.setdefault(id(thing), name)
        if first == name:
            return False
        owner, _, last = name.rpartition(".")
        parent = self.path(owner) if owner else "self"
        if owner in self.tables:
            self.ties.append(f"{parent}[{quote(last)}] = {self.path(first)}")
        elif is_attribute(last):
            self.ties.append(f"{parent}.{last} = {self.path(first)}")
        else:
            self.ties.append(f"setattr({parent}, {quote(last)}, {self.path(first)})")
        return True

    def path(self, name: str) -> str:
        """The text that reads a part off the model."""
        return attribute_path(name, self.tables)

    def tie_or_add(self, name: str, thing: nn.Module | torch.Tensor, text: str) -> bool:
        """Add a part that is new, or make room for the statement that ties it to an earlier one; whether it is new."""
        if self.tie(name, thing):
            self._place(name)
            return False
        self.add(name, text)
        return True

    def _place(self, name: str) -> tuple[Tree, str]:
        """The mapping that holds a part (made where there is none yet), and the part's name in it."""
        *path, last = name.split(".")
        branch = self.tree
        for key in path:
            below = branch.setdefault(key, {})
            assert isinstance(below, dict), f"'{name}' lies inside the leaf '{key}'"
            branch = below
        return branch, last


def _collect(program: Program) -> _Parts:
    parts = _Parts(tables=_tables(program))
    modules = {name: value for name, value in program.state.items() if isinstance(value, nn.Module)}
    for name, module in modules.items():
        _add_module(parts, name, module)
    for name, tensor in program.state.items():
        if isinstance(tensor, torch.Tensor) and not _lies_in(name, tensor, modules):
            _add_tensor(parts, name, tensor)
    return parts


def _add_module(parts: _Parts, name: str, module: nn.Module) -> None:
    if not parts.tie_or_add(name, module, _constructor_text(name, module)):
        return
    for key, tensor in module_tensors(name, module):
        parts.tie(key, tensor)
    own = list(module.named_parameters())
    frozen = [key for key, parameter in own if not parameter.requires_grad]
    whole = len(frozen) == len(own)
    for path in [name] if frozen and whole else [f"{name}.{key}" for key in frozen]:
        parts.frozen.append(f"{parts.path(path)}.requires_grad_(False)")


def _add_tensor(parts: _Parts, name: str, tensor: torch.Tensor) -> None:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    text = f"torch.empty({', '.join(map(str, tensor.shape)) or '()'}{dtype})"
    if isinstance(tensor, nn.Parameter):
        text = f"nn.Parameter({text}{'' if tensor.requires_grad else ', requires_grad=False'})"
    parts.tie_or_add(name, tensor, text)


def _lies_in(name: str, tensor: torch.Tensor, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the tensor belongs to a leaf module, which makes it itself."""
    for owner, module in modules.items():
        if name.startswith(f"{owner}."):
            same = dict(module_tensors(owner, module)).get(name) is tensor
            assert same, f"'{name}' and the module '{owner}' hold different tensors of that name"
            return True
    return False


def _constructor_text(name: str, module: nn.Module) -> str:
    try:
        return check_constructor(module).with_dtype(parameter_dtype(module)).source(prefix="nn.")
    except ModelError as error:
        raise ModelError(f"'{name}' can't be written as source: {error.message}", hint=error.hint) from error


def _tables(program: Program) -> dict[str, str]:
    """The parts that are torch's `ModuleDict` or `ParameterDict`: those with a number, or the like, among their names.

    TorchScript reads a key of these alone. Where a name would hide a method of theirs, the part is none of them.
    """
    inner: dict[str, dict[str, type]] = {}
    for name, value in program.state.items():
        kind: type = nn.Module if isinstance(value, nn.Module) else type(value)
        owner, _, last = name.rpartition(".")
        while owner:
            inner.setdefault(owner, {})[last] = kind
            (owner, _, last), kind = owner.rpartition("."), nn.Module
    found = {}
    for path, kinds in inner.items():
        if not all(map(is_attribute, kinds)):
            for table, kind in ((nn.ModuleDict, nn.Module), (nn.ParameterDict, nn.Parameter)):
                if not any(hasattr(table, name) for name in kinds) and set(kinds.values()) == {kind}:
                    found[path] = f"nn.{table.__name__}"
    return found


def _construction(parts: _Parts) -> Iterator[str]:
    """The statements that make the model's parts."""
    for name, part in parts.tree.items():
        text = "\n".join(_nested(part, name, parts.tables)) if isinstance(part, dict) else part
        if text.startswith("torch.empty("):
            yield f"self.register_buffer({quote(name)}, {text})"
        elif is_attribute(name):
            yield from f"self.{name} = {text}".split("\n")
        else:
            yield from f"setattr(self, {quote(name)}, {text})".split("\n")


def _nested(tree: Tree, path: str, tables: Mapping[str, str]) -> Iterator[str]:
    kind = tables.get(path, "Parts")
    if not tree:
        yield f"{kind}({{}})"
        return
    yield f"{kind}({{"
    for name, part in tree.items():
        lines = list(_nested(part, f"{path}.{name}", tables)) if isinstance(part, dict) else [part]
        lines[0] = f"{quote(name)}: {lines[0]}"
        yield from (f"    {line}" for line in [*lines[:-1], f"{lines[-1]},"])
    yield "})"


# --- forward -----------------------------------------------------------------------------------------------------


_Statement = tuple[int, fx.Node, str]
"""(number among all statements, node, text)"""


def _body(graph: fx.Graph, writer: ExpressionWriter) -> Iterator[str]:
    """The lines of `forward`. What one mode alone computes stands in a branch; the last branch returns."""
    nodes = [node for node in graph.nodes if node.op != "placeholder" and not (node.op == "output" and has_both(graph))]
    texts = ((node, text) for node in nodes if (text := writer.statement(node)) is not None)
    statements = [(index, node, text) for index, (node, text) in enumerate(texts)]
    last_read = {name: index for index, node, _ in statements for name in writer.read_by(node)}
    if not has_both(graph):
        yield from _paragraphs(statements, writer, last_read, {})
        return
    output = output_of(graph)
    assert isinstance(output.args[0], ByMode), "the graph has both"
    last_read.update(dict.fromkeys(writer.read_by(output), len(statements)))
    returns = {mode: f"return {writer.value(getattr(output.args[0], mode))}" for mode in MODES}
    alive: dict[str, dict[str, None]] = {mode: {} for mode in ("", *MODES)}
    runs, tails = _runs(statements, {mode: needed(graph, mode) for mode in MODES})
    for mode, run in runs:
        lines = list(_paragraphs(run, writer, last_read, alive[mode]))
        dead = [name for name in alive[mode] if mode and last_read.get(name, -1) <= run[-1][0]]
        alive[mode] = {name: None for name in alive[mode] if name not in dead}
        yield from _branch(mode, [*lines, *_deletion(dead)])
    if returns["eval"] == returns["train"] and not any(tails.values()):
        yield returns["eval"]
        return
    for last in reversed(MODES):
        lines = [*_paragraphs(tails[last], writer, last_read, alive[last]), *_wrapped(returns[last])]
        yield from _branch("train" if last == "train" else "", lines)


def _runs(
    statements: Sequence[_Statement], halves: Mapping[Mode, set[fx.Node]]
) -> tuple[list[tuple[str, list[_Statement]]], dict[Mode, list[_Statement]]]:
    """Consecutive statements of one mode, or of both (an empty name); and what each mode alone has at the end."""
    modes = [_mode_of(node, halves) for _, node, _ in statements]
    shared = max((index for index, mode in enumerate(modes) if not mode), default=-1) + 1
    pairs = list(zip(modes, statements, strict=True))
    runs = [(mode, [item for _, item in run]) for mode, run in groupby(pairs[:shared], key=lambda pair: pair[0])]
    return runs, {mode: [item for own, item in pairs[shared:] if own == mode] for mode in MODES}


def _mode_of(node: fx.Node, halves: Mapping[Mode, set[fx.Node]]) -> str:
    """The one mode that needs a node; empty where both do, or none."""
    mine = [mode for mode in MODES if node in halves[mode]]
    return mine[0] if len(mine) == 1 else ""


def _branch(mode: str, lines: list[str]) -> Iterator[str]:
    if not mode:
        yield from lines
        return
    yield "if self.training:" if mode == "train" else "if not self.training:"
    yield from (f"    {line}" if line else "" for line in lines)
    if not lines[-1].startswith("return"):
        yield ""


def _paragraphs(
    statements: Sequence[_Statement], writer: ExpressionWriter, last_read: Mapping[str, int], alive: dict[str, None]
) -> Iterator[str]:
    """A paragraph for each block of the original; at its end, tensors in `alive` that aren't read again are deleted."""
    block, length = "", 0
    for index, node, text in statements:
        owner = str(node.target).rpartition(".")[0] if node.op == "call_module" else block
        dead = [name for name in alive if last_read.get(name, -1) < index]
        leaves = not f"{owner}.".startswith(f"{block}.")
        if length and node.op != "output" and (leaves or (length >= PARAGRAPH and dead)):
            yield from _deletion(dead)
            yield ""
            length = 0
            for name in dead:
                del alive[name]
        block = owner if leaves or not length else block
        yield from _wrapped(text)
        length += 1
        if node.users and _holds_memory(node):
            alive.update(dict.fromkeys(writer.reads[node]))


def _holds_memory(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor | tuple | list)


def _deletion(names: list[str]) -> list[str]:
    """Statements that each fit in a line; TorchScript takes no parentheses here."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= WIDTH:
            lines[-1] += f", {name}"
        else:
            lines.append(f"del {name}")
    return lines


def _wrapped(statement: str) -> list[str]:
    """A long statement on several lines, broken inside its brackets; on one line where it can't be."""
    if len(statement) <= WIDTH:
        return [statement]
    lines = textwrap.wrap(statement, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return lines if _parsed("\n".join(lines)) == _parsed(statement) else [statement]


def _parsed(statement: str) -> str | None:
    """The syntax tree as text; `None` for a statement that was broken outside of brackets or inside a string."""
    try:
        return ast.dump(ast.parse(f"def f():\n {textwrap.indent(statement, ' ').lstrip()}"))
    except SyntaxError:
        return None


def _describe_inputs(placeholders: list[fx.Node]) -> str:
    shown = []
    for node in placeholders:
        value = node.meta.get("val")
        for name, tensor in zip(names_of(str(node.target), value), tensors_in(value), strict=True):
            shown.append(f"{name} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")
    return "Inputs, as compiled: " + "; ".join(shown) + "."


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("model.py.jinja")
