"""Trains the small networks whose weights come with the package:

    python -m prunec.models.train digits -o digits.safetensors

One thread, one seed, plain tensors: on one machine and one version of torch, the same command gives the same bytes.
The file's metadata states what was reached on the validation and test splits; the test split is read once, at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.models import data as datasets
from prunec.models import digits

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: AdamW under a one-cycle learning rate that peaks at `lr`."""

    model: Callable[[], nn.Module]
    epochs: int
    lr: float = 0.01
    weight_decay: float = 0.05
    batch_size: int = 64
    smoothing: float = 0.1
    """Label smoothing."""
    sparsity: float = 0.0
    """The weight of the batch norms' summed |gamma| in the loss (network slimming, Liu et al. 2017): channels that the
    task doesn't need are shut already in training."""


RECIPES: Final = {
    "digits": Recipe(digits.cnn, epochs=40, sparsity=0.02),
    "digits_mlp": Recipe(digits.mlp, epochs=60),
    "digits_resnet": Recipe(digits.resnet, epochs=40),
}


@contextmanager
def _one_thread() -> Iterator[None]:
    # How a sum is shared out over threads shows in its last bits.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of samples that `model`, in eval mode, puts into the right class."""
    model.eval()
    right = total = 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def train(recipe: Recipe, data: datasets.TensorData, epochs: int, seed: int = 0) -> nn.Module:
    """A new network, trained on `data.train()`; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.model()
    batches = data.train()
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=epochs * len(batches))
    scales = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()
    for _ in track(range(epochs), "training", console=Console(stderr=True), transient=True):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.smoothing)
            torch.autograd.backward(loss + recipe.sparsity * sum(gamma.abs().sum() for gamma in scales))
            optimizer.step()
            schedule.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's text."""
    options = _parser().parse_args(arguments)
    recipe = RECIPES[options.name]
    data = datasets.digits(recipe.batch_size, options.seed)
    with _one_thread():
        model = train(recipe, data, options.epochs or recipe.epochs, options.seed)
        val, test = accuracy(model, data.val()), accuracy(model, data.test())
    target = options.output or digits.WEIGHTS / f"{options.name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    # One entry only: safetensors writes several in no fixed order.
    save_file(model.state_dict(), target, metadata={"accuracy": json.dumps({"val": val, "test": test})})
    Console().print(
        f"{target}: accuracy {val:.2%} on the validation split, {test:.2%} on the test split", soft_wrap=True
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prunec.models.train", description="Train an embedded network.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("-o", "--output", type=Path, help="where the weights go (default: into the package)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
