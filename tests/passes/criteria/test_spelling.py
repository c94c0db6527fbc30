"""How a plan names a criterion and its options, and what it is told where it can't."""

from __future__ import annotations

import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.plan import Plan
from prunec.passes.score import Score


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"criterion": "tailor"}, r"criterion must be the name of a criterion, got 'tailor'"),
        ({"criterion": {"tile": {"row": 3}}}, "unknown key 'row'"),
        ({"criterion": {"tile": {"rows": 0}}}, "rows must be at least 1, got 0"),
        ({"criterion": {"tile": 3}}, "tile must be a mapping, got 3"),
        ({"criterion": {"tile": {}, "l1": {}}}, "criterion must be the name of a criterion, or one name"),
        ({"criterion": "l1", "samples": 3}, "must not have 'samples': the criterion l1 looks at no data"),
        ({"criterion": "taylor", "memory": "2 bananas"}, "memory must be a number of bytes"),
        ({"criterion": "taylor", "batches": 0}, "batches must be at least 1, got 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_plans_that_are_refused(entry, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_dict({"plan": 1, "passes": [{"score": entry}]})


def test_the_place_of_a_criterions_option(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("plan: 1\npasses:\n  - score: {criterion: {tile: {colums: 3}}, normalize: l2}\n")
    with pytest.raises(PlanError) as caught:
        Plan.load(file)
    assert str(caught.value) == (
        f"{file}:3:32: unknown key 'colums'\n"
        "    - score: {criterion: {tile: {colums: 3}}, normalize: l2}\n"
        "                                 ^^^^^^\n"
        "hint: did you mean 'columns'?"
    )


@pytest.mark.parametrize(
    "entry", ["l2", {"criterion": {"l2": None}}, {"criterion": {"l2": {}}}, {"criterion": "l2"}], ids=str
)
def test_spellings_of_one_criterion(entry):
    made = Plan.from_dict({"plan": 1, "passes": [{"score": entry}]}).passes[0].pass_
    assert made == Score(criterion="l2")
