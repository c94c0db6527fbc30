"""What training between cuts is worth: methods of equal MACs and equal updates on Fashion-MNIST, over several seeds.

    python benchmarks/training_methods.py /usr/share/datasets/fashion-mnist --seeds 5
    python benchmarks/training_methods.py /usr/share/datasets/fashion-mnist --only "c-sgd" "groups, trained"

A ResNet-8 for 28x28 images is trained on some of the images; each method then brings it to the same share of its MACs
with the same number of updates behind it. What needs no trained network (slimming, training from scratch) has as many
updates in all. Accuracy is that of the test split, which nothing else reads. Of what was measured before, the file of
results keeps the rows that aren't measured now.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec.compiler import Result, compile
from prunec.compiler.driver.measure import measure_latency
from prunec.compiler.groups.analysis import analyse
from prunec.models.data import TensorData, fashion_mnist
from prunec.models.resnet import resnet

RESULTS = Path(__file__).parent / "results" / "training_methods.csv"
INPUT = (torch.zeros(1, 1, 28, 28),)
Passes = list[Any]
Row = dict[str, float]
Outcome = tuple[Result, float]
"""What a plan gave, and the seconds that its training took."""


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

    def centripetal(self, parts: int = 1, **more: Any) -> dict[str, Any]:
        """The options of training channels to become equal, over all updates; to a part of them."""
        pulled = {"strength": 0.3, "to_the_end": True, "optimizer": {"sgd": {"nesterov": True}}}
        return {**self.finetune(parts), **pulled, **more}

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

GROUPS: Passes = [
    {"block": {"into": "groups=4", "protect": ["fc", "*.shortcut.*", "layer2.0.conv1"]}},
    {"block": {"into": "groups=2", "only": ["layer2.0.conv1"]}},
]
"""Groups that leave 30% of the MACs; the projections stay whole, so that a stream's channels can be in one order."""

METHODS: Mapping[str, Callable[[Setting], Passes]] = {
    "dense, trained on": lambda s: [{"finetune": s.finetune()}],
    "l1, one shot": lambda s: cut("l1", s),
    "l1, then trained": lambda s: [*cut("l1", s), {"finetune": s.finetune()}],
    "l1, trained with the original": lambda s: [*cut("l1", s), {"finetune": s.finetune(distill={"weight": 0.7})}],
    "l1, in 4 rounds": lambda s: rounds(s, 4, "l1"),
    "taylor, then trained": lambda s: [*cut("taylor", s), {"finetune": s.finetune()}],
    "taylor, in 4 rounds": lambda s: rounds(s, 4, "taylor"),
    "groups, one shot": lambda s: [*GROUPS, "regroup"],
}
"""Of the trained network."""

WHOLE: Mapping[str, Callable[[Setting], Passes]] = {
    "slimming": lambda s: [
        {"slim_train": s.train(strength=0.0005, init_scales=0.5)},
        *cut(BN_SCALE, s),
        {"finetune": s.finetune()},
    ],
    "groups from scratch": lambda s: [*GROUPS, "regroup", {"finetune": s.train(epochs=2 * s.epochs)}],
}
"""Of the network before any training."""


def some(data: TensorData, images: int) -> TensorData:
    """The data with fewer images to train on."""
    return replace(data, parts={**data.parts, "train": tuple(part[:images] for part in data.parts["train"])})


def fresh(seed: int) -> nn.Module:
    """The network before training."""
    torch.manual_seed(seed)
    return resnet(8, "projection", in_channels=1).eval()


@dataclass(frozen=True)
class Start:
    """What all methods begin with that have the same seed."""

    data: TensorData
    setting: Setting
    seed: int

    def run(self, model: nn.Module, passes: Passes) -> Outcome:
        """The result of a plan, and the seconds that its training took."""
        result = compile(model, {"plan": 1, "seed": self.seed, "passes": passes}, INPUT, self.data)
        return result, sum(each.seconds for each in result.findings.passes if each.history)

    @cached_property
    def dense(self) -> Outcome:
        """The training of the whole network."""
        return self.run(fresh(self.seed), [{"finetune": self.setting.train()}])

    @property
    def trained(self) -> nn.Module:
        """The trained network."""
        return self.dense[0].module.eval()

    @cached_property
    def shape(self) -> Passes:
        """The cut by L1 of the trained network, spelled out: any network gets the same shape by it."""
        result, _ = self.run(self.trained, cut("l1", self.setting))
        return [each for each in result.lock["passes"] if each == "shrink" or "select" in each]

    @property
    def widths(self) -> dict[str, int]:
        """How many channels of each group that cut leaves."""
        gone = self.shape[0]["select"]["units"]
        groups = analyse(self.dense[0].program).groups
        return {name: groups[name].size - len(units) for name, units in gone.items()}


def scratch(start: Start) -> Iterator[tuple[str, Outcome]]:
    """The slim network from random weights."""
    whole = start.setting.train(epochs=2 * start.setting.epochs)
    yield "from scratch", start.run(fresh(start.seed + 100), [*start.shape, {"finetune": whole}])


def csgd(start: Start) -> Iterator[tuple[str, Outcome]]:
    """Centripetal SGD of the trained network over all updates that are left, to the widths of the cut by L1."""
    yield from merged("c-sgd", start, start.trained, {"widths": start.widths}, start.setting.centripetal())


def csgd_and_more(start: Start) -> Iterator[tuple[str, Outcome]]:
    """The same over half of them; the merged network is trained over the rest."""
    pulled, behind = start.setting.centripetal(2), [{"finetune": start.setting.finetune(2)}]
    yield from merged("c-sgd, half", start, start.trained, {"widths": start.widths}, pulled, behind)


def csgd_from_scratch(start: Start) -> Iterator[tuple[str, Outcome]]:
    """Centripetal SGD from random weights; runs of neighbours become equal."""
    whole = {**start.setting.centripetal(), **start.setting.train(epochs=2 * start.setting.epochs)}
    clusters = {"method": "even", "widths": start.widths}
    yield from merged("c-sgd from scratch", start, fresh(start.seed), clusters, whole)


def merged(
    name: str,
    start: Start,
    model: nn.Module,
    clusters: dict[str, Any],
    training: dict[str, Any],
    behind: Passes | None = None,
) -> Iterator[tuple[str, Outcome]]:
    """The network that a centripetal training leaves, what `merge` makes of it, and that trained on."""
    whole, seconds = start.run(model, [{"cluster": clusters}, {"centripetal": training}])
    yield f"{name}, before the merge", (whole, seconds)
    joined = [*(each for each in whole.lock["passes"] if "cluster" in each), "merge"]
    slim, _ = start.run(whole.module.eval(), joined)
    yield f"{name}, merged", (slim, seconds)
    if behind:
        slim, more = start.run(whole.module.eval(), [*joined, *behind])
        yield f"{name}, merged, then trained", (slim, seconds + more)


def groups(start: Start) -> Iterator[tuple[str, Outcome]]:
    """Blocks of the trained network's weights held at zero through its training; then its layers become grouped."""
    held, seconds = start.run(start.trained, [*GROUPS, {"finetune": start.setting.finetune()}])
    yield "groups, trained as zeros", (held, seconds)
    slim, _ = start.run(held.module.eval(), ["regroup"])
    yield "groups, trained", (slim, seconds)


def plain(name: str) -> Callable[[Start], Iterator[tuple[str, Outcome]]]:
    """A method that is one plan."""

    def rows(start: Start) -> Iterator[tuple[str, Outcome]]:
        model, passes = (start.trained, METHODS[name]) if name in METHODS else (fresh(start.seed), WHOLE[name])
        yield name, start.run(model, passes(start.setting))

    return rows


STEPS: Mapping[str, Callable[[Start], Iterator[tuple[str, Outcome]]]] = {
    "dense": lambda start: iter([("dense", start.dense)]),
    **{name: plain(name) for name in [*METHODS, *WHOLE]},
    "from scratch": scratch,
    "c-sgd": csgd,
    "c-sgd, half": csgd_and_more,
    "c-sgd from scratch": csgd_from_scratch,
    "groups, trained": groups,
}
"""What `--only` names, and the rows that it gives."""


def measured(result: Result, seconds: float) -> Row:
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


def kept() -> dict[tuple[str, int], Row]:
    """The rows that were measured before, by method and seed."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row.pop("method"), int(row.pop("seed"))): {k: float(v) for k, v in row.items()} for row in rows}


def keep(rows: Mapping[tuple[str, int], Row]) -> None:
    """Write all rows."""
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", *next(iter(rows.values()))])
        writer.writerows([name, seed, *row.values()] for (name, seed), row in rows.items())


def told(rows: Mapping[tuple[str, int], Row]) -> None:
    """Print the table: means over the seeds, and the accuracy's standard deviation."""
    print("\n| method | accuracy | MACs | parameters | latency | training |")
    print("|---|---|---|---|---|---|")
    for method in dict.fromkeys(name for name, _ in rows):
        found = [row for (name, _), row in rows.items() if name == method]
        mean = {key: statistics.mean(row[key] for row in found) for key in found[0]}
        spread = statistics.stdev(row["accuracy"] for row in found) if len(found) > 1 else 0.0
        print(
            f"| {method} | {mean['accuracy']:.2%} +- {100 * spread:.2f} | {mean['macs']:.1%} | {mean['params']:.0%} "
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
    parser.add_argument(
        "--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="METHOD", help="; ".join(STEPS)
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, setting = kept(), Setting(options.epochs, options.share)
    for seed in range(options.seeds):
        data = some(fashion_mnist(options.root, batch_size=64, seed=seed, val=1000), options.images)
        start = Start(data, setting, seed)
        for method in options.only:
            for name, outcome in STEPS[method](start):
                row = rows[name, seed] = measured(*outcome)
                keep(rows)
                print(f"seed {seed}  {name}: {row['accuracy']:.2%} at {row['macs']:.1%} of the MACs", flush=True)
    told(rows)


if __name__ == "__main__":
    main()
