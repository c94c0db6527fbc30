"""Channels as combinations of others: what each channel that goes is to those that stay, wherever it is read.

    x [rows, units]     what a reader reads of a group's units          G = E[x x']

    x_gone ~ x_kept C       C = G_kk^-1 G_kg            then the reader's columns: W_kept += C W_gone

The combination is one of values, without a constant: so it holds at every tap of a kernel, and at borders with zeros
around them. It knows nothing of what a reader makes of them, so it needs fewer samples than a refit of the reader does.
A channel that is another's multiple is made up for exactly. Merging a cluster's channels into one is the combination
with a one in its row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, fx

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Analysis, Group, Member
from prunec.compiler.ir.program import IntArray, Program
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.merge import Tensors
from prunec.compiler.verify.interpreter import Interpreter, StepError, precision_of
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.repairing.calls import call_of
from prunec.passes.repairing.walk import AT_ONCE, feeds_of

_LEAST: Final = 1e-10
"""Directions of less variance than this share of the largest aren't looked at: rounding makes them."""


@dataclass(frozen=True)
class Read:
    """A reader's axis, the value that it reads, and where each unit's elements lie in it."""

    member: Member
    source: fx.Node
    dim: int
    places: IntArray
    """[units, k]: positions along `dim`; the i-th of one unit corresponds to the i-th of another."""
    present: IntArray
    """The units that are read; those of others in `places` mean nothing."""


def reads_of(analysis: Analysis, group: Group) -> list[Read] | str:
    """Every place where a layer's weight reads the group; or why its values can't be told."""
    found: list[Read] = []
    program = analysis.program
    for member in group.readers:
        if _is_depthwise(
            member, program
        ):  # it reads each channel by itself: who reads what it gives can make up for it
            continue
        users = [(node, source) for node in program.graph.nodes for source in _sources(node, member, program)]
        if not users:
            return f"what {member.axis} reads isn't the value of one node"
        order = np.lexsort((member.positions, member.units))
        counts = np.bincount(member.units, minlength=group.size)
        present = np.flatnonzero(counts)
        if np.unique(counts[present]).size != 1 or _is_grouped(member, program):
            return f"{member.axis} reads its units in different ways"
        places = np.zeros((group.size, counts.max()), dtype=np.int64)
        places[present] = member.positions[order].reshape(present.size, -1)
        for _, source in users:
            value = source.meta.get("val")
            if not isinstance(value, Tensor):
                return f"what {member.axis} reads isn't the value of one node"
            weight = program.tensors[member.axis.tensor]
            found.append(Read(member, source, value.ndim - 1 if weight.ndim == 2 else 1, places, present))
    return found or "nothing reads it by a weight"


def _sources(node: fx.Node, member: Member, program: Program) -> Iterator[fx.Node]:
    """What a node reads by an axis of a weight, if it does: a module's own, or a function's."""
    call = call_of(node, program)
    if call is not None and call.weight.name == member.axis.tensor:
        if call.source is not None and call.form.order is None and member.axis.dim in call.form.reading:
            yield call.source
    elif node.op == "call_module" and str(node.target) == member.axis.owner and member.axis.dim == 1:
        yield node.all_input_nodes[0]


def _is_grouped(member: Member, program: Program) -> bool:
    module = program.state.get(member.axis.owner)
    return program.groups_along(member.axis) > 1 or getattr(module, "groups", 1) > 1


def _is_depthwise(member: Member, program: Program) -> bool:
    groups, weight = program.groups_along(member.axis), program.tensors[member.axis.tensor]
    return groups > 1 and weight.ndim > 2 and member.axis.dim == 1 and weight.shape[1] == 1


def moments(reads: Sequence[Read], program: Program, calibration: Calibration, context: Context) -> list[Tensor]:
    """G of each read, [units, units] in float64, in one run over the data. Raises `DataError` where they don't fit."""
    sums = [torch.zeros(len(read.places), len(read.places), dtype=torch.float64) for read in reads]
    wanted: dict[fx.Node, list[int]] = defaultdict(list)
    for number, read in enumerate(reads):
        wanted[read.source].append(number)
    dtype = precision_of(program)
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program), AT_ONCE):
        try:
            for node, value in Interpreter(program, dtype).steps(tuple(feeds_of(program, piece.inputs))):
                for number in wanted.get(node, ()):
                    read = reads[number]
                    rows = value.detach().movedim(read.dim, 0).flatten(1)[torch.from_numpy(read.places)].flatten(1)
                    sums[number] += (rows @ rows.T).double().cpu() / rows.shape[1]
        except StepError as error:
            raise piece.refused(error) from error
    for read, gram in zip(reads, sums, strict=True):
        if not bool(gram.isfinite().all()):
            hint = "the model gives infinite values or NaN there; leave these samples out"
            raise PassError(f"what {read.member.axis.tensor} reads on some samples isn't finite", hint=hint)
    return sums


def coefficients(gram: Tensor, kept: IntArray, gone: IntArray) -> Tensor:
    """C, [kept, gone], of least squares; the smallest where several are."""
    if not kept.size:
        return gram.new_zeros(0, gone.size)
    inner = gram[kept][:, kept]
    values, vectors = torch.linalg.eigh(inner)
    fine = values > _LEAST * values.amax().clamp(min=1e-300)
    inverse = torch.where(fine, 1 / values.masked_fill(~fine, 1.0), 0.0)
    found: Tensor = vectors @ (inverse[:, None] * (vectors.T @ gram[kept][:, gone]))
    return found


def fold(tensors: Tensors, read: Read, gram: Tensor, kept: IntArray, gone: IntArray) -> None:
    """Add to the columns of units that stay what stands for those that go."""
    kept, gone = (np.intersect1d(units, read.present) for units in (kept, gone))
    mixed = coefficients(gram, kept, gone)
    for each in range(read.places.shape[1]):
        rows = tensors.rows(read.member.axis, read.places[gone, each])
        change = mixed.to(rows.device, torch.float64) @ rows.double()
        tensors.accumulate(read.member.axis, read.places[kept, each], change)


def share_left(reads: Sequence[Read], grams: Sequence[Tensor], kept: IntArray, gone: IntArray) -> float:
    """The share of what is read of the units that go which the others can't make up for, over all reads."""
    lost = whole = 0.0
    kept_of, gone_of = kept, gone
    for read, gram in zip(reads, grams, strict=True):
        kept, gone = (np.intersect1d(units, read.present) for units in (kept_of, gone_of))
        mixed = coefficients(gram, kept, gone)
        own = gram[gone][:, gone].diagonal().sum()
        whole += float(own)
        lost += float(own - (mixed * gram[kept][:, gone]).sum())
    return max(lost, 0.0) / whole if whole > 0 else 0.0
