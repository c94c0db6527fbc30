"""The command line: what it prints, its exit codes, and what it says to wrong input, word for word."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import pytest
from safetensors.torch import save_file
from torch import nn

import prunec.compiler
from prunec.compiler import plugins as extensions
from prunec.compiler.cli import main as cli
from prunec.compiler.errors import VerifyError
from prunec.compiler.pass_base import PASSES
from prunec.compiler.report.progress import watched

NETS = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.fc = nn.Linear(width * 64, 10)

    def forward(self, x):
        return self.fc(self.conv1(x).relu().flatten(1))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return self.gate(x + 1)


def broken():
    raise RuntimeError("out of luck")
"""

HEAD = """\
plan: 1
model: {factory: nets.py:Net}
inputs: [[1, 1, 8, 8]]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with networks, a plan that compiles, and nothing that would colour the output."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("plan.yaml").write_text(HEAD + "passes:\n  - score: l1\n  - select: 50%\n  - shrink\n")
    return tmp_path


class Runs:
    """Opening this pickle would leave a file behind."""

    def __reduce__(self):
        return (os.mkdir, ("pwned",))


class Wrong(NamedTuple):
    name: str
    plan: str
    expected: str


WRONG = [
    Wrong(
        "unknown key",
        HEAD + "passes:\n  - score: {criterium: l1}\n",
        """\
plan.yaml:5:13: unknown key 'criterium'
    - score: {criterium: l1}
              ^^^^^^^^^
hint: did you mean 'criterion'?
""",
    ),
    Wrong(
        "unknown pass",
        HEAD + "passes: [shrnk]\n",
        """\
plan.yaml:4:10: unknown pass 'shrnk'
    passes: [shrnk]
             ^^^^^
hint: did you mean 'shrink'?
""",
    ),
    Wrong(
        "ratio out of range",
        HEAD + "passes:\n  - score\n  - select: {ratio: 1.5}\n",
        """\
plan.yaml:6:21: ratio must be between 0 and 1, or a percentage or a mapping; got 1.5
    - select: {ratio: 1.5}
                      ^^^
""",
    ),
    Wrong(
        "pattern in a list that matches nothing",
        HEAD + "passes:\n  - score\n  - select:\n      ratio: 0.5\n      protect: [fc, conv2]\n  - shrink\n",
        """\
plan.yaml:8:21: protect: no group is called 'conv2'
    protect: [fc, conv2]
                  ^^^^^
hint: did you mean 'conv1'?
""",
    ),
    Wrong(
        "pattern as a key that matches nothing",
        HEAD + "passes:\n  - score\n  - select: {ratio: {conv9: 0.5}}\n  - shrink\n",
        """\
plan.yaml:6:22: ratio: no group is called 'conv9'
    - select: {ratio: {conv9: 0.5}}
                       ^^^^^
hint: did you mean 'conv1'?
""",
    ),
    Wrong(
        "budget out of reach",
        HEAD + "passes:\n  - score\n  - select: {budget: {macs: 1%}}\n  - shrink\n",
        """\
plan.yaml:6:23: the budget can't be met: macs 1.0% is 97, but with every unit gone that may go 1,216 are left (12.5%)
    - select: {budget: {macs: 1%}}
                        ^^^^
hint: ask for at least 12.5%; pins that stand in the way: 'fc' holds 576 (5.9%: reaches the model's output)
""",
    ),
    Wrong(
        "inputs of the wrong shape",
        HEAD.replace("[1, 1, 8, 8]", "[1, 3, 8, 8]"),
        """\
FOLDER/nets.py:11:24: conv1 (Conv2d): Given groups=1, weight of size [8, 1, 3, 3], expected input[1, 3, 8, 8] \
to have 1 channels, but got 3 channels instead
    return self.fc(self.conv1(x).relu().flatten(1))
                   ^^^^^^^^^^^^^
hint: the example inputs are x [1, 3, 8, 8]: does the model run on such inputs?
""",
    ),
    Wrong(
        "weights that don't fit",
        HEAD.replace("Net}", "Net, weights: wide.safetensors}"),
        """\
plan.yaml:2:40: the weights in wide.safetensors don't fit the model: of another shape: \
conv1.weight is [16, 1, 3, 3] in the file, [8, 1, 3, 3] in the model, conv1.bias is [16] in the file, [8] in the \
model, fc.weight is [10, 1024] in the file, [10, 512] in the model
    model: {factory: nets.py:Net, weights: wide.safetensors}
                                           ^^^^^^^^^^^^^^^^
""",
    ),
    Wrong(
        "a model that can't be traced",
        HEAD.replace("Net}", "Undecided}"),
        """\
FOLDER/nets.py:16:21: gate (Gate): a branch depends on the values of a tensor \
(`if`, `while`, `and`, `in` or `assert` on it)
    return x if x.sum() > 0 else -x
                ^^^^^^^^^^^
hint: decide by shapes, or compute both sides and use torch.where; or name a part to compile: region: backbone
""",
    ),
    Wrong(
        "a pickle as weights",
        HEAD.replace("Net}", "Net, weights: evil.pt}"),
        """\
plan.yaml:2:40: refused to load evil.pt: it isn't plain tensors, and loading it could run code
    model: {factory: nets.py:Net, weights: evil.pt}
                                           ^^^^^^^
hint: where you trust the file, convert it once, and name the new file in the plan:
    loaded = pickle.loads(pathlib.Path('FOLDER/evil.pt').read_bytes())
    torch.save(loaded.state_dict(), 'FOLDER/evil_weights.pt')
""",
    ),
    Wrong(
        "a fact that nobody gives",
        HEAD + "passes:\n  - select: 50%\n  - shrink\n",
        """\
plan.yaml:5:5: pass 'select' needs scores, which no pass before it gives
    - select: 50%
      ^^^^^^
hint: put a pass that gives scores before it
""",
    ),
    Wrong(
        "a fact that a rewrite dropped",
        HEAD + "passes:\n  - score\n  - select: 50%\n  - shrink\n  - select: 20%\n",
        """\
plan.yaml:8:5: pass 'select' needs scores, which no pass before it gives
    - select: 20%
      ^^^^^^
hint: 'shrink' changes the program, so scores has to be found again after it
""",
    ),
    Wrong(
        "a factory that fails",
        HEAD.replace("Net}", "broken}"),
        """\
plan.yaml:2:18: FOLDER/nets.py:broken failed: RuntimeError: out of luck (FOLDER/nets.py:29, in broken)
    model: {factory: nets.py:broken}
                     ^^^^^^^^^^^^^^
""",
    ),
    Wrong(
        "no model",
        "plan: 1\ninputs: [[1, 1, 8, 8]]\n",
        """\
plan.yaml:1:1: the plan names no model
    plan: 1
    ^^^^^^^
hint: for example: model: package.module:name
""",
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_wrong_input_is_told_word_for_word(folder, capsys, case):
    Path("plan.yaml").write_text(case.plan)
    wide = {"conv1": nn.Conv2d(1, 16, 3), "fc": nn.Linear(1024, 10)}
    save_file(nn.ModuleDict(wide).state_dict(), "wide.safetensors")
    Path("evil.pt").write_bytes(pickle.dumps(Runs()))
    assert cli.run(["compile", "plan.yaml", "--quiet"]) == 1
    assert capsys.readouterr() == ("", case.expected.replace("FOLDER", str(folder)))
    assert not Path("out").exists()
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "no/where",
            "can't write to 'FOLDER/no/where': 'FOLDER/no' doesn't exist\nhint: make the parent folder first\n",
        ),
        ("nets.py", "can't write to 'FOLDER/nets.py': it is a file, and the output is a folder\n"),
        (
            ".",
            "won't replace 'FOLDER': it holds 'nets.py', which no compile wrote\n"
            "hint: name a new folder, or empty this one\n",
        ),
    ],
    ids=["no parent", "a file", "somebody's folder"],
)
def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(folder, capsys, output, expected):
    Path("plan.yaml").write_text(HEAD.replace("nets.py:Net", "nets.py:broken"))
    assert cli.run(["compile", "plan.yaml", "-o", output]) == 1
    assert capsys.readouterr().err == expected.replace("FOLDER", str(folder))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compile", "nope.yaml"], "there is no 'nope.yaml'\nhint: did you mean 'plan.yaml'?\n"),
        (["passes", "selct"], "unknown pass 'selct'\nhint: did you mean 'select'?\n"),
        (
            ["ir", "nets.py:Net"],
            "'nets.py:Net' is a model and needs example inputs\nhint: for example: --inputs 1,3,224,224\n",
        ),
        (
            ["ir", "nets.py:Net", "--inputs", "1,one"],
            "--inputs must be a shape, got '1,one'\nhint: for example: --inputs 1,3,224,224\n",
        ),
        (
            ["ir", "plan.yaml", "--inputs", "1,1,8,8"],
            "--inputs goes with a model; a plan has its own\nhint: write --set 'inputs=[[1, 3, 32, 32]]'\n",
        ),
        (["ir", "plan.yaml", "--after", "shrnk"], "the plan has no pass 'shrnk'\nhint: did you mean 'shrink'?\n"),
        (
            ["compile", "plan.yaml", "--set", "sed=1"],
            "--set:1:1: unknown key 'sed'\n    sed=1\n    ^^^\nhint: did you mean 'seed'?\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(folder, capsys, arguments, expected):
    assert cli.run(arguments) == 1
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize("arguments", [["compile"], ["compil"], ["compile", "plan.yaml", "--ouput", "x"]])
def test_usage_errors_are_the_callers(folder, capsys, arguments):
    assert cli.run(arguments) == 1
    assert "Error: " in capsys.readouterr().err


def test_compile_writes_everything_and_prints_the_summary(folder, capsys):
    assert cli.run(["compile", "plan.yaml", "-o", "slim", "--set", "export=[onnx]"]) == 0
    out, err = capsys.readouterr()
    names = ["model.onnx", "model.py", "model.safetensors", "plan.lock.json", "report.html", "report.json"]
    assert sorted(path.name for path in Path("slim").iterdir()) == [".prunec-manifest.json", *names]
    stages = ["trace", "pass 1 of 3: score", "pass 2 of 3: select", "pass 3 of 3: shrink", "write", "onnx"]
    assert [line.partition(" s  ")[2] for line in err.splitlines()] == stages
    lines = [line.split() for line in out.splitlines()]
    assert ["MACs", "9.73", "k", "4.86", "k", "-50.0%"] in lines
    assert ["parameters", "5.21", "k", "2.61", "k", "-49.9%"] in lines
    assert any(line[:1] == ["shrink"] and line[3:6] == ["4", "units", "removed"] for line in lines)
    assert "left alone: fc: reaches the model's output" in out
    assert f"slim/: {', '.join(names)}" in out
    assert json.loads(Path("slim/report.json").read_text())["cost"]["after"]["macs"] == 4 * 9 * 64 + 4 * 64 * 10


def test_quiet_and_verbose(folder, capsys):
    assert cli.run(["compile", "plan.yaml", "-q"]) == 0
    quiet, err = capsys.readouterr()
    assert err == ""
    assert "parameters" in quiet
    assert cli.run(["compile", "plan.yaml", "-v"]) == 0
    verbose, err = capsys.readouterr()
    assert "s  pass 3 of 3: shrink: 1 of 1\n" in err
    assert verbose.splitlines()[0] == quiet.splitlines()[0]
    assert cli.run(["compile", "plan.yaml", "-q", "-v"]) == 1
    assert capsys.readouterr().err == "--quiet and --verbose contradict each other\nhint: leave out one of them\n"


@pytest.mark.parametrize("command", [["compile", "plan.yaml"], ["check", "plan.yaml"], ["ir", "plan.yaml"]])
def test_what_the_models_code_prints_is_no_part_of_the_result(folder, capsys, command):
    Path("nets.py").write_text(
        NETS.replace(
            "        super().__init__()\n        self.conv1",
            "        super().__init__()\n        print('loading')\n        self.conv1",
        )
    )
    assert cli.run(command) == 0
    out, err = capsys.readouterr()
    assert "loading" in err
    assert "loading" not in out


def test_set_lays_values_over_the_plan(folder, capsys):
    assert cli.run(["compile", "plan.yaml", "--set", "passes.1.select=25%", "--set", "seed=3"]) == 0
    lock = json.loads(Path("out/plan.lock.json").read_text())
    assert len(lock["removed"]["conv1.weight"]["0"]) == 2
    assert lock["seed"] == 3


def test_check_says_what_it_checked(folder, capsys):
    assert cli.run(["check", "plan.yaml", "--set", "passes=[score, select: 50%, shrink, fold_bn]"]) == 0
    assert capsys.readouterr().out == (
        "passes: score, select, shrink, fold_bn: every option is valid, and each pass gets what it needs\n"
        "model: Net on [1, 1, 8, 8]: 6 nodes, 9,728 MACs, 5,210 parameters\n"
        "groups: 1 of 2 can be cut; 8 of 18 units may be removed\n"
        "data: none\n"
        "patterns and groups: fit the model in score, select, shrink\n"
        "not checked: what fold_bn will find, since a pass before it changes the program\n"
    )
    assert not Path("out").exists()


def test_check_runs_the_data_through_the_model(folder, capsys):
    random = "data={factory: prunec.models.data:random, args: {shape: [1, 8, 8], samples: 6, batch_size: 4}}"
    assert cli.run(["check", "plan.yaml", "--set", random]) == 0
    assert "data: the first test batch, [4, 1, 8, 8], runs through the model" in capsys.readouterr().out
    assert cli.run(["check", "plan.yaml", "--set", random.replace("[1, 8, 8]", "[3, 8, 8]")]) == 1
    assert "the model can't take the data's batches, of shape [4, 3, 8, 8]" in capsys.readouterr().err


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_check_finds_what_compile_finds(folder, capsys, case):
    Path("plan.yaml").write_text(case.plan)
    wide = {"conv1": nn.Conv2d(1, 16, 3), "fc": nn.Linear(1024, 10)}
    save_file(nn.ModuleDict(wide).state_dict(), "wide.safetensors")
    Path("evil.pt").write_bytes(pickle.dumps(Runs()))
    code = cli.run(["check", "plan.yaml"])
    assert capsys.readouterr().err == case.expected.replace("FOLDER", str(folder))
    assert code == 1


IR = """\
program Net {
  input %x : f32[1, 1, 8, 8]
  module conv1 = Conv2d(1, WIDTH, kernel_size=(3, 3), padding=(1, 1))
  module fc = Linear(FLAT, 10)
  %conv1 = conv1(%x) : f32[1, WIDTH, 8, 8]
  %relu = %conv1.relu() : f32[1, WIDTH, 8, 8]
  %flatten = %relu.flatten(1) : f32[1, FLAT]
  %fc = fc(%flatten) : f32[1, 10]
  return %fc
}
"""


@pytest.mark.parametrize(
    ("arguments", "width"),
    [
        (["plan.yaml"], 8),
        (["plan.yaml", "--after", "shrink"], 4),
        (["nets.py:Net", "--inputs", "1,1,8,8"], 8),
        (["nets.py:Net", "--inputs", "1x1x8x8", "--set", "model.args.width=6"], 6),
    ],
    ids=["plan", "after a pass", "model", "model with arguments"],
)
def test_ir(folder, capsys, arguments, width):
    assert cli.run(["ir", *arguments]) == 0
    assert capsys.readouterr().out == IR.replace("WIDTH", str(width)).replace("FLAT", str(64 * width))


def test_explain(folder, capsys):
    assert cli.run(["explain", "plan.yaml"]) == 0
    out = capsys.readouterr().out
    assert any("conv1 8 8" in " ".join(line.replace("│", " ").split()) for line in out.splitlines())
    assert "reaches the model's output" in out
    assert cli.run(["explain", "nets.py:Net", "--inputs", "1,1,8,8", "--group", "conv1"]) == 0
    out = capsys.readouterr().out
    for axis in ("conv1.weight[0]", "conv1.bias[0]", "fc.weight[1]"):
        assert axis in out
    assert cli.run(["explain", "plan.yaml", "--group", "conv1", "--graph", "deps.json"]) == 0
    assert "conv1.weight[0]" in Path("deps.json").read_text()
    capsys.readouterr()
    assert cli.run(["explain", "plan.yaml", "--group", "conv2"]) == 1
    assert capsys.readouterr().err.endswith("hint: did you mean 'conv1'?\n")


def test_a_stream_that_cannot_hold_a_sign_gets_an_escape(folder):
    arguments = ["explain", "plan.yaml", "--group", "conv\u03bc"]
    code = f"import sys; from prunec.compiler.cli.main import run; sys.exit(run({arguments!a}))"
    Path("nets.py").write_text(NETS.replace("self.conv1", "self.conv\u00b5").replace("conv1 =", "conv\u00b5 ="))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "conv\\u03bc.weight[0]" in done.stdout


def test_schema_is_the_schema_of_plans(folder, capsys):
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "a prunec plan"


def test_passes(folder, capsys):
    assert cli.run(["passes"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].strip()}
    assert {"pass", "score", "select", "shrink", "cluster", "merge", "fold_bn", "eliminate"} <= listed
    assert cli.run(["passes", "select"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "`- select: VALUE` is short for `- select: {ratio: VALUE}`" in lines
    assert any(line.startswith("keep_at_least whole number, at least 1 or mapping") for line in lines)
    assert any(line.startswith("scope global | local | isomorphic global `ranking`") for line in lines)


def test_passes_shows_the_options_of_every_pass(folder, capsys):
    for name in PASSES.names():
        assert cli.run(["passes", name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: ")


def test_passes_shows_the_keys_of_options_that_are_mappings(folder, capsys):
    assert cli.run(["passes", "finetune"]) == 0
    said = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert said["distill.weight"].startswith("distill.weight 0 to 1 or % 0.5 the share of the original's answers")
    assert said["constraints.candidates.steps"].startswith("constraints.candidates.steps whole number, at least 1 100")
    assert said["optimizer"].startswith("optimizer name, or mapping of a name to arguments sgd")
    assert said["schedule"].startswith("schedule option type default meaning")
    assert said["one_cycle"].startswith("one_cycle end number, at least 1 10000.0")
    assert cli.run(["passes", "repeat"]) == 0
    assert " list of pass " in capsys.readouterr().out


def test_passes_lists_what_an_option_may_name(folder, capsys):
    assert cli.run(["passes", "score"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("criterion criterion, see below l1 what makes a unit important") for line in lines)
    assert any(line.startswith("l1 The sum of absolute weights") for line in lines)
    assert any(line.startswith("tile mode global | balanced global cut the smallest tiles") for line in lines)


def test_check_notes_options_about_what_the_model_does_not_have(folder, capsys):
    attention = "passes=[axes: {attention: heads}, score, select: 50%, shrink]"
    assert cli.run(["check", "plan.yaml", "--set", attention]) == 0
    assert "note: axes: attention: the model has nothing to divide that way\n" in capsys.readouterr().out
    assert cli.run(["check", "plan.yaml"]) == 0
    assert "note: " not in capsys.readouterr().out


def test_commands_of_packages_are_listed_with_their_help(folder, capsys):
    assert cli.run(["--help"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("sensitivity Measure the metric, or loss, against") for line in lines)
    assert any(line.startswith("rank Correlate criteria with the oracle") for line in lines)
    assert cli.run(["rank", "--help"]) == 0
    assert "--criteria LIST" in capsys.readouterr().out
    assert cli.run(["sensitivty", "plan.yaml"]) == 1
    assert "No such command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nowhere_at_all:run", "can't be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (
            "prunec.compiler.cli.target:PLAN_SUFFIXES",
            "the command 'broken' (prunec.compiler.cli.target:PLAN_SUFFIXES) is no function",
        ),
    ],
)
def test_a_broken_command_is_listed_and_says_what_is_wrong(folder, capsys, monkeypatch, value, told):
    entry = EntryPoint("broken", value, "prunec.commands")
    monkeypatch.setattr(extensions, "_found", lambda group: {"broken": (entry,)})
    assert cli.run(["--help"]) == 0
    assert "broken" in capsys.readouterr().out
    assert cli.run(["broken"]) == 1
    assert told in capsys.readouterr().err
    assert cli.run(["check", "plan.yaml", "--set", "passes=[]"]) == 0


def test_version_and_help(folder, capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"prunec {prunec.compiler.__version__}\n"
    assert cli.run(["--help"]) == 0
    assert "prunec [OPTIONS] COMMAND" in capsys.readouterr().out


def test_a_bug_is_owned_and_its_traceback_kept(folder, capsys, monkeypatch):
    monkeypatch.setattr("prunec.compiler.driver.compile.run_passes", Mock(side_effect=KeyError("lost")))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert cli.run(["compile", "-q", "plan.yaml"]) == 2
    err = capsys.readouterr().err
    (kept,) = folder.glob("prunec-*.txt")
    assert err == (
        f"this is a bug in prunec: KeyError: 'lost'\nhint: report it with the plan and this traceback: {kept}\n"
    )
    assert kept.read_text().startswith("Traceback (most recent call last)")
    assert cli.run(["--debug", "compile", "-q", "plan.yaml"]) == 2
    assert capsys.readouterr().err.startswith("Traceback (most recent call last)")


def test_a_failed_check_is_the_compilers_fault(folder, capsys, monkeypatch):
    def fails(*arguments, **options):
        raise VerifyError("pass 'shrink' changed what the program computes: fc")

    monkeypatch.setattr("prunec.compiler.driver.pass_manager.verify", fails)
    assert cli.run(["compile", "-q", "plan.yaml"]) == 2
    assert capsys.readouterr().err == (
        "pass 'shrink' changed what the program computes: fc\n"
        "this is a bug in prunec or in a pass; nothing was written\n"
    )
    assert not Path("out").exists()


def test_an_interrupt_leaves_with_130(folder, monkeypatch):
    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("prunec.compiler.driver.compile.run_passes", interrupted)
    assert cli.run(["compile", "plan.yaml"]) == 130
    assert not Path("out").exists()


def test_errors_are_coloured_on_a_terminal_only(folder, capsys, monkeypatch):
    assert cli.run(["passes", "selct"]) == 1
    plain = capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.run(["passes", "selct"]) == 1
    coloured = capsys.readouterr().err
    assert "\x1b[" not in plain
    assert "\x1b[36mhint: did you mean 'select'?" in coloured


def test_bars_are_drawn_on_a_terminal_only(folder, capsys, monkeypatch):
    def work():
        with watched() as progress:
            progress("passes", 0, 2)
            progress("passes", 2, 2)

    work()
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    work()
    assert "\x1b" in capsys.readouterr().err


def test_help_imports_no_torch(folder):
    code = "import sys; from prunec.compiler.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_console_script_is_installed():
    script = shutil.which("prunec", path=str(Path(sys.executable).parent))
    assert script is not None
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"prunec {prunec.compiler.__version__}\n"


def test_the_slim_model_can_be_named_by_its_folder(folder, capsys):
    assert cli.run(["compile", "plan.yaml"]) == 0
    capsys.readouterr()
    assert cli.run(["ir", "out", "--inputs", "2,1,8,8"]) == 0
    assert "%conv1 = conv1(%x) : f32[2, 4, 8, 8]" in capsys.readouterr().out


def test_a_full_disk_is_no_bug(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "write", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert cli.run(["schema"]) == 1
    assert capsys.readouterr().err == "the output can't be written: No space left on device\n"
