"""A lock with its own weights beside it: the same artifact again, without training again.

    prunec compile out/plan.lock.json --trained -o again

Every pass runs and is verified, but for those that train: they leave the values as they are. In the end the program
takes the weights from the lock's folder, whose hash the lock knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from prunec.compiler.cost.model import cost
from prunec.compiler.driver.journal import untrained, with_values
from prunec.compiler.driver.lock import sha256_of
from prunec.compiler.emit.output_folder import LOCK
from prunec.compiler.errors import PlanError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, NoJournal, Pass, PassResult
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import Record

WEIGHTS = "model.safetensors"


class TrainedLock(NoJournal):
    """Stands for the trainings of a lock, whose result lies beside it."""

    def __init__(self, weights: Mapping[str, Tensor], result: str, file: Path) -> None:
        self._weights, self._result, self._file = weights, result, file

    @staticmethod
    def of(plan: Plan) -> TrainedLock:
        """The weights beside a plan's file. Raises `PlanError` where the plan is no lock, or has none beside it."""
        if not plan.hashes or "result" not in plan.hashes or plan.file is None:
            hint = f"name the {LOCK} of an earlier compile"
            raise PlanError("only a lock is compiled with its trained weights", at=plan.at(), hint=hint)
        if plan.region is not None:
            raise PlanError("the lock of a region is trained again: its weights lie in several files", at=plan.at())
        file = Path(plan.file).resolve().parent / WEIGHTS
        if not file.is_file():
            hint = "without --trained, the lock trains again"
            raise PlanError(f"no {WEIGHTS} lies beside {plan.file}", hint=hint)
        try:
            weights = safetensors.torch.load_file(file)
        except Exception as error:  # whatever a damaged file makes safetensors raise
            raise PlanError(f"{file} can't be read: {error}") from error
        return TrainedLock(weights, plan.hashes["result"], file)

    def replay(self, pass_: Pass, program: Program, context: Context) -> tuple[PassResult, Record] | None:
        """The program as it is, for a pass that trains."""
        if not pass_.trains:
            return None
        found = cost(program)
        return PassResult(untrained(pass_, program)), Record(pass_.name, 0.0, 0.0, found, found)

    def finished(self, program: Program) -> Program:
        """The program with the lock's weights. Raises `PlanError` where they aren't those that the lock knows."""
        saved = {name: self._weights.get(name, tensor) for name, tensor in program.tensors.items()}
        made = with_values(program, saved)
        if sha256_of(made.tensors) != self._result:
            hint = "without --trained, the lock trains again"
            raise PlanError(f"{self._file} holds other weights than the lock was made with", hint=hint)
        return made
