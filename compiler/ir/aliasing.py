"""Which nodes write in place, and which values may share memory.

    y = x.view(2, 4)      y may share memory with x
    z = F.relu(y)         fresh: memory of its own
    y.add_(1)             writes into y, and so into x

Where it isn't certain, two values count as sharing.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx, nn

from prunec.compiler.ir.graph import arguments, operand
from prunec.compiler.ir.modules import lent_copies
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Program, State
from prunec.compiler.ir.symbols import IN_PLACE

_WRITERS = frozenset({*IN_PLACE, operator.setitem, operator.imatmul, operator.ilshift, operator.irshift})
"""Functions that write into their first operand, beyond those that torch spells with an underscore."""

_FRESH_MODULES = frozenset(
    home.__name__
    for home in (
        *(nn.modules.activation, nn.modules.batchnorm, nn.modules.conv, nn.modules.instancenorm, nn.modules.linear),
        *(nn.modules.normalization, nn.modules.pooling, nn.modules.sparse),
    )
)
_FRESH_NAMES = re.compile(
    "add|sub|mul|div|truediv|pow|neg|exp|log|sqrt|rsqrt|mean|sum|amax|amin|var|std|cat|concat|stack|clone|embedding"
    "|matmul|bmm|mm|addmm|baddbmm|linear|bilinear|scaled_dot_product_attention|conv(_transpose)?[123]d"
    "|relu6?|gelu|silu|mish|elu|sigmoid|tanh|(log_)?softmax|hardswish|hardsigmoid|leaky_relu"
    "|(adaptive_)?(avg|max)_pool[123]d|(batch|layer|group|rms|instance)_norm"
)
"""Operations that always give new memory; whatever is in neither table counts as one that may not."""


def mutates(node: fx.Node, state: Mapping[str, State]) -> bool:
    """Whether the node writes into one of its operands."""
    if node.op == "call_module":
        return bool(getattr(state[str(node.target)], "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return _ends_in_place(name) or name in {"__setitem__", "__iadd__", "__imul__"}
    if node.op != "call_function":
        return False
    if node.target in _WRITERS or node.kwargs.get("out") is not None:
        return True
    name = "" if node.target in vars(operator).values() else getattr(node.target, "__name__", "")
    return _ends_in_place(name) or _inplace_flag(node)


def _ends_in_place(name: str) -> bool:
    """torch's spelling: `add_` writes in place, `__add__` doesn't, nor does `operator.and_`, which only avoids a
    keyword."""
    return name.endswith("_") and not name.endswith("__")


def _inplace_flag(node: fx.Node) -> bool:
    """Whether a function such as `F.relu(x, True)` is told to write in place. Builtins have no such parameter."""
    if not inspect.isfunction(node.target) or "inplace" not in inspect.signature(node.target).parameters:
        return False
    return arguments(node)["inplace"] is not False


def is_fresh(node: fx.Node, state: Mapping[str, State]) -> bool:
    """Whether the node's value is certain to have memory of its own."""
    if mutates(node, state):
        return False
    if node.op == "call_module":
        module = state[str(node.target)]
        return type(module).__module__ in _FRESH_MODULES and not isinstance(module, nn.Identity)
    return node.op in {"call_function", "call_method"} and _FRESH_NAMES.fullmatch(op_name(node)) is not None


def aliases(node: fx.Node, state: Mapping[str, State]) -> set[fx.Node]:
    """Every value that may share memory with the node's, the node itself included."""
    return next(found for found in memories(node.graph, state) if node in found)


def memories(graph: fx.Graph, state: Mapping[str, State]) -> Iterator[set[fx.Node]]:
    """The graph's nodes, in sets of those that may share memory."""
    nodes = list(graph.nodes)
    places = {node: place for place, node in enumerate(nodes)}
    edges = [(places[user], places[source]) for user, source in _sharing(graph, state)]
    left, right = np.array(edges, dtype=np.intp).reshape(-1, 2).T
    joined = coo_matrix((np.ones(len(edges), bool), (left, right)), shape=(len(nodes), len(nodes)))
    count, labels = connected_components(joined, directed=False)
    found: list[set[fx.Node]] = [set() for _ in range(count)]
    for node, label in zip(nodes, labels, strict=True):
        found[label].add(node)
    yield from found


def written(program: Program) -> frozenset[str]:
    """The tensors of a program's state that a run of it may write into: counters, caches."""
    return program.cached("written", lambda: _written(program.graph, program.state))


def _written(graph: fx.Graph, state: Mapping[str, State]) -> frozenset[str]:
    writers = {node for node in graph.nodes if mutates(node, state)}
    touched = (found for found in memories(graph, state) if found & writers) if writers else ()
    return frozenset(str(node.target) for found in touched for node in found if node.op == "get_attr")


@contextmanager
def unwritten(program: Program) -> Iterator[None]:
    """A context in which the program may be run: its state is afterwards as it was before."""
    with lent_copies([program.tensors[name] for name in written(program) if name in program.tensors]):
        yield


def _sharing(graph: fx.Graph, state: Mapping[str, State]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of values that may share memory; of the nodes that read one tensor of the state, each with the first."""
    readers: dict[str, fx.Node] = {}
    for user in graph.nodes:
        if user.op == "get_attr":
            yield user, readers.setdefault(str(user.target), user)
        elif user.op != "output" and _has_memory(user) and not is_fresh(user, state):
            yield from ((user, source) for source in _sources(user, state) if _has_memory(source))


def _sources(node: fx.Node, state: Mapping[str, State]) -> list[fx.Node]:
    """The operands whose memory a node's value may share; of a node that writes in place, the first alone."""
    first = operand(node)
    writes = mutates(node, state) and isinstance(node.meta.get("val"), torch.Tensor) and "out" not in node.kwargs
    return [first] if writes and first is not None and node.target != "set_" else node.all_input_nodes


def _has_memory(node: fx.Node) -> bool:
    """Whether a value may hold tensors; sizes, flags, types and devices don't."""
    return not isinstance(node.meta.get("val"), bool | int | float | torch.Size | torch.dtype | torch.device)
