"""Rotary positions in every way that they are written: whole heads go, or pairs of positions of every head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import difference, masked, run, selection
from rotary_nets import ROTARY, Rotary
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify

TOLERANCE = 1e-9


@pytest.fixture(scope="module", params=ROTARY)
def traced(request) -> tuple[Rotary, Program]:
    net = ROTARY[request.param]
    return net, trace(net.build(), net.inputs(2))


def divided(program: Program, choice: str) -> Program:
    said = Granularity(attention=(("*", choice),)) if choice else Granularity()
    return program.derive(granularity=said)


@pytest.mark.parametrize("choice", ["", "heads", "head_width"])
def test_what_may_go(traced, choice):
    net, program = traced
    found = analyse(divided(program, choice)).groups[net.group]
    want = {"heads": net.heads, "head_width": net.widths}.get(choice, found.size)
    assert int(found.free.sum()) == want
    assert found.free.all() or not want


@pytest.mark.parametrize("choice", ["", "heads", "head_width"])
def test_slim_is_masked(traced, choice):
    net, program = traced
    program = divided(program, choice)
    for seed, share in enumerate((0.3, 0.7, 1.0)):
        keep = selection(analyse(program), seed, share)
        for batch in (1, 3):
            inputs = net.inputs(batch, seed)
            assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE
    verify(remove_units(program, keep), Masked(program, removed_positions(analyse(program), keep)), pass_name="shrink")


def test_heads_that_are_nothing_take_nothing_away(traced):
    """Heads whose part of `o` is zero add nothing, so without them the slim network is the very same function."""
    net, _ = traced
    program = trace(net.build(), net.inputs(2))
    analysis = analyse(divided(program, "heads"))
    group = analysis.groups[net.group]
    keep = np.ones(analysis.size, dtype=bool)
    keep[group.start] = False
    for axis, places in removed_positions(analysis, keep).items():
        if axis.tensor == "o.weight":
            program.tensors[axis.tensor].data[:, places] = 0
    inputs = net.inputs(3)
    want = program.module(*inputs).detach()
    assert difference(run(analysis.program, keep, inputs), want) < TOLERANCE


class Within(nn.Module):
    """A network as a part of another: its layers have a dotted name, its nodes none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.net(*inputs)


@pytest.mark.parametrize("name", ["convolution over heads", "batch norm over heads"])
def test_a_layer_that_heads_share_is_named_by_itself(name):
    net = ROTARY[name]
    program = trace(Within(net.build()), net.inputs(2)).derive(granularity=Granularity(attention=(("net.c", "heads"),)))
    analysis = analyse(program)
    assert int(analysis.groups[f"net.{net.group}"].free.sum()) == net.heads
    keep = selection(analysis, 0, 0.5)
    inputs = net.inputs(3)
    assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE
