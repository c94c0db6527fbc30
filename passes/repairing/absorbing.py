"""Constants that go into what reads them: a unit that gives the same whatever the input is removed without a trace.

    conv reads 0.5 of unit 3 everywhere       bias += 0.5 * sum of its weights on unit 3          then unit 3 goes
    ... and pads it with zeros, while         weights on unit 5 += 0.5 / 0.2 * weights on unit 3
    unit 5, which stays, gives 0.2 there

With zeros around the image a constant isn't one at the border, so that a bias can't stand for it; another constant can.
A layer without a bias whose output goes into a batch norm alone takes it in the norm's running mean. One that has
neither takes nothing: a bias would be a tensor more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.inputs import map_tensors
from prunec.compiler.ir.modules import clone_module
from prunec.compiler.ir.program import BoolArray, IntArray, Program, State
from prunec.compiler.ir.random_inputs import SMALLER, fresh_inputs, has_smaller, seeded
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.verify.compare import difference
from prunec.compiler.verify.interpreter import Interpreter, StepError
from prunec.passes.calibration.constant_units import reads
from prunec.passes.repairing.layers import Layer, Search
from prunec.passes.repairing.rows import is_conv

_EXACT: Final = 1e-5
"""The largest relative difference that the rounding of weights to float32 makes."""
_MOST: Final = 100
"""How many times a constant that stays another one may be at most: weights grow by as much."""


@dataclass(frozen=True)
class Absorbed:
    """A program whose readers have some units' constants in them, so that these can go."""

    program: Program
    units: BoolArray
    """[units]: those whose constants were taken in, at every place where they are read."""
    reasons: Mapping[int, str]
    """unit -> why its constant couldn't be."""


def absorbed(analysis: Analysis, gone: BoolArray, stay: BoolArray, *, border: bool = True) -> Absorbed:
    """Take the constants of the units in `gone` [units] into their readers, as far as that is exact.

    `stay` are units that give constants other than zero, and stay: they can stand for others where zeros are padded.
    Without `border`, zeros around the image are overlooked.
    """
    masks = "/".join(np.packbits(units).tobytes().hex() for units in (gone, stay))
    key = f"absorbed {masks} {border}"  # a pass and its reference both ask
    return analysis.program.cached(key, lambda: _absorbed(analysis, gone, stay, border))


def _absorbed(analysis: Analysis, gone: BoolArray, stay: BoolArray, border: bool) -> Absorbed:
    program = analysis.program
    if program.deployed is not program:
        why = "a model that runs in both modes keeps its constants"
        return Absorbed(program, np.zeros_like(gone), {int(unit): why for unit in np.flatnonzero(gone)})
    draft = _Draft(analysis, gone, stay, border)
    draft.look()
    taken = gone.copy()
    taken[list(draft.reasons)] = False
    if not taken.any():
        return Absorbed(program, taken, draft.reasons)
    made = program.derive(state=draft.state(taken), facts={})
    if border and not is_same(program, remove_units(made, ~taken), _EXACT):
        why = "what stays depends on it, for example by a norm over channels"
        return Absorbed(
            program, np.zeros_like(gone), {**draft.reasons, **dict.fromkeys(np.flatnonzero(taken).tolist(), why)}
        )
    return Absorbed(made, taken, draft.reasons)


def is_same(before: Program, after: Program, tolerance: float = 1e-9) -> bool:
    """Whether both give the same on fresh inputs, in float64: also in another batch size and with images of another
    size, where the model takes them."""
    compared = False
    trials = [fresh_inputs(before, None, 2), fresh_inputs(before, 5, 2, SMALLER)]
    if not has_smaller(before):
        trials.append(tuple(map_tensors(_twice, value) for value in fresh_inputs(before, None, 3)))
    for inputs in trials:
        try:
            with seeded(0):
                wanted = Interpreter(before, torch.float64).run(inputs)
        except StepError:
            continue  # the model takes no such sizes
        try:
            with seeded(0):
                found = Interpreter(after, torch.float64).run(inputs)
        except StepError:
            return False
        if not difference(found, wanted) <= tolerance:
            return False
        compared = True
    return compared


def _twice(value: Tensor) -> Tensor:
    """Images twice as high and wide; other values as they are."""
    return value.repeat(1, 1, *[2] * (value.ndim - 2)) if value.ndim >= 4 and value.is_floating_point() else value


@dataclass(frozen=True)
class _Seen:
    """What a layer reads of constant units."""

    layer: Layer
    module: Any
    values: Tensor
    """[channels]: the constant of each input channel; NaN where it isn't one everywhere."""
    units: IntArray
    """[channels]: the unit of each; NO_UNIT where it is no candidate."""

    @property
    def pads(self) -> bool:
        """Whether the layer puts zeros around the image."""
        return (
            is_conv(self.module)
            and self.module.padding_mode == "zeros"
            and any(self.module._reversed_padding_repeated_twice)
        )

    @property
    def width(self) -> int:
        """How many channels one group of the layer reads."""
        return len(self.units) // (int(self.module.groups) if is_conv(self.module) else 1)


@dataclass
class _Draft:
    """What is to be written into the readers."""

    analysis: Analysis
    gone: BoolArray
    stay: BoolArray
    border: bool
    seen: list[_Seen] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def look(self) -> None:
        """Find what is read of the units, and which of them can't be taken in."""
        program, candidates = self.analysis.program, self.gone | self.stay
        every = Search(program, program).found(everywhere=True).layers
        layers = {layer.node: layer for layer in every if not layer.form.turned and layer.is_plain}
        wanted = {
            node: found for node in program.graph.nodes if (found := list(reads(self.analysis, node, candidates)))
        }
        with seeded(0):
            for node, value in Interpreter(program, torch.float64).steps(program.inputs):
                for labels, mine, users in wanted.get(node, ()):
                    for user in users:
                        self._read(node, value, labels, mine, layers.get(user))
        for seen in self.seen:
            self._judge(seen)

    def _read(self, node: fx.Node, value: Tensor, labels: IntArray, mine: set[int], layer: Layer | None) -> None:
        dim = None if layer is None or layer.source is not node else self._dim(layer, labels)
        if layer is None or dim is None:
            self.reasons.update(
                dict.fromkeys(
                    (u for u in mine if self.gone[u]), f"what reads it at {node.name} is no layer that can take it"
                )
            )
            return
        rows = value.detach().movedim(dim, 0).flatten(1)
        first = rows[:, 0]
        even = (rows - first[:, None]).abs().amax(1) <= 1e-9 * first.abs()
        units = self.analysis.units(labels).reshape(-1)
        candidates = np.append(self.gone | self.stay, False)
        units = np.where(candidates[units], units, NO_UNIT)
        module = layer.form.conv
        self.seen.append(_Seen(layer, module, first.masked_fill(~even, float("nan")), units))

    def _dim(self, layer: Layer, labels: IntArray) -> int | None:
        """The dimension of the layer's input along which its channels lie, if the units lie there, too."""
        module = layer.form.conv
        dim = 1 if is_conv(module) else labels.ndim - 1
        return dim if labels.size == labels.shape[dim] > 1 or labels.ndim == 1 else None

    def _judge(self, seen: _Seen) -> None:
        for channel in np.flatnonzero(seen.units != NO_UNIT).tolist():
            unit = int(seen.units[channel])
            if not self.gone[unit]:
                continue
            value = float(seen.values[channel])
            if np.isnan(value):
                self.reasons[unit] = f"what {seen.layer.node.target} reads of it isn't the same everywhere"
            elif value and self._stands_for(seen, channel) is None:
                if seen.pads and self.border:
                    self.reasons[unit] = f"{seen.layer.node.target} puts zeros around it"
                elif seen.layer.bias is None:
                    self.reasons[unit] = f"{seen.layer.node.target} has no bias"

    def _stands_for(self, seen: _Seen, channel: int) -> int | None:
        """The channel with the largest constant of those in the same group of the layer that stay and are constant
        there, too: weights grow least by it."""
        start, found = channel // seen.width * seen.width, dict[int, float]()
        for other in range(start, start + seen.width):
            unit = int(seen.units[other])
            value = float(seen.values[other])
            if unit != NO_UNIT and self.stay[unit] and abs(value) * _MOST >= abs(float(seen.values[channel])) > 0:
                found[other] = abs(value)
        return max(found, key=found.__getitem__, default=None)

    def state(self, taken: BoolArray) -> dict[str, State]:
        """The program's state, with the constants of these units in their readers."""
        program = self.analysis.program
        tensors: dict[str, Tensor] = {}
        for seen in self.seen:
            self._write(seen, taken, tensors)
        return _with(program, tensors)

    def _write(self, seen: _Seen, taken: BoolArray, tensors: dict[str, Tensor]) -> None:
        program, layer = self.analysis.program, seen.layer
        weight = _draft_of(program, layer.weight, tensors)
        shift = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        each = len(weight) * seen.width // len(seen.units)  # outputs of a group
        for channel in np.flatnonzero(np.append(taken, False)[seen.units]).tolist():
            value = float(seen.values[channel])
            group, column = divmod(channel, seen.width)
            rows = slice(group * each, (group + 1) * each)
            if not value:
                continue
            needs = (seen.pads and self.border) or layer.bias is None
            other = self._stands_for(seen, channel) if needs else None
            if other is None:
                shift[rows] += value * weight[rows, column].reshape(each, -1).sum(1)
            else:
                weight[rows, other % seen.width] += value / float(seen.values[other]) * weight[rows, column]
        if not bool(shift.any()):
            return
        assert layer.bias is not None, "others aren't asked"
        own = layer.norm is not None and layer.bias.startswith(f"{layer.norm.target}.")
        _draft_of(program, layer.bias, tensors).add_(-shift if own else shift)


def _draft_of(program: Program, name: str, tensors: dict[str, Tensor]) -> Tensor:
    """A copy of a tensor in float64, which is written into."""
    if name not in tensors:
        tensors[name] = program.tensors[name].detach().double().clone()
    return tensors[name]


def _with(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, State]:
    """The program's state with other values in some tensors, rounded to their types."""
    state: dict[str, State] = dict(program.state)
    by_module: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        known = program.tensors[name]
        value = value.to(known)
        if isinstance(state.get(owner), nn.Module):
            by_module[owner][key] = value
        else:
            state[name] = nn.Parameter(value, known.requires_grad) if isinstance(known, nn.Parameter) else value
    for owner, values in by_module.items():
        module = state[owner]
        assert isinstance(module, nn.Module), f"{owner} is called"
        state[owner] = clone_module(module, values)
    return state
