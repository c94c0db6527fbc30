"""Constants that go into what reads them: a unit that gives the same whatever the input is removed without a trace.

    conv reads 0.5 of unit 3 everywhere       bias += 0.5 * sum of its weights on unit 3          then unit 3 goes
    ... and pads it with zeros, while         weights on unit 5 += 0.5 / 0.2 * weights on unit 3
    unit 5, which stays, gives 0.2 there

With zeros around the image a constant isn't one at the border, so that a bias can't stand for it; another constant can.
A layer without a bias whose output goes into a batch norm alone takes it in the norm's running mean. One that has
neither takes nothing: a bias would be a tensor more.

With `maps`, what neither can stand for is added behind the layer, place by place (`maps.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.modules import clone_module
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray, Program, State
from prunec.compiler.ir.random_inputs import SMALLER, fresh_inputs, seeded
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.verify.compare import difference
from prunec.compiler.verify.interpreter import Interpreter, StepError
from prunec.passes.constants.constant_units import reads
from prunec.passes.constants.maps import Map, map_of, with_maps
from prunec.passes.constants.other_sizes import other_sizes, takes_other_sizes
from prunec.passes.repairing.layers import Layer, Search
from prunec.passes.repairing.rows import is_conv

_WORTH: Final = 4
"""How many multiplications must be saved for each number that is added instead."""
_MOST: Final = 100
"""How many times a constant that stays another one may be at most: weights grow by as much, and so does what rounding
them loses."""
_MOST_ROUNDED: Final = 2
"""The same in half precision."""
_SINGLE: Final = 1e-6
"""A type of less precision than this is half precision."""


@dataclass(frozen=True)
class Absorbed:
    """A program whose readers have some units' constants in them, so that these can go."""

    program: Program
    units: BoolArray
    """[units]: those whose constants were taken in, at every place where they are read."""
    reasons: Mapping[int, str]
    """unit -> why its constant couldn't be."""
    sizes: FloatArray
    """[units]: the magnitude of each unit's constant, the least of those that layers read; 0 where none does."""
    maps: tuple[Map, ...] = ()
    """What is added behind layers."""

    def without(self, keep: BoolArray) -> Program:
        """The program without the units that `keep` [units] doesn't name."""
        return with_maps(self.program, remove_units(self.program, keep), self.maps)


def absorbed(
    analysis: Analysis, gone: BoolArray, stay: BoolArray, *, border: bool = True, maps: bool = False
) -> Absorbed:
    """Take the constants of the units in `gone` [units] into their readers, as far as that is exact.

    `stay` are units that give constants other than zero, and stay: they can stand for others where zeros are padded.
    Without `border`, zeros around the image are overlooked. With `maps`, what would be inexact is added behind the
    layer, where its image has one size alone and this costs less than it saves.
    """
    masks = "/".join(np.packbits(units).tobytes().hex() for units in (gone, stay))
    key = f"absorbed {masks} {border} {maps}"  # a pass and its reference both ask
    return analysis.program.cached(key, lambda: _absorbed(analysis, gone, stay, border, maps))


def _absorbed(analysis: Analysis, gone: BoolArray, stay: BoolArray, border: bool, by_map: bool) -> Absorbed:
    program = analysis.program
    if program.deployed is not program:
        why = "a model that runs in both modes keeps its constants"
        return Absorbed(
            program, np.zeros_like(gone), dict.fromkeys(np.flatnonzero(gone).tolist(), why), np.zeros(gone.size)
        )
    draft = _Draft(analysis, gone, stay, border, by_map)
    draft.look()
    sizes = draft.sizes()
    taken = gone.copy()
    taken[list(draft.reasons)] = False
    if not taken.any():
        return Absorbed(program, taken, draft.reasons, sizes)
    maps = draft.maps(taken)
    exact = Absorbed(program.derive(state=draft.state(taken), facts={}), taken, draft.reasons, sizes, maps)
    if border and not is_same(program, exact.without(~taken)):
        why = "what stays depends on it, for example by a norm over channels"
        return Absorbed(
            program, np.zeros_like(gone), {**draft.reasons, **dict.fromkeys(np.flatnonzero(taken).tolist(), why)}, sizes
        )
    rounded = program.derive(state=draft.state(taken, rounded=True), facts={})
    return Absorbed(rounded, taken, draft.reasons, sizes, maps)


def is_same(before: Program, after: Program, tolerance: float = 1e-9) -> bool:
    """Whether both give the same on fresh inputs, in float64: also in another batch size, with images of another size
    and sequences of another length, where the model takes them."""
    compared = False
    for inputs, wanted in before.cached("outputs to compare", lambda: list(_outputs(before))):
        try:
            with seeded(0):
                found = Interpreter(after, torch.float64).run(inputs)
        except StepError:
            return False
        if not difference(found, wanted) <= tolerance:
            return False
        compared = True
    return compared


def _outputs(program: Program) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Fresh inputs, in several batch sizes and sizes of images, and what the program gives for those that it takes."""
    for inputs in (fresh_inputs(program, None, 2), fresh_inputs(program, 5, 2, SMALLER), *other_sizes(program, 3)):
        try:
            with seeded(0):
                yield inputs, Interpreter(program, torch.float64).run(inputs)
        except StepError:
            continue  # the model takes no such sizes


@dataclass
class _Seen:
    """What a layer reads of constant units."""

    layer: Layer
    module: Any
    values: Tensor
    """[channels]: the constant of each input channel; NaN where it isn't one everywhere."""
    units: IntArray
    """[channels]: the unit of each; NO_UNIT where it is no candidate."""
    dim: int
    """The dimension of what is read along which the channels lie."""
    image: Tensor | None
    """What a sample reads of the channels, [channels, ...], where all samples read the same."""
    mapped: set[int] = field(default_factory=set)
    """The channels whose constants are added behind the layer."""
    largest: IntArray | None = None
    """[groups]: the channel with the largest constant of those that stay."""

    @cached_property
    def numbers(self) -> FloatArray:
        """The same constants as numbers of numpy."""
        found: FloatArray = self.values.cpu().numpy()
        return found

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
    by_map: bool
    seen: list[_Seen] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def look(self) -> None:
        """Find what is read of the units, and which of them can't be taken in."""
        program, candidates = self.analysis.program, self.gone | self.stay
        every = Search(program, program).found(everywhere=True).layers
        layers = {layer.node: layer for layer in every if self._takes(layer)}
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

    def _takes(self, layer: Layer) -> bool:
        """Whether constants can be written into a layer's own tensors, or added behind it."""
        whole = layer.is_plain and (layer.shift is None or not layer.shift.views)
        return whole and (self.by_map or not layer.form.turned)

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
        if layer.form.turned:
            even = torch.zeros_like(even)  # of its taps, some meet the constant here, others there
        image = None
        if self.by_map and layer.batch == (0, 1):
            sample = value.detach()[:1].movedim(dim, 0)
            same = ((rows.reshape(len(rows), len(value), -1) - sample.reshape(len(rows), 1, -1)) == 0).flatten(1).all(1)
            image = sample if bool(same[torch.from_numpy(units != NO_UNIT)].all()) else None
        self.seen.append(_Seen(layer, module, first.masked_fill(~even, float("nan")), units, dim, image))

    def _dim(self, layer: Layer, labels: IntArray) -> int | None:
        """The dimension of the layer's input along which its channels lie, if the units lie there, too."""
        module = layer.form.conv
        dim = 1 if is_conv(module) else labels.ndim - 1
        return dim if labels.size == labels.shape[dim] > 1 or labels.ndim == 1 else None

    def sizes(self) -> FloatArray:
        """[units]: the least magnitude that a layer reads of each unit; 0 where that isn't one constant."""
        found = np.full(self.gone.size, np.inf)
        for seen in self.seen:
            here = seen.units != NO_UNIT
            np.minimum.at(found, seen.units[here], seen.values.abs().nan_to_num(0.0).cpu().numpy()[here])
        return np.where(np.isinf(found), 0.0, found)

    def _judge(self, seen: _Seen) -> None:
        for channel in np.flatnonzero(seen.units != NO_UNIT).tolist():
            unit = int(seen.units[channel])
            if not self.gone[unit]:
                continue
            if (reason := self._fault(seen, channel)) is not None:
                if seen.image is None:
                    self.reasons[unit] = reason
                else:
                    seen.mapped.add(channel)
        if seen.mapped and (reason := self._map_fault(seen)) is not None:
            self.reasons.update({int(seen.units[channel]): reason for channel in seen.mapped})

    def _fault(self, seen: _Seen, channel: int) -> str | None:
        """Why neither the layer's bias nor another constant can stand for a channel's."""
        name = seen.layer.node.target if seen.layer.node.op == "call_module" else seen.layer.node.name
        value = float(seen.numbers[channel])
        if np.isnan(value):
            return f"what {name} reads of it isn't the same everywhere"
        if value and self._stands_for(seen, channel) is None:
            if seen.pads and self.border:
                return f"{name} puts zeros around it"
            if seen.layer.bias is None:
                return f"{name} has no bias"
        return None

    def _map_fault(self, seen: _Seen) -> str | None:
        """Why a layer's constants can't be added behind it."""
        found = self._map(seen, seen.mapped)
        weight = self.analysis.program.tensors[seen.layer.weight]
        taps = weight[0, 0].numel()
        given = seen.layer.node.meta["val"]
        if len(seen.mapped) * taps * (given.numel() // len(given)) < _WORTH * found.values.numel():
            return f"a map of {found.values.numel():,} numbers would cost more than it saves"
        uniform = found.values.numel() == found.values.shape[found.dim]
        return None if uniform or not takes_other_sizes(self.analysis.program) else "a map would fix the image's size"

    def maps(self, taken: BoolArray) -> tuple[Map, ...]:
        """What is to be added behind layers for these units."""
        found = []
        for seen in self.seen:
            channels = {each for each in seen.mapped if taken[seen.units[each]]}
            made = self._map(seen, channels) if channels else None
            found += [made] if made is not None and bool(made.values.any()) else []
        return tuple(found)

    def _map(self, seen: _Seen, channels: set[int]) -> Map:
        """What a layer makes of some channels' constants."""
        assert seen.image is not None, "others aren't mapped"
        image = torch.zeros_like(seen.image)
        image[sorted(channels)] = seen.image[sorted(channels)]
        return map_of(self.analysis.program, seen.layer, image.movedim(0, seen.dim))

    def _stands_for(self, seen: _Seen, channel: int) -> int | None:
        """The channel with the largest constant of those in the same group of the layer that stay and are constant
        there, too: weights grow least by it."""
        if seen.largest is None:
            stays = np.append(self.stay, False)[seen.units] & (seen.units != NO_UNIT)
            sizes = np.where(stays, np.nan_to_num(np.abs(seen.numbers)), -1.0).reshape(-1, seen.width)
            seen.largest = sizes.argmax(1) + np.arange(len(sizes)) * seen.width
        other = int(seen.largest[channel // seen.width])
        if not np.append(self.stay, False)[seen.units[other]] or seen.units[other] == NO_UNIT:
            return None
        weight = self.analysis.program.tensors[seen.layer.weight]
        most = _MOST if torch.finfo(weight.dtype).eps < _SINGLE else _MOST_ROUNDED
        return other if abs(seen.numbers[other]) * most >= abs(seen.numbers[channel]) > 0 else None

    def state(self, taken: BoolArray, *, rounded: bool = False) -> dict[str, State]:
        """The program's state, with the constants of these units in their readers: in float64, or rounded to the types
        of the tensors."""
        program = self.analysis.program
        tensors: dict[str, Tensor] = {}
        for seen in self.seen:
            self._write(seen, taken, tensors)
        rounding = {name: value.to(program.tensors[name]) for name, value in tensors.items()} if rounded else tensors
        return _with(program, rounding)

    def _write(self, seen: _Seen, taken: BoolArray, tensors: dict[str, Tensor]) -> None:
        program, layer = self.analysis.program, seen.layer
        weight = _draft_of(program, layer.weight, tensors)
        shift = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        each = len(weight) * seen.width // len(seen.units)  # outputs of a group
        needs = (seen.pads and self.border) or layer.bias is None
        columns: dict[tuple[int, int | None], list[int]] = defaultdict(list)
        """By group of the layer, and the channel that stands for them: the channels that go."""
        for channel in np.flatnonzero(np.append(taken, False)[seen.units]).tolist():
            if seen.numbers[channel] and channel not in seen.mapped:
                other = self._stands_for(seen, channel) if needs else None
                columns[channel // seen.width, other].append(channel)
        for (group, other), channels in columns.items():
            own = weight[group * each : (group + 1) * each]
            values = seen.values[channels].to(own).view(1, -1, *[1] * (own.ndim - 2))
            gone = own[:, [channel % seen.width for channel in channels]] * values
            if other is None:
                shift[group * each : (group + 1) * each] += gone.reshape(each, -1).sum(1)
            else:
                own[:, other % seen.width] += gone.sum(1) / float(seen.numbers[other])
        if not bool(shift.any()):
            return
        assert layer.bias is not None, "others aren't asked"
        is_mean = layer.norm is not None and layer.bias.startswith(f"{layer.norm.target}.")
        _draft_of(program, layer.bias, tensors).add_(-shift if is_mean else shift)


def _draft_of(program: Program, name: str, tensors: dict[str, Tensor]) -> Tensor:
    """A copy of a tensor in float64, which is written into."""
    if name not in tensors:
        tensors[name] = program.tensors[name].detach().double().clone()
    return tensors[name]


def _with(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, State]:
    """The program's state with other values in some tensors."""
    state: dict[str, State] = dict(program.state)
    by_module: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        known = program.tensors[name]
        if isinstance(state.get(owner), nn.Module):
            by_module[owner][key] = value
        else:
            state[name] = nn.Parameter(value, known.requires_grad) if isinstance(known, nn.Parameter) else value
    for owner, values in by_module.items():
        module = state[owner]
        assert isinstance(module, nn.Module), f"{owner} is called"
        state[owner] = clone_module(module, values)
    return state
