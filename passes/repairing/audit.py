"""New weights are what their pass claims: checked on some of its samples, by running layers and not by moments.

The references of `repair`, `factorise` and `merge: least_squares` take the new tensors from the new program. Whether
these are a least squares solution at all is seen from what layers give with them:

    d = new - old outputs, r = what the old ones lack        repair      the step d is along r: <d, r> / <d, d> >= 1
    y = the thin layers' outputs, t = the old layer's        factorise   y is a projection:     <y, t> / <y, y> = 1
    W_kept', W_kept, W_gone                                  merge       W_kept' = W_kept + C W_gone for some C
    e = W_gone' x_gone - (W_kept' - W_kept)' x_kept          merge       E[x_kept e'] = 0: C is that of least squares

That number is the length of the best step in a direction, in steps of the one that was taken. Half a step, and the
new weights are as good as the old ones; weights with rows or columns in another order have a number near zero. What
moves outputs (a bias) is right where nothing is lacking on average.

Some of the samples say less than all of them, so that the bounds are wide; a fault is a step that leads nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx

from prunec.compiler.data import Batch
from prunec.compiler.errors import VerifyError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.interchangeable import kinds
from prunec.compiler.ir.program import Axis, BoolArray, IntArray, Program
from prunec.compiler.pass_base import Context, silent
from prunec.compiler.verify.interpreter import Interpreter, precision_of
from prunec.passes.calibration import calibration as calibrating
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.repairing.calls import call_of
from prunec.passes.repairing.combining import Read, reads_of
from prunec.passes.repairing.inputs import ROWS, WIDE, WIDE_ROWS
from prunec.passes.repairing.layers import Layer, Search, called
from prunec.passes.repairing.walk import AT_ONCE, feeds_of

SAMPLES: Final = 16
"""How many samples are looked at, at least; all where there are no more, and fewer than twice as many."""
_LEAST_STEP: Final = 0.4
"""The shortest best step that passes, where the solution's own samples would say at least 1."""
_PROJECTED: Final = (0.6, 1.6)
"""Between which the best step of a projection lies."""
_FEW: Final = 8
"""Fewer samples than these are all that there are, and say nothing about their spread."""
_APART: Final = 5.0
"""How many standard errors a sum may be off, by which a step is too short."""
_OFF: Final = 7.0
"""How many a mean may be off, of which there is one for each layer, however few its outputs."""
_ROUNDED: Final = 4.0
"""How many roundings of what is added up a mean may be off."""
_ORTHOGONAL: Final = 1e-4
"""What rounding may leave of the product of what a combination lacks with what it is made of, as a share of their sizes
without the combination."""
_IDLE: Final = 1e-9
"""A step that is smaller than this share of what it is added to isn't looked at: rounding makes it."""


@dataclass
class _Sums:
    """What is added up of a layer over samples."""

    along: list[Tensor] = field(default_factory=list)
    """[samples]: the product of a step with what it should go along."""
    own: list[Tensor] = field(default_factory=list)
    """[samples]: its square."""
    size: float = 0.0
    count: int = 0
    """How many places of outputs `size` is about."""
    means: list[Tensor] = field(default_factory=list)
    """[samples, outputs]: what is still lacking, on average over a sample's positions."""
    left: float = 0.0
    """The square of what is still lacking, on average over a sample's positions; summed over samples and outputs."""

    def add(self, step: Tensor, lacking: Tensor, size: Tensor) -> None:
        """Add a step and what it should go along, of one shape, [samples, ...]."""
        step, lacking = step.double().flatten(1), lacking.double().flatten(1)
        self.along.append((step * lacking).sum(1))
        self.own.append(step.square().sum(1))
        self.add_size(size)

    def add_size(self, size: Tensor) -> None:
        """Add what a step is added to, [..., outputs]."""
        self.size += float(size.double().square().sum())
        self.count += size[..., :1].numel()

    def leads(self, rounding: float, least: float, most: float = math.inf) -> bool:
        """Whether the best step, in steps of the one that was taken, lies between these, as far as so few samples can
        tell, and but for rounding of this share of a number; for a step that is none, it does."""
        if not self.along:
            return True  # no sample has finite values
        along, own, rounded = torch.cat(self.along), torch.cat(self.own), _ROUNDED * rounding
        if float(own.sum()) <= max(_IDLE, rounded**2) * self.size:
            return True
        slack = rounded * math.sqrt(float(own.sum()) * self.size)
        if math.isinf(most):
            return _isnt_negative(along - least * own, _APART, slack)
        return all(_isnt_negative(each, _APART / 2, slack) for each in (along - least * own, most * own - along))

    def centred(self, rounding: float, rows: int) -> bool:
        """Whether nothing is lacking on average, as far as so few samples can tell, and but for rounding of this share
        of a number. The solution has seen about `rows` positions, drawn from those of all samples and the same in equal
        ones: it is off by that, too."""
        if sum(map(len, self.means)) < _FEW:
            return True
        means = torch.cat(self.means)
        error = means.var(0).sum() / len(means) + self.left / (rows * len(torch.unique(means, dim=0)))
        rounded = max(1e-12, (_ROUNDED * rounding) ** 2 / max(self.count, 1)) * self.size
        return float(means.mean(0).square().sum()) <= float(_OFF**2 * error) + rounded


def _isnt_negative(each: Tensor, errors: float, slack: float) -> bool:
    """Whether a sum over samples isn't below zero by more than so many standard errors, and this."""
    error = float(each.std()) * math.sqrt(len(each)) if len(each) >= _FEW else 0.0
    return float(each.sum()) >= -errors * error - slack


@dataclass(frozen=True)
class RepairAudit:
    """The check of a program that `repair` has refit, against the dense one (`context.traced`)."""

    before: Program
    after: Program
    calibration: Calibration
    context: Context
    statistics: bool
    """Whether it is batch norms' statistics that were estimated anew, and not layers refit."""
    rows: int = ROWS
    """About so many positions the solution has seen."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Layers that were refit together with their readers."""

    def check(self) -> None:
        """Check layers, or batch norms against what arrives at them. Raises `VerifyError`."""
        _raise(self._faults)

    def _faults(self, every: bool) -> Iterator[str]:
        """What is wrong with layers, by some samples or by every one."""
        assert self.context.traced is not None, "a compile knows what it has traced"
        old, new, dense = self.before.deployed, self.after.deployed, self.context.traced.deployed
        found = Search(new, dense).found()
        changed = {name for name, x in new.tensors.items() if not torch.equal(x, old.tensors[name])}
        refit = [] if self.statistics else found.layers
        refit = [each for each in refit if each.calls == 1 and called(each.node) not in self.values]
        layers = [each for each in refit if changed & {each.weight, each.bias or ""}]
        sums = {each.node.name: _Sums() for each in layers}
        # A reader that gives values itself has been turned for the next one: nothing tells what it should give.
        ends = {name: reader for name, reader in self.values.items() if reader not in self.values}
        together = [_Together.of(name, reader, old, new, found.layers) for name, reader in ends.items()]
        both = {each.name: _Sums() for each in together}
        norms = {node: _Sums() for node in found.norms if self.statistics and f"{node.target}.running_mean" in changed}
        sources = {each.source for each in layers} | {node.all_input_nodes[0] for node in norms}
        others = {each.other for each in layers if each.other is not None}
        for feeds in _feeds(dense, self.calibration, self.context, every)[0]:
            targets = _values(dense, feeds(dense), {each.target for each in (*layers, *(x.reader for x in together))})
            values = _values(new, feeds(new), sources | others | {each.reader.node for each in together})
            for pair in together:
                first = pair.given(new, feeds(new))
                _compare(pair.reader, first, values, targets[pair.reader.target], both[pair.name])
            for layer in layers:
                _judge(layer, old, new, values, targets[layer.target], sums[layer.node.name])
            for node, its in norms.items():
                x = values[node.all_input_nodes[0]].double()
                if not bool(x.isfinite().all()):
                    continue
                module: Any = new.state[str(node.target)]
                its.add_size(x.movedim(1, -1))
                _per_sample(its, x.movedim(1, -1) - module.running_mean.double())
        for name, its in sums.items():
            if not its.leads(_rounding(new), _LEAST_STEP):
                yield _fault("repair", name, "isn't nearer to what the dense model gives than before")
            if not its.centred(_rounding(new), self.rows):
                yield _fault("repair", name, "doesn't give what the dense model gives on average")
        for name, its in both.items():
            if not its.leads(_rounding(new), _LEAST_STEP):
                yield _fault("repair", name, "together aren't nearer to what the dense model gives than before")
        for node, its in norms.items():
            if not its.centred(_rounding(new), self.rows):
                yield _fault("repair", str(node.target), "has another running mean than what arrives at it")


@dataclass(frozen=True)
class _Together:
    """A layer that gives values, and its reader."""

    name: str
    reader: Layer
    tensors: Mapping[str, Tensor]
    """Those of both, as they were."""

    @staticmethod
    def of(name: str, reader: str, old: Program, new: Program, layers: Sequence[Layer]) -> _Together:
        its = next(each for each in layers if called(each.node) == reader)
        call = next(found for node in new.graph.nodes if called(node) == name and (found := call_of(node, new)))
        parts = (call.weight, call.bias, its.part, its.shift)
        names = (part.name for part in parts if part is not None)
        return _Together(f"{name} and {reader}", its, {name: old.tensors[name] for name in names})

    def given(self, program: Program, inputs: tuple[Any, ...]) -> Tensor:
        """What the reader gives with them, all before these being new."""
        return _values(program, inputs, {self.reader.node}, self.tensors)[self.reader.node]


def _compare(layer: Layer, before: Tensor, values: Mapping[fx.Node, Tensor], target: Tensor, sums: _Sums) -> None:
    """Add the step from what a layer gave before to what it gives now, and what it lacked."""
    wanted = _by_output(layer, target)[..., layer.left.to(target.device)]
    if layer.other is not None:
        wanted = wanted - _by_output(layer, values[layer.other])
    first, second = _by_output(layer, before), _by_output(layer, values[layer.node])
    if all(bool(x.isfinite().all()) for x in (first, second, wanted)):
        sums.add(second - first, wanted - first, wanted)


def _judge(
    layer: Layer, old: Program, new: Program, values: Mapping[fx.Node, Tensor], target: Tensor, sums: _Sums
) -> None:
    """Compare what a layer gives, by its old and by its new tensors, with what it should."""
    wanted = _by_output(layer, target)[..., layer.left.to(target.device)]
    if layer.other is not None:
        wanted = wanted - _by_output(layer, values[layer.other])
    first, second = (_by_output(layer, _given(layer, program, values[layer.source])) for program in (old, new))
    alive = _changed_outputs(layer, old, new)
    first, second, wanted = (x[..., alive].double() for x in (first, second, wanted))
    if layer.moves_norm and not layer.through_norm:
        second = second + (old.tensors[layer.bias or ""] - new.tensors[layer.bias or ""]).double()[alive]
    if not all(bool(x.isfinite().all()) for x in (first, second, wanted)):
        return  # the solution has left it out, too
    sums.add(second - first, wanted - first, wanted)
    if layer.bias is not None and layer.batch == (0, 1):
        _per_sample(sums, wanted - second)


def _by_output(layer: Layer, value: Tensor) -> Tensor:
    """A value of the shape of what a layer gives, [..., outputs]."""
    channels = layer.form.channels
    return value.movedim(channels, tuple(range(-len(channels), 0))).flatten(-len(channels))


def _per_sample(sums: _Sums, value: Tensor) -> None:
    """Add the mean of a value [samples, ..., outputs] over each sample's positions."""
    value = value.double().reshape(len(value), -1, value.shape[-1])
    sums.means.append(value.mean(1))
    sums.left += float(value.square().mean(1).sum())


def _changed_outputs(layer: Layer, old: Program, new: Program) -> Tensor:
    """The outputs of a layer whose weights or bias are others."""
    one, other = (layer.laid_in(program) for program in (old, new))
    changed = (one != other).movedim(-1, 1).flatten(2).any(2).reshape(-1)
    if layer.shift is not None:
        changed = changed | (
            layer.shift.of(old.tensors[layer.shift.name]) != layer.shift.of(new.tensors[layer.shift.name])
        )
    return changed.nonzero().reshape(-1)


def _given(layer: Layer, program: Program, x: Tensor) -> Tensor:
    """What a layer gives by a program's tensors; behind its batch norm where that is what was aimed at."""
    run = Interpreter(program, x.dtype)
    found = _called(run, layer.node, {layer.source: x})
    return _called(run, layer.norm, {layer.node: found}) if layer.norm is not None and layer.through_norm else found


def _called(run: Interpreter, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor:
    """What a node gives of these values and the program's tensors, or views of these."""

    def value(source: fx.Node) -> Any:
        if source in values:
            return values[source]
        return run.load(str(source.target)) if source.op == "get_attr" else _called(run, source, values)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    with torch.no_grad():
        found: Tensor = run.target(node)(*args, **kwargs)
    return found


# -- factors -----------------------------------------------------------------------------------------------------------


def audit_factors(before: Program, after: Program, calibration: Calibration, context: Context) -> None:
    """Check that each two layers give a projection of what one gave. Raises `VerifyError`."""
    _raise(lambda every: _faults_of_factors(before, after, calibration, context, every))


def _faults_of_factors(
    before: Program, after: Program, calibration: Calibration, context: Context, every: bool
) -> Iterator[str]:
    """What is wrong with pairs of layers, by some samples or by every one."""
    old, new = before.deployed, after.deployed
    pairs = {
        str(node.target).removesuffix(".1"): (node.all_input_nodes[0], node)
        for node in new.graph.nodes
        if node.op == "call_module"
        and f"{str(node.target).removesuffix('.1')}.0" in new.state.keys() - old.state.keys()
        and str(node.target).endswith(".1")
    }
    layers = {
        str(each.node.target): each
        for each in Search(old, old).found(everywhere=True).layers
        if str(each.node.target) in pairs
    }
    sums = {name: _Sums() for name in layers}
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    samples, count = _feeds(old, calibration, context, every)
    for feeds in samples:
        values = _values(old, feeds(old), {each.source for each in layers.values()})
        for name, layer in layers.items():
            x, (first, second) = values[layer.source], pairs[name]
            wanted, run = _given_plainly(layer, old, x), Interpreter(new, x.dtype)
            got = _called(run, second, {first: _called(run, first, {first.all_input_nodes[0]: x})})
            dim = 1 if layer.form.conv is not None else got.ndim - 1
            if layer.moves_norm and layer.bias is not None:
                shift = old.tensors[layer.bias].double() - new.tensors[layer.bias].double()
                got = got + shift.reshape([-1 if d == dim else 1 for d in range(got.ndim)])
            scale: Tensor | float = 1.0
            if layer.norm is not None:
                norm: Any = old.state[str(layer.norm.target)]
                scale = torch.rsqrt(norm.running_var.double() + norm.eps)
                scale = scale if norm.weight is None else scale * norm.weight.detach().double()
                scale = scale.reshape([-1 if d == dim else 1 for d in range(got.ndim)])
            got, wanted = got.double() * scale, wanted.double() * scale
            sums[name].add_size(wanted.movedim(dim, -1))
            got, wanted = (x.movedim(dim, -1).flatten(0, -2) for x in (got, wanted))
            parts[name].append(torch.stack([got * wanted, got * got, got, wanted, torch.ones_like(got)]).sum(1))
            if layer.bias is not None and layer.batch == (0, 1):
                _per_sample(sums[name], (wanted - got).unsqueeze(0))
    for name, its in sums.items():
        both, own, got, wanted, places = torch.stack(parts[name], 1)  # each [samples, outputs]
        middle = wanted.sum(0) / places.sum(0) if layers[name].bias is not None else torch.zeros_like(wanted[0])
        its.along.append((both - middle * (got + wanted) + places * middle.square()).sum(1))
        its.own.append((own - 2 * middle * got + places * middle.square()).sum(1))
        if not its.leads(_rounding(new), *_PROJECTED):
            yield _fault(
                "factorise", name, "gives something else in two layers than a projection of what it gave in one"
            )
        if not its.centred(_rounding(new), count * _rows_of_a_sample(layers[name], old, calibration)):
            yield _fault("factorise", name, "doesn't give on average what it gave in one layer")


def _rows_of_a_sample(layer: Layer, program: Program, calibration: Calibration) -> int:
    """How many positions of a sample `layers_read` looks at."""
    most = (WIDE_ROWS if layer.laid_in(program).flatten(1, -2).shape[1] > WIDE else ROWS) // layer.calls
    return -(-most // (calibration.samples or calibrating.SAMPLES))


def _given_plainly(layer: Layer, program: Program, x: Tensor) -> Tensor:
    return _called(Interpreter(program, x.dtype), layer.node, {layer.source: x})


# -- combinations ------------------------------------------------------------------------------------------------------


def audit_merge(
    before: Program, after: Program, groups: Sequence[str], calibration: Calibration, context: Context
) -> None:
    """Check that readers' new columns are their old ones and a combination of those that are gone, and that it is the
    one of least squares: what it lacks is orthogonal to the channels that stay, over all samples. Raises
    `VerifyError`."""
    analysis = analyse(before)
    kind, lacks = kinds(analysis), dict[str, list[_Lack]]()
    for name in groups:
        group = analysis.groups[name]
        found = reads_of(analysis, group)
        for read in () if isinstance(found, str) else found:
            if not _is_combined(read, before, after):
                raise VerifyError(
                    _fault("merge", str(read.member.axis), "has columns that are no combination of its old ones")
                )
            for value in np.unique(kind[group.where]):
                lack = _Lack.of(read, before, after, kind[group.where] == value)
                if lack is not None:
                    lacks.setdefault(f"{read.member.axis} {value}", []).append(lack)
    _see(before, [lack for some in lacks.values() for lack in some], calibration, context)
    most = max(_ORTHOGONAL, _ROUNDED * _rounding(before))
    for some in lacks.values():  # a layer that is called twice reads two values with one combination
        size = math.sqrt(sum(lack.kept * lack.whole for lack in some))
        if float(torch.stack([lack.along for lack in some]).sum(0).norm()) > most * size:
            axis = str(some[0].read.member.axis)
            raise VerifyError(_fault("merge", axis, "has columns that aren't the combination of least squares"))


@dataclass
class _Lack:
    """What the channels that stay lack of a reader's channels that are gone, in a few random mixtures of outputs."""

    read: Read
    stays: IntArray
    gone: IntArray
    change: Tensor
    """[units that stay, mixtures]: what has been added to their columns."""
    removed: Tensor
    """[units that are gone, mixtures]: the columns that went."""
    along: Tensor = field(default_factory=lambda: torch.zeros(()))
    """[units that stay, mixtures]: the products of what is lacking with what is read."""
    kept: float = 0.0
    """The sum of the squares of what is read of the units that stay."""
    whole: float = 0.0
    """That of what the units that are gone gave."""

    @staticmethod
    def of(read: Read, before: Program, after: Program, those: BoolArray) -> _Lack | None:
        """Of some units; None where none is gone, or columns of several places can't tell the combination."""
        columns = _columns(read, before, after)
        if columns is None:
            return None
        old, new, stays, gone = columns
        stays, gone = stays & torch.from_numpy(those), gone & torch.from_numpy(those)
        if not bool(gone.any()) or not bool(stays.any()):
            return None
        change, removed = (new - old)[stays], old[gone]
        if read.places.shape[1] > 1:  # the combination is one for all places, which have columns of their own
            if torch.linalg.matrix_rank(removed) < len(removed):
                return None
            change = torch.linalg.lstsq(removed.T, change.T).solution.T
            removed = torch.eye(len(removed), dtype=torch.float64)
        mixtures = torch.randn(change.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        kept, lost = (each.nonzero().reshape(-1).numpy() for each in (stays, gone))
        return _Lack(read, kept, lost, change @ mixtures, removed @ mixtures)

    def add(self, value: Tensor) -> None:
        """Add a value that is read."""
        rows = value.detach().cpu().double().movedim(self.read.dim, 0).flatten(1)
        stays, gone = (rows[torch.from_numpy(self.read.places[some])].flatten(1) for some in (self.stays, self.gone))
        given = self.removed.T @ gone
        self.along = self.along + stays @ (given - self.change.T @ stays).T
        self.kept, self.whole = self.kept + float(stays.square().sum()), self.whole + float(given.square().sum())


def _see(program: Program, lacks: Sequence[_Lack], calibration: Calibration, context: Context) -> None:
    """Run the samples through the program."""
    wanted: dict[fx.Node, list[_Lack]] = {}
    for lack in lacks:
        wanted.setdefault(lack.read.source, []).append(lack)
    context = Context(context.seed, context.data, silent)
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program), AT_ONCE) if wanted else ():
        for node, value in _values(program, tuple(feeds_of(program, piece.inputs)), set(wanted)).items():
            for lack in wanted[node]:
                lack.add(value)


def _columns(read: Read, before: Program, after: Program) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Each unit's columns [units, places * outputs * taps] before and after, NaN where it is gone; and which units stay
    and which are gone. None where nothing is gone."""
    axis = read.member.axis
    left, other = after.left_of(before, axis), Axis(axis.tensor, 1 - axis.dim)
    if left is None:
        return None
    rows = after.left_of(before, other)
    old, new = (which.tensors[axis.tensor].detach().cpu().double().movedim(axis.dim, 0) for which in (before, after))
    old = old if rows is None else old[:, torch.from_numpy(rows)]
    whole = torch.full_like(old, math.nan)
    whole[torch.from_numpy(left)] = new
    by_unit = [x[torch.from_numpy(read.places)].flatten(1) for x in (old, whole)]
    there = torch.zeros(len(read.places), dtype=torch.bool)
    there[torch.from_numpy(read.present)] = True
    stays = there & ~by_unit[1].isnan().any(1)
    return by_unit[0], by_unit[1], stays, there & ~stays


def _is_combined(read: Read, before: Program, after: Program) -> bool:
    """Whether new columns are that; taken for true where they can't say it."""
    columns = _columns(read, before, after)
    if columns is None:
        return True
    old, new, stays, lost = columns
    kept, gone = (which.nonzero().reshape(-1).numpy() for which in (stays, lost))
    if not gone.size or not kept.size:
        return True
    removed, change = old[gone].T, (new - old)[kept].T
    if torch.linalg.matrix_rank(removed) < len(gone):
        return True
    c = torch.linalg.lstsq(removed, change).solution.T
    apart = float((removed @ c.T - change).abs().max())
    precision = torch.finfo(before.tensors[read.member.axis.tensor].dtype).eps
    size = float(old.abs().max() + change.abs().max())
    return apart <= 100 * precision * size


# -- runs --------------------------------------------------------------------------------------------------------------


def _feeds(
    program: Program, calibration: Calibration, context: Context, every: bool
) -> tuple[Iterator[Callable[[Program], tuple[Any, ...]]], int]:
    """Some samples and how many there are: from all over the data, or every one, one at a time, each as what gives a
    program's inputs: what lies side by side in the data may be alike."""
    kept, stride, index = list[Batch](), 1, 0
    context = Context(context.seed, context.data, silent)
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program)):
        for place in range(piece.count):
            if index % stride == 0:
                kept.append(piece[place : place + 1])
            if len(kept) == 2 * SAMPLES and not every:
                kept, stride = kept[::2], 2 * stride
            index += 1
    return (lambda which, sample=sample: tuple(feeds_of(which, sample.inputs)) for sample in kept), index


def _values(
    program: Program, inputs: tuple[Any, ...], wanted: set[Any], replaced: Mapping[str, Tensor] | None = None
) -> dict[fx.Node, Tensor]:
    """The values of some nodes, as they are when they are computed, with other tensors in place of some."""
    run = Interpreter(program, precision_of(program), replaced)
    return {node: value.clone() for node, value in run.steps(inputs) if node in wanted}


def _rounding(program: Program) -> float:
    """The coarsest rounding of a program's tensors, as a share of a number."""
    return max((torch.finfo(x.dtype).eps for x in program.tensors.values() if x.is_floating_point()), default=0.0)


def _raise(faults: Callable[[bool], Iterator[str]]) -> None:
    """Raise `VerifyError` where some samples show a fault, and all of them do, too: some may lack those few samples
    that a solution is about."""
    if next(faults(False), None) is not None and (fault := next(faults(True), None)) is not None:
        raise VerifyError(fault)


def _fault(pass_name: str, layer: str, what: str) -> str:
    return f"pass '{pass_name}' wrote wrong weights: '{layer}' {what}"
