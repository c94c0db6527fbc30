"""MODEL|PLAN on the command line: plans, models and compiled folders are taken, all else is told what to name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cli import main as cli
from prunec.compiler.cli.target import is_python, plan_of, show_definitions
from prunec.compiler.errors import PlanError
from prunec.compiler.plan.schema import InputSpec

NETS = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4))


def make():
    raise SystemExit("this was run")
"""
PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
WANTED = "name a plan (plan.yaml), a model (package.module:name, file.py:name) or a folder of a compile"


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(10, 8), nn.Linear(8, 4)

    def forward(self, ids, scale):
        return self.fc(self.embed(ids) * scale)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of compiles from a plan and from Python, and files of other kinds."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "nets.py").write_text(NETS)
    text = "plan: 1\nmodel: nets.py:Net\ninputs: [[2, 1, 8, 8]]\npasses: [score, select: 50%, shrink]\n"
    (folder / "plan.yaml").write_text(text)
    compile(None, folder / "plan.yaml").save(folder / "out")
    compile(Tokens(), PLAN, (torch.zeros(2, 5, dtype=torch.int64), torch.ones(8))).save(folder / "tokens")
    (folder / "empty").mkdir()
    (folder / "hub").mkdir()
    for name in ("hub/model.safetensors", "hub/config.txt", "x.onnx", "x.pth", "x.PTH.tar", "x.txt"):
        (folder / name).write_bytes(b"?")
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def test_a_compiled_folder_knows_its_inputs(here):
    assert plan_of("out").inputs == (InputSpec(shape=(2, 1, 8, 8)),)
    assert plan_of("out/").inputs == plan_of("out").inputs
    assert plan_of("out", ["1,1,8,8"]).inputs == (InputSpec(shape=(1, 1, 8, 8)),)


def test_so_does_the_folder_of_a_model_that_python_handed_over(here):
    ids, scale = plan_of("tokens").inputs
    assert ids == InputSpec(shape=(2, 5), dtype="int64", high=2)
    assert scale == InputSpec(shape=(8,))


@pytest.mark.parametrize("command", ["explain", "ir"])
@pytest.mark.parametrize("target", ["out", "tokens", "plan.yaml", "out/plan.lock.json"])
def test_commands_take_them(here, capsys, command, target):
    assert cli.run([command, target]) == 0
    assert capsys.readouterr().out != ""


TOLD = [
    ("x.onnx", "x.onnx is an ONNX file, and prunec reads PyTorch models", "name the PyTorch model that it was"),
    ("out/model.safetensors", "out/model.safetensors holds weights", "name the folder that it was compiled into: out"),
    ("x.pth", "x.pth holds weights", "a plan names the code beside them: model: {factory: package.module:name, "),
    ("x.PTH.tar", "x.PTH.tar holds weights", "a plan names the code"),
    ("x.txt", "x.txt is neither a model nor a plan", WANTED),
    ("nets.py", "nets.py is a file of Python", "for example: nets.py:Net or nets.py:make"),
    ("out/report.json", "out/report.json is the report of a compile", "name the folder: out; or the plan: out/plan.lo"),
    ("tokens/plan.lock.json", "is the lock of a model that Python code handed over", "the slim model: tokens"),
    (".", "the folder . holds no compiled model", "name what is in it: plan.yaml, nets.py"),
    ("empty", "the folder empty holds no compiled model", "name a plan, a model such as file.py:name"),
    ("hub", "the folder hub holds no compiled model", "it holds weights alone; a plan names the code beside them"),
    ("/dev/null", "/dev/null is neither a file nor a folder", WANTED),
    ("y.onnx", "there is no 'y.onnx'", "did you mean 'x.onnx'?"),
    ("plans.yaml", "there is no 'plans.yaml'", "did you mean 'plan.yaml'?"),
    ("no/where.yaml", "there is no 'no/where.yaml': there is no folder 'no'", WANTED),
    ("resnet18", "there is no 'resnet18'", WANTED),
    ("torchvision.models", "there is no 'torchvision.models'", "a model is named with a colon: torchvision.models:N"),
    ("nets.py:Net", "'nets.py:Net' is a model and needs example inputs", "for example: --inputs 1,3,224,224"),
    ("nets.py:", "must be package.module:name or path/to/file.py:name", ""),
]


@pytest.mark.parametrize(("target", "message", "hint"), TOLD, ids=[case[0] for case in TOLD])
def test_all_else_is_told_what_to_name(here, target, message, hint):
    with pytest.raises(PlanError) as caught:
        plan_of(target)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


NO_PLANS = [
    ("out", "out is a folder, not a plan", "name the plan in it: out/plan.lock.json"),
    (".", ". is a folder, not a plan", "name what is in it: plan.yaml"),
    ("nets.py", "nets.py is a file of Python", "nets.py:Net"),
    ("x.onnx", "x.onnx is an ONNX file", "the PyTorch model"),
    ("x.pth", "x.pth holds weights", "a plan names the code"),
    ("plans.yaml", "there is no 'plans.yaml'", "did you mean 'plan.yaml'?"),
]


@pytest.mark.parametrize(("target", "message", "hint"), NO_PLANS, ids=[case[0] for case in NO_PLANS])
@pytest.mark.parametrize("command", ["compile", "check", "sensitivity", "rank"])
def test_commands_that_take_a_plan_say_what_else_was_named(here, capsys, command, target, message, hint):
    options = {"compile": ["-o", "new"], "rank": ["--criteria", "l1"]}.get(command, [])
    assert cli.run([command, target, *options]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert hint in error


def test_parts_in_their_places_lead_to_the_lock(here, tmp_path):
    shutil.copy("out/plan.lock.json", tmp_path)
    (tmp_path / "model_backbone.py").write_text("")
    with pytest.raises(PlanError) as caught:
        plan_of(str(tmp_path))
    assert caught.value.hint.endswith(f"the whole is named by {tmp_path / 'plan.lock.json'}")


def test_a_model_py_of_nobodys_isnt_run(here, tmp_path):
    (tmp_path / "model.py").write_text("raise SystemExit('this was run')\n")
    with pytest.raises(PlanError, match="doesn't tell for which inputs"):
        plan_of(str(tmp_path))


def test_a_file_of_python_is_listed_and_not_run(here, capsys):
    assert is_python("nets.py")
    assert not is_python("nets.py:Net")
    assert cli.run(["explain", "nets.py"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == ["nets.py:Net network (width=8)", "nets.py:make function ()"]
    assert lines[-1] == "To explain a model of these: prunec explain nets.py:Net --inputs 1,3,224,224"


def test_the_file_of_a_compile_leads_to_its_folder(here, capsys):
    show_definitions(Path("out/model.py"))
    assert capsys.readouterr().out.endswith("To explain the compiled model: prunec explain out\n")


def test_a_broken_lock_is_no_reason_to_give_up(here, tmp_path):
    shutil.copytree("out", tmp_path / "out")
    lock = tmp_path / "out/plan.lock.json"
    lock.write_text("[")
    assert plan_of(str(tmp_path / "out")).inputs == (InputSpec(shape=(2, 1, 8, 8)),)
    lock.write_text(json.dumps({"inputs": []}))
    assert plan_of(str(tmp_path / "out")).inputs == (InputSpec(shape=(2, 1, 8, 8)),)
