"""Random networks with constant channels: without these they give what they gave, whatever the image's size."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import RandomNet, programs
from torch import Tensor

from prunec.compiler import compile

PLANS = {
    "by default": [],
    "trials, too": ["fold_constants", "fold_bn"],
    "maps": [{"fold_constants": "map"}],
}
SIZES = ((1, 6, 6), (5, 6, 6), (2, 9, 12), (2, 4, 5))


def _shut(net: RandomNet, seed: int) -> None:
    """Some channels get weights of zero, others a scale of zero, or a shift that an activation shuts them at."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.model.named_parameters():
            if name.startswith("head") or not tensor.ndim:
                continue
            some = torch.rand(len(tensor), generator=generator) < 0.3
            if tensor.ndim > 1 and len(tensor) > 1 and rng.random() < 0.7:
                tensor[some] = 0.0
            elif tensor.ndim == 1 and rng.random() < 0.5:
                tensor[some] = rng.choice((0.0, -50.0, 3.0))


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(net=programs(), seed=st.integers(0, 10_000))
def test_nothing_else_changes(plan: str, net: RandomNet, seed: int) -> None:
    _shut(net, seed)
    result = compile(net.model, {"plan": 1, "passes": PLANS[plan]}, net.inputs(2))
    generator, compared = torch.Generator().manual_seed(seed), 0
    for count, *size in SIZES:
        x = 3 * torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)
        wanted = _given(net, x)
        if wanted is None:
            continue
        compared += 1
        found = result.module(x).detach()
        assert float((found - wanted).abs().max()) <= 1e-8 * float(wanted.abs().max()) + 1e-12, (count, size)
    assert compared >= 2


def _given(net: RandomNet, x: Tensor) -> Tensor | None:
    """What the original gives; None where it takes no images of this size."""
    try:
        found: Tensor = net.model(x).detach()
    except RuntimeError:
        return None
    return found


def test_there_are_constants_to_fold() -> None:
    """What is tested above removes something."""
    removed: list[int] = []

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(net=programs(longest=3), seed=st.integers(0, 10_000))
    def run(net: RandomNet, seed: int) -> None:
        _shut(net, seed)
        result = compile(net.model, {"plan": 1, "passes": []}, net.inputs(2))
        records = [each for each in result.report["passes"] if each["pass"] == "fold_constants"]
        removed.append(sum(sum(each["details"].get("removed_units", {}).values()) for each in records))

    run()
    assert sum(count > 0 for count in removed) >= 3
