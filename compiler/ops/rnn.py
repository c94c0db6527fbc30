"""Recurrent layers: the input's features are read; the state is written, and read again at the next step.

    LSTM(6, 5)   weight_ih [4 * 5, 6]   dimension 1 is bound to the labels that arrive, 0 to the state, gate by gate
                 weight_hh [4 * 5, 5]   both dimensions to the state
                 bias      [4 * 5]      to the state, gate by gate

    LSTM(6, 5, proj_size=3)  weight_hr [3, 5]   dimension 1 to the cell's state, 0 to what it is projected to
                             weight_hh [20, 3]  dimension 1 to the projection, which is what the layer gives

A unit of the state whose rows are zero stays zero from step to step, if it is zero at first. Layers and directions of
one module hold states of one size, so they lose the same positions. A projection must stay smaller than the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, is_tensor, shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray
from prunec.compiler.labels.flow import Flow, Labelled, Least
from prunec.compiler.labels.propagate import count_macs, describe, unknown
from prunec.compiler.labels.registry import Attributes, on_module, repeats_tensors

_GATES: Mapping[type[nn.Module], int] = {
    nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1,
}  # fmt: skip


def _bind(
    flow: Flow, node: fx.Node, suffix: str, arriving: IntArray, state: IntArray, given: IntArray | None = None
) -> None:
    """Bind the tensors of one layer and direction (their names end in `suffix`) to the labels of its input and state,
    and of what it gives to the next step, where that is a projection of the state."""
    module, prefix = flow.program.state[str(node.target)], f"{node.target}."
    assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
    gates = np.tile(state, _GATES[type(module)])
    flow.bind(Axis(f"{prefix}weight_ih{suffix}", 0), gates, node, "writer")
    flow.bind(Axis(f"{prefix}weight_ih{suffix}", 1), arriving, node)
    flow.bind(Axis(f"{prefix}weight_hh{suffix}", 0), gates, node, "carrier")
    flow.bind(Axis(f"{prefix}weight_hh{suffix}", 1), state if given is None else given, node, "carrier")
    if given is not None:
        flow.bind(Axis(f"{prefix}weight_hr{suffix}", 0), given, node, "writer")
        flow.bind(Axis(f"{prefix}weight_hr{suffix}", 1), state, node)
    for name in ("bias_ih", "bias_hh"):
        if module._parameters.get(f"{name}{suffix}") is not None:
            flow.bind(Axis(f"{prefix}{name}{suffix}", 0), gates, node, "carrier")


def _arriving(flow: Flow, node: fx.Node, value: fx.Node) -> IntArray:
    """The labels along the last dimension; what varies along steps or batch is pinned."""
    arriving, rest = flow.along(value, -1, node)
    flow.pin_all(rest, f"is a step of {describe(flow, node)}")
    return arriving


def _begin(flow: Flow, node: fx.Node, *states: IntArray) -> None:
    """Initial states, where the call has any, unify with the states that the layer writes: `states` holds the one that
    it gives and, of an LSTM that projects it, the cell's."""
    given = argument(node, 1, "hx")
    for place, first in enumerate(given if isinstance(given, tuple | list) else (given,)):
        if isinstance(first, fx.Node):
            flow.unify(states[min(place, len(states) - 1)], _arriving(flow, node, first), node)
    for state in states:
        flow.count_matters(state, f"is the state of {describe(flow, node)}")


def _count(flow: Flow, node: fx.Node, steps: int, arriving: IntArray, state: IntArray, given: IntArray) -> None:
    rows = _GATES[type(flow.program.state[str(node.target)])] * state.size  # type: ignore[index]
    count_macs(flow, node, steps * rows * arriving.size, (state, arriving))
    count_macs(flow, node, steps * rows * given.size, (state, given))
    if given is not state:
        count_macs(flow, node, steps * given.size * state.size, (state, given))


@on_module(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(flow: Flow, node: fx.Node) -> Labelled:
    """All steps at once: the outputs, and the last states [layers * directions, batch, size]."""
    module, value = flow.program.state[str(node.target)], argument(node, 0, "input")
    assert isinstance(module, nn.RNNBase)
    if not all(map(is_tensor, node.all_input_nodes)):
        return unknown(flow, node)
    source, sides = _arriving(flow, node, value), ("", "_reverse")[: 1 + module.bidirectional]
    if module.proj_size:
        state = flow.write(Axis(f"{node.target}.weight_hr_l0", 1), module.hidden_size, node, "reader")
        given = flow.write(Axis(f"{node.target}.weight_hr_l0", 0), module.proj_size, node)
        flow.least.append(Least(state, module.proj_size + 1, f"is needed beside a projection at {node.name}"))
    else:
        state = given = flow.write(Axis(f"{node.target}.weight_hh_l0", 1), module.hidden_size, node, "carrier")
    projected = given if module.proj_size else None
    for layer, side in itertools.product(range(module.num_layers), sides):
        arriving = source if layer == 0 else np.tile(given, len(sides))
        _bind(flow, node, f"_l{layer}{side}", arriving, state, projected)
        _count(flow, node, elements(shape_of_argument(value)[:-1]), arriving, state, given)
    _begin(flow, node, given, state)
    out, last = node.meta["val"]
    labels = flow.result(np.tile(given, len(sides)), out.ndim, -1)
    if isinstance(last, torch.Tensor):
        return [labels, flow.result(state, last.ndim, -1)]
    return [labels, [flow.result(own, part.ndim, -1) for own, part in zip((given, state), last, strict=True)]]


@on_module(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(flow: Flow, node: fx.Node) -> Labelled:
    """One step: the next state; of an LSTM the next two."""
    module, value, known = flow.program.state[str(node.target)], argument(node, 0, "input"), node.meta["val"]
    assert isinstance(module, nn.RNNCellBase)
    if not all(map(is_tensor, node.all_input_nodes)):
        return unknown(flow, node)
    arriving = _arriving(flow, node, value)
    state = flow.write(Axis(f"{node.target}.weight_hh", 1), module.hidden_size, node, "carrier")
    _bind(flow, node, "", arriving, state)
    _begin(flow, node, state)
    _count(flow, node, elements(shape_of_argument(value)[:-1]), arriving, state, state)
    labels = flow.result(state, len(shape_of_argument(value)), -1)
    return labels if isinstance(known, torch.Tensor) else [labels for _ in known]


@repeats_tensors(nn.RNNBase)
def state_sizes(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Attributes:
    """weight_ih is [gates * state, input]; weight_hr, of an LSTM that projects its state, [projection, state]."""
    sizes = {"input_size": tensors["weight_ih_l0"].shape[1], "hidden_size": tensors["weight_hh_l0"].shape[1]}
    if "weight_hr_l0" in tensors:
        sizes["proj_size"], sizes["hidden_size"] = tensors["weight_hr_l0"].shape
    return sizes


repeats_tensors(nn.RNNCellBase)(
    lambda m, t: {"input_size": t["weight_ih"].shape[1], "hidden_size": t["weight_hh"].shape[1]}
)
