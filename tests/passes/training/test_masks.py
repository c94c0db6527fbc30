"""Masked entries stay zero through any optimizer's steps, and follow what becomes of their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace
from prunec.passes.training.masks import Masks, apply_masks, masks_of, updates_of, with_masks

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3))


def drawn(tensor: torch.Tensor) -> torch.Tensor:
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < 0.5


def loss(model: nn.Module) -> torch.Tensor:
    return F.mse_loss(model(torch.ones(2, 3, 8, 8)), torch.ones(2, 4, 4, 4))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masked_entries_stay_zero_and_others_move(kind):
    model = network()
    weight = model[0].weight
    stays = drawn(weight)
    optimizer = OPTIMIZERS[kind](model.parameters())
    loss(model).backward()
    optimizer.step()  # momentum from before the mask moves nothing later
    apply_masks([(weight, stays)])
    update = Masks([(weight, stays)])
    before = weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        update.before_step()
        optimizer.step()
        update.after_step()
        assert not weight[~stays].any()
    assert (weight[stays] != before[stays]).all()
    assert update.measures() == {"masked": pytest.approx(float((~stays).double().mean()))}


def test_a_program_carries_its_masks_over_cuts():
    model = network()
    stays = drawn(model[2].weight)
    apply_masks([(model[2].weight, stays)])
    program = with_masks(trace(model, (torch.ones(1, 3, 8, 8),)), {"2.weight": stays})
    assert torch.equal(masks_of(program)["2.weight"], stays)
    keep = analyse(program).free.copy()
    keep[:] = True
    keep[[1, 5]] = False
    slim = remove_units(program, keep)
    assert torch.equal(masks_of(slim)["2.weight"], stays[:, [0, 2, 3, 4, 6, 7]])
    [update] = updates_of(slim.module, slim)
    assert len(update.gone) == 1


def test_what_has_been_filled_in_is_masked_no_more():
    model = network()
    stays = torch.zeros_like(model[2].weight, dtype=torch.bool)
    program = with_masks(trace(model, (torch.ones(1, 3, 8, 8),)), {"2.weight": stays})
    assert masks_of(program)["2.weight"].all()


def test_a_mask_that_lets_all_stay_is_none():
    program = trace(network(), (torch.ones(1, 3, 8, 8),))
    made = with_masks(program, {"0.weight": torch.ones(8, 3, 3, 3, dtype=torch.bool)})
    assert "masks" not in made.carried
    assert updates_of(made.module, made) == []
