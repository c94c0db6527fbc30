"""`oracle`: what the loss really does when a unit is removed; other criteria are judged by it (`prunec rank`).

    program with unit u masked, run over the data    | C without u  -  C |

Each unit is masked where it is read, and norms count what is left; the model is run anew from where the unit matters:
as many runs as units, and one pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field

from prunec.passes.calibration.trials import measure
from prunec.passes.criteria.base import Found, LossCriterion, Setting


class Oracle(LossCriterion):
    """The change of the mean loss when the unit is removed: one run over the data a unit."""

    name: ClassVar[str] = "oracle"
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    signed: bool = Field(default=False, description="the change itself; else its absolute value, which prunes better")

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about every unit that may be removed."""
        analysis = setting.analysis
        units = np.flatnonzero(analysis.free)
        trials = [np.array([unit], dtype=np.int64) for unit in units]
        found = measure(setting.program, trials, setting.calibration, setting.context, self.name)
        changes = np.full(analysis.size, np.nan)
        changes[units] = found.losses - found.loss
        yield from setting.split(self.name, changes if self.signed else np.abs(changes))
