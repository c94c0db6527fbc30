"""Cutting in rounds: in one plan that scores again after each cut, and with training between compiles."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from prunec.compiler import Result, compile
from prunec.models import data as datasets
from prunec.models import digits, train

EXAMPLE = torch.zeros(1, 1, 8, 8)
DATA = datasets.digits(batch_size=64)
TAYLOR = {"criterion": "taylor", "samples": 256, "normalize": "l2"}
SHARE = 0.3
WEIGHTS = Path(__file__).parents[2] / "models/weights/digits.safetensors"
STEPS = 80
"""Of training, shared out over the rounds."""


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    recipe = train.Recipe(digits.mlp, epochs=12)
    return train.train(recipe, DATA, recipe.epochs)


@pytest.fixture(scope="module")
def embedded() -> tuple[nn.Module, Any]:
    """The network of the default plan, and what it wasn't trained on."""
    model = digits.cnn()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval(), [*DATA.val(), *DATA.test()]


def cut(model: nn.Module, *budgets: float, score: Any = TAYLOR) -> Result:
    """Score, select and shrink for every budget, in one plan."""
    rounds = [({"score": score}, {"select": {"budget": {"macs": budget}}}, "shrink") for budget in budgets]
    plan = {"plan": 1, "passes": list(itertools.chain(*rounds))}
    return compile(model, plan, example_inputs=(EXAMPLE,), data=DATA)


def widths(model: nn.Module) -> list[int]:
    return [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]


def endless() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    loader = DATA.train()
    while True:
        yield from loader


def tuned(model: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int) -> nn.Module:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    for images, labels in itertools.islice(batches, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def in_rounds(model: nn.Module, rounds: int) -> nn.Module:
    cost, batches = cut(model, 0.99).report["cost"]["before"]["macs"], endless()
    for number in range(1, rounds + 1):
        model = cut(model, cost * SHARE ** (number / rounds)).module
        model = tuned(model, batches, STEPS // rounds)
    return model


def test_rounds_within_one_plan_meet_the_last_budget(trained):
    """Budgets are shares of the model that was traced, not of what the round before has left."""
    result = cut(trained, 0.7, 0.5, SHARE)
    macs = result.report["cost"]
    assert 0.97 * SHARE * macs["before"]["macs"] <= macs["after"]["macs"] <= SHARE * macs["before"]["macs"]


def test_what_rounds_have_removed_is_numbered_as_in_the_original(trained):
    result = cut(trained, 0.7, 0.5, SHARE)
    removed = result.lock["removed"]
    for name, parameter in result.module.named_parameters():
        kept = dict(trained.named_parameters())[name].detach()
        for dim, positions in removed.get(name, {}).items():
            stays = [i for i in range(kept.shape[int(dim)]) if i not in positions]
            kept = kept.index_select(int(dim), torch.tensor(stays))
        assert torch.equal(kept, parameter), name


def test_a_lock_of_rounds_gives_the_same_network(trained):
    result = cut(trained, 0.6, SHARE)
    again = compile(copy.deepcopy(trained), result.lock, example_inputs=(EXAMPLE,), data=DATA)
    for one, other in zip(result.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_second_round_to_the_same_budget_removes_nothing(trained):
    assert widths(cut(trained, SHARE, SHARE).module) == widths(cut(trained, SHARE).module)


def test_rounds_with_training_between_keep_the_accuracy(trained):
    four = in_rounds(trained, 4)
    assert train.accuracy(four, DATA.test()) > 0.9
    macs = [cut(model, 0.99).report["cost"]["before"]["macs"] for model in (trained, four)]
    assert 0.95 * SHARE <= macs[1] / macs[0] <= SHARE


def test_scoring_again_after_each_cut_keeps_more(embedded):
    """Taylor's scores are of first order: they hold near the network that they were taken of. No training between."""
    model, test = embedded
    kept = {1: 0.0, 8: 0.0}
    for rounds, how, share in itertools.product(kept, ("l2", "none", "mean"), (0.35, 0.25)):
        budgets = [share ** (number / rounds) for number in range(1, rounds + 1)]
        score = {"criterion": "taylor", "samples": 256, "normalize": how}
        kept[rounds] += train.accuracy(cut(model, *budgets, score=score).module, test) / 6
    assert kept[8] > kept[1] + 0.03
