"""The pass `class_evidence`, what it leaves in the output, and the selections that go by it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from calibrating import Chain, Samples, Stream, images, lively
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.data import Data
from prunec.compiler.driver.check import check_plan
from prunec.compiler.driver.classes import adapt
from prunec.compiler.errors import DataError, PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace
from prunec.passes.class_evidence import ClassEvidencePass
from prunec.passes.criteria.class_tables import ClassTable, balanced
from prunec.passes.score import Score

DATA = images(40, classes=4)


class Four(Chain):
    """A chain for four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)


def four() -> nn.Module:
    return lively(Four())


def compiled(*passes, model=None, data=DATA, **plan):
    return compile(model or four(), {"plan": 1, "passes": list(passes), **plan}, (DATA.inputs[:1],), data)


def evidence(program, data=DATA, context=None, **options) -> ClassTable:
    given = context or Context(data=data)
    return ClassEvidencePass(**options).run(program, given).program.facts["class_evidence"]


def test_the_table_is_that_of_the_criterion():
    program = trace(four(), (DATA.inputs[:1],))
    found = evidence(program, criterion="class_maps", samples=30)
    assert {name: table.shape for name, table in found.items()} == {"conv1": (5, 4), "conv2": (4, 4)}
    scores = Score(criterion="class_maps", samples=30).run(program, Context(data=DATA)).program.facts["scores"]
    for name, table in found.items():
        np.testing.assert_allclose(balanced(table).max(1), scores[name])


def test_the_table_and_its_picture_lie_in_the_output(tmp_path):
    result = compiled("class_evidence", {"score": "class_evidence"}, {"select": "20%"}, "shrink")
    result.save(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "class_evidence.csv").read_text().splitlines()))
    assert [(row["group"], row["unit"]) for row in rows][4:6] == [("conv1", "4"), ("conv2", "0")]
    table = evidence(result.before)
    assert [float(rows[0][str(y)]) for y in range(4)] == pytest.approx(table["conv1"][0].tolist(), rel=1e-5)
    assert rows[0]["label"] == str(balanced(table["conv1"])[0].argmax())
    assert (tmp_path / "out" / "class_evidence.png").read_bytes().startswith(b"\x89PNG")
    assert "Which classes the units drive" in (tmp_path / "out" / "report.html").read_text()


# -- where the plan keeps some classes --------------------------------------------------------------------------------


def keeping(*kept: int, data: Samples = DATA):
    """A program that has lost all other classes, a context that knows of it, and the original."""
    program = trace(four(), (DATA.inputs[:1],))
    adapted = adapt(Plan.of({"plan": 1, "classes": list(kept), "passes": []}), program, Data.of(data))
    return adapted.program, adapted.told(Context(data=adapted.data)), program


def test_the_table_is_of_all_classes_where_some_are_kept():
    slim, context, program = keeping(1, 3)
    found, whole = evidence(slim, context=context), evidence(program)
    assert found.kept == (1, 3)
    assert found.titles == ("0", "1", "2", "3")
    assert found.keys() == whole.keys()
    for name, table in found.items():
        np.testing.assert_array_equal(table, whole[name])


def test_behind_other_rewrites_it_is_of_the_kept_classes():
    slim, context, _ = keeping(1, 3)
    keep = np.ones(analyse(slim).size, dtype=bool)
    keep[2] = False
    result = ClassEvidencePass().run(remove_units(slim, keep), context)
    table = result.program.facts["class_evidence"]["conv1"]
    assert table.shape == (4, 4)
    assert np.isnan(table).all(0).tolist() == [True, False, True, False]
    assert [note.subject for note in result.notes] == ["class_evidence"]  # nobody looked for classes that have gone
    scores = Score(criterion="class_evidence").run(result.program, context).program.facts["scores"]
    assert np.isfinite(scores["conv1"]).all()


def test_the_kept_classes_count():
    slim, context, program = keeping(1, 3)
    known = ClassEvidencePass().run(slim, context).program
    table = evidence(program)

    def scores(**options):
        made = Score(criterion={"class_evidence": options} if options else "class_evidence")
        return made.run(known, context).program.facts["scores"]["conv1"]

    np.testing.assert_allclose(scores(), balanced(table["conv1"])[:, [1, 3]].max(1))
    np.testing.assert_allclose(scores(classes=[0, 2]), balanced(table["conv1"])[:, [0, 2]].max(1))
    with pytest.raises(PassError, match="there is no class 4: the model knows 4, from 0"):
        scores(classes=[4])


def test_class_weights_name_kept_classes_by_the_originals_numbers():
    slim, context, _ = keeping(1, 3)

    def scores(classes):
        made = Score(criterion={"class_weights": {"classes": classes}})
        return made.run(slim, context).program.facts["scores"]["conv1"]

    both = scores([1, 3])
    assert (both >= scores([3]) - 1e-12).all()
    np.testing.assert_array_equal(
        Score(criterion="class_weights").run(slim, context).program.facts["scores"]["conv1"], both
    )
    with pytest.raises(PassError, match="class 2 isn't among those that the plan keeps"):
        scores([2])


def test_a_whole_compile_by_each_level(tmp_path):
    """A third of the channels goes by each level, under a budget, with a group that is protected."""
    for level in ("filter", "balanced"):
        criterion = {"class_evidence": {"level": level}}
        budget = {"budget": {"macs": "70%"}, "protect": ["conv2"], "keep_at_least": 2, "multiple_of": 1}
        result = compiled(
            "class_evidence", {"score": {"criterion": criterion}}, {"select": budget}, "shrink", classes=[1, 3]
        )
        widths = {group.name: group.channels.after for group in result.findings.groups}
        assert widths["conv2"] == 4
        assert 2 <= widths["conv1"] < 5
        assert result.findings.classes.kept == (1, 3)


def test_ignored_samples_count_for_no_class():
    labels = torch.where(DATA.labels == 2, 255, DATA.labels)
    loss = {"name": "cross_entropy", "args": {"ignore_index": 255}}
    result = compiled("class_evidence", data=Samples(DATA.inputs, labels), classes=[1, 3], loss=loss)
    assert [note.subject for note in result.findings.passes[1].notes] == ["class 2"]


class Heads(nn.Module):
    """Colours and kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.colour, self.kind = nn.Conv2d(2, 8, 3), nn.Linear(8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = torch.relu(self.conv(x)).mean((2, 3), keepdim=True)
        return {"colour": self.colour(pooled.flatten(1)), "kind": self.kind(pooled).flatten(1)}


@pytest.mark.parametrize("criterion", ["class_weights", "class_maps", "class_evidence"])
def test_of_several_outputs_the_judged_one_counts(criterion):
    """The head that isn't judged has no part in what its layer's units are for."""
    before = ["class_evidence"] if criterion == "class_evidence" else []
    metric = {"name": "accuracy", "output": "kind"}
    plan = [*before, {"score": criterion}, {"select": "50%"}, "shrink"]
    model = lively(Heads())
    model.kind.weight.data[:, [0, 2, 5, 7]] = 0
    for kept in ({}, {"classes": {"keep": [1, 3], "outputs": ["kind"]}}):
        result = compiled(*plan, model=model, metric=metric, **kept)
        assert result.lock["removed"]["conv.weight"]["0"] == [0, 2, 5, 7]


def test_rounds_measure_anew():
    """The first round's table is of all classes, the second's of those that are left; one picture is drawn."""
    steps = ["class_evidence", {"score": "class_evidence"}, "select", "shrink"]
    result = compiled({"repeat": {"steps": 2, "to": {"macs": "40%"}, "passes": steps}}, classes=[1, 3])
    told = [record for record in result.findings.passes if record.name == "class_evidence"]
    assert [bool(record.attachments) for record in told] == [True, False]
    assert [len(record.notes) for record in told] == [0, 1]


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_whole_clusters_stay_together():
    """Units of one cluster have neighbouring scores; at threshold 1 the clusters stay that are for a kept class."""
    program = trace(four(), (DATA.inputs[:1],))
    table = ClassTable(conv1=np.array([[9.0, 0, 0, 0], [8, 0, 1, 0], [0, 9, 0, 0], [0, 9, 8, 0], [0, 0, 0, 0]]))
    clusters = {"conv1": np.array([[0], [0], [1], [1], [-1]])}
    known = program.with_facts(class_evidence=table, image_clusters=clusters)

    def scores(**options):
        made = Score(criterion={"class_evidence": {"level": "cluster", **options}})
        return made.run(known, Context(data=DATA)).program.facts["scores"]

    assert scores(classes=[0]).keys() == {"conv1"}
    assert (scores(classes=[0])["conv1"] >= 1).tolist() == [True, True, False, False, False]
    assert (scores(classes=[1])["conv1"] >= 1).tolist() == [False, False, True, True, False]
    assert (scores(classes=[0, 1])["conv1"] >= 1).tolist() == [True] * 4 + [False]
    assert scores(classes=[0, 1])["conv1"][4] == 0


def test_clusters_have_to_be_there():
    plan = {"plan": 1, "passes": ["class_evidence", {"score": {"criterion": {"class_evidence": {"level": "cluster"}}}}]}
    with pytest.raises(PlanError, match="image_clusters"):
        compile(four(), plan, (DATA.inputs[:1],), DATA)
    with pytest.raises(PlanError, match="class_evidence"):
        compiled({"score": "class_evidence"})


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_class_without_samples_is_told():
    few = Samples(DATA.inputs[DATA.labels != 3], DATA.labels[DATA.labels != 3])
    program = trace(four(), (DATA.inputs[:1],))
    result = ClassEvidencePass().run(program, Context(data=few))
    assert [str(note) for note in result.notes] == ["class 3: has no sample among those looked at"]
    scored = Score(criterion="class_weights").run(program, Context(data=few))
    assert [str(note) for note in scored.notes] == ["class 3: has no sample among those looked at"]
    slim, context, _ = keeping(1, 3, data=few)
    for made in (ClassEvidencePass(samples=20), Score(criterion="class_weights", samples=8)):
        with pytest.raises(DataError, match="has no sample of class 3"):
            made.run(slim, context)


def test_data_are_needed_before_anything_runs():
    with pytest.raises(PassError, match="the plan has none"):
        compiled("class_evidence", data=None)
    unlabelled = [(each,) for each in DATA.inputs.split(8)]
    with pytest.raises(DataError, match="one class a sample is needed as label; the data have no labels"):
        compiled("class_evidence", data=unlabelled)
    with pytest.raises(DataError, match="it has a sample of class 3; the model knows 3 classes, from 0"):
        compiled("class_evidence", model=lively(Chain()))
    with pytest.raises(PlanError, match="must be a criterion that gives evidence for classes"):
        compiled({"class_evidence": "l1"})


def test_maps_of_several_elements_hold_no_classes():
    headless = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)).double()
    with pytest.raises(DataError, match=r"class evidence needs outputs \[samples, classes\], got \[8, 4, 2, 2\]"):
        compiled("class_evidence", model=headless)


def test_finetuning_on_the_kept_classes_goes_on_from_there():
    """Training sees the kept classes alone, numbered anew, and learns them."""
    data = Samples(F.one_hot(DATA.labels, 4).double()[:, :, None, None].expand(-1, 4, 6, 6)[:, :2] + 0.1, DATA.labels)
    plan = [
        {"score": "class_weights"},
        {"select": "25%"},
        "shrink",
        {"finetune": {"epochs": 8, "optimizer": "adam", "lr": 0.02}},
    ]
    result = compiled(*plan, data=data, classes=[0, 1])
    assert result.findings.accuracy.after == 1.0
    assert result.module(data.inputs[:2]).shape == (2, 2)


def test_checking_a_plan_finds_it(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        "plan: 1\nmodel: {factory: prunec.models.digits:cnn}\ninputs: [[1, 1, 8, 8]]\n"
        "data: prunec.models.data:digits\nclasses: [1, 4]\n"
        "passes: [class_evidence, {score: class_evidence}, {select: 30%}, shrink]\n"
    )
    assert any("classes: 2 of 10: 1, 4" in line for line in check_plan(Plan.of(tmp_path / "plan.yaml")))


def test_streams_have_one_table():
    model = lively(Stream())
    program = trace(model, (DATA.inputs[:1],))
    three = images(12)
    assert {"stem", "a", "squeeze"} <= evidence(program, three).keys()


def test_where_no_class_is_named_those_that_the_data_have_count():
    """As with `score: class_weights`: a network of a thousand classes sees few of them in some samples."""
    data = images(30, classes=3)
    program = ClassEvidencePass().run(trace(four(), (data.inputs[:1],)), Context(data=data)).program
    for level in ("filter", "balanced"):
        by_table = Score.model_validate({"criterion": {"class_evidence": {"level": level}}})
        anew = Score.model_validate({"criterion": {"class_weights": {"level": level}}})
        found, expected = (each.run(program, Context(data=data)).program.facts["scores"] for each in (by_table, anew))
        for name, row in expected.items():
            np.testing.assert_allclose(found[name], row)
    named = Score.model_validate({"criterion": {"class_evidence": {"classes": [0, 3]}}})
    with pytest.raises(DataError, match="no sample of class 3"):
        named.run(program, Context(data=data))


class Rooted(Chain):
    """A root of zero between its layers, whose gradient is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sqrt(self.relu(self.conv1(x)) * 0))


@pytest.mark.parametrize("kind", ["class_weights", "class_maps"])
def test_gradients_that_are_no_numbers_are_told(kind):
    data = images(12)
    program = trace(lively(Rooted()), (data.inputs[:1],))
    for asked in (ClassEvidencePass(criterion=kind), Score(criterion=kind)):
        with pytest.raises(PassError, match=r"conv1.*: gradients of the model's output are infinite or no numbers"):
            asked.run(program, Context(data=data))
