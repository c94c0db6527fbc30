"""Heads that are counted by arithmetic on sizes: the numbers follow, or the heads stay, and say why."""

from __future__ import annotations

import pytest
import torch
from head_counts import COUNTS, biased
from oracle import difference, masked, run, selection
from rotary_nets import Rotary

from prunec.compiler import compile
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify


@pytest.fixture(scope="module", params=COUNTS)
def traced(request) -> tuple[Rotary, Program]:
    net = COUNTS[request.param]
    return net, trace(net.build(), net.inputs(2))


def divided(program: Program, choice: str) -> Program:
    return program.derive(granularity=Granularity(attention=(("*", choice),)))


def test_what_may_go(traced):
    net, program = traced
    groups = analyse(divided(program, "heads")).groups.values()
    [found] = [g for g in groups if any(member.axis.tensor in ("q.weight", "qkv.weight") for member in g.writers)]
    assert int(found.free.sum()) == net.heads
    assert all(found.free) or all(found.pinned)


@pytest.mark.parametrize("choice", ["heads", "head_width"])
def test_slim_is_masked_for_every_batch(traced, choice):
    net, program = traced
    program = divided(program, choice)
    for seed, share in enumerate((0.3, 0.7, 1.0)):
        keep = selection(analyse(program), seed, share)
        for batch in (1, 2, 5):
            inputs = net.inputs(batch, seed)
            assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < 1e-9
    verify(remove_units(program, keep), Masked(program, removed_positions(analyse(program), keep)), pass_name="shrink")


def test_a_model_of_one_batch_size_is_checked_on_that():
    """A list of samples is as long as the example's batch in every trace, so other sizes are left out."""
    net = Rotary(dict, lambda m, x: biased(m, x, lambda q: torch.cat(q.split(4)).mean((1, 2), keepdim=True)))
    plan = {"plan": 1, "passes": [{"axes": "heads"}, {"score": "l1"}, {"select": "50%"}, "shrink"]}
    result = compile(net.build(), plan, example_inputs=net.inputs(2))
    assert result.module.q.weight.shape == (16, 6)
    assert result.report["passes"][-1]["verification"]["batches"] == [2]
