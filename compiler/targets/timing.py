"""Which runtimes can be timed on this machine, and what they see of a program.

meter_of("ncnn")           its meter; a `TargetError` says why there is none
timed("ncnn", program)     the program as its runtime sees it: ncnn takes one sample at a time
runs_in_turns("ncnn", [dense, slim])      seconds of one run of each
"""

from __future__ import annotations

from collections.abc import Sequence

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import TARGETS, Meter, Target
from prunec.compiler.targets.child import workers
from prunec.compiler.targets.exporting import missing
from prunec.compiler.targets.metering import seconds_of
from prunec.compiler.targets.sources import at_batch, deployed


def runtime_behind(name: str) -> Target:
    """The target whose runtime executes the files of the target of that name."""
    target = TARGETS.named(name)
    return (TARGETS.named(target.runtime) if target.runtime else target)()


def meter_of(name: str) -> Meter:
    """What measures programs in a target's runtime. Raises `TargetError` where it can't be run here."""
    target = runtime_behind(name)
    if (lacking := missing(target)) is not None:
        lacking.hint = f"pip install 'prunec[{target.extra}]', or name another runtime"
        raise lacking
    if why := target.unrunnable():
        raise TargetError(f"times can't be taken in {name}: {why}", hint="name a runtime that runs here")
    return target.meter()


def timed(name: str, program: Program) -> Program:
    """The program with the batch that a target's files take."""
    return at_batch(program, 1) if runtime_behind(name).only_one else program


def runs_in_turns(name: str, programs: Sequence[Program]) -> list[float]:
    """The seconds of one run of each program in a target's runtime, with one thread; they take turns."""
    meter = meter_of(name)
    with workers():
        return seconds_of([meter.loaded(deployed(timed(name, program))) for program in programs])
