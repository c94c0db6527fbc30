"""What a compile gained: both models' latency in a runtime that no export, or none of this plan, has measured."""

from __future__ import annotations

from collections.abc import Sequence

from prunec.compiler.driver.slow_layers import slow_layers
from prunec.compiler.ir.program import Program
from prunec.compiler.report.report import Change
from prunec.compiler.targets.exporting import TargetReport
from prunec.compiler.targets.onnx_export import comparable_bytes
from prunec.compiler.targets.ort_session import ort_latency
from prunec.compiler.targets.timing import runs_in_turns


def measure_latency(before: Program, after: Program) -> tuple[Change[float], str]:
    """Both programs' latency in onnxruntime, in seconds, where no ONNX file is asked for; and the warning of
    `slow_layers`, for a selection that went by latency."""
    latency = Change(*ort_latency(comparable_bytes([before, after]), before.deployed.inputs))
    return latency, slow_layers(Change(before, after), latency, by_latency=True)


def latency_of(runtime: str, rows: Sequence[TargetReport], before: Program, after: Program) -> Change[float] | None:
    """Both programs' latency in another runtime, with one thread: of its export, where there is one (None where that
    has failed), or measured now."""
    for row in rows:
        if row.target == runtime:
            timed = next((each for each in row.latency if each.threads == 1 and each.dense is not None), None)
            return Change(timed.dense, timed.slim) if timed and timed.dense is not None else None
    return Change(*runs_in_turns(runtime, [before, after]))
