"""Weights that a forward computes from parameters become plain ones, where their statistics would pin channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Made, conv, lively, pooled
from oracle import difference, masked, run, selection
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.trace import trace


def _step_by_step(w: Tensor, m: Any) -> Tensor:
    w = w - w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    return w / (w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5).expand_as(w)


def _by_batch_norm(w: Tensor, m: Any) -> Tensor:
    flat = F.batch_norm(w.reshape(1, w.shape[0], -1), None, None, training=True, momentum=0.0, eps=1e-6)
    return flat.reshape_as(w)


def _scaled_by_batch_norm(w: Tensor, m: Any) -> Tensor:
    gain = (m.gain * 0.3).view(-1)
    return F.batch_norm(w.reshape(1, 8, -1), None, None, weight=gain, training=True).reshape_as(w)


def _by_var_mean(w: Tensor, m: Any) -> Tensor:
    var, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (w - mean) / torch.sqrt(var + 1e-10)


STATISTICS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "mean and std": _step_by_step,
    "batch norm": _by_batch_norm,
    "scaled batch norm": _scaled_by_batch_norm,
    "var_mean": _by_var_mean,
    "layer norm": lambda w, m: F.layer_norm(w, w.shape[1:]),
    "weight norm by hand": lambda w, m: m.gain * w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1),
    "normalize": lambda w, m: F.normalize(w.flatten(1)).view_as(w),
    "centred": lambda w, m: w - w.mean((1, 2, 3), keepdim=True),
    "softmax over inputs": lambda w, m: w.softmax(1),
}


class Gained(Made):
    """A net whose second layer's weight is computed by `make`; `gain` is a parameter of its own."""

    def __init__(self, make: Callable[[Tensor, Any], Tensor]) -> None:
        parts = {"a": conv(3, 6), "b": conv(6, 8), "c": conv(8, 5, 1), "fc": nn.Linear(5, 4)}
        super().__init__(parts, lambda m, x: m.fc(pooled(m.c(F.relu(m.computed(F.relu(m.a(x))))))))
        self.gain = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)
        self.make = make

    def computed(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.make(self.b.weight, self), self.b.bias, padding=1)


def built(make: Callable[[Tensor, Any], Tensor]) -> tuple[nn.Module, Program, Tensor]:
    torch.manual_seed(0)
    model, x = lively(Gained(make)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    return model, trace(model, (x,)), x


@pytest.mark.parametrize("name", STATISTICS)
def test_a_computed_weight_pins_nothing(name: str) -> None:
    model, program, x = built(STATISTICS[name])
    with torch.no_grad():
        assert torch.equal(program.module(x), model(x))
    analysis = analyse(program)
    free = {axis.owner: int(group.free.sum()) for group in analysis.groups.values() for axis in [group.writers[0].axis]}
    assert {key: free[key] for key in ("a", "c")} == {"a": 6, "c": 5}
    assert {
        group.size for group in analysis.groups.values() if "b.bias" in {str(m.axis.tensor) for m in group.members}
    } == {8}
    for seed in range(3):
        keep = selection(analysis, seed, 0.4)
        assert difference(run(program, keep, (x,)), masked(program, keep, (x,))) < 1e-9


@pytest.mark.parametrize("name", ["mean and std", "scaled batch norm"])
def test_it_has_the_name_of_what_it_came_from_and_is_trained(name: str) -> None:
    model, program, x = built(STATISTICS[name])
    weight = program.state["b.weight"]
    assert isinstance(weight, nn.Parameter)
    assert weight.requires_grad
    assert not torch.equal(weight, model.b.weight)
    assert "gain" not in program.state
    program.module(x).sum().backward()
    assert weight.grad is not None
    assert model.b.weight.grad is None


def test_a_frozen_one_stays_frozen() -> None:
    torch.manual_seed(0)
    model = lively(Gained(STATISTICS["var_mean"])).requires_grad_(False)
    program = trace(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    assert not program.tensors["b.weight"].requires_grad


def test_a_parameter_that_others_read_keeps_its_name() -> None:
    torch.manual_seed(0)
    make = lambda w, m: F.layer_norm(w, w.shape[1:]) + 0 * m.b(torch.zeros(1, 6, 3, 3, dtype=w.dtype)).sum()  # noqa: E731
    model = lively(Gained(make))
    program = trace(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    assert torch.equal(program.tensors["b.weight"], model.b.weight)


PLAIN: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "as it is": lambda w, m: w,
    "scaled": lambda w, m: w * m.gain,
    "moved": lambda w, m: w.flip(2),
    "picked": lambda w, m: torch.stack([w, 2 * w])[1],
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_labels_flow_through_stays_computed(name: str) -> None:
    model, program, _ = built(PLAIN[name])
    assert program.tensors["b.weight"] is model.b.weight
    assert ("gain" in program.state) == (name == "scaled")


def test_coefficients_of_a_sum_are_no_weights() -> None:
    torch.manual_seed(0)
    parts = {"a": conv(3, 6), "b": conv(3, 6), "fc": nn.Linear(6, 4)}
    model = Made(parts, lambda m, x: m.fc(pooled((lambda s: s[0] * m.a(x) + s[1] * m.b(x))(m.mix.softmax(0)))))
    model.mix = nn.Parameter(torch.randn(2))
    program = trace(model.eval(), (torch.randn(2, 3, 6, 6),))
    assert program.tensors["mix"] is model.mix


def test_the_slim_model_has_it_as_a_parameter() -> None:
    model, _, x = built(STATISTICS["scaled batch norm"])
    passes = [{"score": "l1"}, {"select": {"ratio": 0.4}}, "shrink"]
    result = compile(model, {"plan": 1, "passes": passes}, example_inputs=(x,))
    assert list(result.lock["removed"]["b.weight"]) == ["0", "1"]
    removed = result.lock["removed"]["b.weight"]
    assert result.module.get_parameter("b.weight").shape == (8 - len(removed["0"]), 6 - len(removed["1"]), 3, 3)
