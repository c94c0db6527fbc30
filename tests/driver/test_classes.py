"""Class-adaptive compiles: the model, the data, the artifacts and what is measured are of the kept classes alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from heads import head
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cost.latency.model import kept_units
from prunec.compiler.driver.check import check_plan
from prunec.compiler.driver.compile import load_divided, program_after
from prunec.compiler.errors import DataError, ModelError, PlanError, PrunecError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.classes import class_axis
from prunec.compiler.ir.graph import output_of
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.console import show_report
from prunec.compiler.report.html import report_html
from prunec.compiler.rewrite.classes import keep_classes
from prunec.compiler.tracing.trace import trace

NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def samples(count: int = 80, seed: int = 1):
    """Inputs that all classes have, in batches of 8."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 6, 6, generator=generator)
    return list(zip(images.split(8), (torch.arange(count) % 10).split(8), strict=True))


class Images:
    """Data that know the names of their classes."""

    classes = NAMES

    def train(self):
        return samples(seed=2)

    def test(self):
        return samples()


def adapted(classes, *passes, model=None, data=None, **plan):
    return compile(model or head("linear"), {"plan": 1, "classes": classes, "passes": list(passes), **plan}, (X,), data)


def picked_accuracy(model: nn.Module, kept: list[int]) -> float:
    right = []
    with torch.no_grad():
        for x, y in samples():
            mine = torch.isin(y, torch.tensor(kept))
            right += (torch.tensor(kept)[model(x)[:, kept].argmax(1)] == y)[mine].tolist()
    return sum(right) / len(right)


# -- which classes -------------------------------------------------------------------------------------------------


def of_dataset(kind: str):
    """A data set within a loader, as torchvision has them."""
    data_set = [(x, int(y)) for xs, ys in samples() for x, y in zip(xs, ys, strict=True)]

    class Named(torch.utils.data.Dataset):
        classes = list(NAMES)

        def __len__(self):
            return len(data_set)

        def __getitem__(self, index):
            return data_set[index]

    inner: torch.utils.data.Dataset = Named()
    if kind == "subset":
        inner = torch.utils.data.Subset(inner, range(60))
    if kind == "concatenated":
        inner = torch.utils.data.ConcatDataset([inner, inner])
    return torch.utils.data.DataLoader(inner, 8)


@pytest.mark.parametrize(
    "data",
    [
        Images(),
        of_dataset("plain"),
        of_dataset("subset"),
        of_dataset("concatenated"),
        {"test": of_dataset("plain")},
        SimpleNamespace(test=lambda: of_dataset("subset")),
    ],
    ids=["data", "loader", "subset", "concatenated", "split", "method"],
)
def test_names_come_from_the_data(data):
    found = adapted(["dog", "cat"], data=data).findings.classes
    assert found is not None
    assert (found.kept, found.names) == ((3, 5), ("cat", "dog"))


def test_splits_are_not_made_for_names_that_the_data_list_themselves():
    def made():
        raise AssertionError("nobody needs it")

    found = adapted(["dog", "cat"], data=SimpleNamespace(classes=NAMES, train=made, test=samples)).findings.classes
    assert found is not None
    assert found.names == ("cat", "dog")


def test_names_come_from_the_plan(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "marked.txt").write_text("\r\n".join(["cat", *NAMES[1:3], "plane", *NAMES[4:]]), encoding="utf-8-sig")
    found = adapted({"keep": ["cat", "dog"], "names": str(tmp_path / "marked.txt")}).findings.classes
    assert found is not None
    assert (found.kept, found.names) == ((0, 5), ("cat", "dog"))
    for names in (list(NAMES), {"5": "dog", "3": "cat"}, str(tmp_path / "names.txt")):
        found = adapted({"keep": ["dog", 3], "names": names}).findings.classes
        assert found is not None
        assert (found.kept, found.of, found.names) == ((3, 5), 10, ("cat", "dog"))


@pytest.mark.parametrize(
    ("classes", "data", "error", "message"),
    [
        ([3, 10], None, PlanError, "there is no class 10: the model has 10, from 0 to 9"),
        (["cat", "dgo"], Images(), PlanError, "there is no class 'dgo'\nhint: did you mean 'dog'?"),
        (["3", "dog"], Images(), PlanError, "there is no class '3'\nhint: a position stands without quotes: 3"),
        (["cat", "dog"], None, PlanError, "nobody knows the names of classes, such as 'cat'"),
        (["cat", "dog"], samples(), PlanError, "nobody knows the names of classes, such as 'cat'"),
        (["cat", 3], Images(), PlanError, "'classes' names one class twice"),
        (list(range(10)), None, PlanError, "'classes' lists all 10 classes of the model\nhint: leave it out"),
        ({"keep": [0, 1], "names": ["a", "b"]}, None, PlanError, "'names' lists 2 names, and the model has 10 classes"),
        ({"keep": [0, 1], "names": {"12": "b"}}, None, PlanError, "'names' has a class 12: the model has 10"),
        ({"keep": ["a", "b"], "names": [*"aabcdefghi"]}, None, PlanError, "classes 0, 1 are all called 'a'"),
        (["a", "b"], SimpleNamespace(classes=["a", "b"], test=samples), DataError, "lists 2 names, and the model has"),
        ({"keep": [0, 1], "outputs": ["kind"]}, None, PlanError, "the model has no output 'kind'"),
    ],
)
def test_classes_that_there_are_not_are_told(classes, data, error, message):
    with pytest.raises(error) as found:
        adapted(classes, data=data)
    assert message in str(found.value)


def test_faults_stand_where_the_plan_has_them(tmp_path):
    (tmp_path / "plan.yaml").write_text(f"plan: 1\nclasses:\n  keep: [cat,\n    dgo]\n  names: {list(NAMES)}\n")
    with pytest.raises(PlanError, match=r"plan.yaml:4:5: there is no class 'dgo'"):
        compile(head("linear"), tmp_path / "plan.yaml", (X,))


def test_a_file_of_names_that_is_no_text(tmp_path):
    (tmp_path / "names.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"names\.bin can't be read as text"):
        adapted({"keep": [0, 1], "names": str(tmp_path / "names.bin")})


# -- which outputs -------------------------------------------------------------------------------------------------


def test_an_output_that_holds_no_classes_is_told():
    for returned, message in (
        (lambda s, h, p: p.sum(1), "output [2] has no classes"),
        (lambda s, h, p: s.fc(p)[:, :1], "output [2, 1] has no classes"),
        (lambda s, h, p: s.fc(p).argmax(1), "gives no tensor of numbers"),
    ):
        with pytest.raises(ModelError) as found:
            adapted([0, 1], model=head(returned))
        assert message in str(found.value)


def test_the_judged_output_says_how_many_classes_there_are():
    def two(s, h, p):
        return {"where": h.mean(1).flatten(1), "kind": s.fc(p), "deep": s.aux(p), "features": p}

    model = head(two)
    for plan in ({"metric": {"name": "accuracy", "output": "kind"}}, {"loss": {"name": "nll", "output": "kind"}}):
        got = adapted([1, 4], model=model, **plan).module(X)
        want = model(X)
        for name, value in got.items():
            picked = want[name][:, [1, 4]] if name in ("kind", "deep") else want[name]
            torch.testing.assert_close(value, picked)
    only = adapted({"keep": [1, 4], "outputs": ["kind"]}, model=model).module(X)
    assert {name: value.shape[1] for name, value in only.items()} == {"where": 36, "kind": 2, "deep": 10, "features": 8}
    with pytest.raises(ModelError, match=r"classes: \{keep: \[\.\.\.\], outputs: \[\.\.\.\]\}"):
        adapted([0, 1], model=head(lambda s, h, p: (p.sum(1), s.fc(p))))


def test_an_output_of_as_many_features_is_left_and_told():
    def features(s, h, p):
        found = s.aux(p)
        return s.after(found), found

    model = head(features)
    result = adapted([1, 4], model=model)
    torch.testing.assert_close(result.module(X)[1], model(X)[1])
    assert [str(note) for note in result.findings.passes[0].notes] == [
        "aux: is left as it is: what it holds isn't classes alone"
    ]


def test_both_modes_lose_the_classes():
    def auxiliary(s, h, p):
        return (s.fc(p), s.aux(p)) if s.training else s.fc(p).softmax(1)

    model = head(auxiliary)
    slim = adapted([1, 4], model=model, mode="train").module
    for mode in (False, True):
        want, got = model.train(mode)(X), slim.train(mode)(X)
        if mode:
            assert [value.shape for value in got] == [(2, 2), (2, 2)]
        else:
            torch.testing.assert_close(got, want[:, [1, 4]] / want[:, [1, 4]].sum(1, keepdim=True))


def test_a_region_is_refused():
    with pytest.raises(PlanError, match="a plan with a region can't keep some classes alone"):
        adapted([0, 1], region="fc")


# -- what the compile then does ------------------------------------------------------------------------------------


def test_the_first_rewrite_is_of_the_output_alone_and_is_checked():
    model = head("linear")
    result = adapted([7, 1, 4], model=model)
    torch.testing.assert_close(result.module(X), model(X)[:, [1, 4, 7]])
    assert [(record.name, record.details) for record in result.findings.passes] == [
        ("classes", {"removed_units": {"fc": 7}})
    ]
    check = result.findings.passes[0].verification
    assert check is not None
    assert check.difference < 1e-6
    assert result.findings.cost.before.params - result.findings.cost.after.params == 7 * 9
    assert model.fc.out_features == 10, "the user's model is as it was"


def test_scores_metric_and_training_see_the_kept_classes():
    model, data = head("linear"), Images()
    result = adapted(
        ["cat", "dog"],
        {"score": {"criterion": "class_weights", "samples": 40}},
        {"select": "50%"},
        "shrink",
        {"finetune": {"epochs": 2, "optimizer": "sgd", "lr": 0.01}},
        model=model,
        data=data,
    )
    measured = result.findings.metric
    assert measured is not None
    assert measured.value.before == pytest.approx(picked_accuracy(model, [3, 5]))
    assert result.findings.evaluation is not None
    assert result.findings.evaluation.samples == 16
    assert result.module(X).shape == (2, 2)
    history = result.findings.passes[-1].history
    assert [row["epoch"] for row in history] == [1, 2]


def test_later_rounds_and_distillation_count_from_the_kept_classes():
    """What is left of the head's axis is numbered by the original's classes; both look it up among the kept ones."""
    rounds = {"repeat": {"steps": 2, "to": {"macs": "50%"}, "passes": [{"score": "l1"}, "select", "shrink"]}}
    result = adapted([2, 5, 9], rounds, {"finetune": {"updates": 2, "distill": {"features": 1.0}}}, data=Images())
    assert result.module(X).shape == (2, 3)
    assert result.findings.cost.after.macs <= 0.5 * result.findings.cost.before.macs


def test_a_predicted_latency_is_that_of_the_kept_classes():
    source = trace(head("linear"), (X,))
    outputs = output_of(source.graph).all_input_nodes
    slim = keep_classes(source, class_axis(source, outputs, outputs), (2, 5, 9))
    assert kept_units(slim, slim).all()
    assert kept_units(source, slim).sum() == analyse(source).size - 7


def test_data_without_labels_or_samples_are_told():
    unlabelled = [x for x, _ in samples()]
    with pytest.raises(DataError, match="needs one class for each sample, as a whole number; the data have no labels"):
        adapted([0, 1], data=unlabelled)
    few = [(x[y != 4], y[y != 4]) for x, y in samples()]
    with pytest.raises(DataError, match=r"the data has no sample of class 4"):
        adapted([1, 4], data=few)
    with pytest.raises(DataError, match=r"it has a sample of class 1[0-2]; the model knows 10 classes"):
        adapted([1, 4], data=[(x, y + 3) for x, y in samples()])


def test_each_class_is_scored_by_itself():
    model = head("linear")
    uneven = [(x, torch.where(y == 3, 0, y)) for x, y in samples()[:5]] + samples()[5:]
    with torch.no_grad():  # else all are of one class
        logits = model(torch.cat([x for x, _ in uneven]))
        model.fc.bias[5] += (logits[:, 3] - logits[:, 5]).median()
    result = adapted([3, 5], {"select": {"units": {"conv": [0, 1, 2, 3, 4]}}}, "shrink", model=model, data=uneven)
    found = result.findings.classes
    assert found is not None
    assert found.balanced is not None
    assert [score.samples for score in found.scores] == [4, 8]
    sides = {"before": lambda x: model(x)[:, [3, 5]], "after": result.module}
    for side, given in sides.items():
        shares = []
        for new, old in enumerate((3, 5)):
            right = torch.cat([given(x[y == old]).argmax(1) == new for x, y in uneven])
            shares.append(float(right.double().mean()))
        assert [getattr(score.accuracy, side) for score in found.scores] == shares
        assert getattr(found.balanced, side) == pytest.approx(sum(shares) / 2)
    assert 0 < found.balanced.before != found.balanced.after > 0
    assert ">mean</td>" in report_html(result.findings)


def test_outputs_of_pixels_are_not_scored_by_class():
    found = adapted([3, 5], model=head("pixels")).findings.classes
    assert found is not None
    assert found.scores == ()


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_a_class_without_samples_is_told_before_any_pass(lacking):
    few = [(x[y != 4], y[y != 4]) for x, y in samples()]
    data = {"train": samples(), "val": samples(), "test": samples(), lacking: few}
    said: list[str] = []
    with pytest.raises(DataError, match=rf"the data's {lacking}\(\) has no sample of class 4\n"):
        compile(
            head("linear"),
            {"plan": 1, "classes": [1, 4], "passes": ["score", {"select": "50%"}, "shrink", {"finetune": 1}]},
            (X,),
            data,
            progress=lambda what, done, total, note="": said.append(what),
        )
    assert said == ["trace", "trace"]


def test_losses_follow():
    model = head("linear")
    weight = [float(index + 1) for index in range(10)]
    kept = [1, 4]
    loss = {"name": "cross_entropy", "args": {"weight": weight, "ignore_index": 0}}
    measured = adapted(kept, model=model, data=samples(), loss=loss, metric="loss").findings.metric
    losses, total = [], 0
    with torch.no_grad():
        for x, y in samples():
            mine = torch.isin(y, torch.tensor(kept))
            labels = (y[mine] == 4).long()
            losses += nn.functional.cross_entropy(
                model(x)[mine][:, kept], labels, torch.tensor([2.0, 5.0]), reduction="none"
            ).tolist()
            total += len(labels)
    assert measured is not None
    assert measured.value.before == pytest.approx(sum(losses) / total, rel=1e-5)


def test_the_map_is_in_every_artifact(tmp_path, capsys):
    plan = {"classes": ["dog", "cat"], "passes": ["score", {"select": "50%"}, "shrink"], "export": ["onnx"]}
    result = compile(head("softmax"), {"plan": 1, **plan}, (X,), Images(), quick=True)
    report = result.save(tmp_path / "out")
    known = {"kept": [3, 5], "of": 10, "names": ["cat", "dog"], "renormalised": True}
    assert {key: report["classes"][key] for key in known} == known
    assert json.loads((tmp_path / "out/report.json").read_text())["classes"] == report["classes"]
    lock = json.loads((tmp_path / "out/plan.lock.json").read_text())
    assert lock["classes"] == {"keep": [3, 5], "names": {"3": "cat", "5": "dog"}}
    gone = [position for position in range(10) if position not in (3, 5)]
    assert lock["removed"]["fc.weight"]["0"] == lock["removed"]["fc.bias"]["0"] == gone
    props = {each.key: each.value for each in onnx.load(tmp_path / "out/model.onnx").metadata_props}
    assert len(props.pop("lock_sha256")) == 64
    assert {key: json.loads(value) for key, value in props.items()} == {
        "classes": [3, 5],
        "class_names": ["cat", "dog"],
    }
    spec = importlib.util.spec_from_file_location("slim_of_two", tmp_path / "out/model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.classes, module.class_names) == ((3, 5), ("cat", "dog"))
    torch.testing.assert_close(module.load()(X), result.module(X))
    sentence = "lasses: 2 of 10: cat (3), dog (5); probabilities are those among the kept classes"
    assert sentence in report_html(result.findings)
    show_report(result.findings, tmp_path / "out")
    assert f"c{sentence}; accuracy is that among them, before too" in capsys.readouterr().out


def test_a_lock_gives_the_same_again(tmp_path):
    plan = {"classes": [7, 1], "passes": ["score", {"select": "50%"}, "shrink"]}
    first = compile(head("conv"), {"plan": 1, **plan}, (X,), samples())
    first.save(tmp_path / "out")
    lock = Plan.load(tmp_path / "out/plan.lock.json")
    again = compile(head("conv"), lock, (X,), samples())
    assert again.lock["hashes"] == first.lock["hashes"]
    assert again.lock["removed"] == first.lock["removed"]
    assert again.findings.warnings == first.findings.warnings


def plan_file(folder: Path, classes: str, known: int = 10) -> Plan:
    (folder / "it.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from heads import head\n"
        "def model(): return head('linear')\n"
        "def data():\n"
        "    import torch\n"
        "    x = torch.randn(40, 3, 6, 6)\n"
        f"    return {{'test': [(x, torch.arange(40) % {known})]}}\n"
    )
    (folder / "plan.yaml").write_text(
        f"plan: 1\nmodel: it.py:model\ninputs: [[2, 3, 6, 6]]\ndata: it.py:data\nclasses: {classes}\n"
        "passes: [score, {select: 50%}, shrink]\n"
    )
    return Plan.load(folder / "plan.yaml")


def test_check_ir_and_explain_see_the_kept_classes(tmp_path):
    plan = plan_file(tmp_path, "{keep: [a, c], names: {'0': a, '2': c}}")
    sizes = {name: group.size for name, group in analyse(load_divided(plan)).groups.items()}
    assert sizes == {"conv": 8, "fc": 2}
    lines = list(check_plan(plan))
    assert "classes: 2 of 10: a (0), c (2)" in lines
    assert program_after(plan, "score").module(X).shape == (2, 2)
    with pytest.raises(PrunecError, match="there is no class 'b'"):
        list(check_plan(plan_file(tmp_path, "{keep: [a, b], names: {'0': a, '2': c}}")))


def test_the_reference_is_independent():
    """What is kept agrees with the traced original's columns, whatever was compiled."""
    model = head("conv and flatten")
    program = trace(model, (X,))
    got = adapted([0, 9], model=model).module(X)
    torch.testing.assert_close(got, program.module(X)[:, [0, 9]])


def test_check_reads_until_every_class_has_come(tmp_path):
    with pytest.raises(DataError, match=r"plan.yaml:4:7: the data's test\(\) has no sample of class 9"):
        list(check_plan(plan_file(tmp_path, "[1, 9]", known=9)))
