"""Checkpoints: wherever a compile is killed, the same call goes on from there to the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_nets import Killed, Killer
from training_nets import small as plain

from prunec.compiler import compile
from prunec.compiler.driver.compile import Result
from prunec.compiler.driver.journal import JOURNAL, checkpoint_folder
from prunec.compiler.errors import OutputError

X = torch.zeros(2, 3, 6, 6)


def small() -> nn.Module:
    return plain(dropout=0.3)


class Shuffled:
    """Batches in another order at each epoch, by a generator of their own, with noise on the images."""

    def train(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(40, 3, 6, 6, generator=generator)
        labels = torch.randint(0, 5, (40,), generator=generator)

        class Noisy(torch.utils.data.Dataset):
            def __len__(self):
                return len(labels)

            def __getitem__(self, i):
                return images[i] + 0.1 * torch.randn(3, 6, 6), labels[i]

        return torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True, generator=generator)


PLAN: dict[str, Any] = {
    "plan": 1,
    "train": {"checkpoint_seconds": 0},
    "passes": [
        {"finetune": {"epochs": 1, "lr": 0.05}},
        {"score": "taylor"},
        {"select": "25%"},
        "shrink",
        {"finetune": {"epochs": 2, "lr": 0.05, "optimizer": "adamw", "clip": 1.0, "accumulate": 2}},
        "fold_bn",
        {"score": "l1"},
        {"select": "50%"},
        "shrink",
        {"finetune": {"updates": 4}},
    ],
}


def run(folder: Path | None, killer: Any = None, plan: Any = None) -> Result:
    arguments: dict[str, Any] = {"progress": killer} if killer else {}
    return compile(small(), plan or PLAN, (X,), Shuffled(), checkpoints=folder, **arguments)


@pytest.fixture(scope="module")
def unbroken() -> Result:
    return run(None)


def same(first: Result, second: Result) -> bool:
    wanted, found = first.module.state_dict(), second.module.state_dict()
    return wanted.keys() == found.keys() and all(torch.equal(found[name], x) for name, x in wanted.items())


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch):
    monkeypatch.setattr("prunec.passes.training.loop.TOLD", 0.0)


def test_it_goes_on_wherever_it_was_killed(unbroken, tmp_path):
    folder, kills = tmp_path / "checkpoints", 0
    for step in range(2, 200, 3):  # each time a little further than the last checkpoint
        try:
            result = run(folder, Killer(step))
        except Killed:
            kills += 1
            assert len(list(folder.glob("*.pt"))) <= 2 if folder.exists() else True
            continue
        break
    assert kills > 8
    assert same(unbroken, result)
    assert result.lock["passes"] == unbroken.lock["passes"]
    assert result.lock["removed"] == unbroken.lock["removed"]


def test_the_report_tells_of_what_was_done_before_the_kill(unbroken, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "c", Killer(40))
    result = run(tmp_path / "c")
    assert same(unbroken, result)
    told = [{k: v for k, v in each.items() if "seconds" not in k} for each in result.report["passes"]]
    wanted = [{k: v for k, v in each.items() if "seconds" not in k} for each in unbroken.report["passes"]]
    for each in (*told, *wanted):
        each["details"].pop("seconds_per_update", None)
    assert told == wanted
    assert "went on from" in result.report["notes"][0]


def test_the_folder_goes_when_the_artifacts_are_written(tmp_path):
    result = run(tmp_path / "out.prunec-checkpoint")
    assert sorted(p.name for p in (tmp_path / "out.prunec-checkpoint").iterdir())[0] == "README.txt"
    result.save(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_plan_without_training_keeps_nothing(tmp_path):
    run(tmp_path / "c", plan={"plan": 1, "passes": [{"score": "l1"}, {"select": "25%"}, "shrink"]})
    assert not (tmp_path / "c").exists()


def test_checkpoints_of_another_plan_are_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "c", Killer(40))
    with pytest.raises(OutputError, match="are of another compile: the plan has changed") as error:
        run(tmp_path / "c", plan={**PLAN, "seed": 1})
    assert f"delete {tmp_path / 'c'}" in str(error.value.hint)
    other = small()
    with torch.no_grad():
        other[0].bias.add_(1)
    with pytest.raises(OutputError, match="the model's weights are others"):
        compile(other, PLAN, (X,), Shuffled(), checkpoints=tmp_path / "c")


def test_how_often_checkpoints_are_written_is_no_part_of_the_plan(unbroken, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "c", Killer(40))
    assert same(unbroken, run(tmp_path / "c", plan={**PLAN, "train": {"checkpoint_seconds": 5}}))


def test_a_folder_of_the_users_is_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no checkpoints"):
        run(tmp_path / "c")
    assert (tmp_path / "c" / "mine.txt").read_text() == "mine"


def test_damaged_checkpoints_are_told(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "c", Killer(40))
    journal = (tmp_path / "c" / JOURNAL).read_text()
    for values in (tmp_path / "c").glob("values-*.pt"):
        values.write_bytes(b"no")
    with pytest.raises(OutputError, match=r"values-\d+\.pt can't be read"):
        run(tmp_path / "c")
    (tmp_path / "c" / JOURNAL).write_text(journal[:-5])
    with pytest.raises(OutputError, match="can't be used") as error:
        run(tmp_path / "c")
    assert "to begin anew" in str(error.value.hint)


def test_nothing_is_left_of_a_compile_that_is_wrong_from_the_start(tmp_path):
    plan = {"plan": 1, "passes": [{"finetune": {"freeze": ["*"]}}]}
    with pytest.raises(Exception, match="no parameter is left"):
        run(tmp_path / "c", plan=plan)
    assert not (tmp_path / "c").exists()


class Splits(Shuffled):
    """With a split to measure on."""

    def val(self):
        return list(self.train())


ROUNDS: dict[str, Any] = {
    "plan": 1,
    "train": {"checkpoint_seconds": 0},
    "passes": [
        {
            "repeat": {
                "steps": 3,
                "to": {"macs": "40%"},
                "floor": 0.0,
                "passes": [{"score": "l1"}, "select", "shrink", {"finetune": {"epochs": 1, "lr": 0.05}}],
            }
        },
        "fold_bn",
    ],
}


def test_rounds_go_on_wherever_they_were_killed(tmp_path):
    def rounds(killer: Any = None) -> Result:
        arguments: dict[str, Any] = {"progress": killer} if killer else {}
        return compile(small(), ROUNDS, (X,), Splits(), checkpoints=tmp_path / "c", **arguments)

    whole = compile(small(), ROUNDS, (X,), Splits())
    kills = 0
    for step in range(5, 300, 7):
        try:
            result = rounds(Killer(step))
        except Killed:
            kills += 1
            continue
        break
    assert kills > 5
    assert same(whole, result)
    assert result.report["passes"][0]["rounds"] == whole.report["passes"][0]["rounds"]
    assert result.lock["passes"] == whole.lock["passes"]


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    plan = {
        "plan": 1,
        "model": {"factory": "prunec.models.digits:mlp"},
        "inputs": [[1, 1, 8, 8]],
        "data": "prunec.models.data:digits",
        "train": {"checkpoint_seconds": 0},
        "passes": [{"score": "l1"}, {"select": "40%"}, "shrink", {"finetune": {"epochs": 4, "lr": 0.05}}],
    }
    (folder / "plan.yaml").write_text(json.dumps(plan))
    return folder


@contextmanager
def prunec(folder: Path, out: str, plan: Path | None = None, *options: str) -> Iterator[subprocess.Popen[str]]:
    code = "from prunec.compiler.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "compile", str(plan or folder / "plan.yaml"), "-o", str(folder / out)]
    arguments += ["--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as run:
        yield run


@pytest.fixture(scope="module")
def whole(plan_file):
    """The weights of a run that nobody disturbed."""
    with prunec(plan_file, "whole") as run:
        assert run.wait() == 0, run.communicate()[1]
    return (plan_file / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_real_kill(plan_file, whole, sign):
    out = f"out{sign:d}"
    checkpoints = checkpoint_folder(plan_file / out)
    with prunec(plan_file, out) as killed:
        while killed.poll() is None and not list(checkpoints.glob("training-*.pt")):
            time.sleep(0.01)
        killed.send_signal(sign)
        said = killed.communicate()[1]
        assert killed.returncode == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    assert not (plan_file / out).exists()
    if sign == signal.SIGINT:
        assert f"interrupted: the same command goes on from {checkpoints}" in said
    with prunec(plan_file, out) as again:
        assert again.wait() == 0, again.communicate()[1]
    assert not checkpoints.exists()
    assert (plan_file / out / "model.safetensors").read_bytes() == whole


def test_a_lock_is_compiled_with_the_weights_beside_it(plan_file, whole):
    with prunec(plan_file, "trained", plan_file / "whole" / "plan.lock.json", "--trained") as run:
        said = run.communicate()[1]
        assert run.returncode == 0, said
    assert "train: finetune" not in said
    assert (plan_file / "trained" / "model.safetensors").read_bytes() == whole


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(tmp_path):
    code = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/../support"]
from test_journal import PLAN, Shuffled, X, small
from prunec.compiler import compile
from prunec.compiler.errors import OutputError

def progress(what, done, total, note=""):
    if "pass 6" in what:  # from here on no file may hold more than this
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))

try:
    compile(small(), PLAN, (X,), Shuffled(), checkpoints=sys.argv[1], progress=progress)
except OutputError as error:
    print(error)
"""
    for limit in (0, 4096):  # a file that can't hold anything, and one that can't hold all
        folder = tmp_path / f"{limit}.prunec-checkpoint"
        command = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"no checkpoint can be written to '{folder}': File too large"), done.stdout
        assert [path.name for path in folder.glob("values-*")] == ["values-5.pt"]
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("left", [[], ["README.txt"], ["README.txt", ".journal.json.new"]])
def test_a_kill_before_there_was_a_journal_is_none(tmp_path, left):
    folder = tmp_path / "out.prunec-checkpoint"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    with pytest.raises(Killed):
        run(folder, Killer(15))
    assert (folder / JOURNAL).exists()
    assert "The same command goes on" in (folder / "README.txt").read_text()
    run(folder).save(tmp_path / "out")
    assert not folder.exists()


def test_another_compile_that_began_at_the_same_time_is_told(tmp_path):
    folder = tmp_path / "out.prunec-checkpoint"

    def progress(what, done, total, note=""):
        if "finetune" in what and not folder.exists():
            folder.mkdir()
            (folder / JOURNAL).write_text("{}")

    with pytest.raises(OutputError, match="another compile has put its checkpoints into"):
        compile(small(), PLAN, (X,), Shuffled(), checkpoints=folder, progress=progress)
    assert (folder / JOURNAL).read_text() == "{}"


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    path = tmp_path / "out.prunec-checkpoint"
    path.touch()
    with pytest.raises(OutputError, match="is there, and is no folder for checkpoints"):
        compile(small(), PLAN, (X,), Shuffled(), checkpoints=path)
    with pytest.raises(OutputError, match=r"no checkpoint can be written to .*: Not a directory"):
        compile(small(), PLAN, (X,), Shuffled(), checkpoints=path / "within")
