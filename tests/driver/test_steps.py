"""Passes that hold passes: how their steps are found, and how the pass manager runs, checks and records them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from prunec.compiler.driver.pass_manager import check_needs, check_options, check_ready, run_passes
from prunec.compiler.driver.steps import Composite, CompositeResult, Step, before_first, unfolded
from prunec.compiler.errors import DataError, PassError, PlanError, Span
from prunec.compiler.pass_base import Context, PassResult, Round
from prunec.compiler.tracing.trace import trace
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink


class Twice(Composite):
    """Runs its passes so often, and gives what the round `give` gave."""

    name = "twice"
    times: int = 2
    give: int = -1

    def first_round(self, program, context):
        return self.last_round()

    def run_inside(self, program, context, run):
        programs, records, resolved = [], [], []
        for index in range(self.times):
            inside = replace(context, round=Round(index, self.times))
            outcome = run(programs[-1] if programs else program, self.last_round(), inside)
            programs.append(outcome.program)
            records += outcome.records
            resolved += outcome.resolved
        return CompositeResult(programs[self.give], records=tuple(records), resolved=tuple(resolved))


class Cheat(Twice):
    """Gives a program that nobody has verified."""

    name = "cheat"

    def run_inside(self, program, context, run):
        return CompositeResult(program.derive(state=dict(program.state)))


class Spy(Score):
    """Tells which round it is run in."""

    name = "spy"

    def run(self, program, context):
        return PassResult(super().run(program, context).program, details={"round": str(context.round)})


class Wanting(Score):
    """Wants what isn't there."""

    name = "wanting"

    def ready(self, program, context):
        raise DataError("nothing is there")


CUT = ["score", {"select": {"widths": {"0": 6}}}, "shrink"]


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    return trace(net.eval(), (torch.randn(2, 3, 8, 8),))


def twice(*entries, **options):
    return Twice(passes=list(entries), **options)


def test_rounds_are_recorded_behind_their_pass(program):
    halves = ["score", {"select": {"ratio": 0.5}}, "shrink"]
    outcome = run_passes(program, [Step(Score()), Step(twice(*halves))], Context())
    names = [(record.name, record.round) for record in outcome.records]
    assert names[:2] == [("score", None), ("twice", None)]
    assert names[2:] == [(name, number) for number in (1, 2) for name in ("score", "select", "shrink")]
    whole = outcome.records[1]
    assert whole.before == outcome.records[2].before
    assert whole.after == outcome.records[4].after == outcome.records[7].after
    assert whole.verification is None
    assert outcome.records[4].verification is not None
    assert outcome.records[2].to_dict()["round"] == 1
    assert "round" not in outcome.records[0].to_dict()


def test_what_the_rounds_resolve_to_gives_the_same_bits(program):
    outcome = run_passes(program, [Step(twice("score", {"select": {"widths": {"0": 5}}}, "shrink"))], Context())
    assert [pass_.name for pass_ in outcome.resolved] == ["select", "shrink", "select", "shrink"]
    again = run_passes(program, [Step(pass_) for pass_ in outcome.resolved], Context()).program
    assert again.tensors.keys() == outcome.program.tensors.keys()
    assert all(torch.equal(x, outcome.program.tensors[name]) for name, x in again.tensors.items())


def test_an_earlier_round_may_be_given(program):
    first = run_passes(program, [Step(twice(*CUT, give=0, times=1))], Context()).program
    widths = ["score", {"select": {"ratio": 0.25}}, "shrink"]
    given = run_passes(program, [Step(twice(*widths, give=0))], Context()).program
    assert given.tensors["0.weight"].shape[0] == first.tensors["0.weight"].shape[0] == 6


def test_a_program_of_its_own_making_is_refused(program):
    with pytest.raises(Exception, match="'cheat' gives a program of its own making"):
        run_passes(program, [Step(Cheat(passes=CUT))], Context())


def test_passes_know_their_round(program, monkeypatch):
    held = twice("score")
    monkeypatch.setattr(Twice, "last_round", lambda self: (Spy(),))
    outcome = run_passes(program, [Step(held)], Context())
    assert [r.details["round"] for r in outcome.records if r.name == "spy"] == ["round 1 of 2", "round 2 of 2"]


def test_progress_tells_the_round(program):
    said = []
    context = Context(progress=lambda what, done, total: said.append((what, done, total)))
    run_passes(program, [Step(twice("score"))], context)
    assert said[0] == ("pass 1 of 1: twice", 0, 1)
    assert [each for each in said if each[0].startswith("round")] == [
        ("round 1 of 2", 0, 1),
        ("round 1 of 2", 1, 1),
        ("round 2 of 2", 0, 1),
        ("round 2 of 2", 1, 1),
    ]
    assert said[-1] == ("pass 1 of 1: twice", 1, 1)


def test_what_each_round_needs_is_checked_in_a_second_round_too():
    check_needs([Step(twice(*CUT))])
    with pytest.raises(PlanError, match=r"'select' needs scores, which no pass before it gives\nhint: put a pass"):
        check_needs([Step(twice(*CUT[1:]))])
    with pytest.raises(PlanError, match="'select' needs scores, which no pass before it gives in the same round") as e:
        check_needs([Step(Score()), Step(twice(*CUT[1:]))])
    assert e.value.hint == "'shrink' changes the program, so scores has to be found again after it"


def test_what_rounds_drop_is_gone_behind_them():
    with pytest.raises(PlanError, match="'select' needs scores"):
        check_needs([Step(twice(*CUT)), Step(Select(ratio=0.5))])
    check_needs([Step(twice("score")), Step(Select(ratio=0.5))])


def test_options_of_what_is_held_are_checked(program):
    seen = []

    def locate(*keys, on_key=False):
        seen.append(keys)
        return Span("plan.yaml", 1 + len(keys), 1)

    held = twice("score", {"select": {"ratio": 0.5, "protect": ["nothing.*"]}}, "shrink")
    with pytest.raises(PassError, match=r"no group is called 'nothing\.\*'") as caught:
        check_options(program, [Step(held, locate=locate)])
    assert caught.value.at is not None
    assert seen[-1] == ("passes", 1, "select", "protect", 0)


def test_all_that_is_held_is_asked_whether_it_is_ready(program, monkeypatch):
    monkeypatch.setattr(Twice, "last_round", lambda self: (Wanting(),))
    with pytest.raises(DataError, match="nothing is there"):
        check_ready(program, [Step(twice("score"))], Context())


def test_errors_inside_have_their_place(program):
    def locate(*keys, on_key=False):
        return Span("plan.yaml", 7, 3) if keys[:2] == ("passes", 1) else None

    with pytest.raises(PassError) as caught:
        run_passes(program, [Step(twice("score", {"select": {"widths": {"0": 9}}}), locate=locate)], Context())
    assert str(caught.value.at) == "plan.yaml:7:3"


def test_until_stops_within_the_first_round(program):
    held = twice("score", {"select": {"ratio": 0.25}}, "shrink", times=3)
    after = run_passes(program, [Step(held)], Context(), until="shrink").program
    assert after.tensors["0.weight"].shape[0] == 6
    chosen = run_passes(program, [Step(held)], Context(), until="select").program
    assert np.concatenate(list(chosen.facts["selection"].values())).size == 2
    whole = run_passes(program, [Step(held), Step(Score())], Context(), until="twice")
    assert [record.name for record in whole.records if record.round is None] == ["twice"]


def test_unfolded_steps_stand_behind_what_holds_them():
    steps = [Step(twice("score", {"select": {"ratio": 0.5}})), Step(Shrink())]
    assert [step.pass_.name for step in unfolded(steps)] == ["twice", "score", "select", "shrink"]


def test_what_stands_before_a_pass():
    steps = [Step(twice("shrink")), Step(Shrink()), Step(twice("shrink", "score", "shrink")), Step(Shrink())]
    before = before_first(steps, lambda pass_: isinstance(pass_, Score))
    assert [step.pass_.name for step in before] == ["twice", "shrink", "shrink"]
    assert len(before_first(steps, lambda pass_: False)) == 4
