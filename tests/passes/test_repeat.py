"""`repeat`: rounds against plain passes, budgets and schedules, reasons to end, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import Plan, compile
from prunec.compiler.cost.model import cost
from prunec.compiler.data import Data
from prunec.compiler.driver.pass_manager import check_options, check_ready, run_passes
from prunec.compiler.driver.steps import Outcome, Step, steps_of
from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.report.report import RoundFigures
from prunec.compiler.tracing.trace import trace
from prunec.passes.selection.budgets import met

CUT = ["score", "select", "shrink"]
GAMMA = [{"score": {"criterion": "bn_scale", "normalize": "none"}}, {"select": {"multiple_of": 1}}, "shrink"]
"""A score that each unit has by itself: it stays the same when others go."""


class Net(nn.Module):
    """A residual stream behind a stem, and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.a, self.bn1 = nn.Conv2d(width, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.b, self.bn2 = nn.Conv2d(24, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head, self.bn3 = nn.Conv2d(width, 20, 1), nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(x + self.bn2(self.b(torch.relu(self.bn1(self.a(x))))))
        return self.fc(torch.relu(self.bn3(self.head(x))).mean((2, 3)))


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = Net().eval()
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.data.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn * 0.5)
    return made


X = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Samples:
    """The same samples in the named splits; labels are what the whole network says, so that its accuracy is 1."""

    labels: Tensor
    splits: tuple[str, ...] = ("train", "val", "test")

    def __getattr__(self, name: str) -> Any:
        if name not in self.splits:
            raise AttributeError(name)
        return lambda: list(zip(X.split(32), self.labels.split(32), strict=True))


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(net(), (X[:1],))


@pytest.fixture(scope="module")
def data() -> Samples:
    with torch.no_grad():
        return Samples(net()(X).argmax(1))


def run(program: Program, *entries: Any, data: Any = None, **context: Any) -> Outcome:
    steps = steps_of(Plan.from_dict({"plan": 1, "passes": list(entries)}))
    made = Context(data=None if data is None else Data.of(data), traced=program, **context)
    check_options(program, steps)
    check_ready(program, steps, made)
    return run_passes(program, steps, made)


def repeat(passes: Any = CUT, **options: Any) -> dict[str, Any]:
    return {"repeat": {"passes": passes, **options}}


def same(one: Program, other: Program) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def kept(program: Program) -> dict[Any, set[int]]:
    return {axis: set(left.tolist()) for axis, left in program.origin.items()}


def rows(outcome: Outcome) -> tuple[RoundFigures, ...]:
    rounds = next(record.rounds for record in outcome.records if record.name == "repeat")
    assert rounds is not None
    return rounds.rows


def programs(program: Program, outcome: Outcome) -> list[Program]:
    """What was left after each round, by running what the rounds resolved to."""
    found, cut = [program], [pass_ for pass_ in outcome.resolved if pass_.name in ("select", "shrink")]
    for select, shrink in zip(cut[::2], cut[1::2], strict=True):
        found.append(run_passes(found[-1], [Step(select), Step(shrink)], Context()).program)
    return found


# -- rounds and plain passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"macs": "50%"}, {"params": 3000}, {"macs": 0.6, "file_size": "20kB"}])
def test_one_round_is_the_plain_passes(program, budget):
    plain = run(program, "score", {"select": {"budget": budget}}, "shrink")
    assert same(run(program, repeat(steps=1, to=budget)).program, plain.program)


def test_one_round_under_other_options_is_the_plain_passes(program):
    options = {"method": "greedy", "keep_at_least": 6, "multiple_of": 2, "protect": ["head"]}
    score = {"score": {"criterion": "l2", "normalize": "max"}}
    plain = run(program, score, {"select": {"budget": {"macs": 0.7}, **options}}, "shrink")
    found = run(program, repeat([score, {"select": options}, "shrink"], steps=1, to={"macs": 0.7}))
    assert same(found.program, plain.program)


def test_rounds_are_what_plain_passes_with_these_budgets_give(program):
    found = run(program, repeat(steps=3, to={"macs": "40%"}, schedule="linear"))
    budgets = [1 + (0.4 - 1) * t / 3 for t in (1, 2)] + [0.4]
    plain = [entry for left in budgets for entry in ("score", {"select": {"budget": {"macs": left}}}, "shrink")]
    assert same(found.program, run(program, *plain).program)


def test_a_select_that_says_its_own_way_is_left_alone(program):
    plain = ["score", {"select": {"ratio": 0.25}}, "shrink", "score", {"select": {"ratio": 0.5}}, "shrink"]
    found = run(program, repeat(plain, steps=1))
    assert same(found.program, run(program, *plain).program)
    again = run(program, repeat(plain[3:], steps=3))
    assert same(again.program, run(program, *plain[3:]).program)


def test_what_the_rounds_keep_is_nested(program):
    for schedule in ("linear", "geometric", "cubic"):
        outcome = run(program, repeat(steps=4, to={"macs": "30%"}, schedule=schedule))
        after = programs(program, outcome)
        assert len(after) == 5
        assert same(after[-1], outcome.program)
        for before, then in pairwise(after[1:]):
            assert all(left <= kept(before).get(axis, left) for axis, left in kept(then).items())
            assert cost(then).macs < cost(before).macs


@pytest.mark.parametrize("options", [{"steps": 4}, {"each": 5}], ids=str)
@pytest.mark.parametrize("budget", [{"macs": 0.35}, {"params": 2000.0}, {"params": 0.5, "memory": 0.8}])
def test_the_budget_is_met_and_filled_as_by_one_shot(program, options, budget):
    found = run(program, repeat(GAMMA, to=budget, **options)).program
    context = Context(traced=program)
    assert met(budget, found, context)
    assert not met({name: 0.9 * x for name, x in budget.items()}, found, context)


def test_amounts_are_shares_of_the_traced_model(program):
    costs = [cost(each).macs for each in programs(program, run(program, repeat(steps=4, to={"macs": 0.4})))]
    for t, macs in enumerate(costs[1:], start=1):
        allowed = 0.4 + 0.6 * (1 - t / 4) ** 3
        assert macs <= allowed * costs[0]
        assert macs > (allowed - 0.15) * costs[0]


def test_rounds_begin_where_earlier_passes_have_left_the_model(program):
    first = run(program, "score", {"select": {"budget": {"macs": 0.6}}}, "shrink", repeat(steps=2, to={"macs": 0.3}))
    costs = [row.cost.macs / cost(program).macs for row in rows(first)]
    assert 0.5 < costs[0] <= 0.6
    assert costs[1] <= costs[0] + (0.3 - costs[0]) * 7 / 8
    assert costs[2] <= 0.3


# -- some units at a time ----------------------------------------------------------------------------------------------


def test_each_round_removes_so_many_units(program):
    outcome = run(program, repeat(GAMMA, each=7, to={"macs": 0.5}))
    counts = [sum(r.details["removed_units"].values()) for r in outcome.records if r.name == "shrink"]
    assert counts[:-1] == [7] * (len(counts) - 1)
    assert 1 <= counts[-1] <= 7
    assert rows(outcome)[-2].cost.macs > 0.5 * cost(program).macs >= rows(outcome)[-1].cost.macs


def test_one_at_a_time_takes_the_lowest_of_all_groups(program):
    """Where a unit's score doesn't depend on others, one at a time takes what a ranking of all of them takes."""
    one = run(program, repeat(GAMMA, each=1, to={"macs": 0.5})).program
    score, _, shrink = GAMMA
    shot = run(program, score, {"select": {"budget": {"macs": 0.5}, "multiple_of": 1}}, shrink).program
    for axis, left in kept(shot).items():  # a ranking puts back what still fits, of all that is gone
        assert kept(one)[axis] <= left
    assert cost(shot).macs - cost(one).macs < 0.05 * cost(program).macs


def test_all_at_once_is_one_shot(program):
    score, _, shrink = GAMMA
    shot = run(program, score, {"select": {"budget": {"macs": 0.5}, "multiple_of": 1}}, shrink)
    found = run(program, repeat(GAMMA, each=1000, to={"macs": 0.5}))
    assert same(found.program, shot.program)
    assert len(rows(found)) == 2


def test_a_round_takes_a_whole_step_where_units_leave_together(program):
    outcome = run(program, repeat(["score", {"select": {"multiple_of": 4}}, "shrink"], each=1, to={"macs": 0.6}))
    counts = [sum(r.details["removed_units"].values()) for r in outcome.records if r.name == "shrink"]
    assert set(counts) == {4}


def test_widths_aren_t_rounded_to_what_a_runtime_prefers(program):
    outcome = run(program, repeat(each=1, to={"macs": 0.9}), runtime="onnxruntime")
    counts = [sum(r.details["removed_units"].values()) for r in outcome.records if r.name == "shrink"]
    assert set(counts) == {1}


# -- reasons to end ----------------------------------------------------------------------------------------------------


def test_rounds_end_when_nothing_more_may_go(program):
    passes = ["score", {"select": {"keep_at_least": 8}}, "shrink"]
    for options in ({"steps": 6}, {"each": 10}):
        outcome = run(program, repeat(passes, to={"macs": 0.05}, **options))
        record = outcome.records[0]
        assert [group.size for group in analyse(outcome.program).groups.values()][:3] == [8, 8, 8]
        assert str(record.notes[0]).endswith(": nothing more may go, and the budget isn't met")
        (warning,) = {warning for each in outcome.records for warning in each.warnings}
        assert warning.startswith(
            "repeat: the budget isn't met: macs 18.7% left, where macs 5.0% was asked for; ask for"
        )
        assert "lift keep_at_least, without which" in warning
        assert cost(outcome.program).macs > 0.05 * cost(program).macs


def test_rounds_that_have_nothing_to_do_aren_t_run(program):
    outcome = run(program, repeat(steps=3, to={"macs": "100%"}))
    assert outcome.program is program
    assert (outcome.resolved, len(outcome.records)) == ((), 1)
    assert [str(note) for note in outcome.records[0].notes] == ["no round: the budget is met"]


def test_rounds_end_early_when_the_budget_is_met(program):
    outcome = run(program, repeat(["score", {"select": {"multiple_of": 8}}, "shrink"], steps=30, to={"macs": 0.5}))
    assert rows(outcome)[-1].number < 30
    assert str(outcome.records[0].notes[0]).endswith(": the budget is met")
    assert cost(outcome.program).macs <= 0.5 * cost(program).macs


def test_the_last_round_that_holds_the_floor_is_kept(program, data):
    for floor, least in (("-20pt", 0.8), ("-20%", 0.8), (0.8, 0.8), ("80%", 0.8)):
        outcome = run(program, repeat(each=4, to={"macs": 0.1}, floor=floor), data=data)
        values = [row.metric for row in rows(outcome)]
        assert values[0] == 1
        assert min(values[:-1]) >= least > values[-1]
        assert [row.kept for row in rows(outcome)] == [True] * (len(values) - 1) + [False]
        after = programs(program, outcome)
        assert len(after) == len(values) - 1
        assert same(after[-1], outcome.program)
        assert cost(outcome.program).macs == rows(outcome)[-2].cost.macs
        (note,) = outcome.records[0].notes
        assert note.subject == f"round {len(values) - 1}"
        assert note.reason == f"accuracy is {values[-1]:.2%}, below the floor of 80.00%: it is given up"
        assert outcome.records[0].rounds.floor == pytest.approx(0.8)


def test_a_floor_that_is_never_missed_changes_nothing(program, data):
    free = run(program, repeat(steps=3, to={"macs": 0.5}), data=data)
    held = run(program, repeat(steps=3, to={"macs": 0.5}, floor=0.0), data=data)
    assert same(free.program, held.program)
    assert held.records[0].notes == ()


def test_a_floor_that_is_missed_in_the_first_round_is_an_error(program, data):
    with pytest.raises(
        PassError, match=r"floor: after the first round accuracy is \d\d\.\d\d%, below the floor of 99"
    ) as e:
        run(program, repeat(steps=2, to={"macs": 0.2}, floor="-1pt"), data=data)
    assert e.value.keys == ("floor",)


def test_the_floor_is_measured_on_val(program, data):
    splits = Samples(data.labels, ("train", "test"))
    with pytest.raises(PassError, match="floor: the metric is measured on the split 'val', which the data don't have"):
        run(program, repeat(steps=2, to={"macs": 0.5}, floor="-1pt"), data=splits)
    with pytest.raises(PassError, match="floor: a metric is measured on data, and the plan has none"):
        run(program, repeat(steps=2, to={"macs": 0.5}, floor="-1pt"))


def test_where_nothing_can_be_measured_rounds_are_drawn_without_it(program, data):
    unlabelled = [(X[:8], None)]
    outcome = run(program, repeat(steps=2, to={"macs": 0.5}), data=unlabelled)
    assert [row.metric for row in rows(outcome)] == [None] * 3
    for floor in ("-1pt", "-1%", 0.5):
        with pytest.raises(PassError, match="floor: the metric can't be measured: it needs one output"):
            run(program, repeat(steps=2, to={"macs": 0.5}, floor=floor), data=unlabelled)


def test_where_less_is_better_the_floor_lies_above(data):
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    regression = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    with torch.no_grad():
        wanted = regression(inputs)
    plan = {"plan": 1, "metric": "mae", "passes": [repeat(each=4, to={"macs": 0.1}, floor=0.1)]}
    result = compile(regression, plan, (inputs[:1],), [(inputs, wanted)])
    values = [row["metric"] for row in result.report["passes"][0]["rounds"]["rows"]]
    assert values[0] == pytest.approx(0)
    assert max(values[:-1]) <= 0.1 < values[-1]
    plan["passes"][0]["repeat"]["floor"] = "-2pt"
    with pytest.raises(PassError, match="floor: -2pt is of a metric in per cent, and MAE is none"):
        compile(regression, plan, (inputs[:1],), [(inputs, wanted)])


# -- a whole compile ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"steps": 3}, {"each": 9}, {"steps": 3, "floor": "-30pt"}], ids=str)
def test_the_lock_is_unrolled_and_gives_the_same_bits(data, options):
    plan = {"plan": 1, "passes": [repeat([{"score": "taylor"}, "select", "shrink"], to={"macs": 0.4}, **options)]}
    result = compile(net(), plan, (X[:1],), data=data)
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in result.lock["passes"]]
    assert names == ["select", "shrink"] * (len(names) // 2)
    again = compile(net(), result.lock, (X[:1],), data=data)
    assert same(again.program, result.program)
    assert not again.report["warnings"]
    assert again.lock["removed"] == result.lock["removed"]


def test_the_plan_is_written_as_it_was():
    plan = Plan.from_dict({"plan": 1, "passes": [repeat(steps=3, to={"macs": "40%"}, schedule="cubic", floor="-2pt")]})
    written = plan.to_dict()
    assert written["passes"] == [repeat(steps=3, to={"macs": "40%"}, schedule="cubic", floor="-2pt")]
    assert Plan.from_dict(written) == plan


def test_rounds_may_train(data):
    train = {"finetune": {"updates": 2, "lr": 0.01}}
    plan = {"plan": 1, "passes": [repeat([*CUT, train], steps=2, to={"macs": 0.5}), "fold_bn"]}
    result = compile(net(), plan, (X[:1],), data=data)
    assert [(record["pass"], record.get("round")) for record in result.report["passes"]] == [
        ("repeat", None),
        *((name, number) for number in (1, 2) for name in ("score", "select", "shrink", "finetune")),
        ("fold_bn", None),
    ]
    again = compile(net(), result.lock, (X[:1],), data=data)
    assert same(again.program, result.program)


def test_the_metric_is_the_whole_models_where_a_region_is_compiled(data):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = net(), nn.Linear(5, 5)
            nn.init.eye_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def forward(self, x):
            return self.last(self.inner(x / 2 + x / 2))

    plan = {"plan": 1, "region": "inner", "passes": [repeat(steps=2, to={"macs": 0.8})]}
    result = compile(Whole().eval(), plan, (X[:1],), data=data)
    assert result.report["passes"][0]["rounds"]["rows"][0]["metric"] == 1


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    "neither": ({"to": {"macs": 0.5}}, "repeat must have one of the keys 'steps' and 'each'"),
    "both": ({"steps": 2, "each": 2, "to": {"macs": 0.5}}, "repeat must have one of the keys 'steps' and 'each'"),
    "no budget": ({"each": 2}, "repeat must have the key 'to' beside 'each'"),
    "an open amount": ({"steps": 2}, "repeat must have the key 'to': a pass inside leaves it open how much goes"),
    "a schedule": ({"each": 2, "to": {"macs": 0.5}, "schedule": "linear"}, "must not have the key 'schedule' without"),
    "a word": ({"steps": 2, "to": {"mac": 0.5}}, "did you mean 'macs'"),
    "a unit": ({"steps": 2, "to": {"macs": "2MB"}}, "must name for macs a share, or a plain number"),
    "no amount": ({"steps": 2, "to": {}}, "to must be a list of at least 1"),
    "a floor": ({"steps": 2, "to": {"macs": 0.5}, "floor": "2pt"}, "floor must be a loss such as -2pt or -5%"),
    "no steps": ({"steps": 0, "to": {"macs": 0.5}}, "steps must be at least 1"),
    "nobody takes it": (
        {"steps": 2, "to": {"macs": 0.5}, "passes": ["score", {"select": 0.5}, "shrink"]},
        "repeat must hold a pass that takes the budget of a round",
    ),
    "nothing goes": (
        {"steps": 2, "to": {"macs": 0.5}, "passes": ["score", "select"]},
        "repeat must hold a pass that removes what is selected",
    ),
    "rounds in rounds": (
        {"steps": 2, "to": {"macs": 0.5}, "passes": [*CUT, repeat(steps=2, to={"macs": 0.5})]},
        "repeat can't stand inside repeat: rounds hold no rounds",
    ),
    "no single steps": (
        {"each": 2, "to": {"macs": 0.5}, "passes": ["score", {"select": {"method": "knapsack"}}, "shrink"]},
        "select must not name 'at_most' for the method knapsack",
    ),
    "an idle option": (
        {"steps": 2, "to": {"macs": 0.5}, "passes": ["score", {"select": {"floor": "-1pt"}}, "shrink"]},
        "select must not name 'floor' without 'from'",
    ),
    "no passes": ({"steps": 2, "passes": []}, "passes must name at least one pass"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    options, words = REFUSED[name]
    with pytest.raises(PlanError) as caught:
        Plan.from_dict({"plan": 1, "passes": [repeat(**options)]})
    assert words in str(caught.value)


def test_a_bare_select_outside_rounds_is_refused():
    with pytest.raises(PlanError, match="must say exactly one of ratio, widths"):
        Plan.from_dict({"plan": 1, "passes": CUT})


def test_what_a_round_needs_is_asked_for(program):
    with pytest.raises(PlanError, match="needs scores, which no pass before it gives in the same round"):
        run(program, "score", repeat(["select", "shrink"], steps=2, to={"macs": 0.5}))
    once = run(program, "score", repeat(["select", "shrink"], steps=1, to={"macs": 0.5}))
    assert np.isclose(rows(once)[1].cost.macs, cost(once.program).macs)
