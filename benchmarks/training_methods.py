"""What training between cuts is worth: methods of equal MACs and equal updates on Fashion-MNIST, over several seeds.

    python benchmarks/training_methods.py /usr/share/datasets/fashion-mnist --seeds 5

A ResNet-8 for 28x28 images is trained on some of the images; each method then brings it to the same share of its MACs
with the same number of updates behind it. What needs no trained network (slimming, training from scratch) has as many
updates in all. Accuracy is that of the test split, which nothing else reads.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec.compiler import Result, compile
from prunec.compiler.driver.measure import measure_latency
from prunec.models.data import TensorData, fashion_mnist
from prunec.models.resnet import resnet

RESULTS = Path(__file__).parent / "results" / "training_methods.csv"
INPUT = (torch.zeros(1, 1, 28, 28),)
Passes = list[Any]


@dataclass(frozen=True)
class Setting:
    """How long networks are trained, and how much is left of them."""

    epochs: int
    share: float

    def train(self, **more: Any) -> dict[str, Any]:
        """The options of training the whole network."""
        return {"epochs": self.epochs, "lr": 0.1, "schedule": "one_cycle", "weight_decay": 0.0005, **more}

    def finetune(self, parts: int = 1, **more: Any) -> dict[str, Any]:
        """The options of training behind a cut; of one of several rounds."""
        epochs = max(1, self.epochs // parts)
        return {"epochs": epochs, "lr": 0.05, "schedule": "cosine", "weight_decay": 0.0005, **more}

    @property
    def budget(self) -> dict[str, Any]:
        """What is left."""
        return {"macs": self.share}


def cut(criterion: Any, setting: Setting) -> Passes:
    """One cut to the budget."""
    return [{"score": criterion}, {"select": {"budget": setting.budget, "multiple_of": 1}}, "shrink"]


def rounds(setting: Setting, count: int, criterion: Any) -> Passes:
    """So many cuts, with training behind each."""
    inside = [{"score": criterion}, {"select": {"multiple_of": 1}}, "shrink", {"finetune": setting.finetune(count)}]
    return [{"repeat": {"steps": count, "to": setting.budget, "passes": inside}}]


BN_SCALE = {"criterion": "bn_scale", "normalize": "mean"}

METHODS: Mapping[str, Callable[[Setting], Passes]] = {
    "dense, trained on": lambda s: [{"finetune": s.finetune()}],
    "l1, one shot": lambda s: cut("l1", s),
    "l1, then trained": lambda s: [*cut("l1", s), {"finetune": s.finetune()}],
    "l1, trained with the original": lambda s: [*cut("l1", s), {"finetune": s.finetune(distill={"weight": 0.7})}],
    "l1, in 4 rounds": lambda s: rounds(s, 4, "l1"),
    "taylor, then trained": lambda s: [*cut("taylor", s), {"finetune": s.finetune()}],
    "taylor, in 4 rounds": lambda s: rounds(s, 4, "taylor"),
}
"""Of the trained network."""

WHOLE: Mapping[str, Callable[[Setting], Passes]] = {
    "slimming": lambda s: [
        {"slim_train": s.train(strength=0.0005, init_scales=0.5)},
        *cut(BN_SCALE, s),
        {"finetune": s.finetune()},
    ],
}
"""Of the network before any training."""


def some(data: TensorData, images: int) -> TensorData:
    """The data with fewer images to train on."""
    return replace(data, parts={**data.parts, "train": tuple(part[:images] for part in data.parts["train"])})


def fresh(seed: int) -> nn.Module:
    """The network before training."""
    torch.manual_seed(seed)
    return resnet(8, "projection", in_channels=1).eval()


def run(model: nn.Module, passes: Passes, data: TensorData, seed: int) -> tuple[Result, float]:
    """The result of a plan, and the seconds that its training took."""
    result = compile(model, {"plan": 1, "seed": seed, "passes": passes}, INPUT, data)
    trained = (each.seconds for each in result.findings.passes if each.history)
    return result, sum(trained)


def measured(result: Result, seconds: float) -> dict[str, float]:
    """A row's figures."""
    metric, cost = result.findings.metric, result.findings.cost
    assert metric is not None, "there is a test split"
    latency, _ = measure_latency(result.before, result.program)
    return {
        "accuracy": metric.value.after,
        "macs": cost.after.macs / cost.before.macs,
        "params": cost.after.params / cost.before.params,
        "latency": latency.after / latency.before,
        "seconds": seconds,
    }


def of_a_seed(data: TensorData, setting: Setting, seed: int) -> dict[str, dict[str, float]]:
    """All methods with one seed."""
    rows: dict[str, dict[str, float]] = {}
    start, seconds = run(fresh(seed), [{"finetune": setting.train()}], data, seed)
    rows["dense"] = measured(start, seconds)
    trained = start.module.eval()
    for name, passes in METHODS.items():
        began = time.perf_counter()
        result, more = run(trained, passes(setting), data, seed)
        rows[name] = measured(result, more)
        print(f"seed {seed}  {name}: {rows[name]['accuracy']:.2%}  {time.perf_counter() - began:.0f} s", flush=True)
        if name == "l1, then trained":
            shape = [each for each in result.lock["passes"] if each == "shrink" or "select" in each]
            whole = setting.train(epochs=2 * setting.epochs)
            rows["from scratch"] = measured(*run(fresh(seed + 100), [*shape, {"finetune": whole}], data, seed))
    for name, passes in WHOLE.items():
        rows[name] = measured(*run(fresh(seed), passes(setting), data, seed))
    return rows


def told(found: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Print the table: means over the seeds, and the accuracy's standard deviation."""
    print("\n| method | accuracy | MACs | parameters | latency | training |")
    print("|---|---|---|---|---|---|")
    for name in found[0]:
        columns = {key: [rows[name][key] for rows in found] for key in found[0][name]}
        mean = {key: statistics.mean(values) for key, values in columns.items()}
        spread = statistics.stdev(columns["accuracy"]) if len(found) > 1 else 0.0
        print(
            f"| {name} | {mean['accuracy']:.2%} +- {100 * spread:.2f} | {mean['macs']:.0%} | {mean['params']:.0%} "
            f"| {mean['latency']:.2f} | {mean['seconds']:.0f} s |"
        )


def main() -> None:
    """The command line of the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the folder of Fashion-MNIST's four files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000, help="how many images are trained on")
    parser.add_argument("--epochs", type=int, default=4, help="before a cut, and as many behind it")
    parser.add_argument("--share", type=float, default=0.3, help="of the MACs, which is left")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(options.seeds):
        data = some(fashion_mnist(options.root, batch_size=64, seed=seed, val=1000), options.images)
        found.append(of_a_seed(data, Setting(options.epochs, options.share), seed))
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "seed", *found[0]["dense"]])
            writer.writerows([name, i, *row.values()] for i, rows in enumerate(found) for name, row in rows.items())
    told(found)


if __name__ == "__main__":
    main()
