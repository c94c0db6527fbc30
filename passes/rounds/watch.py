"""Measures the metric between rounds, on the split val, and holds it against the floor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from prunec.compiler.driver.evaluation import Evaluated, evaluate
from prunec.compiler.errors import PassError
from prunec.compiler.ir.aliasing import unwritten
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.report.figures import metric_text
from prunec.passes.rounds.floors import Bound, bound

SPLIT: Final = "val"
"""What the rounds are judged by; the test split stays for the report."""


def ready(floor: float | str | None, context: Context) -> None:
    """Raise `PassError` or `DataError` where there is a floor, and nothing to measure it on."""
    if floor is None:
        return
    if context.data is None:
        hint = "name a data factory, for example data: prunec.models.data:digits"
        raise PassError("floor: a metric is measured on data, and the plan has none", keys=("floor",), hint=hint)
    if SPLIT not in context.data.splits:
        message = f"floor: the metric is measured on the split '{SPLIT}', which the data don't have"
        raise PassError(message, keys=("floor",), hint=f"they have {', '.join(context.data.splits)}")


@dataclass
class Watch:
    """The metric of one program after the other, None where it isn't measured; and the floor, where there is one."""

    context: Context
    floor: float | str | None
    bound: Bound | None = field(default=None, init=False)
    _idle: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Find out what the floor asks for. Raises `PassError` where the metric can't be measured."""
        data = self.context.data
        self._idle = data is None or SPLIT not in data.splits
        if self.floor is None:
            return
        assert self.context.traced is not None, "the pass manager sets it"
        metric = self.context.metric
        found = self._evaluated(self.context.traced, batches=None if isinstance(self.floor, str) else 1)
        if found.value is None:
            message = f"floor: the metric can't be measured: {found.left_out}"
            raise PassError(message, keys=("floor",), hint=found.hint or None)
        if isinstance(self.floor, str) and self.floor.endswith("pt") and not metric.share:
            hint = f"-2% lets it get worse by 2% of the {self.told(found.value)} that the model has"
            message = f"floor: {self.floor} is of a metric in per cent, and {metric.title} is none"
            raise PassError(message, keys=("floor",), hint=hint)
        self.bound = bound(self.floor, found.value, higher_is_better=metric.higher_is_better)

    @property
    def metric(self) -> str:
        """The metric's name for people."""
        return self.context.metric.title

    def told(self, value: float) -> str:
        """A value in words."""
        return metric_text(value, self.context.metric.share)

    def measured(self, program: Program) -> float | None:
        """The program's metric."""
        if self._idle:
            return None
        value = self.context.journal.recall("the metric of a round", lambda: self._evaluated(program).value)
        self._idle = value is None
        return value

    def holds(self, value: float | None) -> bool:
        """Whether a value is no worse than the floor."""
        return self.bound is None or (value is not None and self.bound.holds(value))

    def _evaluated(self, program: Program, batches: int | None = None) -> Evaluated:
        context = self.context
        assert context.data is not None, "what can't be measured is asked before"
        with unwritten(program):
            return evaluate(
                context.whole(program),
                context.data,
                program.inputs if context.inputs is None else context.inputs,
                context.metric,
                split=SPLIT,
                progress=context.progress,
                batches=batches,
            )
