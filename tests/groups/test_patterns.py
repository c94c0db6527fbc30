"""Naming groups by glob patterns."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from selecting import bare
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import chosen, group_names, match_names, matching
from prunec.compiler.ir.program import Axis
from prunec.compiler.tracing.trace import trace
from prunec.models.resnet import resnet


@pytest.fixture(scope="module")
def groups():
    program = trace(resnet(8, "projection", widths=(4, 6, 8)).eval(), (torch.randn(2, 3, 16, 16),))
    return analyse(program).groups


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("conv1", ["conv1"]),
        ("layer1.0.conv2", ["conv1"]),
        ("layer1.*", ["conv1", "layer1.0.conv1"]),
        ("layer?.0.conv1", ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]),
        ("*shortcut*", ["layer2.0.conv2", "layer3.0.conv2"]),
        ("fc.weight", ["fc"]),
    ],
)
def test_a_pattern_means_every_group_that_it_names_a_writer_of(groups, pattern, found):
    assert matching([pattern], groups) == {pattern: found}


def test_a_pattern_that_means_nothing_is_an_error_with_the_nearest_name(groups):
    with pytest.raises(PassError) as caught:
        matching(["layer1.*", "layer2.0.cnv1"], groups, option="protect")
    assert str(caught.value) == ("protect: no group is called 'layer2.0.cnv1'\nhint: did you mean 'layer2.0.conv1'?")


def test_case_matters(groups):
    with pytest.raises(PassError, match="no group is called 'FC'"):
        matching(["FC"], groups)


@pytest.mark.parametrize(
    ("only", "protect", "left"),
    [
        ((), ("layer?.*",), ["fc"]),
        (("layer1.*",), (), ["conv1", "layer1.0.conv1"]),
        (("layer1.*", "fc"), ("conv1",), ["layer1.0.conv1", "fc"]),
    ],
)
def test_protect_wins_over_only(groups, only, protect, left):
    assert list(chosen(groups, only, protect)) == left


def test_names_hold_no_empty_module_name():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(4))
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x[:, None] * self.scale)

    groups = analyse(trace(Free(), (torch.randn(3),))).groups
    assert [group_names(group) for group in groups.values()] == [
        {"scale"},
        {"fc", "fc.weight"},
    ]


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("kind:Linear", {"classifier.1"}),
        ("kind:linear", {"classifier.1"}),
        ("kind:depthwise", {"features.0.0", "features.2.conv.0.0"}),
    ],
)
def test_patterns_of_kinds(pattern, means):
    found = set(matching([pattern], analyse(bare("mobilenet_v2")).groups)[pattern])
    assert means <= found
    assert "features.18.0" not in found


def test_names_by_patterns():
    names = ["layer1.0", "layer1.1", "layer2.0"]
    assert match_names(["layer1.*", "layer?.0"], names, "only") == {"layer1.0", "layer1.1", "layer2.0"}
    assert match_names([], names, "only") == frozenset()
    with pytest.raises(PassError, match=r"'only': nothing is called 'layer3\.0'") as caught:
        match_names(["layer1.*", "layer3.0"], names, "only")
    assert caught.value.keys == ("only",)
    assert caught.value.hint == "did you mean 'layer2.0'?"


def _rounds(*, name: str) -> tuple[nn.Module, list[object], tuple[int, ...]]:
    """A network, passes that take its group `a` as far down as it goes, and an input's shape."""
    down: list[object] = [{"score": "l1"}, {"select": {"widths": {"a": 1}}}, "shrink"]
    if name == "chain":
        net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1), n=nn.BatchNorm2d(4), r=nn.ReLU(), b=nn.Conv2d(4, 6, 1)))
    elif name == "folded":
        net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1), n=nn.BatchNorm2d(4), r=nn.ReLU(), b=nn.Conv2d(4, 6, 1)))
        down.append("fold_bn")
    elif name == "depthwise":
        net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1), n=nn.Conv2d(4, 4, 3, groups=4), b=nn.Conv2d(4, 6, 1)))
    else:
        net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1), n=_Residual(4), b=nn.Conv2d(4, 6, 1)))
    net.append(nn.Conv2d(6, 2, 1))
    return net.eval(), down, (2, 3, 6, 6)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


_KINDS = {"chain": "kind:norm", "folded": "kind:BatchNorm2d", "depthwise": "kind:depthwise", "residual": "n.conv"}


@pytest.mark.parametrize("name", _KINDS)
@pytest.mark.parametrize(
    "asked",
    [
        {"ratio": 0.5, "protect": ["a"]},
        {"widths": {"a": 1, "b": 3}},
        {"ratio": {"a": 0.5, "b": 0.5}},
        {"threshold": {"a.weight": 0.0, "b": 1e9}, "keep_at_least": {"b": 3}},
        {"ratio": 0.5, "equal_widths": ["a"], "multiple_of": {"a": 2}},
        {"ratio": 0.5, "protect": ["KIND"]},
    ],
)
def test_a_group_that_has_shrunk_to_one_channel_keeps_its_names(name, asked):
    net, down, shape = _rounds(name=name)
    asked = {
        key: [_KINDS[name] if p == "KIND" else p for p in v] if key == "protect" else v for key, v in asked.items()
    }
    passes = [*down, {"score": "l1"}, {"select": asked}, "shrink"]
    slim = compile(net, {"plan": 1, "passes": passes}, example_inputs=(torch.randn(shape),)).module
    assert dict(slim.named_parameters())["a.weight"].shape == (1, 3, 1, 1)
    assert dict(slim.named_parameters())["b.weight"].shape == (3, 1, 1, 1)


def test_only_a_spent_group_means_that_nothing_goes():
    net, down, shape = _rounds(name="chain")
    passes = [*down, {"score": "l1"}, {"select": {"ratio": 0.5, "only": ["a"]}}, "shrink"]
    slim = compile(net, {"plan": 1, "passes": passes}, example_inputs=(torch.randn(shape),)).module
    assert dict(slim.named_parameters())["b.weight"].shape == (6, 1, 1, 1)


def test_a_name_that_no_round_knew_stays_an_error():
    net, down, shape = _rounds(name="chain")
    passes = [*down, {"score": "l1"}, {"select": {"ratio": 0.5, "protect": ["aa"]}}]
    with pytest.raises(PassError, match="protect: no group is called 'aa'\nhint: did you mean 'a'"):
        compile(net, {"plan": 1, "passes": passes}, example_inputs=(torch.randn(shape),))


def test_a_group_that_is_gone_is_named_in_vain():
    program = trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval(), (torch.randn(2, 3),))
    later = replace(program, names={Axis("conv.weight", 0): frozenset({"conv", "conv.weight", "kind:Conv2d"})})
    groups = analyse(later).groups
    assert matching(["conv", "kind:Conv2d"], groups) == {"conv": [], "kind:Conv2d": []}
    assert chosen(groups, only=["conv"]) == {}
