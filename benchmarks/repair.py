"""What is left of networks without any training: each way to choose channels with each way to repair, under budgets.

    python benchmarks/repair.py                                      the embedded networks for digits: minutes
    python benchmarks/repair.py fashion_resnet fashion_mobile --seeds 5 --keep weights     trained first, if need be
    python benchmarks/repair.py embedded_cnn --samples 64 --budgets 50% 25%

The networks are those of `trained.py`, where a seed decides weights and data. Each cell is the accuracy on the test
images in percent, the mean over seeds, and the CPU seconds of the whole compile. Labels are read by `taylor` alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from trained import NETWORKS, trained

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.models.data import TensorData
from prunec.models.train import accuracy

CHOICES: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "random": ({"criterion": "random"}, {}),
    "l1": ({"criterion": "l1"}, {}),
    "taylor": ({"criterion": "taylor", "samples": 512}, {}),
    "reconstruction": ({"criterion": "reconstruction", "samples": 512}, {"method": "knapsack"}),
}
"""How channels are chosen -> the options of `score` and of `select`."""
REPAIRS: Final = ("none", "bias", "batch_norm", "least_squares")


def plans(budget: str, samples: int) -> dict[str, list[Any]]:
    """The passes of each method under a budget of MACs."""
    found: dict[str, list[Any]] = {}
    for name, (score, select) in CHOICES.items():
        score = {**score, "samples": samples} if "samples" in score else score
        for repair in REPAIRS:
            cut = [{"score": score}, {"select": {"budget": {"macs": budget}, "multiple_of": 1, **select}}, "shrink"]
            last = [] if repair == "none" else [{"repair": {"method": repair, "samples": samples}}]
            found[f"{name}, {repair}"] = [*cut, *last]
    score, select = CHOICES["reconstruction"]
    inside = [{"score": {**score, "samples": samples}}, {"select": {"multiple_of": 1, **select}}, "shrink"]
    squares = {"repair": {"method": "least_squares", "samples": samples}}
    rounds = {"repeat": {"steps": 3, "to": {"macs": budget}, "passes": [*inside, squares]}}
    found["reconstruction, three rounds"] = [rounds]
    merge = {"merge": {"inexact": "least_squares", "samples": samples}}
    found["merged"] = [{"cluster": {"budget": {"macs": budget}}}, merge]
    found["merged, least_squares"] = [*found["merged"], squares]
    found["factorised"] = [{"factorise": {"budget": {"macs": budget}, "samples": samples}}]
    return found


def cell(net: nn.Module, data: TensorData, passes: Sequence[Any]) -> tuple[float, float]:
    """Accuracy in percent, and CPU seconds; NaN where the budget is out of reach."""
    example = next(iter(data.test()))[0][:2]
    start = time.process_time()
    try:
        seen = {"train": list(data.train())}
        found = compile(net, {"plan": 1, "passes": list(passes)}, example_inputs=(example,), data=seen)
    except PassError:
        return float("nan"), float("nan")
    return 100 * accuracy(found.module, data.test()), time.process_time() - start


def main() -> None:
    """Print a table for each network."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        nets = [trained(name, seed, options.keep) for seed in range(options.seeds)]
        dense = np.mean([100 * accuracy(net, data.test()) for net, data in nets])
        print(f"\n| {name}, dense {dense:.1f} | {' | '.join(options.budgets)} |\n|---|{'---|' * len(options.budgets)}")
        for method in plans("50%", options.samples):
            cells = []
            for budget in options.budgets:
                rows = [cell(net, data, plans(budget, options.samples)[method]) for net, data in nets]
                right, seconds = np.mean(rows, axis=0)
                cells.append("out of reach" if np.isnan(right) else f"{right:.1f} ({seconds:.1f} s)")
            print(f"| {method} | {' | '.join(cells)} |", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Accuracy without training.")
    parser.add_argument("networks", nargs="*", default=["embedded_cnn", "embedded_resnet"], help=", ".join(NETWORKS))
    parser.add_argument("--budgets", nargs="+", default=["75%", "50%", "35%", "25%"], help="shares of the MACs")
    parser.add_argument("--samples", type=int, default=512, help="how many training images are looked at")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for trained weights")
    return parser


if __name__ == "__main__":
    main()
