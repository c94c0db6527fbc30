"""Whatever the code of a plan's author raises, wherever it runs: exit code 1, its place, and nothing written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunec.compiler.cli import main as cli

NETS = """\
import torch
from torch import nn


class Mute(Exception):
    def __str__(self):
        raise SystemExit(0)


def boom():
    {boom}


{import_}
class Net(nn.Module):
    {members}

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        {init}

    def forward(self, x):
        {forward}
        return self.last(torch.relu(self.first(x)))


class Data:
    {data_members}

    def train(self):
        {train}
        for number in range(2):
            {batch}
            yield torch.randn(4, 4), torch.zeros(4, dtype=torch.long)

    val = test = train
"""

PLAN = """\
plan: 1
model: {factory: nets.py:Net}
inputs: [[1, 4]]
data: {factory: nets.py:Data}
passes:
  - score: taylor
  - select: 50%
  - shrink
"""

PLACES = {
    "import": {"import_": "boom()"},
    "__init__": {"init": "boom()"},
    "forward": {"forward": "boom()"},
    "property": {"members": "size = property(lambda self: boom())", "forward": "self.size"},
    "__getattr__": {"members": "__getattr__ = lambda self, name: boom()"},
    "__setattr__": {"members": "__setattr__ = lambda self, name, value: boom()"},
    "__hash__": {"members": "__hash__ = lambda self: boom()"},
    "named_modules": {"members": "named_modules = lambda self, *_, **__: boom()"},
    "eval": {"members": "eval = lambda self: boom()"},
    "hook": {"init": "self.register_forward_hook(lambda *_: boom())"},
    "layer's hook": {"init": "self.first.register_forward_pre_hook(lambda *_: boom())"},
    "data's __init__": {"data_members": "__init__ = lambda self: boom()"},
    "data's property": {"data_members": "size = property(lambda self: boom())", "train": "self.size"},
    "first batch": {"batch": "boom()"},
    "second batch": {"batch": "number and boom()"},
}

RAISED = {
    'raise SystemExit("no data set")': "SystemExit: no data set",
    "raise SystemExit(0)": "SystemExit: 0",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "raise EOFError": "EOFError",
    "raise Mute": "Mute: (its text can't be had: SystemExit)",
    "raise BaseExceptionGroup('all', [SystemExit(0)])": "BaseExceptionGroup: all (1 sub-exception): SystemExit: 0",
    "boom()": "RecursionError: maximum recursion depth exceeded",
}


def write(boom, place):
    parts = dict.fromkeys(("import_", "init", "forward", "train", "batch"), "")
    Path("nets.py").write_text(
        NETS.format(**{**parts, "members": "pass", "data_members": "pass", "boom": boom, **place})
    )
    Path("plan.yaml").write_text(PLAN)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_the_fault_is_told_with_its_place(folder, capsys, place):
    for boom, text in RAISED.items():
        write(boom, PLACES[place])
        assert cli.run(["compile", "plan.yaml"]) == 1, boom
        out, err = capsys.readouterr()
        assert text in err, boom
        assert re.search(rf"{folder}/nets\.py:11\b", err), boom
        assert "Traceback" not in err
        assert not out
        assert not Path("out").exists()


SAVED = {
    "import": "boom()\n",
    "load": "def load():\n    boom()\n",
    "Model": "from torch import nn\n\n\nclass Model(nn.Linear):\n    def __init__(self):\n        boom()\n",
    "__getattr__": "def __getattr__(name):\n    boom()\n",
}


@pytest.mark.parametrize("place", SAVED)
def test_a_saved_model_is_user_code(folder, capsys, place):
    Path("saved").mkdir()
    Path("plan.yaml").write_text("plan: 1\nmodel: {saved: saved}\ninputs: [[1, 4]]\npasses: []\n")
    Path("saved/model.py").write_text(f"def boom():\n    raise SystemExit('gone')\n\n\n{SAVED[place]}")
    assert cli.run(["compile", "plan.yaml"]) == 1
    err = capsys.readouterr().err
    assert "SystemExit: gone" in err
    assert f"{folder}/saved/model.py:2" in err


@pytest.mark.parametrize("arguments", [["check"], ["ir"], ["explain"], ["sensitivity"], ["rank"], ["latency"]])
def test_every_command_tells_it(folder, capsys, arguments):
    write("raise SystemExit(0)", PLACES["forward"])
    assert cli.run([*arguments, "plan.yaml"]) == 1
    assert "nets.py:11:5: Net: SystemExit: 0" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("caught", ["KeyboardInterrupt", "BaseException"])
def test_a_real_ctrl_c_stops_the_program(folder, caught):
    waits = f"Path('here').touch()\n    try: time.sleep(60)\n    except {caught}: sys.exit('stopped')"
    write("import sys, time; from pathlib import Path; " + waits, PLACES["forward"])
    command = [sys.executable, "-c", "from prunec.compiler.cli.main import main; main(['compile', 'plan.yaml'])"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    for _ in range(600):
        if Path("here").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not Path("out").exists()
