"""Where channels are read: gates of zero at a unit's reads do what removing it does, in every net of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import gated
from nets import NETS
from oracle import difference, masked
from torch import nn

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.trace import trace
from prunec.passes.criteria.reads import find_reads

COUNTING = ("layer_norm", "group_norm", "rms_norm", "instance_norm", "normalize")
"""Norms that count channels see a smaller number once some are removed, and a zero while they are gated."""


COUNTS = ("packed_qkv_one_head", "mean_over_channels")
"""What attention divides by, and a mean, follow the number of channels, which a gate leaves as it is."""


def counts_channels(program: Program) -> bool:
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
    modules = any(isinstance(value, norms) for value in program.state.values())
    return modules or any(getattr(node.target, "__name__", node.target) in COUNTING for node in program.graph.nodes)


def single_units(analysis: Analysis) -> list[int]:
    """The first and the last free unit of each group."""
    found = [np.flatnonzero(group.free) + group.start for group in analysis.groups.values()]
    return sorted({int(unit) for units in found if units.size for unit in (units[0], units[-1])})


@pytest.mark.parametrize("name", [name for name in NETS if name not in COUNTS])
def test_gates_of_zero_remove_a_unit(name):
    net = NETS[name]
    program = trace(net.build(), net.inputs())
    if counts_channels(program):
        pytest.skip("its norms count channels")
    analysis, reads = analyse(program), find_reads(analyse(program))
    read = {int(unit) for each in reads for unit in each.units}
    for unit in single_units(analysis):
        if unit not in read:
            continue
        keep = np.ones(analysis.size, dtype=bool)
        keep[unit] = False
        with torch.no_grad():
            got = gated(program, np.array([unit]))(*net.inputs())
        assert difference(got, masked(program, keep, net.inputs())) < 1e-9, unit


DROPPED = {
    "narrow_and_select": {0, 1, 6, 7, 8},
    "cropped_channels": {0, 7},
    "channels_indexed_by_tensor": {0, 2, 4, 5},
    "squeeze_all": {0, 1},
}
"""Units that nobody reads, and those of a value in which the samples are summed up."""


@pytest.mark.parametrize("name", NETS)
def test_every_free_unit_is_read(name):
    net = NETS[name]
    analysis = analyse(trace(net.build(), net.inputs()))
    read = {int(unit) for each in find_reads(analysis) for unit in each.units}
    assert set(np.flatnonzero(analysis.free).tolist()) - read == DROPPED.get(name, set())


@pytest.mark.parametrize("name", NETS)
def test_sums_are_those_of_single_samples(name):
    """A read's sums of a batch are those of its samples one at a time, and add up to the sum of what is read."""
    net = NETS[name]
    program = trace(net.build(), net.inputs())
    reads = find_reads(analyse(program))
    values = [torch.randn(read.source.meta["val"].shape, dtype=torch.float64) for read in reads]
    for read, value in zip(reads, values, strict=True):
        sums = read.sums(value)
        assert sums.shape == (net.shapes[0][0], read.units.size)
        alone = torch.cat([read.sums(part) for part in value.split(read.rows, read.batch)])
        torch.testing.assert_close(alone, sums)
        ones = read.sums(torch.ones_like(value))
        assert ones.sum(1).mean().item() == pytest.approx(read.elements * read.units.size)
