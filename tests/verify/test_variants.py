"""Variants of a program give what the reference gives for each of them alone, from wherever they are resumed."""

from __future__ import annotations

import pytest
import torch
from nets import NETS
from oracle import difference, selection
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.rewrite.shrink import removed_positions
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked, Replaced, Same
from prunec.compiler.verify.variants import WHOLE, Variants

SHARES = (0.0, 0.2, 0.6)


OWN = Granularity(incoming=(("*", "own"),))
"""Every reader of a shared value selects what it reads."""


@pytest.mark.parametrize("granularity", [Granularity(), OWN], ids=["shared", "own"])
@pytest.mark.parametrize("name", sorted(NETS))
def test_every_variant_is_the_reference(name, granularity):
    net = NETS[name]
    program = trace(net.build(), net.inputs()).derive(granularity=granularity)
    if granularity and not analyse(program).flow.incoming:
        return
    analysis = analyse(program)
    removed = [removed_positions(analysis, selection(analysis, seed, share)) for seed, share in enumerate(SHARES)]
    variants, inputs = Variants(program, removed), net.inputs(3)
    for _ in range(2):  # a run must leave nothing behind for the next
        found = dict(variants.outputs(inputs))
        assert sorted(found) == [WHOLE, 0, 1, 2]
        assert difference(found[WHOLE], Same(program).run(inputs, torch.float64)) == 0
        for number, axes in enumerate(removed):
            assert difference(found[number], Masked(program, axes).run(inputs, torch.float64)) == 0


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_variant_with_other_tensors_is_the_reference(name):
    net = NETS[name]
    program, inputs = trace(net.build(), net.inputs()), net.inputs(3)
    floats = [name for name, tensor in program.tensors.items() if tensor.is_floating_point()]
    others = [{name: 1.25 * program.tensors[name].detach()} for name in floats[:: max(1, len(floats) // 4)]]
    found = dict(Variants(program, others).outputs(inputs))
    assert difference(found[WHOLE], Same(program).run(inputs, torch.float64)) == 0
    for number, tensors in enumerate(others):
        assert difference(found[number], Replaced(program, tensors).run(inputs, torch.float64)) == 0


class Counting(nn.Module):
    """Counts its calls, and what it gives is so many times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x).relu())
        self.count.add_(1.0)
        return self.c(y.relu()) * self.count


def test_what_a_run_writes_stays_in_no_variant():
    program, inputs = trace(Counting().double().eval(), (torch.rand(2, 3).double(),)), (torch.rand(5, 3).double(),)
    others = [{name: 1.25 * program.tensors[name].detach()} for name in ("a.weight", "b.weight", "c.weight")]
    variants = Variants(program, others)
    for _ in range(3):
        for number, outputs in variants.outputs(inputs):
            want = Same(program) if number == WHOLE else Replaced(program, others[number])
            assert difference(outputs, want.run(inputs, torch.float64)) == 0


class Overwriting(nn.Module):
    """What the first convolution gives is overwritten behind the second, which reads a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        seen = y.view(y.shape)
        first = self.b(seen)
        y.mul_(2)
        return torch.relu_(first).mean((2, 3)) + self.c(y).mean((2, 3))


def test_a_value_that_is_overwritten_later_is_no_place_to_start_from():
    program = trace(Overwriting().double().eval(), (torch.rand(1, 2, 3, 3).double(),))
    analysis = analyse(program)
    removed = [removed_positions(analysis, selection(analysis, seed, 0.5)) for seed in range(4)]
    variants = Variants(program, removed)
    places = {node.name: place for place, node in enumerate(program.graph.nodes)}
    assert variants.earliest[places["b"]] == places["a"]
    assert variants.earliest[places["a"]] == places["a"]
    inputs = (torch.rand(5, 2, 3, 3).double(),)
    for number, outputs in variants.outputs(inputs):
        want = Same(program) if number == WHOLE else Masked(program, removed[number])
        assert difference(outputs, want.run(inputs, torch.float64)) == 0
