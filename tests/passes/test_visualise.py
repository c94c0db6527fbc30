"""`visualise` in a plan: a sheet a layer, a table, clusters by group, labels of evidence; and a run that was killed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_nets import Killed, Killer

from prunec.compiler import compile, trace
from prunec.compiler.data import Data
from prunec.compiler.errors import OutputError, PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.models.digits import cnn
from prunec.models.resnet import resnet
from prunec.passes.score import Score
from prunec.passes.visualise import Visualise
from prunec.passes.visualising import work

QUICK = {"steps": 3, "pixels": (-1.0, 1.0)}


def digits():
    torch.manual_seed(0)
    return cnn().eval()


def program(model=None, shape=(1, 8, 8)):
    return trace(digits() if model is None else model, (torch.zeros(2, *shape),))


def table(result) -> list[dict[str, str]]:
    (file,) = (each for each in result.attachments if each.file == "visualise.csv")
    return list(csv.DictReader(io.StringIO(file.content.decode())))


class FileKeeper:
    """Keeps every chunk in one file."""

    place = ""

    def __init__(self, path: Path) -> None:
        self.path = path

    def due(self) -> bool:
        return True

    def save(self, write) -> None:
        write(self.path)

    def load(self) -> Path | None:
        return self.path if self.path.exists() else None


def test_the_program_stays_and_learns_the_clusters_of_its_units():
    before = program()
    result = Visualise(**QUICK, layers=("conv2", "block2.*"), clusters=4).run(before, Context())
    assert result.program.graph is before.graph
    found = result.program.facts["image_clusters"]
    groups = analyse(before).groups
    assert found.keys() == {"conv2", "block2.conv1"}
    assert found["conv2"].shape == (64, 2)  # block2.conv2 is added to conv2: one group, two layers
    assert found["block2.conv1"].shape == (groups["block2.conv1"].size, 1)
    assert {int(x) for x in np.unique(found["conv2"])} == {0, 1, 2, 3}
    assert [each.file for each in result.attachments] == [
        "images_conv2.png",
        "images_block2.conv1.png",
        "images_block2.conv2.png",
        "visualise.csv",
    ]
    assert result.details["layers"]["conv2"]["units"] == 64
    assert sum(result.details["layers"]["conv2"]["clusters"]) == 64


def test_the_table_has_every_unit_and_every_image_rises():
    result = Visualise(**QUICK, layers=("conv1",), clusters=3).run(program(), Context())
    rows = table(result)
    assert [row["channel"] for row in rows] == [str(n) for n in range(32)]
    assert all(float(row["end"]) > float(row["start"]) for row in rows)
    clusters = result.program.facts["image_clusters"]["conv1"][:, 0]
    assert [int(row["cluster"]) for row in rows] == clusters.tolist()
    assert {row["class"] for row in rows} == {""}


def test_units_and_clusters_are_told_by_their_evidence():
    before = program()
    evidence = np.zeros((32, 3))
    evidence[np.arange(30), np.repeat([0, 1, 2], 10)] = 1.0
    before = before.with_facts(class_evidence={"conv1": evidence})
    result = Visualise(**QUICK, layers=("conv1", "block2.conv1"), clusters=2).run(before, Context())
    rows = [row for row in table(result) if row["layer"] == "conv1"]
    assert [row["class"] for row in rows] == ["0"] * 10 + ["1"] * 10 + ["2"] * 10 + [""] * 2
    for cluster in ("0", "1"):
        mine = [row for row in rows if row["cluster"] == cluster]
        counts = {y: sum(row["class"] == y for row in mine) for y in "012"}
        most = max(counts.values())
        above = {y for y in "012" if counts[y] * 3.2 > len(mine)}  # a unit has 3.2 of its class, and 1 in the mean
        served = {y for y in "012" if counts[y] >= 0.5 * most and (y in above or counts[y] == most)}
        assert {row["classes of the cluster"] for row in mine} == {
            ", ".join(sorted(served, key=lambda y: (-counts[y], y)))
        }
    other = [row for row in table(result) if row["layer"] == "block2.conv1"]
    assert {(row["class"], row["classes of the cluster"]) for row in other} == {("", "")}


def test_dead_units_are_named_and_set_apart():
    model = digits()
    with torch.no_grad():
        model.conv1.weight[[2, 5]] = 0
    result = Visualise(**QUICK, layers=("conv1",), clusters=3).run(program(model), Context())
    assert [str(note) for note in result.notes] == ["conv1: 2 of 32 units are dead, since no image moves them: 2, 5"]
    assert result.program.facts["image_clusters"]["conv1"][[2, 5], 0].tolist() == [-1, -1]
    assert [row["cluster"] for row in table(result) if row["cluster"] == "dead"] == ["dead"] * 2
    assert result.details["layers"]["conv1"]["dead"] == [2, 5]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_may_have_any_number_of_channels(channels):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)).eval()
    result = Visualise(**QUICK, clusters=2).run(program(net, (channels, 6, 6)), Context())
    assert result.attachments[0].content[:4] == b"\x89PNG"


def test_a_residual_network_has_a_column_for_each_layer_of_a_stream():
    torch.manual_seed(0)
    net = resnet(8, num_classes=4).eval()
    before = program(net, (3, 16, 16))
    result = Visualise(**QUICK, layers="all", clusters=2).run(before, Context())
    found = result.program.facts["image_clusters"]
    layers = [row["layer"] for row in table(result)]
    assert sum(array.shape[1] for array in found.values()) == len(set(layers))
    assert max(array.shape[1] for array in found.values()) > 1


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    asked = Visualise(**QUICK, layers=("conv1", "block2.conv1"), clusters=3, memory=200_000)
    whole = asked.run(program(), Context())
    keeper = FileKeeper(tmp_path / "images")
    kills = 0
    for _ in range(40):
        context = Context(keeper=keeper, progress=Killer(8))
        try:
            again = asked.run(program(), context)
        except Killed:
            kills += 1
            continue
        break
    assert kills > 3
    assert again.attachments == whole.attachments
    assert again.details == whole.details


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "images").write_bytes(b"nothing of the kind")
    with pytest.raises(OutputError, match="can't be read") as error:
        Visualise(**QUICK, layers=("conv1",)).run(program(), Context(keeper=FileKeeper(tmp_path / "images")))
    assert str(tmp_path) in str(error.value.hint)


def test_the_size_of_chunks_hardly_matters():
    asked = Visualise(**QUICK, layers=("conv1",), clusters=3)
    wide, narrow = (asked.model_copy(update={"memory": size}).run(program(), Context()) for size in (2**30, 150_000))
    for first, second in zip(table(wide), table(narrow), strict=True):
        assert float(first["end"]) == pytest.approx(float(second["end"]), rel=1e-4)


# -- in a plan -------------------------------------------------------------------------------------------------------


def batches():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 10), 20)


PLAN = {
    "plan": 1,
    "passes": [
        {"visualise": {"layers": ["conv2"], "steps": 2, "clusters": 3}},
        {"score": "l1"},
        {"select": "50%"},
        "shrink",
    ],
}


def test_a_compile_writes_sheets_and_shows_them_and_its_lock_needs_none(tmp_path):
    result = compile(digits(), PLAN, (torch.zeros(2, 1, 8, 8),), batches())
    result.save(tmp_path / "out")
    assert {"images_conv2.png", "visualise.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "Images of conv2" in (tmp_path / "out" / "report.html").read_text()
    assert [next(iter(each)) if isinstance(each, dict) else each for each in result.lock["passes"]] == [
        "select",
        "shrink",
    ]
    again = compile(digits(), result.lock, (torch.zeros(2, 1, 8, 8),), batches())
    assert again.lock["removed"] == result.lock["removed"]


def test_the_range_of_pixels_is_that_of_the_data():
    result = Visualise(steps=2, layers=("conv1",)).run(program(), Context(data=Data.of(batches())))
    assert all(float(row["end"]) > float(row["start"]) for row in table(result))


FAULTS = {
    "an unknown layer": ({"layers": ["conv9"], **QUICK}, PassError, "no layer with weights is called 'conv9'"),
    "an unknown preset": ({"preset": "slow"}, PlanError, "preset must be"),
    "a rule without a rate": ({"rule": "constant", **QUICK}, PlanError, "must name the 'rate' of the rule 'constant'"),
    "a range that falls": ({"pixels": [1, -1]}, PlanError, "the smaller one first"),
    "a range without an end": ({"pixels": [-float("inf"), 1]}, PlanError, "pixels"),
    "an endless step": ({"rate": float("inf")}, PlanError, "rate"),
    "an endless blur": ({"blur_width": float("inf")}, PlanError, "blur_width"),
    "no steps": ({"steps": 0}, PlanError, "steps"),
    "no data": ({"steps": 2}, PassError, "the range of valid pixels is that of the data"),
}


@pytest.mark.parametrize(("options", "kind", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_told(options, kind, message):
    plan = {"plan": 1, "passes": [{"visualise": options}]}
    with pytest.raises(kind, match=message):
        compile(digits(), plan, (torch.zeros(2, 1, 8, 8),))


def test_each_regulariser_has_its_own_switch():
    ascent = Visualise(preset="yosinski_a", blur_width=0, small_contribution="90%").ascent
    assert (ascent.blur_width, ascent.small_norm, ascent.small_contribution, ascent.steps) == (0, 50, 90, 500)
    assert Visualise(pixel_range=False).ascent.pixel_range is False
    assert Visualise().ascent.pixel_range is True


def test_the_time_that_is_left_is_told_after_some_seconds():
    now = iter([0.0, 0.0, 1.0, 10.0, 400.0])
    clock = work._Clock(100, lambda: next(now))
    clock.skip(20)
    clock.step(10)
    assert clock.left == ""
    assert clock.left == ", about 70 s left"
    assert clock.left == ", about 47 min left"


def test_a_killed_compile_makes_no_image_twice_and_knows_the_facts(tmp_path, monkeypatch):
    plan = {
        "plan": 1,
        "train": {"checkpoint_seconds": 0},
        "passes": [
            {"class_evidence": {"samples": 40}},
            {"visualise": {"layers": ["conv2"], "steps": 2, "clusters": 3}},
            {"score": {"criterion": {"class_evidence": {"level": "cluster"}}}},
            {"select": "50%"},
            "shrink",
            {"finetune": {"updates": 2, "lr": 0.01}},
        ],
    }
    arguments = (plan, (torch.zeros(2, 1, 8, 8),), batches())
    whole = compile(digits(), *arguments)

    def killed(*args) -> None:
        raise Killed("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Score, "run", killed)
        with pytest.raises(Killed):
            compile(digits(), *arguments, checkpoints=tmp_path / "c")
    monkeypatch.setattr(Visualise, "run", killed)
    again = compile(digits(), *arguments, checkpoints=tmp_path / "c")
    assert again.lock["removed"] == whole.lock["removed"]
    assert [each.attachments for each in again.findings.passes] == [each.attachments for each in whole.findings.passes]
