"""Fold batch norm into the neighbouring convolution or linear layer, on either side where that is exact.

At inference a batch norm's statistics are fixed, and it is one line for each channel:

    y = scale * x + shift      scale = gamma / sqrt(var + eps),  shift = beta - mean * scale

    after:    conv -> bn   =>   conv'      W' = scale * W by output channel,  b' = scale * b + shift
    before:   bn -> conv   =>   conv'      W' = W * scale by input channel,   b' = b + sum over W * shift

`after` holds for every convolution, transposed and grouped ones too. `before` needs a layer that reads the shift
everywhere: where a convolution pads with zeros, the batch norm would have left those zeros alone, and at the border
the results differ. Padding that repeats the input (`reflect`, `replicate`, `circular`) commutes with the batch norm.
A batch norm that several layers read is folded into all of them or none. In training the slim network has no batch
statistics any more: fold last.

What stays says why in a note. The arithmetic is done in float64 and rounded once, to the weight's own type.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunec.compiler.groups.patterns import match_names
from prunec.compiler.ir.aliasing import mutates
from prunec.compiler.ir.graph import operand
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Axis, Note, Program, State, shape_of
from prunec.compiler.pass_base import Context, Pass, PassResult

RANK: Mapping[type, int] = MappingProxyType(
    {
        nn.Linear: 2,
        nn.Conv1d: 3,
        nn.Conv2d: 4,
        nn.Conv3d: 5,
        nn.ConvTranspose1d: 3,
        nn.ConvTranspose2d: 4,
        nn.ConvTranspose3d: 5,
    }
)
"""The layers that take a batch norm in, and the rank of the values whose dimension 1 is their channel. Exact types: a
subclass may compute something else."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FUNCTIONAL = (F.batch_norm, torch.batch_norm)

Edits = dict[str, nn.Module]
"""Module name -> the layer that has taken a batch norm in."""


class FoldBN(Pass):
    """Fold batch norm into the neighbouring convolution or linear layer, on either side where that is exact."""

    name = "fold_bn"
    rewrites = True
    shorthand = "where"

    where: Literal["both", "after", "before"] = Field(
        "both", description="`after`: into the layer that feeds the batch norm; `before`: into those that read it"
    )
    protect: tuple[str, ...] = Field((), description="glob patterns of batch norms that stay, by module name")

    def run(self, program: Program, context: Context) -> PassResult:
        """Fold until nothing more folds, so that chains go as well. Raises PassError where `protect` names nothing."""
        draft = _Draft(program.copy_graph(), dict(program.state), _shared(program))
        protected = match_names(self.protect, (str(node.target) for node in draft.norms()), "protect")
        folded: dict[str, list[str]] = {}
        more, kept = self._sweep(draft, protected)
        while more:
            folded |= more
            more, kept = self._sweep(draft, protected)
        notes = (*(Note(name, reason) for name, reason in kept.items()), *_functional_notes(draft.graph))
        after = _finish(program, draft) if folded else program
        return PassResult(after, notes, {"folded": folded})

    def _sweep(self, draft: _Draft, protected: frozenset[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Try every batch norm once: those that went, with the layers that took them, and the others' reasons."""
        folded: dict[str, list[str]] = {}
        kept: dict[str, str] = {}
        for node in draft.norms():
            name = str(node.target)
            edits = "kept by 'protect'" if name in protected else self._edits(draft, node)
            if isinstance(edits, str):
                kept[name] = edits
                continue
            draft.replace(node, edits)
            folded[name] = list(edits)
        return folded, kept

    def _edits(self, draft: _Draft, node: fx.Node) -> Edits | str:
        """The layers that take the batch norm in, or the reason why there are none."""
        if reason := next(_norm_problems(draft, node), None):
            return reason
        reasons = []
        for side, find in SIDES.items():
            if self.where in ("both", side):
                edits = find(draft, node)
                if not isinstance(edits, str):
                    return edits
                reasons.append(edits)
        return "; ".join(reasons)


@dataclass
class _Draft:
    """The rewrite under way, on a private copy of the graph and of the table of modules."""

    graph: fx.Graph
    state: dict[str, State]
    shared: frozenset[str]
    """Modules that are called more than once, or have a tensor in common with another."""

    def norms(self) -> list[fx.Node]:
        """The calls of batch norm modules, in the order of the graph."""
        calls = (node for node in self.graph.nodes if node.op == "call_module")
        return [node for node in calls if type(self.state[node.target]) in NORMS]

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls; `Any`, because attributes differ by class."""
        return self.state[str(node.target)]

    def takes(self, node: fx.Node) -> bool:
        """Whether the node calls a layer that a batch norm can be folded into."""
        return node.op == "call_module" and type(self.module(node)) in RANK

    def replace(self, node: fx.Node, edits: Edits) -> None:
        """Put the new layers in, and take the batch norm out."""
        source = operand(node)
        assert source is not None, f"{node.name} reads no value"
        self.state.update(edits)
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)


def _shared(program: Program) -> frozenset[str]:
    """The called modules of which some tensor is also read elsewhere: by a second call, by a twin, or by the graph."""
    reads: Counter[int] = Counter()
    tensors: dict[str, list[int]] = {}
    for node in program.graph.nodes:
        value = program.state.get(node.target) if node.op in ("call_module", "get_attr") else None
        if isinstance(value, nn.Module):
            tensors[node.target] = [id(tensor) for _, tensor in module_tensors(node.target, value)]
            reads.update(tensors[node.target])
        elif value is not None:
            reads[id(value)] += 1
    return frozenset(name for name, found in tensors.items() if any(reads[key] > 1 for key in found))


def _norm_problems(draft: _Draft, node: fx.Node) -> Iterator[str]:
    """Reasons why this batch norm isn't `scale * x + shift` with fixed numbers."""
    norm = draft.module(node)
    if norm.running_mean is None or norm.running_var is None:
        yield "it keeps no running statistics"
    if str(node.target) in draft.shared:
        yield "it is shared with another call"


def _layer_problems(draft: _Draft, layer: fx.Node) -> Iterator[str]:
    """Reasons why this layer can't be changed."""
    name = f"'{layer.target}'"
    module = draft.module(layer)
    if str(layer.target) in draft.shared:
        yield f"{name} is shared with another call"
    if module._forward_hooks or module._forward_pre_hooks:
        yield f"{name} has hooks"


def _after(draft: _Draft, node: fx.Node) -> Edits | str:
    """The layer that feeds the batch norm, with the batch norm folded in; or the reason why not."""
    layer = operand(node)
    if layer is None or not draft.takes(layer):
        return f"'{layer}' is no convolution or linear layer"
    if reason := next(_after_problems(draft, node, layer), None):
        return reason
    module = draft.module(layer)
    line = _line(draft.module(node))
    weight = _wide(module.weight) * _by_output(module, line.scale)
    return _edits({str(layer.target): (module, weight, line.scale * _wide(module.bias) + line.shift)})


def _after_problems(draft: _Draft, node: fx.Node, layer: fx.Node) -> Iterator[str]:
    """Why the batch norm can't go into the layer that feeds it."""
    yield from _layer_problems(draft, layer)
    others = [user.name for user in layer.users if user is not node]
    if others:
        yield f"'{layer.target}' is also read by '{others[0]}'"
    if len(shape_of(node)) != RANK[type(draft.module(layer))]:
        yield f"it normalises dimension 1, which is not the channel of '{layer.target}'"


def _before(draft: _Draft, node: fx.Node) -> Edits | str:
    """The layers that read the batch norm, each with the batch norm folded in; or the reason why not."""
    readers = list(_readers(draft, node))
    if not readers:
        return "nothing reads it"
    line = _line(draft.module(node))
    changed = {}
    for reader in readers:
        if reason := next(_before_problems(draft, node, reader), None):
            return reason
        module = draft.module(reader.layer)
        scale, shift = (_along_columns(module, part.repeat_interleave(reader.repeat)) for part in line)
        weight = module.weight.double()
        bias = (weight * shift).flatten(1).sum(1)
        changed[str(reader.layer.target)] = (
            module,
            weight * scale,
            bias if module.bias is None else module.bias + bias,
        )
    return _edits(changed)


@dataclass(frozen=True)
class _Reader:
    """A node that reads the batch norm, directly or through a flatten."""

    layer: fx.Node
    repeat: int = 1
    """How many neighbouring features of the layer's input belong to one channel of the batch norm."""
    rank: int = 0
    """The rank of the value that the layer reads."""


def _readers(draft: _Draft, node: fx.Node) -> Iterator[_Reader]:
    """Those that read the batch norm; a flatten before a linear layer counts as its readers."""
    shape = shape_of(node)
    for user in node.users:
        if not _flattens(draft, user, shape):
            yield _Reader(user, rank=len(shape))
            continue
        for layer in user.users:
            yield _Reader(layer, repeat=math.prod(shape[2:]), rank=2)


def _flattens(draft: _Draft, node: fx.Node, shape: tuple[int, ...]) -> bool:
    """Whether the node makes `[N, C * ...]` of a value of this shape, and keeps each channel's features together."""
    is_module = node.op == "call_module" and isinstance(draft.module(node), nn.Flatten)
    is_call = node.op in ("call_function", "call_method") and op_name(node) == "flatten"
    return (is_module or is_call) and shape_of(node) == (shape[0], math.prod(shape[1:]))


def _before_problems(draft: _Draft, node: fx.Node, reader: _Reader) -> Iterator[str]:
    """Why the batch norm can't go into one of its readers."""
    layer = reader.layer
    if not draft.takes(layer):
        yield f"it is read by '{layer.name}', which is no convolution or linear layer"
    yield from _layer_problems(draft, layer)
    module = draft.module(layer)
    if reader.rank != RANK[type(module)]:
        yield f"it normalises dimension 1, which is not the one that '{layer.target}' reads"
    if isinstance(module, TRANSPOSED):
        yield f"'{layer.target}' is a transposed convolution: the border would differ"
    if _pads_with_zeros(module):
        yield f"'{layer.target}' has zero padding: the border would differ"
    if writer := _writer_between(draft, node, layer):
        yield f"'{writer.name}' writes in place before '{layer.target}' reads"


def _pads_with_zeros(module: Any) -> bool:
    """Whether a convolution puts zeros around its input. `same` puts none for a kernel of size 1."""
    if isinstance(module, nn.Linear) or module.padding_mode != "zeros" or module.padding == "valid":
        return False
    padding = (size - 1 for size in module.kernel_size) if module.padding == "same" else module.padding
    return any(amount != 0 for amount in padding)


def _writer_between(draft: _Draft, first: fx.Node, last: fx.Node) -> fx.Node | None:
    """A node between the two that writes in place: `last` would read what the batch norm did not."""
    node = first.next
    while node is not last:
        if mutates(node, draft.state):
            return node
        node = node.next
    return None


SIDES: Mapping[str, Callable[[_Draft, fx.Node], Edits | str]] = MappingProxyType({"after": _after, "before": _before})


class _Line(NamedTuple):
    """What a batch norm with fixed statistics computes: `scale * x + shift`, in float64, one number a channel."""

    scale: Tensor
    shift: Tensor


def _line(norm: Any) -> _Line:
    scale = _wide(norm.weight, 1) * torch.rsqrt(_wide(norm.running_var) + norm.eps)
    return _Line(scale, _wide(norm.bias) - _wide(norm.running_mean) * scale)


def _wide(tensor: Tensor | None, default: float = 0) -> Tensor:
    """A tensor in float64; `default` for a missing weight or bias."""
    return torch.tensor(default, dtype=torch.float64) if tensor is None else tensor.detach().double()


def _by_output(module: Any, vector: Tensor) -> Tensor:
    """A vector over output channels, reshaped to be multiplied with the layer's weight."""
    if isinstance(module, TRANSPOSED):
        return _along_columns(module, vector)
    return vector.reshape(-1, *[1] * (module.weight.dim() - 1))


def _along_columns(module: Any, vector: Tensor) -> Tensor:
    """The vector along dimension 1 of the weight, of which each group of rows has a stretch of its own.

    `[groups * columns]` becomes `[rows, columns, 1, ...]`.
    """
    rows, columns, *kernel = module.weight.shape
    groups = getattr(module, "groups", 1)
    return (
        vector.reshape(groups, columns).repeat_interleave(rows // groups, 0).reshape(rows, columns, *[1] * len(kernel))
    )


def _edits(changed: Mapping[str, tuple[Any, Tensor, Tensor]]) -> Edits | str:
    """New layers with these weights and biases; or a reason, where one is too large for its type."""
    edits: Edits = {}
    for name, (module, weight, bias) in changed.items():
        tensors = {"weight": weight.to(module.weight.dtype), "bias": bias.to(module.weight.dtype)}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return f"the folded weights of '{name}' would not be finite"
        trained = (module.weight if module.bias is None else module.bias).requires_grad
        tensors["bias"] = nn.Parameter(tensors["bias"], requires_grad=trained)
        edits[name] = clone_module(module, tensors)
    return edits


def _functional_notes(graph: fx.Graph) -> Iterator[Note]:
    """Functional batch norms stay: their statistics are values of the graph, which nothing says are fixed."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONAL:
            yield Note(node.name, "functional batch norm: its statistics are values of the graph")


def _finish(program: Program, draft: _Draft) -> Program:
    """The new program. A bias that folding added is shown, and numbered, like the rows of its weight."""
    after = program.with_graph(draft.graph, draft.state)
    origin, shown = dict(after.origin), set(after.shown)
    for name in after.tensors.keys() - program.tensors.keys():
        layer = name.removesuffix(".bias")
        rows = Axis(f"{layer}.weight", 1 if isinstance(after.state[layer], TRANSPOSED) else 0)
        if rows in origin:
            origin[Axis(name, 0)] = origin[rows]
        if rows.tensor in shown:
            shown.add(name)
    return after.derive(origin=origin, shown=frozenset(shown))
