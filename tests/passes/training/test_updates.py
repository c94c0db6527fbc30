"""What is done beside a step: subgradients, held entries, projections, accumulation; each against its definition."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.passes.training.updates import (
    L1,
    Clamp,
    Filters,
    HoldBelow,
    MaxNorm,
    Update,
    accumulate,
    add_l1_subgradient,
    batch_norm_scales,
    clamp,
    held_below,
    limit_norms,
)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, weight_decay=0.1, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 0.1, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "plain": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
}


def network():
    """A convolution, a batch norm and a classifier, seeded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.7, -0.3, 0.0, 1.2]))
    return model


def images(count=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.randint(3, (count,), generator=generator)


def given(parameters, seed=0):
    """Give each parameter a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


# -- the subgradient of network slimming -----------------------------------------------------------------------------


@pytest.mark.parametrize("reached", [True, False])
def test_on_a_loss_of_zero_a_step_changes_scales_by_the_rate_times_the_strength(reached):
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    if reached:  # a loss that reaches all parameters, with gradients of zero
        (0 * model(images()[0]).sum()).backward()
    add_l1_subgradient(batch_norm_scales(model), 0.125)
    optimizer.step()
    gamma = torch.tensor([0.7, -0.3, 0.0, 1.2])
    assert torch.equal(model[1].weight, gamma - 0.5 * 0.125 * torch.tensor([1.0, -1.0, 0.0, 1.0]))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name != "1.weight")


def test_the_subgradient_is_that_of_the_penalty_in_the_loss():
    by_loss, by_hand = network(), network()
    x, y = images()
    (F.cross_entropy(by_loss(x), y) + 1e-2 * by_loss[1].weight.abs().sum()).backward()
    F.cross_entropy(by_hand(x), y).backward()
    update = L1(batch_norm_scales(by_hand), 1e-2)
    update.before_step()
    for a, b in zip(by_loss.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7)


def test_scales_are_those_of_batch_norms_once_each():
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(shared, nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4, affine=False), shared)
    assert [id(p) for p in batch_norm_scales(model)] == [id(shared.weight)]


def test_frozen_scales_are_left_alone():
    model = network()
    model[1].weight.requires_grad_(False)
    add_l1_subgradient(batch_norm_scales(model), 1.0)
    assert model[1].weight.grad is None


def test_the_share_of_small_scales_is_measured():
    assert L1(batch_norm_scales(network()), 1e-4).measures() == {"small_scales": 0.25}


# -- held entries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_entries_are_bit_for_bit_as_before_whatever_the_optimizer(name):
    model = network()
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[name](parameters)
    for step in range(4):
        given(parameters)  # no sign changes: Rprop would take back its last step
        torch._foreach_mul_([p.grad for p in parameters], 2.0 - step / 2)
        held = [p.grad.abs() < 0.6 for p in parameters]
        before = [p.detach().clone() for p in parameters]
        with held_below(parameters, 0.6, optimizer):
            optimizer.step()
        for p, mask, old in zip(parameters, held, before, strict=True):
            assert torch.equal(p[mask], old[mask])
            assert (p[~mask] != old[~mask]).all()
    assert sum(int(mask.sum()) for mask in held) > 20  # momentum and decay would have moved them


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Rprop"])
def test_other_entries_move_as_if_nothing_were_held(name):
    """The optimizers are elementwise, so what is held doesn't show in the rest."""
    held, free = (nn.Parameter(torch.linspace(1, 2, 6)) for _ in range(2))
    optimizers = [OPTIMIZERS[name]([p]) for p in (held, free)]
    for step in range(5):
        given([held, free], step)
        held.grad[:3], free.grad[:3] = 1e-3, 1.0
        free.grad[3:] = held.grad[3:] = held.grad[3:].sign()
        with held_below([held], 0.1, optimizers[0]):
            optimizers[0].step()
        optimizers[1].step()
    assert torch.equal(held[3:], free[3:])


@pytest.mark.parametrize("name", ["SGD", "Nesterov", "plain", "Rprop"])
def test_an_entry_that_was_held_starts_afresh(name):
    """After steps that it sat out, an entry moves as it would have in the first one: no momentum, no decay is kept.
    (What Adam counts for the whole parameter goes on.)"""
    late, fresh = (nn.Parameter(torch.linspace(1, 2, 4)) for _ in range(2))
    optimizers = [OPTIMIZERS[name]([p]) for p in (late, fresh)]
    for _ in range(3):
        late.grad = torch.full((4,), 1e-3)
        with held_below([late], 0.1, optimizers[0]):
            optimizers[0].step()
    for step in range(3):
        given([late], step)
        given([fresh], step)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(late, fresh)


def test_momentum_of_a_held_entry_is_kept_as_it_was():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], 0.1, momentum=0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    p.grad = torch.tensor([0.01, 1.0])
    with held_below([p], 0.1, optimizer):
        optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].tolist() == [1.0, 1.5]


def test_a_threshold_of_zero_holds_nothing_and_a_step_that_fails_leaves_held_entries():
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([p], 1.0)
    p.grad = torch.tensor([0.0, 1.0])
    with held_below([p], 0.0, optimizer):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0]

    def fails():
        raise KeyError

    with pytest.raises(KeyError), held_below([p], 0.5, optimizer):
        fails()
    assert p.tolist() == [1.0, 1.0]


def test_the_share_of_held_entries_is_measured():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    update = HoldBelow([(p, 0.5), (q, 2.0)])
    update.attach(optimizer := torch.optim.SGD([p, q], 0.1))
    p.grad, q.grad = torch.tensor([0.1, -0.7, 0.2]), torch.tensor([1.0])
    update.before_step()
    optimizer.step()
    update.after_step()
    assert update.measures() == {"held": 0.75}
    update.after_step()  # as behind a batch that is only accumulated
    assert p[0] == 1


# -- projections -----------------------------------------------------------------------------------------------------


def test_bounds_hold_after_every_step_and_entries_inside_them_stay():
    model = network()
    weights = [model[0].weight, model[4].weight]
    update, optimizer = Clamp(weights, -0.05, 0.1), torch.optim.SGD(model.parameters(), 1.0)
    for step in range(5):
        given(model.parameters(), step)
        optimizer.step()
        before = [w.detach().clone() for w in weights]
        update.after_step()
        for w, old in zip(weights, before, strict=True):
            assert w.min() >= -0.05
            assert w.max() <= 0.1
            inside = (old >= -0.05) & (old <= 0.1)
            assert torch.equal(w[inside], old[inside])
    clamp(weights, 0.0, 0.0)
    assert not any(w.any() for w in weights)


@pytest.mark.parametrize(
    ("layer", "dim", "groups", "norms"),
    [
        (nn.Conv2d(4, 6, 3), 0, 1, lambda w: w.flatten(1).norm(dim=1)),
        (nn.Linear(4, 6), 0, 1, lambda w: w.norm(dim=1)),
        (nn.ConvTranspose2d(4, 6, 3), 1, 1, lambda w: w.transpose(0, 1).flatten(1).norm(dim=1)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), 1, 2, lambda w: w.view(2, 2, 3, 3).square().sum((1, 3)).sqrt()),
    ],
)
def test_filters_have_at_most_their_norm_and_smaller_ones_stay(layer, dim, groups, norms):
    w = layer.weight
    with torch.no_grad():
        w.normal_(generator=torch.Generator().manual_seed(0))
        w.select(dim, 0).mul_(1e-3)
    old = w.detach().clone()
    update = MaxNorm([Filters(w, dim, groups)], 1.5)
    update.after_step()
    assert torch.allclose(norms(w), norms(old).clamp(max=1.5), rtol=1e-6)
    assert norms(old).max() > 1.5
    if groups == 1:
        assert torch.equal(w.select(dim, 0), old.select(dim, 0))


def test_a_filter_of_zeros_stays_zero():
    w = nn.Parameter(torch.zeros(2, 3))
    limit_norms([Filters(w)], 1.0)
    assert torch.equal(w, torch.zeros(2, 3))


# -- accumulation ----------------------------------------------------------------------------------------------------


def test_parts_of_a_batch_give_the_gradients_of_the_batch():
    whole, parts = network().double().eval(), network().double().eval()
    x, y = images(12)
    loss = F.cross_entropy(whole(x.double()), y)
    loss.backward()
    found = [accumulate(F.cross_entropy(parts(a.double()), b), 3) for a, b in zip(x.chunk(3), y.chunk(3), strict=True)]
    assert torch.allclose(torch.stack(found).mean(), loss, atol=1e-12)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


# -- the contract ----------------------------------------------------------------------------------------------------


def test_an_update_does_nothing_by_itself():
    model = network()
    before = deepcopy(model.state_dict())
    update = Update()
    update.attach(torch.optim.SGD(model.parameters(), 1.0))
    update.before_step()
    update.after_step()
    assert update.penalty() is None
    assert (update.measures(), update.facts(), update.state_dict()) == ({}, {}, {})
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
