"""`oracle`: what the loss really does when a unit is removed; the measure of every other criterion.

    program without unit u, run over the data        | C without u  -  C |

The program is cut for each unit, so that norms count what is left, and run over the data: as many runs as units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from prunec.compiler.ir import Program
from prunec.compiler.slimming import remove_units
from prunec.passes.calibration import Piece, bytes_of_a_sample, call
from prunec.passes.criteria.base import Criterion, Found, Setting
from prunec.passes.criteria.watching import evaluated


class Oracle(Criterion):
    """The change of the mean loss when the unit is removed: one run over the data a unit."""

    name: ClassVar[str] = "oracle"
    data: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"

    signed: bool = Field(default=False, description="the change itself; else its absolute value, which prunes better")

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about every unit that may be removed. The samples are held in memory."""
        program, analysis, context = setting.program, setting.analysis, setting.context
        pieces = list(setting.calibration.pieces(program, context, bytes_of_a_sample(program)))
        before = _mean_loss(setting, program, pieces)
        changes = np.full(analysis.size, np.nan)
        units = np.flatnonzero(analysis.free)
        for number, unit in enumerate(units):
            keep = np.ones(analysis.size, dtype=bool)
            keep[unit] = False
            changes[unit] = _mean_loss(setting, remove_units(program, keep), pieces) - before
            context.progress("oracle", number + 1, units.size)
        yield from setting.split("oracle", changes if self.signed else np.abs(changes))


def _mean_loss(setting: Setting, program: Program, pieces: Sequence[Piece]) -> float:
    module = evaluated(program).module
    with torch.no_grad():
        losses = [setting.calibration.losses(call(module, piece), piece).double().sum() for piece in pieces]
    return float(torch.stack(losses).sum()) / sum(piece.count for piece in pieces)
