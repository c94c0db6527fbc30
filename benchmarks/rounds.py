"""What scoring again after each cut is worth, without any training: the embedded networks in 1 to 16 rounds.

    python benchmarks/rounds.py                                  # MLP and CNN, two minutes
    python benchmarks/rounds.py cnn --budgets 0.35 0.25 --criteria taylor

Budgets fall geometrically, so that each round takes the same share of what is left. Accuracy is on validation and test
images together; scores look at 512 training images.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import nn

from prunec.compiler import compile
from prunec.models import data as datasets
from prunec.models import digits

ROUNDS = (1, 2, 4, 8, 16)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (digits.mlp, "digits_mlp"),
    "cnn": (digits.cnn, "digits"),
}
DATA = datasets.digits(batch_size=256)
EXAMPLE = torch.zeros(1, 1, 8, 8)


def trained(name: str) -> nn.Module:
    """An embedded network with its weights."""
    build, weights = NETWORKS[name]
    model = build()
    model.load_state_dict(load_file(f"{digits.__file__.rpartition('/')[0]}/weights/{weights}.safetensors"))
    return model.eval()


def cut(model: nn.Module, budget: float, rounds: int, score: dict[str, object]) -> nn.Module:
    """The network at a share of its MACs, in so many rounds of scoring and cutting."""
    shares = [budget ** (number / rounds) for number in range(1, rounds + 1)]
    steps = [({"score": score}, {"select": {"budget": {"macs": share}}}, "shrink") for share in shares]
    plan = {"plan": 1, "passes": list(itertools.chain(*steps))}
    return compile(model, plan, example_inputs=(EXAMPLE,), data=DATA).module


def accuracy(model: nn.Module) -> float:
    """In percent, on everything that isn't trained on."""
    images, labels = (torch.cat(parts) for parts in zip(*DATA.val(), *DATA.test(), strict=True))
    with torch.no_grad():
        return 100 * float((model.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="mlp, cnn", default=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.35, 0.25], help="shares of the MACs")
    parser.add_argument("--criteria", nargs="+", default=["taylor", "taylor_signed"])
    parser.add_argument("--normalize", nargs="+", default=["l2", "none", "mean"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "criterion", "normalize", "MACs", *(f"{count} rounds" for count in ROUNDS))
    for name, criterion, how in itertools.product(options.networks, options.criteria, options.normalize):
        score = {"criterion": criterion, "samples": 512, "normalize": how}
        for budget in options.budgets:
            found = [accuracy(cut(trained(name), budget, count, score)) for count in ROUNDS]
            table.add_row(name, criterion, how, f"{budget:.0%}", *(f"{value:.1f}" for value in found))
    Console().print(table)


if __name__ == "__main__":
    main()
