"""What `repair` gives back without training, on the trained networks for digits, at 75, 50 and 35% of the MACs.

    python benchmarks/repair.py            half a minute on one core; the table goes to the console

Units are chosen by L1 under a budget of MACs, and 512 unlabelled training images are looked at. Each cell is the
accuracy on the 360 test images, and the CPU seconds of the repair.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import safetensors.torch
import torch
from torch import nn

from prunec.compiler import compile
from prunec.models import digits
from prunec.models.data import digits as digits_data

NETWORKS: Final[dict[str, tuple[Callable[[], nn.Module], str]]] = {
    "cnn": (digits.cnn, "digits.safetensors"),
    "resnet": (digits.resnet, "digits_resnet.safetensors"),
}
BUDGETS: Final = ("75%", "50%", "35%")
REPAIRS: Final[dict[str, Any]] = {
    "none": None,
    "bias": "bias",
    "batch_norm": "batch_norm",
    "least_squares, readers": {"method": "least_squares", "layers": "readers"},
    "least_squares": "least_squares",
}


def accuracy(model: nn.Module) -> float:
    """The share of test images that a model classifies rightly, in percent."""
    right = total = 0
    with torch.no_grad():
        for images, labels in digits_data().test():
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return 100 * right / total


def main() -> None:
    """Print a table for each network."""
    torch.set_num_threads(1)
    for name, (make, weights) in NETWORKS.items():
        net = make()
        net.load_state_dict(safetensors.torch.load_file(digits.WEIGHTS / weights))
        net.eval()
        print(
            f"\n{name}, dense {accuracy(net):.1f}\n\n| repair | {' | '.join(BUDGETS)} |\n|---|{'---|' * len(BUDGETS)}"
        )
        for title, repair in REPAIRS.items():
            print(f"| {title} | {' | '.join(cell(net, budget, repair) for budget in BUDGETS)} |", flush=True)


def cell(net: nn.Module, budget: str, repair: Any) -> str:
    """Accuracy and seconds of one compile."""
    passes: list[Any] = [{"score": "l1"}, {"select": {"budget": {"macs": budget}}}, "shrink"]
    images = next(iter(digits_data().test()))[0][:2]
    seconds = []
    for extra in ([], [{"repair": repair}]) if repair else ([],):
        start = time.process_time()
        found = compile(net, {"plan": 1, "passes": [*passes, *extra]}, example_inputs=(images,), data=digits_data())
        seconds.append(time.process_time() - start)
    told = f" ({max(0.0, seconds[1] - seconds[0]):.1f} s)" if repair else ""
    return f"{accuracy(found.module):.1f}{told}"


if __name__ == "__main__":
    main()
