"""Under a budget, groups keep the widths that the export's runtime computes fast, unless those cost too much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from selecting import bare, channels, context, scored, selected
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cost.model import cost
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.passes import select as select_module
from prunec.passes.select import Select
from prunec.passes.selection.limits import units_of_a_row
from prunec.passes.selection.paying import met_by_paying_widths, multiples
from prunec.passes.selection.per_group import Way

HALF = {"budget": {"macs": 0.5}}


def for_runtime(name: str, runtime: str | None, **options):
    return Select(**options).run(scored(name), replace(context(name), runtime=runtime))


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_cut_groups_keep_whole_blocks(runtime):
    result = for_runtime("mobilenet_v2", runtime, **HALF)
    left, groups = channels("mobilenet_v2", result), analyse(bare("mobilenet_v2")).groups
    cut = [left[name] for name, group in groups.items() if left[name] < group.size]
    assert len(cut) > 20
    assert all(width % 16 == 0 for width in cut)
    assert 0.95 < result.details["budget"]["macs"]["share"] / 0.5 <= 1
    assert result.details["multiple_of"]["channels"] == 16
    assert result.details["multiple_of"]["runtime"] == runtime
    (note,) = result.notes
    assert note.subject == "multiple_of"
    assert note.reason == f"16, of the widths that {runtime} prefers"


def test_a_runtime_of_narrower_blocks_has_its_own():
    assert for_runtime("mobilenet_v2", "mnn", **HALF).details["multiple_of"]["channels"] == 4


def test_the_runtime_that_a_latency_names_decides(monkeypatch):
    asked = []
    monkeypatch.setattr(
        select_module, "met_by_paying_widths", lambda _, runtime, met, **__: asked.append(runtime) or met(None)
    )
    monkeypatch.setattr(select_module, "meet", lambda *given, **_: given)
    for budget in ({"latency": {"mnn": 0.5}}, {"latency": 0.5}, {"macs": 0.5}):
        pass_ = Select(budget=budget)
        pass_._met(scored("chain"), Context(runtime="openvino"), pass_.budget)
    assert asked == ["mnn", "openvino", "openvino"]


@pytest.mark.parametrize("runtime", ["onnxruntime", None])
def test_a_plan_can_turn_it_off_and_a_run_without_a_plan_has_none(runtime):
    off = {"multiple_of": 1} if runtime else {}
    result = for_runtime("mobilenet_v2", runtime, **HALF, **off)
    plain = selected("mobilenet_v2", **HALF, multiple_of=1)
    for name, units in plain.program.facts["selection"].items():
        assert np.array_equal(result.program.facts["selection"][name], units)
    assert not result.notes


@pytest.mark.parametrize("way", [{"ratio": 0.3}, {"widths": {"conv1": 37}}, {"threshold": 0.2}])
def test_other_ways_are_taken_at_their_word(way):
    ours = for_runtime("resnet18", "onnxruntime", **way).program.facts["selection"]
    plain = selected("resnet18", **way).program.facts["selection"]
    assert ours.keys() == plain.keys()
    assert all(np.array_equal(ours[name], plain[name]) for name in plain)


def small(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inner, outer in zip((1, *widths), widths, strict=False):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).eval()


def compiled(model: nn.Module, **select):
    plan = {"plan": 1, "passes": ["score", {"select": select}, "shrink"], "export": []}
    return compile(model, plan, (torch.zeros(1, 1, 8, 8),))


@pytest.mark.parametrize("widths", [(8, 16, 32), (16, 32, 32), (8, 8), (3, 5)])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
def test_narrow_networks_lose_no_more_than_was_asked_for(widths, share):
    ours, plain = (compiled(small(*widths), budget={"macs": share}, **off) for off in ({}, {"multiple_of": 1}))
    mine, theirs = (r.findings.passes[1].details for r in (ours, plain))
    assert cost(ours.program).macs <= share * cost(ours.before).macs
    assert mine["budget"]["macs"]["reached"] >= 0.95 * theirs["budget"]["macs"]["reached"]
    lost, least = (each["whole_score"] - each["kept_score"] for each in (mine, theirs))
    assert lost <= least + theirs["whole_score"] / 16


def test_it_gives_way_where_it_stands_between_the_plan_and_its_budget():
    result = compiled(small(16, 16), budget={"macs": 0.3})
    details = result.findings.passes[1].details
    assert details["multiple_of"]["channels"] == 1
    assert details["multiple_of"]["why"] == "1: multiples of 16 would cost a network of these widths too much"


@pytest.mark.parametrize(
    ("width", "lost", "kept", "number"),
    [
        (127, 5.0, 45.0, 16),  # a quarter more goes
        (127, 5.1, 45.0, 8),
        (128, 6.0, 45.0, 16),  # a network of wide groups may lose half more
        (128, 6.1, 45.0, 8),
        (128, 6.0, 5.0, 8),  # of what may go hardly anything would stay
    ],
)
def test_what_a_multiple_may_cost_goes_by_the_widths_of_the_network(width, lost, kept, number):
    program = trace(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).eval(), (torch.zeros(1, 4),))
    analysis = analyse(program)

    def met(wanted):
        gone, stays = (lost, kept) if wanted == multiples(analysis, 16, 16) else (4.0, 60.0)
        budget = {"macs": {"reached": 0.5, "limit": 0.5}}
        return Way(None, None, details={"budget": budget, "kept_score": stays, "whole_score": stays + gone})

    assert met_by_paying_widths(analysis, "onnxruntime", met).details["multiple_of"]["channels"] == number


@pytest.mark.parametrize(
    ("errors", "lost", "number"),
    [
        (True, 0.275, 16),  # a hundredth of all errors, of which 16 may add a quarter
        (True, 0.28, 8),
        (False, 0.275, 8),
        (False, 0.12, 16),
    ],
)
def test_where_scores_are_errors_a_hundredth_of_them_counts_beside_what_goes_anyway(errors, lost, number):
    program = trace(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)).eval(), (torch.zeros(1, 4),))
    analysis = analyse(program)

    def met(wanted):
        gone = lost if wanted == multiples(analysis, 16, 16) else 0.1
        budget = {"macs": {"reached": 0.5, "limit": 0.5}}
        return Way(None, None, details={"budget": budget, "kept_score": 60.0 - gone, "whole_score": 60.0})

    found = met_by_paying_widths(analysis, "onnxruntime", met, errors=errors)
    assert found.details["multiple_of"]["channels"] == number


@pytest.mark.parametrize("share", [0.6, 0.5, 0.4])
def test_narrow_streams_in_a_wide_network_keep_whole_blocks(share):
    result = for_runtime("mobilenet_v3_small", "onnxruntime", budget={"macs": share})
    assert result.details["multiple_of"]["channels"] == 16


@pytest.mark.parametrize(
    ("size", "multiple"), [(96, 16), (24, 16), (16, 16), (12, 8), (8, 8), (7, 4), (4, 4), (3, 1)], ids=str
)
def test_a_group_that_is_too_narrow_has_a_smaller_multiple(size, multiple):
    program = trace(nn.Sequential(nn.Linear(4, size), nn.ReLU(), nn.Linear(size, 2)).eval(), (torch.zeros(1, 4),))
    assert multiples(analyse(program), 16, 16)["0"] == multiple


class Grouped(nn.Module):
    """A convolution of two groups of 32 between two plain ones; the same as a function."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 8, 1)
        self.functional = functional
        if functional:
            self.weight = nn.Parameter(torch.randn(64, 32, 3, 3))
        else:
            self.b = nn.Conv2d(64, 64, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        x = torch.conv2d(x, self.weight, groups=2) if self.functional else self.b(x)
        return self.c(x.relu())


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("granularity", ["same", "equal"])
def test_every_group_of_a_grouped_layer_keeps_whole_blocks(granularity, functional):
    torch.manual_seed(0)
    model = Grouped(functional).eval()
    passes = [
        {"axes": {"grouped": granularity}},
        "score",
        {"select": {"budget": {"macs": 0.6}, "multiple_of": 16}},
        "shrink",
    ]
    result = compile(model, {"plan": 1, "passes": passes}, (torch.zeros(1, 3, 12, 12),))
    slim = dict(result.module.named_parameters())["weight" if functional else "b.weight"]
    assert slim.shape[0] == 32
    assert slim.shape[1] % 16 == 0
    assert slim.shape[0] // 2 % 16 == 0


def test_what_a_grouped_layer_reads_keeps_whole_blocks_too():
    torch.manual_seed(0)
    program = trace(Grouped(functional=False).eval(), (torch.zeros(1, 3, 12, 12),))
    analysis = analyse(program)
    assert set(units_of_a_row(analysis)) == {"a", "b"}
    assert multiples(analysis, 8, 16) == {"a": 16, "b": 16, "c": 8}


def test_rows_are_found_where_they_can_narrow():
    program = trace(Grouped(functional=False).eval(), (torch.zeros(1, 3, 12, 12),))
    assert set(units_of_a_row(analyse(program)).values()) == {32}
    plain = trace(small(8, 16), (torch.zeros(1, 1, 8, 8),))
    assert not units_of_a_row(analyse(plain))


def test_a_check_asks_for_no_more_than_a_compile():
    program = trace(small(16, 16), (torch.zeros(1, 1, 8, 8),))
    Select(budget={"macs": 0.2}).check(program)
    assert Context().runtime is None
