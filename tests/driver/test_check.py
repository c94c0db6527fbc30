"""`prunec check`: what it refuses is what a compile would refuse, and all of it that can be told without running."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler import Plan, compile
from prunec.compiler.driver.check import check_plan
from prunec.compiler.driver.pass_manager import check_options
from prunec.compiler.driver.steps import steps_of
from prunec.compiler.errors import PassError
from prunec.compiler.tracing.trace import trace

SHRINK = [{"score": "l1"}, {"select": "50%"}, "shrink"]
FIRST = [{"score": "l1"}, {"select": {"ratio": "50%", "protect": ["0"]}}, "shrink"]


def plain(repeated=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    if repeated:  # channel 4 is channel 0 again, and so on
        for conv in (net[0], net[2]):
            for tensor in (conv.weight, conv.bias):
                tensor.data[4:] = tensor.data[:4]
    return net


def checked(net, passes):
    check_options(trace(net, (torch.rand(2, 3, 12, 12),)), steps_of(Plan.of({"plan": 1, "passes": passes})))


REFUSED = {
    "k-means of channels that differ": (
        [{"cluster": "25%"}, "merge"],
        "group '0': 8 channels are to become 6, but 8 of them differ by more than the tolerance 1e-06",
    ),
    "neighbours that differ": (
        [{"cluster": {"method": "even", "ratio": "50%"}}, "merge"],
        "the channels of cluster [2, 3] aren't identical",
    ),
    "named channels that differ": (
        [{"cluster": {"method": "given", "clusters": {"0": [[1, 5]]}}}, "merge"],
        "group '0': the channels of cluster [1, 5] aren't identical",
    ),
    "no batch norm": (
        [{"score": "bn_scale"}, {"select": "50%"}, "shrink"],
        "the criterion bn_scale says nothing about any group of this model",
    ),
    "the second round": (
        [*SHRINK, {"score": "l1"}, {"select": {"budget": {"macs": "1%"}}}, "shrink"],
        "the budget can't be met: macs 1.0%",
    ),
    "a limit of the second round": (
        [*FIRST, {"score": "l1"}, {"select": {"budget": {"macs": "10%"}, "keep_at_least": 6}}, "shrink"],
        "the budget can't be met: macs 10.0%",
    ),
    "latency where nothing may go": (
        [{"score": "l1"}, {"select": {"budget": {"latency": "50%"}, "protect": ["*"]}}, "shrink"],
        "the budget can't be met: latency 50.0%, but no unit may go",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_compile_would_refuse(case):
    passes, message = REFUSED[case]
    with pytest.raises(PassError) as found:
        checked(plain(), passes)
    assert message in found.value.message
    with pytest.raises(PassError):
        compile(plain(), {"plan": 1, "passes": passes}, (torch.rand(2, 3, 12, 12),))


ALLOWED = {
    "k-means of equal channels": [{"cluster": "50%"}, "merge"],
    "equal ones": [{"cluster": {"method": "identical"}}, "merge"],
    "named ones": [{"cluster": {"method": "given", "clusters": {"0": [[0, 4]], "2": [[1, 5]]}}}, "merge"],
    "means": [{"cluster": "75%"}, {"merge": "mean"}],
    "a second round that needs the first": [
        *SHRINK,
        {"score": "l1"},
        {"select": {"budget": {"macs": "40%"}, "keep_at_least": 4}},
        "shrink",
    ],
    "a second round whose limits alone don't reach": [
        {"score": "l1"},
        {"select": {"ratio": "75%", "protect": ["2"]}},
        "shrink",
        {"score": "l1"},
        {"select": {"budget": {"macs": "25%"}, "protect": ["0"]}},
        "shrink",
    ],
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_compile_can_do_is_let_through(case):
    checked(plain(repeated=True), ALLOWED[case])
    compile(plain(repeated=True), {"plan": 1, "passes": ALLOWED[case]}, (torch.rand(2, 3, 12, 12),))


MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Flatten(), nn.Linear(128, 4)).eval()

def data():
    return [(torch.zeros(4, 3, 6, 6), torch.arange(4))]
"""


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({}, ""),
        ({"train": {"accelerator": "cuda"}}, "the plan's 'train' can't be had here"),
        ({"region": "0"}, "a region of the model can't be trained by itself"),
        ({"passes": [{"finetune": {"freeze": ["*"]}}]}, "no parameter is left to train"),
    ],
)
def test_a_plan_that_trains(tmp_path, said, error):
    if "train" in said and torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    (tmp_path / "m.py").write_text(MODEL)
    plan = {"plan": 1, "model": "m.py:net", "inputs": [[1, 3, 6, 6]], "data": "m.py:data", "passes": ["finetune"]}
    made = Plan.from_dict({**plan, **said}, tmp_path)
    if not error:
        assert "passes: finetune: every option is valid, and each pass gets what it needs" in list(check_plan(made))
        return
    for refuse in (lambda: list(check_plan(made)), lambda: compile(None, made)):
        with pytest.raises(PassError, match=error):
            refuse()


def test_a_missing_engine_is_one_line_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text(MODEL)
    plan = {"plan": 1, "model": "m.py:net", "inputs": [[1, 3, 6, 6]], "data": "m.py:data", "passes": ["finetune"]}
    made = Plan.from_dict(plan, tmp_path)
    monkeypatch.setattr("prunec.passes.training.engine.find_spec", lambda name: None)
    for refuse in (lambda: list(check_plan(made)), lambda: compile(None, made)):
        with pytest.raises(PassError, match="training needs lightning-fabric, which isn't installed") as caught:
            refuse()
        assert str(caught.value.hint) == "pip install 'prunec[train]'"
