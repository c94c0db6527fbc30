"""The third party's command is listed, runs, and has its errors told like any other's."""

from __future__ import annotations

from pathlib import Path

from prunec.compiler.cli import main as cli


def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("plan: 1\nmodel: prunec.models.digits:mlp\ninputs: [[1, 1, 8, 8]]\n")
    assert cli.run(["acme_names", "plan.yaml"]) == 0
    assert capsys.readouterr().out == "layers.fc1\nlayers.fc2\nlayers.fc3\n"
    assert cli.run(["acme_names", "none.yaml"]) == 1
    assert capsys.readouterr().err == "can't read the plan none.yaml: No such file or directory\n"


def test_it_is_listed(capsys):
    assert cli.run(["--help"]) == 0
    assert "acme_names   Print the names of a plan's groups." in capsys.readouterr().out
