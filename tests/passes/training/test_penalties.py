"""Penalties over whole units, against autograd and against what they are for: units that vanish as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from training_nets import Residual

from prunec.compiler import compile
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.tracing.trace import trace
from prunec.passes.training.penalties import (
    GroupNorm,
    Growing,
    add_group_norm,
    batch_norm_slices,
    unit_norms,
)
from prunec.passes.training.unit_slices import UnitSlices

INPUT = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def made():
    torch.manual_seed(0)
    model = Residual()
    return model, trace(model, (INPUT,))


STREAM = ("stem.weight", "bn0.weight", "bn0.bias", "conv2.weight", "bn2.weight", "bn2.bias")


def stream_norms(model):
    """The norms of the stream's 6 units, spelled out."""
    p = dict(model.named_parameters())
    rows = [p[name].reshape(6, -1) for name in STREAM]
    columns = [p["conv1.weight"].transpose(0, 1).reshape(6, -1), p["fc.weight"].t()]
    return torch.cat([*rows, *columns], 1).norm(dim=1)


def branch_norms(model):
    p = dict(model.named_parameters())
    rows = [p["conv1.weight"].reshape(5, -1), p["bn1.weight"][:, None], p["bn1.bias"][:, None]]
    return torch.cat([*rows, p["conv2.weight"].transpose(0, 1).reshape(5, -1)], 1).norm(dim=1)


def test_norms_are_over_all_axes_of_a_unit():
    model, program = made()
    found = unit_norms(UnitSlices.of(program, model))
    groups = analyse(program).groups
    assert torch.allclose(found[groups["stem"].where], stream_norms(model))
    assert torch.allclose(found[groups["conv1"].where], branch_norms(model))


def test_the_subgradient_is_that_of_the_penalty_and_leaves_pinned_units_alone():
    model, program = made()
    (stream_norms(model).sum() + branch_norms(model).sum()).mul(0.03).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    add_group_norm(UnitSlices.of(program, model), 0.03)
    for name, p in model.named_parameters():
        if name == "fc.bias":  # of the outputs, which stay
            assert p.grad is None or not p.grad.any()
        else:
            assert torch.allclose(p.grad, expected[name], atol=1e-7), name


def test_a_unit_of_zeros_has_no_gradient():
    model, program = made()
    for p in model.parameters():
        nn.init.zeros_(p)
    add_group_norm(UnitSlices.of(program, model), 1.0)
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def without_loss(model, update, steps, rate=0.1):
    """Train on a loss of zero: what moves is the penalty's."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        update.before_step()
        optimizer.step()
        update.after_step()


def test_units_shrink_as_a_whole_by_the_rate_times_the_strength():
    """On a loss of zero each element of a unit shrinks by the same factor: its norm falls by rate * strength a step."""
    model, program = made()
    norms, scales = stream_norms(model).detach(), model.bn0.weight.detach().clone()
    without_loss(model, GroupNorm(UnitSlices.of(program, model), 0.2), 1)
    assert torch.allclose(model.bn0.weight / scales, 1 - 0.1 * 0.2 / norms, atol=1e-6)


def test_of_coupled_scales_only_batch_norm_is_penalised_and_units_go_to_zero_together():
    model, program = made()
    with torch.no_grad():
        model.bn0.weight.copy_(torch.tensor([0.3, 1.0, 1.0, 1.0, 1.0, 1.0]))
        model.bn2.weight.copy_(torch.tensor([0.4, 1.0, 1.0, 1.0, 1.0, 1.0]))
    others = {n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith("bn")}
    without_loss(model, GroupNorm(batch_norm_slices(program, model), 1.0), 4)
    # the norm of (0.3, 0.4) is 0.5, and falls by 0.1 a step: both reach a fifth of what they were
    assert torch.allclose(model.bn0.weight[0], torch.tensor(0.06), atol=1e-6)
    assert torch.allclose(model.bn2.weight[0], torch.tensor(0.08), atol=1e-6)
    assert not any(model.get_parameter(f"bn{i}.bias").any() for i in range(3))
    assert all(torch.equal(model.get_parameter(name), old) for name, old in others.items())


def test_units_that_have_vanished_are_counted():
    model, program = made()
    update = GroupNorm(UnitSlices.of(program, model), 1.0)
    assert update.measures() == {"small_units": 0.0}
    with torch.no_grad():
        for name in STREAM:
            model.get_parameter(name)[2] = 0
        model.conv1.weight[:, 2] = 0
        model.fc.weight[:, 2] = 0
    assert update.measures() == {"small_units": 1 / 11}


def test_coupled_scales_count_units_that_have_scales():
    model, program = made()
    nn.init.zeros_(model.bn1.weight)
    assert GroupNorm(batch_norm_slices(program, model), 1.0).measures() == {"small_units": 5 / 11}


# -- growing ---------------------------------------------------------------------------------------------------------


def chosen_units(program, **units):
    groups = analyse(program).groups
    chosen = np.zeros(analyse(program).size, dtype=bool)
    for name, numbers in units.items():
        chosen[groups[name].where][numbers] = True
    return chosen


def test_the_penalty_grows_and_falls_on_chosen_units_alone():
    model, program = made()
    update = Growing(UnitSlices.of(program, model), chosen_units(program, stem=[2]), growth=0.25, every=2, ceiling=0.6)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen, factor = [], 1.0
    for _ in range(6):
        seen.append(update.strength)
        factor *= 1 - 0.1 * update.strength
        without_loss(model, update, 1)
    assert seen == [0.25, 0.25, 0.5, 0.5, 0.6, 0.6]
    for name, p in model.named_parameters():
        expected = before[name].clone()
        if name in STREAM:
            expected[2] *= factor
        elif name in ("conv1.weight", "fc.weight"):
            expected[:, 2] *= factor
        assert torch.allclose(p, expected, rtol=1e-5), name
    assert update.measures()["left"] == pytest.approx(factor, rel=1e-5)


def test_growing_goes_on_where_it_was():
    model, program = made()
    units, chosen = UnitSlices.of(program, model), chosen_units(program, stem=[0, 1])
    first = Growing(units, chosen, growth=0.1, every=3)
    without_loss(model, first, 4)
    second = Growing(units, chosen, growth=0.1, every=3)
    second.load_state_dict(first.state_dict())
    assert second.strength == first.strength == pytest.approx(0.2)
    assert second.measures() == first.measures()


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_units_that_training_sent_to_zero_go_without_a_change():
    """A chosen unit decays as a whole; cut out, the network computes what it did, to rounding."""
    model, program = made()
    chosen = chosen_units(program, stem=[1, 4], conv1=[0])
    update = Growing(UnitSlices.of(program, model), chosen, growth=1.0, every=1, ceiling=5.0)
    without_loss(model, update, 60)
    model.eval()
    plan = {"plan": 1, "passes": [{"select": {"units": {"stem": [1, 4], "conv1": [0]}}}, "shrink"]}
    slim = compile(model, plan, example_inputs=(INPUT,)).module
    assert slim.bn0.num_features == 4
    assert torch.allclose(slim(INPUT), model(INPUT), atol=1e-6)
