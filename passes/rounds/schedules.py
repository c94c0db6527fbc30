"""How much each round may leave.

    round t of T, from s_0, what is gone before the first, to s_f, what is gone after the last:

    linear       s_t = s_0 + (s_f - s_0) t/T                 the same amount in each round
    geometric    1 - s_t = (1 - s_0) ((1 - s_f)/(1 - s_0))^(t/T)    the same share of what is left
    cubic        s_t = s_f + (s_0 - s_f) (1 - t/T)^3         much at first, little at the end (Zhu & Gupta, 2017)

The last round may leave what the plan says, to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prunec.compiler.cost.resources import baseline, resource
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.selection.amounts import amount

Schedule = Callable[[float, float, float], float]
"""(what is left at the start, at the end, the share of the rounds that are done) -> what is left then."""


def linear(start: float, end: float, done: float) -> float:
    """The same amount in each round."""
    return start + (end - start) * done


def geometric(start: float, end: float, done: float) -> float:
    """The same share of what is left in each round."""
    return float(start * (end / start) ** done)


def cubic(start: float, end: float, done: float) -> float:
    """Much in the first rounds, little in the last."""
    return end + (start - end) * (1 - done) ** 3


SCHEDULES: Final[Mapping[str, Schedule]] = {"linear": linear, "geometric": geometric, "cubic": cubic}


def allowed(
    schedule: str, start: Mapping[str, float], to: Mapping[str, float | str], index: int, total: int
) -> dict[str, float | str]:
    """Resource -> what round `index`, counted from 0, of `total` may leave, in the unit in which the plan says the
    last amount. `start` is what is used before the first round, in that unit."""
    if index + 1 >= total:
        return dict(to)
    return {name: _between(schedule, start[name], text, (index + 1) / total) for name, text in to.items()}


def _between(schedule: str, start: float, text: float | str, done: float) -> float | str:
    end, unit = amount(text)
    left = SCHEDULES[schedule](max(start, end), end, done)
    return left if unit in ("share", "") else f"{left:.12f}{unit}"


def used(program: Program, to: Mapping[str, float | str], context: Context) -> dict[str, float]:
    """Resource -> what the program uses of it, in the unit in which the plan says the amount: a share is one of what
    the traced model uses."""
    found = {}
    for name, text in to.items():
        made, unit = resource(name, program, context), amount(text).unit
        whole = baseline(name, program, context) if unit == "share" else (made.units or {"": 1.0})[unit]
        found[name] = made.now / whole
    return found


def in_words(name: str, program: Program, context: Context) -> str:
    """What the program uses of a resource, as a share of what the traced model uses."""
    return f"{name} {resource(name, program, context).now / baseline(name, program, context):.1%}"
