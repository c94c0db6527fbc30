"""`prunec visualise`: the folder that it writes, its options, and a run that was killed."""

from __future__ import annotations

import csv
import signal

import pytest

from prunec.compiler.cli import main as cli
from prunec.models import digits
from prunec.passes.visualising import work
from prunec.passes.visualising.ascent import climb

HEAD = f"""\
plan: 1
model: {{factory: prunec.models.digits:cnn, weights: {digits.WEIGHTS / "digits.safetensors"}}}
inputs: [[1, 1, 8, 8]]
data: prunec.models.data:digits
train: {{checkpoint_seconds: 0}}
"""
PASSES = "passes: [fold_bn, {visualise: {layers: [conv1], steps: 2, clusters: 3, samples: 64}}, score]\n"


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.yaml").write_text(HEAD + PASSES)
    return tmp_path / "plan.yaml"


def rows(folder):
    with (folder / "visualise.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_writes_a_sheet_a_layer_a_table_and_a_page(plan, tmp_path, capsys):
    arguments = ["visualise", str(plan), "--layer", "conv2", "--layer", "block2.conv?", "-o", str(tmp_path / "out")]
    assert cli.run([*arguments, "--quiet"]) == 0
    sheets = ["images_block2.conv1.png", "images_block2.conv2.png", "images_conv2.png"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    assert [name for name in names if "manifest" not in name] == [*sheets, "visualise.csv", "visualise.html"]
    assert [row["layer"] for row in rows(tmp_path / "out")[::64]] == ["conv2", "block2.conv1", "block2.conv2"]
    page = (tmp_path / "out" / "visualise.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "Images of block2.conv1" in page
    out = capsys.readouterr().out
    assert "DigitsCNN: what units look for; 192 units, 2 steps of fast" in out
    assert any(line.startswith("block2.conv2") for line in out.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plan.yaml"]


def test_the_plans_own_layers_are_the_default_and_late_ones_where_it_has_none(plan, tmp_path):
    assert cli.run(["visualise", str(plan), "-o", str(tmp_path / "own"), "-q"]) == 0
    assert {row["layer"] for row in rows(tmp_path / "own")} == {"conv1"}
    plan.write_text(HEAD)
    more = ["--set", "passes=[]", "--preset", "fast"]
    assert cli.run(["visualise", str(plan), "-o", str(tmp_path / "late"), "-q", *more]) == 0
    assert {row["layer"] for row in rows(tmp_path / "late")} == {"conv2", "block2.conv1", "block2.conv2"}


def test_a_killed_run_goes_on_to_the_same_bytes(plan, tmp_path, monkeypatch, capsys):
    arguments = ["visualise", str(plan), "-q", "--set", "passes.1.visualise.memory=100kB", "-o"]
    assert cli.run([*arguments, str(tmp_path / "whole")]) == 0
    calls = []

    def killed(*args):
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        calls.append(args)
        return climb(*args)

    with monkeypatch.context() as patch:
        patch.setattr(work, "climb", killed)
        assert cli.run([*arguments, str(tmp_path / "again")]) != 0
    assert "the same command goes on from" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    assert (tmp_path / "again.prunec-checkpoint").is_dir()
    rest = []
    monkeypatch.setattr(work, "climb", lambda *args: rest.append(args) or climb(*args))
    assert cli.run([*arguments, str(tmp_path / "again")]) == 0
    made = sum(len(args[1]) for args in (*calls, *rest))
    assert made == 32  # no image was made twice
    for name in ("images_conv1.png", "visualise.csv", "visualise.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "again.prunec-checkpoint").exists()


FAULTS = {
    "an unknown layer": (["--layer", "convv"], "no layer with weights is called 'convv'\nhint: did you mean 'conv2'?"),
    "an unknown preset": (["--preset", "slow"], "--preset: preset must be 'fast',"),
    "a preset that the plan's rule has no rate for": (
        ["--set", "passes.1.visualise={preset: yosinski_b, rule: constant}", "--preset", "fast"],
        "must name the 'rate' of the rule 'constant'",
    ),
    "no data": (["--set", "data=null"], "the range of valid pixels is that of the data, and the plan has none"),
    "a region": (["--set", "region=block1"], "a region of a model can't be visualised by itself"),
}


@pytest.mark.parametrize(("arguments", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_told_and_nothing_is_written(plan, tmp_path, capsys, arguments, message):
    assert cli.run(["visualise", str(plan), "-o", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
