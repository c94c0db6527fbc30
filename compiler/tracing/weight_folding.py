"""Weights that a forward computes from parameters alone become plain parameters.

    w = self.weight                                      [8, 3, 3, 3]
    w = (w - w.mean((1, 2, 3))) / w.std((1, 2, 3))       a standardised weight           ->   weight [8, 3, 3, 3]
    F.conv2d(x, w, self.bias)                                                            ->   F.conv2d(x, weight, bias)

The statistics of a weight would pin the channels that they are taken over, though in evaluation mode the result is a
constant. So it becomes a plain parameter, bit for bit the value that the original computes, under the name of the
parameter that it came from where that has its shape and no other reader; it is trainable where anything that it came
from was. Training on then trains this plain weight, and nothing standardises it any more.

A weight that label flow passes through (reshaped, scaled, transposed, the sum of two) is left computed. So are values
that aren't the weight of a product: the coefficients of a weighted sum have no channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler import ops  # noqa: F401  (with it come the rules of all operations)
from prunec.compiler.ir.graph import call, is_impure
from prunec.compiler.ir.ops import op_name, shape_of_argument
from prunec.compiler.ir.program import Program, State
from prunec.compiler.labels.flow import Flow
from prunec.compiler.labels.propagate import label
from prunec.compiler.labels.registry import row_for
from prunec.compiler.tracing.constant_folding import is_random

PRODUCTS = frozenset(
    [f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)]
    + ["linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum", "bilinear"]
)
"""Operations that read a weight."""


def with_plain_weights(program: Program) -> Program:
    """The program with every such weight as a parameter; the program itself where it has none."""
    known = _known(program)
    weights = [node for node in known if _is_weight(node, known)]
    found = {node: sources for node in weights if (sources := _behind(node)) and _counts(program, sources)}
    return _replaced(program, found) if found else program


def _known(program: Program) -> dict[fx.Node, None]:
    """The nodes that depend on parameters, buffers and literals alone, and that nothing writes into."""
    known: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        stored = node.op == "get_attr" and isinstance(program.state.get(str(node.target)), torch.Tensor)
        called = node.op in ("call_function", "call_method") and not is_random(node)
        follows = called and all(source in known for source in node.all_input_nodes)
        if (stored or follows) and not any(user.meta.get("mutates") for user in (node, *node.users)):
            known[node] = None
    return known


def _is_weight(node: fx.Node, known: Mapping[fx.Node, None]) -> bool:
    """Whether a computed value is a factor of a product with something else."""
    readers = [user for user in node.users if user not in known and user.op in ("call_function", "call_method")]
    return (
        node.op != "get_attr"
        and len(shape_of_argument(node)) > 1
        and any(op_name(user) in PRODUCTS for user in readers)
    )


def _behind(node: fx.Node) -> list[fx.Node]:
    """The node and all that it is computed from, in the graph's order."""
    found, ordered = {node}, [node]
    earlier = node.prev
    while earlier.op != "root":
        if any(user in found for user in earlier.users):
            found.add(earlier)
            ordered.append(earlier)
        earlier = earlier.prev
    return ordered[::-1]


def _counts(program: Program, sources: Sequence[fx.Node]) -> bool:
    """Whether any step takes statistics over channels, or is unknown to label flow."""
    flow = Flow(program, trial=True)
    for node in sources:
        before = len(flow.pins) + len(flow.counted)
        flow.values[node] = label(flow, node)
        row = row_for(flow, node) if node.op != "get_attr" else None
        moves = node.op == "get_attr" or (
            row is not None and row.moves
        )  # picking elements pins labels too, and takes no statistic
        if not moves and len(flow.pins) + len(flow.counted) > before:
            return True
    return False


def _replaced(program: Program, found: Mapping[fx.Node, Sequence[fx.Node]]) -> Program:
    """The program with parameters in place of the nodes in `found`, each given with all nodes behind it."""
    graph, mapping = program.copy_graph_with_map()
    state: dict[str, State] = dict(program.state)
    for node, sources in found.items():
        parameters = [str(n.target) for n in sources if isinstance(program.state.get(str(n.target)), nn.Parameter)]
        name = _name(program, node, sources, state)
        trained = any(program.tensors[key].requires_grad for key in parameters)
        state[name] = nn.Parameter(_value(program, node, sources), requires_grad=trained)
        with graph.inserting_before(mapping[node]):
            plain = graph.get_attr(name)
        plain.meta = dict(mapping[node].meta)
        mapping[node].replace_all_uses_with(plain)
    graph.eliminate_dead_code(is_impure)
    return program.with_graph(graph, state)


def _name(program: Program, node: fx.Node, sources: Sequence[fx.Node], state: Mapping[str, State]) -> str:
    """The name of the parameter that a weight came from; or a new one beside the largest that it came from.

    A parameter that anything else is computed from, too, keeps its name and its values.
    """
    stored = [n for n in sources if isinstance(program.state.get(str(n.target)), nn.Parameter)]
    for source in stored:
        alike = shape_of_argument(source) == shape_of_argument(node)
        if alike and _is_alone(program, str(source.target), node, sources):
            return str(source.target)
    largest = max(stored, key=lambda n: shape_of_argument(n)) if stored else None
    base = f"{largest.target if largest else node.name}_computed"
    taken = (base, *(f"{base}_{i}" for i in range(1, len(state) + 2)))
    return next(name for name in taken if name not in state)


def _is_alone(program: Program, name: str, node: fx.Node, sources: Sequence[fx.Node]) -> bool:
    """Whether all that is computed from a parameter goes into `node`, and through no value that others read."""
    behind = set(program.graph.find_nodes(op="get_attr", target=name))
    if not behind <= set(sources):
        return False
    for step in sources:
        if step in behind or any(value in behind for value in step.all_input_nodes):
            behind.add(step)
    return all(user in sources for step in behind - {node} for user in step.users)


def _value(program: Program, node: fx.Node, sources: Sequence[fx.Node]) -> torch.Tensor:
    """A node's value, from the program's own tensors."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for source in sources:
            values[source] = _step(program, source, values)
    return torch.as_tensor(values[node]).detach().clone()


def _step(program: Program, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return program.tensors[str(node.target)]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return call(node, args, kwargs)
