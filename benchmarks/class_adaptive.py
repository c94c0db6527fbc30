"""A network for some of its classes, without training: what is left of it by each way of choosing what goes.

    python benchmarks/class_adaptive.py --keep /tmp/nets          all; it is taken up where it stopped
    python benchmarks/class_adaptive.py fashion_plain --seeds 0 1 --scores class_weights l1

Two networks that are trained on Fashion-MNIST, anew for every seed: a ResNet-14, and six convolutions in a row. Each
seed draws a subset of 2, 3 and 5 of the ten classes before anything is measured. The output loses the other classes,
then units go until 70, 50 and 30% of the MACs are left. Accuracy is balanced: the mean over the kept classes of the
share of their test images (1,000 each, which nothing else reads) that the slim network puts right; `whole` is the
original restricted to these classes.

`evidence` is the table of the pass `class_evidence`, of all ten classes, on the whole network; a criterion alone looks
at the network, and at samples, of the kept classes. `wrong` goes by as many other classes in place of those that are
kept, `any` by all ten. `repaired` is what `repair: least_squares` makes of the same network with 512 training images,
without labels.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from trained import fashion, trained

from prunec.compiler import Plan, trace
from prunec.compiler.data import Data
from prunec.compiler.driver.classes import adapt
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.class_evidence import ClassEvidencePass
from prunec.passes.repair import Repair
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink
from prunec.passes.visualise import Visualise

RESULTS: Final = Path(__file__).parent / "results" / "class_adaptive.csv"
NETWORKS: Final = ("fashion_resnet", "fashion_plain")
SIZES: Final = (2, 3, 5)
BUDGETS: Final = (0.7, 0.5, 0.3)
CLASSES: Final = 10
SAMPLES: Final = 512
EVIDENCE: Final = 1024
"""Samples of all classes that evidence comes of, about a hundred of each."""
TESTED: Final = 10_000
CASE: Final = ("network", "seed", "size", "classes", "by", "budget")
FIGURES: Final = ("whole", "accuracy", "repaired")


@dataclass(frozen=True)
class Way:
    """How units are scored and selected, and which classes the scores look at."""

    score: Any
    select: Mapping[str, Any] = field(default_factory=dict)
    looks_at: str = "kept"
    repaired: bool = False
    """Whether what is left is repaired, too: that takes as long as all the rest."""
    evidence: str | None = None
    """The criterion of the pass `class_evidence` that comes before; None for none."""


WAYS: Final[Mapping[str, Way]] = {
    **{
        f"evidence by {of}, {level}": Way({"class_evidence": {"level": level}}, evidence=f"class_{of}")
        for of in ("weights", "maps")
        for level in ("filter", "balanced", "cluster")
    },
    "class_weights": Way("class_weights", repaired=True),
    "class_weights, balanced": Way({"class_weights": {"level": "balanced"}}),
    "class_maps": Way("class_maps", repaired=True),
    "class_maps, balanced": Way({"class_maps": {"level": "balanced"}}),
    "taylor": Way("taylor", repaired=True),
    "taylor, knapsack": Way("taylor", {"method": "knapsack"}),
    "fisher_gate, knapsack": Way("fisher_gate", {"method": "knapsack"}),
    "l1": Way("l1", repaired=True),
    "random": Way("random", repaired=True),
    "evidence by weights, wrong": Way("class_evidence", looks_at="wrong", evidence="class_weights"),
    "class_weights, any": Way("class_weights", looks_at="any"),
    "taylor, any": Way("taylor", looks_at="any"),
    "class_weights, wrong": Way("class_weights", looks_at="wrong"),
    "class_maps, wrong": Way("class_maps", looks_at="wrong"),
    "taylor, wrong": Way("taylor", looks_at="wrong"),
}

Row = dict[str, str]


def drawn(seed: int, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The classes that are kept, and as many others."""
    order = np.random.default_rng([seed, size]).permutation(CLASSES).tolist()
    return tuple(sorted(order[:size])), tuple(sorted(order[size : 2 * size]))


@dataclass(frozen=True)
class Subject:
    """A trained network, its data, and the classes that stay."""

    program: Program
    data: Data
    seed: int
    kept: tuple[int, ...]
    others: tuple[int, ...]
    images: Tensor
    labels: Tensor
    pictured: dict[str, Any] = field(default_factory=dict)
    """The clusters of images, which are the same whatever classes are kept."""
    tables: dict[str, Any] = field(default_factory=dict)
    """The evidence by each criterion."""

    @cached_property
    def slim(self) -> tuple[Program, Context]:
        """The network of the kept classes, and what its passes have."""
        return self.of(self.kept)

    def of(self, classes: tuple[int, ...] | None) -> tuple[Program, Context]:
        """The network of some classes, or of all."""
        plan = {"plan": 1, "seed": self.seed, "passes": [], **({} if classes is None else {"classes": list(classes)})}
        found = adapt(Plan.of(plan), self.program, self.data)
        return found.program, found.told(Context(self.seed, found.data, traced=found.program))

    def scored(self, way: Way) -> Program:
        """The network of the kept classes with the scores that a way gives."""
        program, _ = self.slim
        if way.evidence is not None:
            return self._by_evidence(way)
        where, beside = {"kept": self.slim, "wrong": self.of(self.others), "any": self.of(None)}[way.looks_at]
        score = Score.model_validate({"criterion": way.score})
        if score.criterion.data:
            score = score.model_copy(update={"samples": SAMPLES})
        found = score.run(where, beside).program.facts["scores"]
        groups = [group for group in analyse(program).groups.values() if group.free.any()]
        if any(found[group.name].shape != (group.size,) for group in groups):
            raise ValueError("groups must have the same units whatever classes are kept")
        return program.with_facts(scores=found)

    def _by_evidence(self, way: Way) -> Program:
        (program, context), by = self.slim, str(way.evidence)
        if by not in self.tables:
            found = ClassEvidencePass.model_validate({"criterion": by, "samples": EVIDENCE}).run(program, context)
            self.tables[by] = found.program.facts["class_evidence"]
        if not self.pictured:
            self.pictured.update(Visualise(layers="all").run(program, context).program.facts["image_clusters"])
        program = program.with_facts(class_evidence=self.tables[by], image_clusters=self.pictured)
        name, options = (way.score, {}) if isinstance(way.score, str) else next(iter(way.score.items()))
        if way.looks_at == "wrong":
            options = {**options, "classes": self.others}
        score = Score.model_validate({"criterion": {name: options}})
        return score.run(program, context).program

    def cut(self, scored: Program, select: Mapping[str, Any], budget: float) -> Program:
        """What is left of the network."""
        context = self.slim[1]
        chosen = Select.model_validate({"budget": {"macs": budget}, **select}).run(scored, context).program
        return Shrink().run(chosen, context).program

    def repaired(self, program: Program) -> Program:
        """A slim network, refit to the whole one."""
        return Repair(samples=SAMPLES).run(program, self.slim[1]).program

    def accuracy(self, model: nn.Module) -> float:
        """In per cent, the mean over the kept classes."""
        with torch.no_grad():
            found = torch.cat([model.eval()(images).argmax(1) for images in self.images.split(500)])
        right = [float((found[self.labels == new] == new).float().mean()) for new in range(len(self.kept))]
        return 100 * statistics.fmean(right)


def subjects(network: str, seed: int, keep: Path | None) -> Iterator[Subject]:
    """The trained network with its subsets of classes."""
    model, data = trained(network, seed, keep)
    program = trace(model, (torch.zeros(1, 1, 14, 14),))
    images, labels = fashion(seed, tested=TESTED).parts["test"]
    pictured: dict[str, Any] = {}
    for size in SIZES:
        kept, others = drawn(seed, size)
        mine = torch.isin(labels, torch.tensor(kept))
        new = torch.searchsorted(torch.tensor(kept), labels[mine])
        yield Subject(program, Data.of(data, seed=seed), seed, kept, others, images[mine], new, pictured)


def measured(network: str, seed: int, options: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[Row]:
    """Every subset, way and budget that isn't `done`."""
    for subject in subjects(network, seed, options.keep):
        about = (network, str(seed), str(len(subject.kept)), " ".join(map(str, subject.kept)))
        whole = subject.accuracy(subject.slim[0].module)
        for by in options.scores:
            cases = {budget: (*about, by, str(budget)) for budget in options.budgets}
            if done.issuperset(cases.values()):
                continue
            scored = subject.scored(WAYS[by])
            for budget, case in cases.items():
                slim = subject.cut(scored, WAYS[by].select, budget)
                figures = [whole, subject.accuracy(slim.module)]
                if WAYS[by].repaired:
                    figures.append(subject.accuracy(subject.repaired(slim).module))
                if case not in done:
                    told = [f"{each:.2f}" for each in figures]
                    yield dict(zip((*CASE, *FIGURES), (*case, *told, "")[: len(CASE + FIGURES)], strict=True))


def table_of(rows: Iterable[Row], figure: str, by: str) -> Table:
    """A line for each way: means over seeds and all else but the columns, which are the values of `by`."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in (row for row in rows if row[figure]):
        column = f"{row['network'].removeprefix('fashion_')} {row[by]}"
        for name, value in ((row["by"], row[figure]), ("whole", row["whole"])):
            found.setdefault(name, {}).setdefault(column, []).append(float(value))
    columns = sorted({column for line in found.values() for column in line})
    table = Table(figure, *columns, "mean", title=f"{figure}: balanced accuracy of the kept classes, %")
    for name, line in found.items():
        means = [statistics.fmean(line[column]) for column in columns if column in line]
        table.add_row(name, *(f"{mean:.1f}" for mean in means), f"{statistics.fmean(means):.1f}")
    return table


def main() -> None:
    """Read the command line and measure; every result is written as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--scores", nargs="+", choices=WAYS, default=list(WAYS), help="some ways to choose")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=list(BUDGETS), help="shares of the MACs that are left"
    )
    parser.add_argument("--keep", type=Path, help="a folder for trained weights")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="every result; what it has isn't measured again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    if options.csv.exists():
        with options.csv.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(row[key] for key in CASE) for row in rows}
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*CASE, *FIGURES])
        writer.writeheader()
        writer.writerows(rows)
        for seed, network in itertools.product(options.seeds, options.networks):
            for row in measured(network, seed, options, done):
                writer.writerow(row)
                file.flush()
                rows.append(row)
    console = Console(width=max(140, Console().width))
    for figure, by in itertools.product(("accuracy", "repaired"), ("budget", "size")):
        console.print(table_of(rows, figure, by))


if __name__ == "__main__":
    main()
