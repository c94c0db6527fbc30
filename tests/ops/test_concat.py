"""Padding modules: what they put beside the channels leaves these free, and what they put among them doesn't."""

from __future__ import annotations

import pytest
import torch
from oracle import difference, masked, run, selection
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.tracing.trace import trace

BESIDE = {
    1: (nn.ZeroPad1d, nn.ConstantPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
    2: (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    3: (nn.ZeroPad3d, nn.ConstantPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d),
}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def padding(kind, *amounts):
    return kind(amounts if len(amounts) > 1 else amounts[0], *([0.5] if "Constant" in kind.__name__ else []))


@pytest.mark.parametrize(("rank", "kind"), [(rank, kind) for rank, kinds in BESIDE.items() for kind in kinds])
def test_padding_beside_the_channels_leaves_them_free(rank, kind):
    torch.manual_seed(0)
    model = nn.Sequential(CONV[rank](3, 8, 1), padding(kind, 1), CONV[rank](8, 4, 3)).double().eval()
    inputs = (torch.rand(2, 3, *[5] * rank, dtype=torch.float64),)
    program = trace(model, inputs)
    analysis = analyse(program)
    assert int(analysis.groups["0"].free.sum()) == 8
    keep = selection(analysis, 0, 0.5)
    assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < 1e-9


@pytest.mark.parametrize("kind", BESIDE[1])
def test_what_padding_puts_among_the_channels(kind):
    """Constants leave the channels as they are; copies of channels tie these, so they stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), padding(kind, 1, 2), nn.Linear(11, 4)).double().eval()
    inputs = (torch.rand(2, 5, 3, dtype=torch.float64),)
    program = trace(model, inputs)
    analysis = analyse(program)
    group = analysis.groups["0"]
    if kind in (nn.ZeroPad1d, nn.ConstantPad1d):
        assert group.free.all()
        keep = selection(analysis, 0, 0.5)
        assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < 1e-9
    else:
        assert not group.free.any()
        assert all("is padded" in reason for reason in group.pinned)
