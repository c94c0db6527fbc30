"""Naming groups by glob patterns."""

from __future__ import annotations

import pytest
import torch
from selecting import bare
from torch import nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import chosen, group_names, match_names, matching
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
