"""Where a slim model isn't as much faster as it is smaller, a warning names the layers that cost it, and the cure.

The seconds of whole runs are made up here; only which layers are found and how they are told is tested.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.driver import slow_layers as module
from prunec.compiler.driver.slow_layers import slow_layers
from prunec.compiler.report.report import Change
from prunec.compiler.targets.base import NodeTime
from prunec.compiler.targets.onnx_export import onnx_bytes, onnx_feed
from prunec.compiler.targets.ort_session import profile


def net(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), middle, nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    ).eval()


def warned(middle: nn.Module, select, latency: Change[float], monkeypatch, seconds, *, by_latency=False) -> str:
    """The warning where every product of the files takes what `seconds` says, by layer, before and after."""
    passes = ["score", {"select": select}, "shrink"]
    result = compile(net(middle), {"plan": 1, "passes": passes}, (torch.zeros(1, 3, 16, 16),))
    programs = Change(result.before, result.program)

    def made(models, feeds, **rest):
        sides = zip((0, 1), models, profile(models, feeds, rounds=1), strict=True)
        return [tuple(replace(node, seconds=taken(node, file)[side]) for node in nodes) for side, file, nodes in sides]

    def taken(node: NodeTime, file: bytes) -> tuple[float, float]:
        return seconds.get(next(iter(module._by_part((node,), file))), (0.001, 0.0))

    monkeypatch.setattr(module, "profile", made)
    return slow_layers(programs, latency, by_latency=by_latency)


PLAIN = nn.Conv2d(64, 64, 3, padding=1)


def test_the_layers_that_cost_it_are_named_the_worst_first(monkeypatch):
    seconds = {"3": (0.3, 0.3), "0": (0.2, 0.19)}
    found = warned(PLAIN, {"ratio": 0.3}, Change(1.0, 0.9), monkeypatch, seconds)
    assert found.startswith("latency fell to 90% of the original's, with 4")
    assert "what costs it: 3 (300.00 ms, now 300.00), 0 (200.00 ms, now 190.00)" in found
    assert found.endswith("'multiple_of: 16' gives them widths that have a fast kernel")


def test_groups_that_are_too_narrow_are_told(monkeypatch):
    middle = nn.Conv2d(64, 64, 3, padding=1, groups=8)
    found = warned(middle, {"widths": {"0": 32}}, Change(1.0, 0.9), monkeypatch, {"3": (0.5, 0.5)})
    assert "'axes: {grouped: whole}' before 'score' lets whole groups go" in found


def test_aligned_layers_are_sent_to_a_budget_of_latency(monkeypatch):
    found = warned(PLAIN, {"ratio": 0.5}, Change(1.0, 0.9), monkeypatch, {"3": (0.3, 0.3)})
    assert found.endswith("they take time by what they read and write: 'budget: {latency: ...}' counts that")


def test_a_selection_by_latency_is_told_of_widths_alone(monkeypatch):
    slow = Change(1.0, 0.9), monkeypatch, {"3": (0.3, 0.3)}
    assert not warned(PLAIN, {"ratio": 0.5}, *slow, by_latency=True)
    odd = warned(PLAIN, {"ratio": 0.3}, *slow, by_latency=True)
    assert odd.endswith("'multiple_of: 16' gives them widths that have a fast kernel")
    assert not warned(PLAIN, {"ratio": 0.5}, Change(1.0, 0.9), monkeypatch, {}, by_latency=True)


def test_where_no_layer_costs_it_that_is_told(monkeypatch):
    found = warned(PLAIN, {"ratio": 0.5}, Change(1.0, 0.9), monkeypatch, {})
    assert found.endswith("the runtime takes as long from node to node as before")


@pytest.mark.parametrize(
    ("latency", "select"),
    [
        (Change(1.0, 0.29), {"ratio": 0.5}),
        (Change(1e-6, 0.9e-6), {"ratio": 0.5}),
        (Change(1.0, 2.0), {"ratio": 0.0}),
    ],
    ids=["fast", "too short to tell", "nothing is gone"],
)
def test_nothing_is_told(latency, select, monkeypatch):
    assert not warned(PLAIN, select, latency, monkeypatch, {})


def test_every_product_of_a_real_profile_is_found_in_its_file():
    plan = {"plan": 1, "passes": ["score", {"select": 0.3}, "shrink"]}
    result = compile(net(PLAIN), plan, (torch.zeros(1, 3, 16, 16),))
    file = onnx_bytes(result.program)
    (nodes,) = profile([file], [onnx_feed(file, result.program)], rounds=1)
    found = module._by_part(nodes, file)
    assert {"0", "3"} <= set(found)
    assert not {part for part in found if part in ("all Conv", "all FusedConv")}
