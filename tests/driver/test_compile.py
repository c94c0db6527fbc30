"""The API from end to end: results, locks that compile again to the same bytes, outputs that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import prunec.compiler
from prunec.compiler import compile
from prunec.compiler.driver.compile import load_program, ready_to_write
from prunec.compiler.errors import DataError, ModelError, OutputError, PlanError
from prunec.compiler.plan.plan import Plan
from prunec.models.convnet import convnet
from prunec.models.data import random
from prunec.models.digits import cnn
from prunec.models.mlp import mlp

PLANS = Path(__file__).parents[2] / "plans"
X = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HALVE = {"plan": 1, "passes": ["score", {"select": 0.5}, "shrink"]}


def run(*arguments: str) -> None:
    """The command line, in a process of its own."""
    subprocess.run([*command(*arguments)], check=True, capture_output=True)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from prunec.compiler.cli.main import main; main()", *arguments]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "code",
    [
        "from prunec.compiler.tracing.trace import trace as t; from prunec.compiler import trace; assert t is trace",
        "from prunec.compiler import trace; from prunec.compiler.tracing.trace import trace as t; assert t is trace",
        "import prunec.compiler.tracing.trace; from prunec.compiler import *; assert compile.__name__ == 'compile'",
    ],
    ids=["module first", "function first", "all of them"],
)
def test_the_names_mean_the_same_in_any_order(code):
    check = "import inspect, prunec.compiler; assert inspect.isfunction(trace) and prunec.compiler.trace is trace"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True)


def test_the_package_is_light_and_complete():
    code = "import sys, prunec.compiler; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pydantic')))"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in prunec.compiler.__all__:
        assert getattr(prunec.compiler, name)
        assert name in dir(prunec.compiler)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = prunec.compiler.nothing


def test_removed_positions_are_numbered_as_in_the_original():
    plan = {"plan": 1, "passes": [{"select": {"units": {"conv3": [0, 3]}}}, "shrink"]}
    result = compile(convnet((2, 2, 4)), plan, (torch.randn(1, 1, 28, 28),))
    columns = [*range(49), *range(3 * 49, 4 * 49)]
    expected = {"conv3.weight": {"0": [0, 3]}, "conv3.bias": {"0": [0, 3]}, "fc.weight": {"1": columns}}
    assert result.lock["removed"] == expected
    again = {**plan, "passes": [*plan["passes"], {"select": {"units": {"conv3": [1]}}}, "shrink"]}
    twice = compile(convnet((2, 2, 4)), again, (torch.randn(1, 1, 28, 28),))
    assert twice.lock["removed"]["conv3.weight"] == {"0": [0, 2, 3]}


def test_the_slim_module_keeps_its_names_and_leaves_the_original_alone():
    model = cnn((16, 32)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compile(model, HALVE, (X,))
    assert {name for name, _ in result.module.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert result.module(X.expand(5, -1, -1, -1)).shape == (5, 10)


def test_the_report_is_plain_json_and_says_what_happened():
    report = compile(cnn((16, 32)), HALVE, (X,), data=random((1, 8, 8), samples=20)).report
    assert json.loads(json.dumps(report)) == report
    assert [record["pass"] for record in report["passes"]] == ["score", "select", "shrink"]
    assert report["passes"][2]["verification"]["difference"] <= 1e-5
    assert [record["verification"] for record in report["passes"][:2]] == [None, None]
    assert set(report["accuracy"]) == {"before", "after"}
    assert {group["name"]: group["channels"] for group in report["groups"]}["conv2"] == {"before": 32, "after": 16}
    assert sum(report["macs_by_node"]["after"].values()) == report["cost"]["after"]["macs"]


def test_saving_gives_what_was_measured_and_changes_no_finding(tmp_path):
    result = compile(cnn((16, 32)), HALVE, (X,))
    report = result.save(tmp_path / "out")
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert list(report) == [*result.report, "weights"]
    assert report["weights"]["after"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert result.findings.weights is None
    assert result.report is result.report


def test_times_are_told_in_steps_of_a_tenth_of_a_millisecond():
    findings = compile(cnn((16, 32)), HALVE, (X,)).findings
    times = [findings.trace_seconds]
    times += [time for record in findings.passes for time in (record.seconds, record.verify_seconds)]
    assert times == [round(time, 4) for time in times]
    assert findings.trace_seconds > 0


class Caching(nn.Module):
    """A model that gives back an object besides its scores."""

    def __init__(self):
        super().__init__()
        self.body = cnn((16, 32))

    def forward(self, x):
        return {"scores": self.body(x), "cache": object()}


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_report_warns_of_what_is_left_out(mode):
    result = compile(Caching(), {**HALVE, "mode": mode}, (X,))
    assert any("'cache' (object) is left out" in warning for warning in result.report["warnings"])
    assert set(result.module(X)) == {"scores"}


def test_progress_is_told():
    told: list[tuple[str, int, int]] = []
    compile(mlp((64, 8, 10)), HALVE, (X,), random((1, 8, 8)), progress=lambda *step: told.append(step))
    assert {what for what, _, _ in told} == {
        "trace",
        "pass 1 of 3: score",
        "pass 2 of 3: select",
        "pass 3 of 3: shrink",
        "accuracy",
    }
    for what in ("trace", "pass 1 of 3: score", "pass 3 of 3: shrink", "accuracy"):
        steps = [(done, total) for name, done, total in told if name == what]
        assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize(
    ("model", "plan", "data", "error", "message"),
    [
        (None, HALVE, None, PlanError, "the plan names no model"),
        (mlp((64, 10)), {"plan": 1, "passes": ["shrink"]}, None, PlanError, "pass 'shrink' needs selection"),
        (mlp((63, 10)), {"plan": 1}, None, ModelError, "layers.fc1 (Linear)"),
        (mlp((64, 10)), {"plan": 1}, random((1, 9, 9), samples=4), DataError, "can't take the data's batches"),
        (mlp((64, 10)), {"plan": 1}, random((1, 8, 8), samples=0), DataError, "test split is empty"),
    ],
    ids=["no model", "missing fact", "inputs", "data's shape", "no data"],
)
def test_faults_of_the_plan_the_model_and_the_data(model, plan, data, error, message):
    with pytest.raises(error) as caught:
        compile(model, plan, (X,), data)
    assert message in caught.value.message


def test_a_lock_compiles_in_another_process_to_the_same_bytes(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    compile(None, Plan.load(PLANS / "digits.yaml", ["export=[]"])).save(first)
    run("compile", str(first / "plan.lock.json"), "-o", str(second))
    assert digest(first / "model.safetensors") == digest(second / "model.safetensors")
    assert (first / "model.py").read_bytes() == (second / "model.py").read_bytes()
    locks = [json.loads((folder / "plan.lock.json").read_text()) for folder in (first, second)]
    assert locks[0] == locks[1]
    assert json.loads((second / "report.json").read_text())["warnings"] == []
    # A lock's paths lead from where it lies: moved as a folder's neighbour, it still finds its weights.
    first.rename(third)
    assert load_program(Plan.load(third / "plan.lock.json")).name == "DigitsCNN"


def test_a_lock_of_clusters_compiles_again_to_the_same_weights(tmp_path):
    first = compile(None, PLANS / "digits_merge.yaml")
    first.save(tmp_path / "first")
    again = compile(None, tmp_path / "first" / "plan.lock.json")
    assert again.lock["hashes"] == first.lock["hashes"]
    assert again.lock["removed"] == first.lock["removed"]


def test_a_lock_holds_for_its_own_weights_alone(tmp_path):
    plan = {**HALVE, "model": "prunec.models.mlp:mlp", "inputs": [[1, 784]]}
    compile(None, plan).save(tmp_path / "out")
    lock = tmp_path / "out" / "plan.lock.json"
    other = Plan.load(lock, ["seed=1"])
    with pytest.raises(ModelError, match="the model's weights are not those that the lock was made of") as caught:
        compile(None, other)
    assert caught.value.at is not None
    changed = json.loads(lock.read_text())
    changed["hashes"]["result"] = "0" * 64
    (warning,) = compile(None, Plan.from_dict(changed)).report["warnings"]
    assert "the result's weights differ from the lock's" in warning


@pytest.mark.parametrize("origin", ["saved", "factory", "linked"])
def test_the_folder_that_the_model_comes_from_is_not_replaced(tmp_path, origin):
    plan = {**HALVE, "model": "prunec.models.mlp:mlp", "inputs": [[1, 784]]}
    out = tmp_path / "out"
    compile(None, plan).save(out)
    (tmp_path / "link").symlink_to("out")
    model = {
        "saved": {"saved": str(out)},
        "factory": {"factory": f"{out}/model.py:load", "weights": str(out / "model.safetensors")},
        "linked": {"saved": str(tmp_path / "link")},
    }[origin]
    before = contents(out)
    again = compile(None, {**plan, "model": model})
    for folder in (out, tmp_path / "link"):
        with pytest.raises(OutputError, match="the plan's model comes from there"):
            again.save(folder)
        with pytest.raises(OutputError, match="the plan's model comes from there"):
            ready_to_write(folder, again.plan)
    assert contents(out) == before
    again.save(tmp_path / "other")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir()}


def test_kill_9_in_the_middle_of_writing_leaves_the_output_as_it_was(tmp_path):
    out = tmp_path / "out"
    compile(None, PLANS / "convnet_8_16_32.yaml").save(out)
    before = contents(out)
    arguments = ("compile", str(PLANS / "digits.yaml"), "-o", str(out))
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        # The weights lie in the sibling folder, and the ONNX export that comes next takes seconds.
        wait_for(lambda: any(tmp_path.glob(".out.*/model.safetensors")), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert contents(out) == before
    assert any(tmp_path.glob(".out.*"))
    compile(None, PLANS / "mlp_50_100.yaml").save(out)
    assert contents(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the compile ended before it could be killed"
        assert time.monotonic() < end, "the compile took too long"
        time.sleep(0.01)


class Frozen(nn.Module):
    """A network with a batch norm that is kept out of training, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("region", [None, ["body"]])
def test_the_slim_module_is_in_the_modes_of_the_original(region):
    model = Frozen().train()
    model.body[1].eval()
    before = {name: part.training for name, part in model.named_modules()}
    plan = {**HALVE, **({"region": region} if region else {})}
    result = compile(model, plan, (X,))
    slim = {name: part.training for name, part in result.module.named_modules()}
    assert {name: part.training for name, part in model.named_modules()} == before
    assert slim == {name: before[name] for name in slim}
    assert {"", "body.1"} <= slim.keys()
    statistics = result.module.get_submodule("body.1").running_mean.clone()
    assert not torch.equal(result.module(X), result.module(X)), "the dropout is on"
    assert torch.equal(result.module.get_submodule("body.1").running_mean, statistics)
    assert not any(part.training for part in result.program.module.modules()), "what is written is in eval mode"


def test_a_model_in_eval_mode_or_of_a_factory_gives_one_in_eval_mode():
    given = compile(Frozen().eval(), HALVE, (X,)).module
    assert not any(part.training for part in given.modules())
    made = compile(None, {**HALVE, "model": "prunec.models.digits:cnn", "inputs": [[1, 1, 8, 8]]}).module
    assert not any(part.training for part in made.modules())


@pytest.mark.parametrize(("folder", "kind"), [(None, "NoneType"), (3, "int"), (b"out", "bytes")])
def test_a_folder_that_is_no_path_is_refused(folder, kind):
    result = compile(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), {"plan": 1, "passes": []}, (torch.ones(1, 4),))
    with pytest.raises(OutputError, match=f"^save takes the path of a folder, not {kind}$"):
        result.save(folder)


class _Tied(nn.Module):
    """A recurrent layer, a head tied to the embedding, a leaf called twice, a buffer that nothing cuts."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(12, 8), nn.GRU(8, 8, batch_first=True)
        self.twice, self.head = nn.Linear(8, 8), nn.Linear(8, 12)
        self.head.weight = self.embedding.weight
        self.head.bias.requires_grad_(False)
        self.register_buffer("shift", torch.ones(12))

    def forward(self, x):
        return self.head(self.twice(self.twice(self.rnn(self.embedding(x))[0]).relu())) + self.shift


@pytest.mark.parametrize("train", [False, True])
def test_the_slim_module_has_tensors_of_its_own(train):
    """Training it on leaves the model that was handed over as it is; what is tied there is tied here."""
    model = _Tied().train(train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = {"plan": 1, "passes": [{"score": "l1"}, {"select": {"ratio": 0.5}}, "shrink"]}
    result = compile(model, plan, (torch.randint(12, (2, 3)),))
    module = result.module
    storages = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    assert not any(v.untyped_storage().data_ptr() in storages for v in module.state_dict().values())
    assert module.state_dict().keys() == before.keys()
    assert module.get_parameter("head.weight") is module.get_parameter("embedding.weight")
    assert not module.get_parameter("head.bias").requires_grad
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    assert not module(torch.randint(12, (2, 3))).any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(v.any() for v in result.program.module.state_dict().values()), "nor what is written to files"
