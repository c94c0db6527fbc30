"""Shares are shares of the traced model, whatever has been cut before."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from selecting import bare
from torch import nn

from prunec.compiler import compile, trace
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.shrink import remove_units
from prunec.passes.selection.traced import whole_sizes


class Convs(nn.Module):
    """Three layers, and a linear one."""

    def __init__(self, widths=(16, 32, 100)):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise([3, *widths]))
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x):
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x.mean((2, 3)))


def left(*selects, widths=(16, 32, 100)) -> list[int]:
    """The widths after rounds of score, select and shrink."""
    torch.manual_seed(0)
    passes = [entry for select in selects for entry in ("score", {"select": select}, "shrink")]
    passes.append({"fold_constants": "none"})
    found = compile(Convs(widths), {"plan": 1, "passes": passes}, (torch.randn(1, 3, 4, 4),))
    return [conv.out_channels for conv in found.module.convs.children()]


def test_a_schedule_ends_where_it_says():
    assert left("15%", "30%", "45%", "60%", "75%") == [4, 8, 25]
    assert left("75%") == [4, 8, 25]


def test_a_small_share_again_and_again_takes_it_once():
    assert left(*["1%"] * 10) == left("1%") == [15, 31, 99]
    assert left(*(f"{n}%" for n in range(1, 11))) == left("10%") == [14, 28, 90]


def test_a_share_that_is_gone_takes_nothing_more():
    assert left("50%", "25%", {"ratio": "50%"}) == [8, 16, 50]
    assert left({"ratio": {"convs.1": "50%"}}, {"ratio": {"convs.*": "25%"}}) == [12, 16, 75]


def test_limits_in_rounds():
    most = {"ratio": "90%", "remove_at_most": "50%"}
    assert left(most, most) == [8, 16, 50]
    tied = {"ratio": "25%", "equal_widths": ["convs.*"]}
    assert left(tied, {**tied, "ratio": "50%"}, widths=(8, 8, 8)) == [4, 4, 4]
    assert left({"ratio": "25%", "multiple_of": 8}, {"ratio": "50%", "multiple_of": 8}, widths=(32, 32, 32)) == [16] * 3


@pytest.mark.parametrize(("scope", "least"), [("local", [15, 15, 15]), ("isomorphic", [30, 15])])
def test_equal_shares_are_of_the_traced_model(scope, least):
    """What an uneven first round has taken counts: the second takes where less is gone. The last layer's class differs:
    its reader is a linear layer."""
    budget = {"budget": {"macs": 0.25}, "scope": scope, "multiple_of": 1}
    found = left({"ratio": {"convs.2": "40%"}}, budget, widths=(32, 32, 32))
    found = found if scope == "local" else [found[0] + found[1], found[2]]
    assert all(abs(width - wanted) <= 1 for width, wanted in zip(found, least, strict=True))


def test_units_that_are_split_over_an_axis():
    """A projection that writes three groups at once: each has its own third of the axis."""

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.q, self.k = nn.Linear(4, 24), nn.Linear(8, 2), nn.Linear(16, 2)

        def forward(self, x):
            first, second = self.a(x).split([8, 16], 1)
            return self.q(torch.relu(first)) + self.k(second)

    program = trace(Split(), (torch.randn(2, 4),))
    groups = analyse(program).groups
    sizes = sorted(group.size for group in groups.values() if group.free.any())
    keep = np.ones(analyse(program).size, dtype=bool)
    for group in groups.values():
        if group.free.any():
            keep[group.start : group.start + group.size // 4] = False
    slim = analyse(remove_units(program, keep))
    wholes = whole_sizes(slim, program)
    assert sorted(wholes[g.name] for g in slim.groups.values() if g.free.any()) == sizes


def test_a_program_that_nothing_was_taken_from():
    analysis = analyse(bare("resnet18"))
    sizes = {group.name: group.size for group in analysis.groups.values()}
    assert whole_sizes(analysis, None) == whole_sizes(analysis, analysis.program) == sizes


def test_heads_count_as_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 8, 16, batch_first=True), nn.Linear(32, 3)).eval()
    rounds = [
        entry for share in ("25%", "50%") for entry in ("score", {"select": {"ratio": {"kind:heads": share}}}, "shrink")
    ]
    plan = {"plan": 1, "passes": [{"axes": {"attention": "heads"}}, *rounds]}
    found = compile(model, plan, (torch.randn(1, 5, 32),))
    (gone,) = (
        pair
        for record in found.report["passes"][-2:-1]
        for pair in record["details"]["widths"].values()
        if pair[0] != pair[1]
    )
    assert gone == [6, 4]
