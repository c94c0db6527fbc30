"""The command `latency` lists every layer, and what was measured for it."""

from __future__ import annotations

import pytest
from timing import Formula

from prunec.compiler.cli import main as cli
from prunec.compiler.cost.latency import model as latency_model_module


@pytest.fixture
def formula(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEC_CACHE_DIR", str(tmp_path / "times"))
    monkeypatch.setattr(latency_model_module, "Measured", lambda meter: Formula())


def test_the_command_prints_every_layer(formula, capsys):
    arguments = ["latency", "prunec.models.digits:cnn", "--inputs", "1,1,8,8"]
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    for text in ("conv 3x3", "linear", "in the network", "in formula", "were measured now, 0 were known"):
        assert text in out
    assert cli.run(arguments) == 0
    assert "0 layers were measured now" in capsys.readouterr().out
    assert cli.run([*arguments, "--refresh"]) == 0
    assert ", 0 were known" in capsys.readouterr().out


def test_the_command_wants_inputs(capsys):
    assert cli.run(["latency", "prunec.models.digits:cnn"]) == 1
    assert "needs example inputs" in capsys.readouterr().err
