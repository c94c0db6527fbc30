"""Take out what does nothing at inference, on request.

    dropout     %d = dropout(%x)                         nn.Dropout and its kin, F.dropout(x, training=self.training)
    identity    %d = identity(%x)                        nn.Identity, an empty nn.Sequential
    contiguous  %d = %x.contiguous()                     and `clone`, where no one sees the memory
    detach      %d = %x.detach()
    arithmetic  %d = %x + 0, %x * 1, ...                 by Python numbers, where the type stays
    reshape     %d = %x.view(%x.size(0), 512)            where every batch has that shape already
    assert      torch._assert(%condition, "...")         then what the condition was computed from
    dead        %d = relu(%x), read by no one

All of them keep the numbers at inference, and no more than that, which is why a plan has to ask for this pass. The slim
network trains differently without its dropouts, gradients flow where a `detach` stopped them, and wrong inputs no
longer meet an assertion. Name the kinds in `only` to keep the others.

A copy is taken out only where no one can tell: no node behind it writes in place into the memory of either value, and
none asks for a memory layout that only the copy has (`x.permute(...).contiguous().view(...)`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import fx, nn
from torch.nn import functional as F

from prunec.compiler.groups.patterns import match_names
from prunec.compiler.ir.aliasing import aliases, is_fresh, mutates
from prunec.compiler.ir.graph import arguments, operand
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Note, Program, State, shape_of
from prunec.compiler.pass_base import Context, Pass, PassResult

Kind = Literal["dropout", "identity", "contiguous", "clone", "detach", "arithmetic", "reshape", "assert", "dead"]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
FUNCTIONAL_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
NATIVE_DROPOUTS = (torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout)
"""Compiled dropouts, which have no Python signature; all take `(input, p, train)`."""

NEUTRAL: Mapping[str, tuple[float, bool]] = MappingProxyType(
    {"add": (0, True), "sub": (0, False), "mul": (1, True), "div": (1, False), "truediv": (1, False)}
)
"""The number that changes nothing, and whether it may stand on the left as well."""

ASSERTS = frozenset({"_assert", "_assert_async", "_assert_scalar"})
UNSEEN_EFFECTS = frozenset({"backward", "register_hook", "retain_grad", "register_post_accumulate_grad_hook"})

LAYOUT_FREE = frozenset(
    {"reshape", "flatten", "permute", "transpose", "chunk", "split", "unbind", "squeeze", "unsqueeze", "expand"}
    | {"getitem", "getattr", "size", "select", "narrow", "movedim", "contiguous", "dropout"}
)
"""Operations that may pass memory on, and take it in any layout; `view` asks for a layout."""

LAYOUT_ENDS = (nn.Linear, nn.LayerNorm)
"""Layers whose result is laid out in one way, whatever their input's layout."""


@dataclass(frozen=True)
class Found:
    """A node that may go. `value` takes its place, unless there is a `reason` for the node to stay."""

    value: fx.Node | None = None
    reason: str = ""


class Eliminate(Pass):
    """Take out dropout, identities and the like. The slim network then trains differently from the original."""

    name = "eliminate"
    rewrites = True
    shorthand = "only"

    only: tuple[Kind, ...] = Field((), description="the kinds to take out; all of them where none is named")
    keep: tuple[str, ...] = Field((), description="glob patterns of what stays, by module or node name")

    def run(self, program: Program, context: Context) -> PassResult:
        """Take out until nothing more goes. Raises PassError where `keep` names nothing."""
        draft = _Draft(program.copy_graph(), program.state)
        kept = match_names(self.keep, (name for node in draft.graph.nodes for name in _names(node)), "keep")
        draft.kept = {node for node in draft.graph.nodes if not kept.isdisjoint(_names(node))}
        notes: tuple[Note, ...] | None = None
        while notes is None:
            notes = self._sweep(draft)
        after = program.with_graph(draft.graph, program.state) if draft.removed else program
        return PassResult(after, notes, {"removed": draft.removed})

    def _sweep(self, draft: _Draft) -> tuple[Note, ...] | None:
        """Try every node, from the end. None if anything went (then more may go), else notes on what was declined."""
        before = len(draft.gone)
        notes = []
        for node in reversed(list(draft.graph.nodes)):
            match = None if node in draft.gone else self._match(draft, node)
            if match is None:
                continue
            kind, found = match
            if found.reason:
                notes.append(Note(node.name, found.reason))
            else:
                draft.remove(kind, node, found.value)
        return None if len(draft.gone) > before else tuple(reversed(notes))

    def _match(self, draft: _Draft, node: fx.Node) -> tuple[Kind, Found] | None:
        """The kind of needless node that this one is, and what to do about it; None where it is needed."""
        for kind, rule in RULES.items():
            if self.only and kind not in self.only:
                continue
            found = rule(draft, node)
            if found and node in draft.kept:
                return kind, Found(reason="kept by 'keep'")
            if found:
                return kind, found
        return None


def _names(node: fx.Node) -> tuple[str, ...]:
    """The names by which `keep` may mean a node."""
    if node.op in ("placeholder", "output"):
        return ()
    return (node.name, str(node.target)) if node.op == "call_module" else (node.name,)


@dataclass
class _Draft:
    """The rewrite under way, on a private copy of the graph."""

    graph: fx.Graph
    state: Mapping[str, State]
    kept: set[fx.Node] = field(default_factory=set)
    gone: set[fx.Node] = field(default_factory=set)
    removed: dict[str, list[str]] = field(default_factory=dict)

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls; `Any`, because attributes differ by class."""
        return self.state[str(node.target)] if node.op == "call_module" else None

    def remove(self, kind: Kind, node: fx.Node, value: fx.Node | None) -> None:
        """Take a node out, and then what only it has read."""
        self.removed.setdefault(kind, []).append(node.name)
        if value is not None:
            node.replace_all_uses_with(value)
        waiting = [node]
        while waiting:
            unread = waiting.pop()
            sources = unread.all_input_nodes
            self.graph.erase_node(unread)
            self.gone.add(unread)
            waiting += (source for source in sources if source not in self.kept and _is_dead(self, source))


def _is_dead(draft: _Draft, node: fx.Node) -> bool:
    """Whether no one reads the node, and nothing else would miss it."""
    if node.users or node.op in ("placeholder", "output") or mutates(node, draft.state):
        return False
    if node.op == "call_module":
        return type(draft.module(node)).__module__.startswith("torch.nn.")
    if node.op == "call_method":
        return hasattr(torch.Tensor, str(node.target)) and node.target not in UNSEEN_EFFECTS
    return node.op == "get_attr" or ("." not in op_name(node) and op_name(node) not in ASSERTS)


def _op(node: fx.Node) -> str:
    """The name of the function or method that a node calls; empty for other nodes."""
    return op_name(node) if node.op in ("call_function", "call_method") else ""


def _instead(value: fx.Node | None) -> Found | None:
    """`value` in place of the node; None where it is no node of the graph."""
    return Found(value) if value is not None else None


def _dropout(draft: _Draft, node: fx.Node) -> Found | None:
    """A dropout that is off at inference."""
    module = draft.module(node)
    if type(module) in DROPOUTS:
        return _instead(operand(node))
    if node.target in FUNCTIONAL_DROPOUTS:
        given = arguments(node)
        training = given["training"]
    elif node.target in NATIVE_DROPOUTS:
        given = {**dict(zip(("input", "p", "train"), node.args, strict=False)), **node.kwargs}
        training = given["train"]
    else:
        return None
    if given["p"] == 0 or training is False or _is_training_flag(training):
        return _instead(operand(node))
    return Found(reason="it is on at inference too" if training is True else "whether it is on is computed")


def _is_training_flag(value: Any) -> bool:
    """Whether a value is the `training` of the program's module or of one of its parts."""
    return isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target).split(".")[-1] == "training"


def _identity(draft: _Draft, node: fx.Node) -> Found | None:
    """A module that gives back its input."""
    module = draft.module(node)
    is_identity = type(module) is nn.Identity or (type(module) is nn.Sequential and not len(module))
    return _instead(operand(node)) if is_identity else None


def _detach(draft: _Draft, node: fx.Node) -> Found | None:
    """A stop for gradients: it shares its operand's memory."""
    return _instead(operand(node)) if _op(node) == "detach" else None


def _copy_named(name: str) -> Callable[[_Draft, fx.Node], Found | None]:
    """The rule for copies that are made by an operation of this name."""

    def rule(draft: _Draft, node: fx.Node) -> Found | None:
        return _copy(draft, node, operand(node)) if _op(node) == name else None

    return rule


def _arithmetic(draft: _Draft, node: fx.Node) -> Found | None:
    """Arithmetic with a Python number that changes neither the values nor their type (but that -0.0 + 0 is 0.0)."""
    if _op(node) not in NEUTRAL or len(node.args) != 2 or node.kwargs:
        return None
    number, commutes = NEUTRAL[_op(node)]
    left, right = node.args
    if commutes and isinstance(right, fx.Node):
        left, right = right, left
    if not isinstance(left, fx.Node) or not isinstance(right, (int, float)) or right != number:
        return None
    same = _same(node, left) and node.meta["val"].dtype == left.meta["val"].dtype
    return _copy(draft, node, left) if same else None


def _same(node: fx.Node, value: fx.Node) -> bool:
    """Whether both are tensors of one shape, for the example inputs."""
    tensors = all(isinstance(each.meta.get("val"), torch.Tensor) for each in (node, value))
    return tensors and shape_of(node) == shape_of(value)


def _copy(draft: _Draft, node: fx.Node, value: fx.Node | None) -> Found | None:
    """A copy of `value`, unless someone behind it can tell the copy from the value."""
    if value is None:
        return None
    memory = aliases(node, draft.state) | aliases(value, draft.state)
    for writer in _behind(node):
        if mutates(writer, draft.state) and not memory.isdisjoint(writer.all_input_nodes):
            return Found(reason=f"'{writer.name}' writes in place behind it")
    if picky := _asks_for_layout(draft, node):
        return Found(reason=f"'{picky.name}' may need its memory layout")
    return Found(value)


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that run after this one."""
    while (node := node.next).op != "root":
        yield node


def _asks_for_layout(draft: _Draft, node: fx.Node) -> fx.Node | None:
    """A node behind this one that may fail with, or show, another memory layout; None where no node does."""
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            module = draft.module(user)
            if user in seen or user.op == "output" or type(module) in LAYOUT_ENDS:
                continue
            passes = _op(user) in LAYOUT_FREE or isinstance(module, (nn.Flatten, nn.Identity, *DROPOUTS))
            if not (passes or is_fresh(user, draft.state)):
                return user
            seen.add(user)
            waiting.append(user)
    return None


def _reshape(draft: _Draft, node: fx.Node) -> Found | None:
    """A reshape to the shape that its operand has already."""
    value = operand(node)
    if value is None or not _same(node, value):
        return None
    if _op(node) == "flatten" or type(draft.module(node)) is nn.Flatten:
        return Found(value)  # flattening more than one dimension lowers the rank, so that here it was one
    if _op(node) not in ("view", "reshape") or node.kwargs:
        return None
    asked = node.args[1] if len(node.args) == 2 else node.args[1:]
    sizes = asked if isinstance(asked, (tuple, list)) else (asked,)
    if _is_shape(asked, value) or all(_keeps(size, dim, value) for dim, size in enumerate(sizes)):
        return Found(value)
    return Found(reason="it is certain to keep the shape for this batch size only")


def _keeps(size: Any, dim: int, value: fx.Node) -> bool:
    """Whether a size asked for is that of the value for every batch; known to be so for the example."""
    if isinstance(size, int):
        return size == -1 or dim > 0
    if not isinstance(size, fx.Node):
        return False
    rank = len(shape_of(value))
    if size.op == "call_method" and size.target == "size" and len(size.args) == 2:
        return size.args[0] is value and _is_dim(size.args[1], dim, rank)
    if size.target is not operator.getitem:
        return False
    return _is_shape(size.args[0], value) and _is_dim(size.args[1], dim, rank)


def _is_dim(given: Any, dim: int, rank: int) -> bool:
    return isinstance(given, int) and given % rank == dim


def _is_shape(node: Any, value: fx.Node) -> bool:
    """Whether a node is the whole shape of a value."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return node.args == (value,) and not node.kwargs
    return node.target is getattr and node.args == (value, "shape")


def _assert(draft: _Draft, node: fx.Node) -> Found | None:
    """An assertion on a value of the graph."""
    return Found() if _op(node) in ASSERTS and not node.users else None


def _dead(draft: _Draft, node: fx.Node) -> Found | None:
    """A node that no one reads."""
    return Found() if _is_dead(draft, node) else None


RULES: Mapping[Kind, Callable[[_Draft, fx.Node], Found | None]] = MappingProxyType(
    {
        "dropout": _dropout,
        "identity": _identity,
        "contiguous": _copy_named("contiguous"),
        "clone": _copy_named("clone"),
        "detach": _detach,
        "arithmetic": _arithmetic,
        "reshape": _reshape,
        "assert": _assert,
        "dead": _dead,
    }
)
