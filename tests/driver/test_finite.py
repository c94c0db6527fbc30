"""Weights that are no numbers are refused by name; constants that are infinite on purpose are not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cli import main as cli
from prunec.compiler.driver.finite import check_stays_finite, nonfinite
from prunec.compiler.driver.pass_manager import run_passes
from prunec.compiler.driver.steps import Step
from prunec.compiler.errors import ModelError, PassError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.tracing.trace import trace

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
IMAGE = (torch.rand(2, 3, 6, 6),)
NAMES = ("0.weight", "1.weight", "1.running_mean", "1.running_var", "3.bias")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def poisoned(model: nn.Module, name: str, value: float) -> nn.Module:
    model.state_dict()[name].view(-1)[-1] = value
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "what"), [(math.nan, "NaN"), (math.inf, "an infinite value"), (-math.inf, "an infinite value")]
)
def test_a_tensor_that_is_not_finite_is_refused_by_name(name, value, what):
    with pytest.raises(ModelError) as caught:
        compile(poisoned(net(), name, value), PLAN, IMAGE)
    assert caught.value.message == f"the model isn't finite: '{name}' holds {what}"
    assert caught.value.hint is not None
    assert f"allow_nonfinite: ['{name}']" in caught.value.hint


def test_the_first_of_many_are_named():
    model = net()
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    message = (
        "the model isn't finite: '0.weight' holds NaN, '0.bias' holds NaN, '1.weight' holds NaN, "
        "and 3 more tensors aren't finite"
    )
    with pytest.raises(ModelError, match=message):
        compile(model, PLAN, IMAGE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2])
def test_every_type_of_number_is_looked_at(dtype):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, math.nan]).to(dtype), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.w.to(torch.complex64).real

    assert nonfinite(trace(Held(), (torch.rand(1, 2),))) == {"w": "NaN"}


@pytest.mark.parametrize("allowed", ["3.bias", ["*.bias"], ["x", "3.*"]])
def test_a_plan_lets_tensors_through(allowed):
    model = poisoned(net(), "3.bias", math.inf)
    result = compile(model, {**PLAN, "allow_nonfinite": allowed}, IMAGE)
    assert result.module.get_parameter("3.bias")[-1] == math.inf
    assert compile(model, result.lock, IMAGE).lock["hashes"] == result.lock["hashes"]
    with pytest.raises(ModelError, match=r"'3\.bias' holds an infinite value"):
        compile(model, {**PLAN, "allow_nonfinite": ["0.*"]}, IMAGE)


class Masked(nn.Module):
    """Attention with a mask in a buffer, as many models keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        return self.out((self.q(x) @ x.transpose(1, 2) + self.mask).softmax(-1) @ x)


def test_the_infinite_values_of_a_mask_are_constants():
    model, x = Masked().eval(), torch.rand(2, 4, 8)
    assert compile(model, PLAN, (x,)).lock["removed"]
    model.mask[0, 0] = math.nan
    with pytest.raises(ModelError, match="'mask' holds NaN"):
        compile(model, PLAN, (x,))


class Functional(nn.Module):
    """Batch norm by the function, on buffers of its own."""

    def __init__(self, *, by_name: bool) -> None:
        super().__init__()
        self.by_name = by_name
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.by_name:
            return self.out(F.batch_norm(x, running_mean=self.mean, running_var=self.var))
        return self.out(F.batch_norm(x, self.mean, self.var))


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("name", ["mean", "var"])
def test_running_statistics_are_known_by_their_use(name, by_name):
    with pytest.raises(ModelError, match=f"'{name}' holds an infinite value"):
        compile(poisoned(Functional(by_name=by_name).eval(), name, math.inf), PLAN, IMAGE)


def test_what_the_model_does_not_read_does_not_matter():
    model = Masked().eval()
    model.register_buffer("unread", torch.full((2,), math.nan))
    assert compile(model, PLAN, (torch.rand(2, 4, 8),)).lock["removed"]


def test_the_place_in_the_plan_is_where_the_weights_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(2, 3))\n")
    torch.save({"0.weight": torch.full((3, 2), math.nan), "0.bias": torch.zeros(3)}, "w.pth")
    Path("plan.yaml").write_text("plan: 1\nmodel: {factory: nets.py:net, weights: w.pth}\ninputs: [[1, 2]]\n")
    for command in ("compile", "check"):
        assert cli.run([command, "plan.yaml"]) == 1
        assert capsys.readouterr().err.startswith("plan.yaml:2:40: the model isn't finite: '0.weight' holds NaN\n")
    assert not Path("out").exists()


class Spoil(Pass):
    """Divides a bias by zero."""

    name: ClassVar[str] = "spoil"
    rewrites: ClassVar[bool] = True

    def run(self, program: Program, context: Context) -> PassResult:
        layer = nn.Linear(2, 3)
        layer.load_state_dict({"weight": program.tensors["0.weight"], "bias": program.tensors["0.bias"] / 0})
        return PassResult(program.derive(state={**program.state, "0": layer}))

    def reference(self, before: Program, after: Program) -> Program:
        return after


def test_a_pass_that_makes_infinite_weights_is_stopped():
    program = trace(nn.Sequential(nn.Linear(2, 3)).eval(), (torch.rand(1, 2),))
    with pytest.raises(PassError, match=r"the pass 'spoil' makes '0\.bias' hold an infinite value"):
        run_passes(program, [Step(Spoil())], Context())
    spoilt = Spoil().run(program, Context()).program
    check_stays_finite(spoilt, spoilt, "spoil", None)  # what was let in isn't the pass's fault
