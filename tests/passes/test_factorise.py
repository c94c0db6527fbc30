"""`factorise`: lossless where outputs have a low rank, the best of a rank otherwise; budgets, errors, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import compile
from prunec.compiler.driver.compile import Result
from prunec.compiler.errors import PassError, PlanError
from prunec.passes.repairing import inputs
from tests.support.nets import Made


def _images(count: int = 64, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).split(16))


def _thin(layer: nn.Module, rank: int) -> nn.Module:
    """The layer with a weight of that rank."""
    flat = layer.double().weight.detach().flatten(1)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    layer.weight.data = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(layer.weight.shape)
    return layer


def _net(layer: nn.Module, run: Any = None, **more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Made({"a": layer, **more}, run or (lambda m, x: m.a(x))).double().eval()


def _compiled(net: nn.Module, data: list[Tensor] | None = None, **options: Any) -> Result:
    data = data or _images()
    plan = {"plan": 1, "passes": [{"factorise": {"samples": 64, **options}}]}
    return compile(net, plan, example_inputs=(data[0][:2],), data=data)


def _rows(found: Result) -> dict[str, Any]:
    return found.report["passes"][0]["details"]["factorised"]


torch.manual_seed(0)
LOW: dict[str, tuple[nn.Module, Any, dict[str, nn.Module]]] = {
    "conv": (nn.Conv2d(3, 12, 3, padding=1), None, {}),
    "strided, dilated, reflecting": (
        nn.Conv2d(3, 12, 3, stride=2, padding=2, dilation=2, padding_mode="reflect"),
        None,
        {},
    ),
    "no bias": (nn.Conv2d(3, 12, 3, bias=False), None, {}),
    "batch norm": (nn.Conv2d(3, 12, 3, bias=False), lambda m, x: m.n(m.a(x)), {"n": nn.BatchNorm2d(12)}),
    "in one dimension": (nn.Conv1d(3, 12, 5), lambda m, x: m.a(x.flatten(2)), {}),
    "linear": (nn.Linear(192, 12), lambda m, x: m.a(x.flatten(1)), {}),
    "tokens": (nn.Linear(8, 12), lambda m, x: m.a(x), {}),
    "a sum": (nn.Conv2d(3, 3, 3, padding=1), lambda m, x: m.c((x + m.a(x)).relu()), {"c": nn.Conv2d(3, 2, 1)}),
}


@pytest.mark.parametrize(("layer", "run", "more"), LOW.values(), ids=LOW)
def test_outputs_of_low_rank_are_given_exactly(layer, run, more):
    net = _net(_thin(layer, 2), run, **more)
    found = _compiled(net, error=1e-9, only=["a"])
    assert _rows(found)["a"]["rank"] == 2
    x = _images(8, seed=2)[0]
    assert (found.module(x) - net(x)).abs().max() < 1e-9
    assert found.report["passes"][0]["verification"]["difference"] < 1e-9
    assert found.module.state_dict()["a.0.weight"].shape[0] == 2


def _apart(found: nn.Module, wanted: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        given = wanted(x)
        mean = given.mean((0, *range(2, given.ndim)), keepdim=True)
        return float((found(x) - given).square().sum() / (given - mean).square().sum())


def test_the_error_is_what_was_told_and_less_than_that_of_the_weight_s_own_svd():
    net = _net(nn.Conv2d(3, 12, 3))
    data = [x * torch.tensor([5.0, 1.0, 0.1], dtype=torch.float64)[:, None, None] + 1 for x in _images()]
    found = _compiled(net, data, ranks={"a": 4})
    x = torch.cat(data)
    assert _apart(found.module, net, x) == pytest.approx(_rows(found)["a"]["error"], rel=2e-3)
    plain = _net(_thin(nn.Conv2d(3, 12, 3), 4))
    plain.a.weight.data = _thin(net.a, 4).weight.data.clone()
    assert _apart(found.module, _net(nn.Conv2d(3, 12, 3)), x) < _apart(plain, _net(nn.Conv2d(3, 12, 3)), x)


def test_a_wide_layer_is_looked_at_by_its_samples(monkeypatch: pytest.MonkeyPatch):
    net = _net(nn.Linear(192, 12), lambda m, x: m.a(x.flatten(1)))
    formed = _compiled(net, ranks={"a": 3}).module(_images()[0])
    monkeypatch.setattr(inputs, "WIDE", 10)
    assert torch.allclose(_compiled(net, ranks={"a": 3}).module(_images()[0]), formed, atol=1e-9)


def _deep() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 32)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(32, 10)).double().eval()


@pytest.mark.parametrize("budget", [{"macs": "60%"}, {"params": "50%"}, {"params": "6k"}, {"macs": 0.7, "params": 0.6}])
def test_budgets_are_met_from_below(budget):
    found = _compiled(_deep(), budget=budget)
    cost = found.report["cost"]
    for name, said in budget.items():
        amount = float(said.strip("%k")) if isinstance(said, str) else said
        limit = (
            amount * 1000 if str(said).endswith("k") else cost["before"][name] * amount / (1 if amount <= 1 else 100)
        )
        assert cost["after"][name] <= limit
    assert any(cost["after"][name] > 0.3 * cost["before"][name] for name in budget)


def test_a_budget_that_can_not_be_met_is_refused():
    with pytest.raises(PassError, match="the budget can't be met by factorising layers"):
        _compiled(_deep(), budget={"macs": "1%"})


def test_a_layer_stays_whole_where_two_would_cost_more():
    net = _net(nn.Conv2d(3, 12, 1))
    assert _rows(_compiled(net, error=0.0)) == {}


def test_its_lock_gives_the_same_weights():
    first = _compiled(_deep(), error=0.05)
    again = compile(_deep(), first.lock, example_inputs=(_images()[0][:2],), data=_images())
    assert _rows(first)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor)


def test_grouped_and_shared_layers_are_left_alone_with_a_reason():
    net = _net(
        nn.Conv2d(3, 6, 3, padding=1, groups=3),
        lambda m, x: m.c(m.b(m.b(m.a(x)))),
        b=nn.Conv2d(6, 6, 3),
        c=_thin(nn.Conv2d(6, 12, 3), 2),
    )
    found = _compiled(net, error=1e-9)
    assert set(_rows(found)) == {"c"}
    reasons = {note["subject"]: note["reason"] for note in found.report["passes"][0]["notes"]}
    assert reasons["a"] == "a grouped convolution isn't factorised"
    assert "shared" in reasons["b"]


FAULTS = {
    "two ways": ({"error": 0.1, "ranks": {"0": 2}}, PlanError, "must name one of"),
    "no such layer": ({"ranks": {"00": 2}}, PassError, "there is no layer '00'"),
    "too large": ({"ranks": {"0": 99}}, PassError, "at most rank 16"),
    "nothing": ({}, PassError, "must name a 'budget'"),
    "no such pattern": ({"error": 0.1, "protect": ["x*"]}, PassError, "nothing is called 'x\\*'"),
}


@pytest.mark.parametrize(("options", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_of_a_plan_are_told(options, error, message):
    with pytest.raises(error, match=message):
        _compiled(_deep(), **options)


def test_without_data_it_says_so():
    with pytest.raises(PassError, match="factorise needs some samples"):
        compile(_deep(), {"plan": 1, "passes": [{"factorise": 0.1}]}, example_inputs=(_images()[0][:2],))


@pytest.mark.parametrize("earlier", [[], [{"score": "l1"}, {"select": 0.25}, "shrink"]], ids=["whole", "cut before"])
@pytest.mark.parametrize("later", [[], [{"score": "l1"}, {"select": 0.4}, "shrink"]], ids=["", "cut behind"])
def test_a_repair_behind_it_refits_the_second_layers(earlier, later):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double().eval()
    data, x = _images(256), _images(64, seed=2)[0]
    thin = [*earlier, {"factorise": {"samples": 256, "error": 0.1}}, *later]
    plans = thin, [*thin, {"repair": {"method": "least_squares", "samples": 256}}]
    plain, repaired = (compile(net, {"plan": 1, "passes": p}, (data[0][:2],), data) for p in plans)
    assert _apart(repaired.module, net, x) < 0.97 * _apart(plain.module, net, x)
    assert not any("no such layer" in note["reason"] for note in repaired.report["passes"][-1].get("notes", ()))
    assert {"3.1", "5.1"} <= repaired.report["passes"][-1]["details"]["repaired"].keys()


@pytest.mark.parametrize("entries", [[{"factorise": 0.2}], [{"cluster": {"ratio": 0.25}}, {"merge": "least_squares"}]])
def test_values_that_are_not_finite_are_told(entries: list[Any]):
    net = _net(nn.Conv2d(3, 12, 3), lambda m, x: m.b(m.a(x).relu()), b=nn.Conv2d(12, 4, 3))
    data = [torch.cat([*_images(), _images()[0] * float("inf")])]
    with pytest.raises(PassError, match=r"what (a|b).weight reads on some samples isn't finite"):
        compile(net, {"plan": 1, "passes": entries}, (data[0][:2],), data)
