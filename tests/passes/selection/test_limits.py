"""Constraints hold, by pattern too: channels, shares, heads, and widths that stay equal."""

from __future__ import annotations

import pytest
from nets import NETS
from selecting import METHODS, bare, channels, selected

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import matching


def test_limits_by_pattern():
    options = {"keep_at_least": {"layer1.*": 48, "*": 4}, "remove_at_most": {"layer2.*": 0.25, "*": 1.0}}
    result = selected("resnet18", budget={"macs": 0.5}, **options)
    left = channels("resnet18", result)
    groups = analyse(bare("resnet18")).groups
    means = matching(["layer1.*", "layer2.*"], groups)
    assert min(left[name] for name in means["layer1.*"]) >= 48
    assert all(left[n] >= 0.75 * groups[n].size for n in means["layer2.*"] if n not in means["layer1.*"])


@pytest.mark.parametrize("method", METHODS[:2])
def test_equal_widths(method):
    inner = [f"layer1.{i}.conv1" for i in (0, 1)]
    result = selected(
        "resnet18", budget={"macs": 0.5}, method=method, equal_widths=["layer1.?.conv1", "layer3.?.conv1"]
    )
    left = channels("resnet18", result)
    assert left[inner[0]] == left[inner[1]] < 64
    assert left["layer3.0.conv1"] == left["layer3.1.conv1"]
    apart = channels("resnet18", selected("resnet18", budget={"macs": 0.5}, method=method))
    assert apart[inner[0]] != apart[inner[1]]


def test_equal_widths_of_unequal_groups():
    with pytest.raises(PassError, match=r"can't be kept equal: 'conv1' has 64, 'layer2.0.conv1' has 128"):
        selected("resnet18", ratio=0.5, equal_widths=["*"])


def test_ratios_of_tied_groups():
    left = channels("resnet18", selected("resnet18", ratio={"layer1.0.conv1": 0.5}, equal_widths=["layer1.?.conv1"]))
    assert left["layer1.0.conv1"] == left["layer1.1.conv1"] == 32


def with_heads():
    """Small nets whose units are heads."""
    blocks = {name: analyse(bare(name)).flow.divided.values() for name in NETS if "attention" in name or "head" in name}
    return [name for name, found in blocks.items() if any(b.kind == "attention" and b.choice == "heads" for b in found)]


def test_heads_that_stay():
    names = with_heads()
    assert names, "there are nets with heads"
    for name in names:
        free, least = selected(name, ratio=0.99), selected(name, ratio=0.99, heads_at_least=2)
        for group in matching(["kind:heads"], analyse(bare(name)).groups)["kind:heads"]:
            before, after = free.details["widths"][group], least.details["widths"][group]
            assert after[1] >= max(before[1], min(2, before[0]))
