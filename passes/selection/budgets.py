"""Meets budgets: states the problem, lets a method solve it, and checks and completes what the method chose.

    budget: {macs: 50%}    Problem: queues of steps, and at most half of the traced model's MACs
    method: greedy         levels: how many steps of each queue are gone; checked, and filled up
                           Way: the levels, and for the report limit, amount reached, share, score kept

Where a budget is out of reach, each constraint is lifted in turn, to say which of them stops it and what would be
reachable without; and the pins that stand in the way are named, those that hold most of the resource first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from prunec.compiler.cost.resources import resource
from prunec.compiler.errors import PassError, PrunecError
from prunec.compiler.ir.program import BoolArray, IntArray, Program
from prunec.compiler.pass_base import Context
from prunec.passes.selection.amounts import amount
from prunec.passes.selection.per_group import Way
from prunec.passes.selection.problems import Budget, Problem, budgets_of, filled
from prunec.passes.selection.ranking import Ranking
from prunec.passes.selection.selectors import Selector, Wishes

_PINS: Final = 5
"""So many pins are named."""

Lifted = Mapping[str, Callable[[], Ranking]]
"""Constraint -> what makes the queues without it."""


def meet(
    ranking: Ranking,
    wanted: Mapping[str, float | str],
    method: Selector,
    wishes: Wishes,
    context: Context,
    lifted: Lifted,
    *,
    may_fall_short: bool = False,
) -> Way:
    """The levels that a method chooses, filled up. Raises `PassError` where a budget is out of reach; if it
    `may_fall_short`, the method meets what is within reach, and the `Way` says that the budget isn't met."""
    problem = problem_of(ranking, wanted, wishes, context)
    number = _missed(problem)
    if number is None:
        return _way(problem, method, _levels(problem, method, wishes))
    if not may_fall_short:
        raise _out_of_reach(problem, number, lifted)
    reached = within_reach(problem)
    levels = _levels(reached, method, wishes)
    if not reached.fits(levels):  # more may go in a later round
        return _way(problem, method, levels)
    return replace(_way(problem, method, levels), falls_short=_out_of_reach(problem, number, lifted))


def _way(problem: Problem, method: Selector, levels: IntArray) -> Way:
    return Way(problem.ranking, levels, (), {"method": method.name, **_reached(problem, levels)})


def _levels(problem: Problem, method: Selector, wishes: Wishes) -> IntArray:
    levels = method.levels(problem, wishes)
    if problem.fits(levels):
        return filled(problem, levels)
    if wishes.at_most is None:
        raise PrunecError(f"the selection method '{method.name}' doesn't meet the budget")
    return levels


def within_reach(problem: Problem) -> Problem:
    """The problem with budgets that can be met: what is left once all is gone that may go, where one asks for less."""
    least = problem.used(problem.last)
    budgets = [
        replace(budget, limit=max(budget.limit, float(used)))
        for budget, used in zip(problem.budgets, least, strict=True)
    ]
    return replace(problem, budgets=tuple(budgets))


def check_reach(problem: Problem, lifted: Lifted, gone: BoolArray | None = None) -> None:
    """Raise `PassError` where a budget isn't met even with every unit gone that may go, and those in `gone` as well."""
    number = _missed(problem, gone)
    if number is not None:
        raise _out_of_reach(problem, number, lifted)


def _missed(problem: Problem, gone: BoolArray | None = None) -> int | None:
    """The number of the first budget that is out of reach."""
    least = problem.used(problem.last)
    keep = None if gone is None else problem.ranking.keep(problem.last) & ~gone
    for number, budget in enumerate(problem.budgets):
        if keep is not None and budget.resource.of(keep) <= budget.bound + budget.resource.fixed:
            continue
        if least[number] > budget.bound + budget.resource.fixed:
            return number
    return None


def problem_of(ranking: Ranking, wanted: Mapping[str, float | str], wishes: Wishes, context: Context) -> Problem:
    """The queues with the plan's budgets, and with the resources that `cost_weight` prices, which have no limit."""
    return Problem(ranking, budgets(wanted, ranking.analysis.program, context, wishes.cost_weight))


def budgets(
    wanted: Mapping[str, float | str], program: Program, context: Context, unlimited: Iterable[str] = ()
) -> tuple[Budget, ...]:
    """The plan's budgets for a program, and `unlimited` resources, which have no limit."""
    amounts: dict[str, float | None] = dict.fromkeys(unlimited)
    scales: dict[str, float] = {}
    for name, text in wanted.items():
        value, unit = amount(text)
        amounts[name] = value
        if unit != "share":
            scales[name] = (resource(name, program, context).units or {"": 1.0})[unit]
    return budgets_of(amounts, program, context, scales)


def met(wanted: Mapping[str, float | str], program: Program, context: Context) -> bool:
    """Whether the program uses no more than the plan's budgets."""
    return all(b.resource.now <= b.bound + b.resource.fixed for b in budgets(wanted, program, context))


def _reached(problem: Problem, levels: IntArray) -> dict[str, Any]:
    """For the report: what is used at these levels, and how much of the score is kept."""
    used = problem.used(levels)
    budgets = {
        b.name: {"limit": b.limit, "reached": float(value), "share": float(value / b.whole)}
        for b, value in zip(problem.budgets, used, strict=True)
        if np.isfinite(b.limit)
    }
    return {"budget": budgets, "kept_score": problem.kept(levels), "whole_score": problem.kept(levels * 0)}


def _out_of_reach(problem: Problem, number: int, lifted: Lifted) -> PassError:
    budget, least = problem.budgets[number], _least(problem, number)
    without = {name: _least(Problem(make(), problem.budgets), number) for name, make in lifted.items()}
    helpful = {name: reached for name, reached in without.items() if reached < least}
    enough = [name for name, reached in helpful.items() if reached <= budget.limit]
    hints = [f"ask for at least {_enough(least, budget)}"]
    hints += [f"without {name} {_share(r, budget)} can be reached" for name, r in sorted(helpful.items())]
    if enough:
        hints[1:] = [f"lift {name}, without which {_share(helpful[name], budget)} can be reached" for name in enough]
    held = _held_by_pins(problem, number, least)
    more = f" and {len(held) - _PINS} more" if len(held) > _PINS else ""
    pins = f"; pins that stand in the way: {', '.join(held[:_PINS])}{more}" if held else ""
    asked = f"{budget.name} {budget.limit / budget.whole:.1%} is {_amount(budget.limit, budget)}"
    return PassError(
        f"the budget can't be met: {asked}, but "
        f"with every unit gone that may go {_amount(least, budget)} are left ({least / budget.whole:.1%})",
        keys=("budget", budget.name),
        hint="; or ".join(hints) + pins,
    )


def _held_by_pins(problem: Problem, number: int, least: float) -> list[str]:
    """What each group's pins hold of a budget's resource, the largest first: what would be saved if their units could
    go as well, all but one of the group, once all that may go is gone."""
    budget, ranking = problem.budgets[number], problem.ranking
    left = ranking.keep(problem.last)
    found = []
    for group in ranking.analysis.groups.values():
        for reason in sorted(set(group.pinned) - {""}):
            keep = left.copy()
            keep[group.where] &= np.array([why != reason for why in group.pinned])
            if not keep[group.where].any():
                keep[group.start] = True
            saved = least - budget.resource.of(keep)
            if saved > 1e-6 * budget.whole:
                count = group.pinned.count(reason)
                units = f"{count} units of '{group.name}' hold" if count < group.size else f"'{group.name}' holds"
                found.append((saved, f"{units} {_amount(saved, budget)} ({_share(saved, budget)}: {reason})"))
    return [text for _, text in sorted(found, key=lambda pin: -pin[0])]


def _least(problem: Problem, number: int) -> float:
    return float(problem.used(problem.last)[number])


def _amount(value: float, budget: Budget) -> str:
    if budget.resource.units is not None and "s" in budget.resource.units:
        return f"{1000 * value:.3g} ms"
    return f"{value:,.0f}" if budget.resource.whole else f"{value:.3g}"


def _share(value: float, budget: Budget) -> str:
    return f"{value / budget.whole:.1%}"


def _enough(value: float, budget: Budget) -> str:
    """A share that can be reached, rounded up to what is shown."""
    return f"{np.ceil(1000 * value / budget.whole) / 1000:.1%}"
