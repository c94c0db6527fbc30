"""What `accuracy.py` compares: networks trained anew for every seed, and the ways to make them smaller.

    network + seed   split of the digits, initial weights, order of the batches, all by the seed
    peer             torch-pruning's defaults, the ratio bisected until its network just fits the budget
    ours             prunec's defaults, with the MACs that the peer has reached as the budget
    alike            torch-pruning's own scores in prunec's groups and selection, with the same budget

All are given the same trained network and the same calibration images, and the slim networks are trained on over the
same batches in the same order.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
import torch_pruning
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from trained import Block

from prunec.compiler import compile, trace
from prunec.compiler.cost.model import cost
from prunec.models import data as datasets
from prunec.models import digits, train
from prunec.models.resnet import BasicBlock

EXAMPLE: Final = torch.zeros(1, 1, 8, 8)
HELD_OUT: Final = 0.4
"""The share of the 1,797 images that is tested on: 719, so that one image is 0.14 points."""
CALIBRATION: Final = 512
"""How many training images the criteria see that look at data."""
TUNING: Final = (1, 0.003)
"""Epochs of fine-tuning, and the learning rate that falls from there to zero."""
ROUNDS_TUNING: Final = (4, 0.002)
"""The same for what is cut in several rounds, over all of them; the rate stays, since one that falls to zero would
leave the last cut without the training that a single, early one gets."""
BISECTIONS: Final = 9
"""Of torch-pruning's ratio; the widest layer has 64 channels."""

RECIPES: Final[Mapping[str, train.Recipe]] = {
    "mlp": replace(train.RECIPES["digits_mlp"], epochs=30),
    "cnn": train.Recipe(lambda: digits.cnn((16, 32)), epochs=12),
    "cnn_sparse": train.Recipe(lambda: digits.cnn((16, 32)), epochs=12, sparsity=0.02),
    "resnet": train.Recipe(lambda: digits.resnet("projection"), epochs=12),
}
"""The networks of `prunec.models.digits`. The CNN has half its widths, so that something is left to lose, and is
trained with and without a penalty on batch norm's scales. The ResNet has projections: with padded channels,
torch-pruning's slim network doesn't run."""


class Quality(NamedTuple):
    """On the test split: the share that is classified right, and the mean cross-entropy."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Subject:
    """A trained network and its data."""

    model: nn.Module
    data: datasets.TensorData
    macs: int

    @staticmethod
    def of(network: str, seed: int) -> Subject:
        """Train one."""
        recipe, data = RECIPES[network], split_of(seed)
        model = train.train(recipe, data, recipe.epochs, seed)
        return Subject(model, data, macs(model))

    @property
    def quality(self) -> Quality:
        """Of the network as it was trained."""
        return quality(self.model, self.data)

    def calibration(self) -> tuple[Tensor, Tensor]:
        """The images that a criterion looks at, and their labels: the first of the training split's order."""
        images, labels = (torch.cat(parts) for parts in zip(*self.data.train(), strict=True))
        return images[:CALIBRATION], labels[:CALIBRATION]


def split_of(seed: int) -> datasets.TensorData:
    """The digits, split by the seed with the same share of every class in both parts."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    chosen = train_test_split(range(len(labels)), test_size=HELD_OUT, stratify=bunch.target, random_state=seed)
    parts = {name: (images[rows], labels[rows]) for name, rows in zip(("train", "test"), chosen, strict=True)}
    return datasets.TensorData(parts, batch_size=64, seed=seed)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of one image, counted alike for all."""
    return cost(trace(model, (EXAMPLE,))).macs


def quality(model: nn.Module, data: datasets.TensorData) -> Quality:
    """On the test split, in evaluation mode."""
    model.eval()
    images, labels = data.parts["test"]
    with torch.no_grad():
        logits = model(images)
    right = (logits.argmax(1) == labels).double().mean()
    return Quality(float(right), float(F.cross_entropy(logits, labels)))


def tuned(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], rates: Iterator[float], steps: int) -> nn.Module:
    """A copy, trained on for so many steps; batches and learning rates go on where earlier steps left them."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    for _ in range(steps):
        images, labels = next(batches)
        optimizer.param_groups[0]["lr"] = next(rates)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def endless(data: datasets.TensorData) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches, epoch after epoch, always in the order that the seed says."""
    loader = data.train()
    while True:
        yield from loader


def falling(peak: float, steps: int) -> Iterator[float]:
    """Learning rates from the peak to zero."""
    return (peak * (1 - step / steps) for step in range(steps))


def fine_tuned(model: nn.Module, data: datasets.TensorData) -> nn.Module:
    """A copy after the short fine-tuning that everyone gets."""
    epochs, peak = TUNING
    steps = epochs * len(data.train())
    return tuned(model, endless(data), falling(peak, steps), steps)


# -- the ways to make it smaller -------------------------------------------------------------------------------------


class Contest(NamedTuple):
    """One criterion in both tools: the entry `score` of a plan, and torch-pruning's importance with its arguments."""

    ours: Mapping[str, Any]
    importance: str
    args: Mapping[str, Any] = {}
    gradients: bool = False
    """Whether the importance looks at gradients."""

    @property
    def alike(self) -> dict[str, Any]:
        """The entry `score` that has torch-pruning's own figures."""
        return {
            "criterion": {"torch_pruning": {"importance": self.importance, "args": dict(self.args)}},
            "samples": CALIBRATION,
        }


CONTESTS: Final[Mapping[str, Contest]] = {
    "l1": Contest({"criterion": "l1", "axes": "all"}, "GroupMagnitudeImportance", {"p": 1}),
    "taylor": Contest({"criterion": "taylor", "samples": CALIBRATION}, "GroupTaylorImportance", gradients=True),
    "fpgm": Contest({"criterion": "fpgm"}, "FPGMImportance"),
    "bn_scale": Contest({"criterion": "bn_scale"}, "BNScaleImportance"),
    "bn_scale_raw": Contest({"criterion": "bn_scale", "normalize": "none"}, "BNScaleImportance"),
}


def peer_slim(subject: Subject, contest: Contest, scope: str, budget: float) -> nn.Module:
    """torch-pruning's network of at most so many MACs: the largest that any ratio gives."""
    gradients: Sequence[Tensor] = ()
    if contest.gradients:
        images, labels = subject.calibration()
        loss = F.cross_entropy(subject.model(images), labels)
        gradients = torch.autograd.grad(loss, list(subject.model.parameters()))
    low, high, best = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        slim = peer_cut(subject.model, gradients, contest, (scope, ratio))
        low, high, best = (ratio, high, best) if macs(slim) > budget else (low, ratio, slim)
    assert best is not None, f"torch-pruning reaches {budget} MACs with no ratio"
    return best


def _stream(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a ResNet or of a vision transformer that write its residual stream."""
    yield from (layer for layer in model.children() if isinstance(layer, nn.Conv2d))
    for block in model.modules():
        if isinstance(block, BasicBlock):
            yield block.conv2
        elif isinstance(block, Block):
            yield from (block.project, block.fc2)


def peer_cut(
    model: nn.Module,
    gradients: Sequence[Tensor],
    contest: Contest,
    how_much: tuple[str, float],
    example: Tensor = EXAMPLE,
    *,
    inside: bool = False,
) -> nn.Module:
    """torch-pruning's network of a scope and a ratio; the last module in the model's order is its classifier. Of
    transformers, whole heads go. With `inside`, residual streams keep their width."""
    model = copy.deepcopy(model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=False):  # none where none is looked at
        parameter.grad = gradient.clone()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    heads = {layer: block.heads for block in blocks for layer in (block.query, block.key, block.value)}
    stream = list(_stream(model)) if inside else []
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=getattr(torch_pruning.importance, contest.importance)(**contest.args),
        global_pruning=how_much[0] == "global",
        pruning_ratio=how_much[1],
        ignored_layers=[list(model.modules())[-1], *stream],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=not heads,
        head_pruning_ratio=how_much[1],
    )
    pruner.step()
    for block in blocks:
        block.heads = pruner.num_heads[block.query]
    model.zero_grad()
    return model


def our_slim(
    model: nn.Module, data: datasets.TensorData, score: Mapping[str, Any], select: Mapping[str, Any]
) -> nn.Module:
    """What a plan of `score`, `select` and `shrink` makes of a network."""
    plan = {"plan": 1, "passes": [{"score": dict(score)}, {"select": dict(select)}, "shrink"]}
    return compile(model, plan, example_inputs=(EXAMPLE,), data=data).module


class Way(NamedTuple):
    """How units of several groups are compared: an option of `score`, and one of `select`."""

    normalize: str
    scope: str


def in_rounds(subject: Subject, criterion: str, way: Way, share: float, rounds: int) -> nn.Module:
    """Cut to a share of the MACs and trained on, in so many rounds of equal ratio, which train as long as one does."""
    epochs, rate = ROUNDS_TUNING
    steps = epochs * len(subject.data.train())
    batches, model = endless(subject.data), subject.model
    score = {"criterion": criterion, "samples": CALIBRATION, "normalize": way.normalize}
    for number in range(1, rounds + 1):
        budget = {"macs": subject.macs * share ** (number / rounds)}
        model = our_slim(model, subject.data, score, {"budget": budget, "scope": way.scope})
        model = tuned(model, batches, itertools.repeat(rate), steps // rounds)
    return model
