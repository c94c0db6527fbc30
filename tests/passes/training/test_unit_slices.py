"""Figures of all units at once, against loops over the members of every group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import NETS
from torch import nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.models.preact_resnet import preact_resnet
from prunec.passes.axes import Axes
from prunec.passes.training.unit_slices import UnitSlices


def by_hand(program, values):
    """Unit -> the sum of squares over its slices: of every member of every group, element by element."""
    found, seen = np.zeros(analyse(program).size), set()
    for group in analyse(program).groups.values():
        for member in group.members:
            tensor = program.tensors[member.axis.tensor]
            if not isinstance(tensor, nn.Parameter):
                continue
            rows = axis_rows(program, member.axis, values[id(tensor)])
            for position, unit in zip(member.positions, member.units, strict=True):
                place = id(tensor), member.axis.dim, int(position)
                if place not in seen:
                    seen.add(place)
                    found[group.start + unit] += float((rows[int(position)] ** 2).sum())
    return found


def pinned_down(name):
    """The program of a network whose parameters the model has by the same names."""
    model = NETS[name].build()
    return model, trace(model, NETS[name].inputs())


SAME_NAMES = sorted(NETS.keys() - {"parametrized"})


@pytest.mark.parametrize("name", SAME_NAMES)
def test_squares_are_those_of_every_slice_in_turn(name):
    model, program = pinned_down(name)
    values = {id(p): p.detach() for p in model.parameters()}
    assert np.allclose(UnitSlices.of(program, model).squares().numpy(), by_hand(program, values), rtol=1e-10)


@pytest.mark.parametrize("name", SAME_NAMES)
def test_decay_is_the_gradient_of_the_weighted_squares(name):
    """Of `sum of factor / 2 * squares`, by autograd through the loops' slices."""
    model, program = pinned_down(name)
    units = UnitSlices.of(program, model)
    factors = torch.linspace(0.5, 1.5, units.analysis.size, dtype=torch.float64)
    units.add_decay(factors)
    added = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for p in model.parameters():
        p.grad = None

    loss, seen = torch.zeros((), dtype=torch.float64), set()
    for group in units.analysis.groups.values():
        for member in group.members:
            tensor = program.tensors[member.axis.tensor]
            if not isinstance(tensor, nn.Parameter) or (id(tensor), member.axis.dim, group.name) in seen:
                continue
            seen.add((id(tensor), member.axis.dim, group.name))
            squares = axis_rows(program, member.axis, tensor).square().sum(1)
            loss = loss + (factors[group.start + torch.tensor(member.units)] * squares[member.positions]).sum() / 2
    loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert added.keys() == expected.keys()
    assert all(torch.allclose(added[n], expected[n], rtol=1e-9) for n in added)


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_program_s_own_module_is_as_good(name):
    model = NETS[name].build()
    program = trace(model, NETS[name].inputs())
    own = program.derive(state=with_own_tensors(program.state)).module
    names = {id(program.tensors[n]): p for n, p in own.named_parameters(remove_duplicate=False)}
    values = {key: 2 * p.detach() for key, p in names.items()}
    found = UnitSlices.of(program, own).squares(lambda p: 2 * p)
    assert np.allclose(found.numpy(), by_hand(program, values), rtol=1e-10)


def test_what_a_reader_selects_has_the_norm_and_the_columns_behind_the_selection():
    model = preact_resnet(11, widths=(4, 6, 8)).double()
    program = trace(model, (torch.zeros(1, 3, 8, 8, dtype=torch.float64),))
    own = Axes.model_validate({"incoming": True}).run(program, Context()).program
    squares = UnitSlices.of(own, model).squares()
    assert np.allclose(squares.numpy(), by_hand(own, {id(p): p.detach() for p in model.parameters()}), rtol=1e-10)
    block, groups = model.layer1[0], analyse(own).groups
    columns = block.conv1.weight.square().sum((0, 2, 3)) + block.bn1.weight**2 + block.bn1.bias**2
    assert torch.allclose(squares[groups["layer1.0.bn1.incoming"].where], columns)


def test_frozen_parameters_count_and_keep_no_gradient():
    model, program = pinned_down("chain")
    model.a.weight.requires_grad_(False)
    units = UnitSlices.of(program, model)
    assert np.allclose(units.squares().numpy(), by_hand(program, {id(p): p.detach() for p in model.parameters()}))
    units.add_decay(torch.ones(units.analysis.size))
    assert model.a.weight.grad is None
    assert model.b.weight.grad is not None


def test_half_precision_is_summed_in_single():
    layer = nn.Sequential(nn.Linear(4096, 2), nn.Linear(2, 1)).half()
    nn.init.constant_(layer[0].weight, 100.0)  # squares of half precision end at 65504
    program = trace(layer, (torch.zeros(1, 4096).half(),))
    squares = UnitSlices.of(program, layer, wanted=lambda axis: str(axis) == "0.weight[0]").squares()
    assert squares.dtype == torch.float32
    assert squares[:2].tolist() == [4096e4, 4096e4]


def test_a_model_with_other_names_is_told():
    model = NETS["chain"].build()
    program = trace(model, NETS["chain"].inputs())
    model.first = model.a
    del model.a
    with pytest.raises(PassError, match=r"has no parameter 'a\.weight', which its program has"):
        UnitSlices.of(program, model)
