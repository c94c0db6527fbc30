"""Which criterion keeps most, without any training after the cut: small trained networks, several seeds and budgets.

    python benchmarks/criteria.py                                     all, five seeds
    python benchmarks/criteria.py cnn --seeds 0 1 --scores l1 taylor  some
    python benchmarks/criteria.py --keep /tmp/nets --csv FILE         keep the trained weights, and every single result

`inner` cuts only the groups that one layer writes, `all` residual streams as well. Scores that look at data see
256 training images; accuracy is that of 500 test images, in per cent, averaged over the budgets.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from trained import NETWORKS, trained

from prunec.compiler import trace
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import remove_units
from prunec.passes.score import Score
from prunec.passes.select import Select

BUDGETS: Final[Mapping[str, tuple[float, ...]]] = {"inner": (0.85, 0.7, 0.55), "all": (0.85, 0.75, 0.6)}
"""Shares of the MACs that are left. Of inner groups alone, what can't be reached is left out for all scores."""
SAMPLES: Final = 256
TESTED: Final = 500

SCORES: Final[Mapping[str, Mapping[str, Any]]] = {
    "l1": {"criterion": "l1"},
    "l2": {"criterion": "l2"},
    "l2 squared": {"criterion": {"l2": {"squared": True}}},
    "l1, all axes": {"criterion": "l1", "axes": "all"},
    "l2, all axes": {"criterion": "l2", "axes": "all"},
    "l2 squared, all axes": {"criterion": {"l2": {"squared": True}}, "axes": "all"},
    "l1, writers": {"criterion": "l1", "axes": "writers"},
    "taylor": {"criterion": "taylor"},
    "fisher_gate": {"criterion": "fisher_gate"},
    "fisher_gate, mean": {"criterion": "fisher_gate", "normalize": "mean"},
    "obd": {"criterion": "obd"},
    "obd_fisher, diagonal": {"criterion": {"obd_fisher": {"diagonal": True}}},
    "obd_fisher, diagonal, writers": {"criterion": {"obd_fisher": {"diagonal": True}}, "axes": "writers"},
    "obs": {"criterion": "obs"},
    "obs, writers, not normalised": {"criterion": "obs", "axes": "writers", "normalize": "none"},
    "random": {"criterion": "random"},
}
"""Names and what a plan's `score` says. `obd_fisher` isn't among them: it is `fisher_gate`."""
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "global": {},
    "isomorphic": {"scope": "isomorphic"},
    "knapsack": {"method": "knapsack"},
}
MORE: Final = ("l1", "taylor", "fisher_gate", "obd")
"""The scores that are tried in all ways, the others in the first alone."""
CASE: Final = ("network", "groups", "score", "way", "budget", "seed")

Row = dict[str, str]


@dataclass(frozen=True)
class Subject:
    """A trained network, traced, and what it is tested on."""

    program: Program
    context: Context
    images: Tensor
    labels: Tensor

    @staticmethod
    def of(network: str, seed: int, keep: Path | None) -> Subject:
        """Train one, or read it."""
        model, data = trained(network, seed, keep)
        images, labels = (part[:TESTED] for part in data.parts["test"])
        program = trace(model, (images[:1],))
        return Subject(program, Context(seed, data, traced=program), images, labels)

    @property
    def inner(self) -> list[str]:
        """The groups that one layer writes."""
        groups = analyse(self.program).groups.values()
        return [g.name for g in groups if g.free.any() and len({m.axis.owner for m in g.writers}) == 1]

    def scored(self, entry: Mapping[str, Any]) -> Program:
        """The program with the scores that a plan's entry asks for."""
        score = Score.model_validate(entry)
        if score.criterion.data:
            score = score.model_copy(update={"samples": SAMPLES})
        return score.run(self.program, self.context).program

    def accuracy(self, model: nn.Module) -> float:
        """In per cent."""
        with torch.no_grad():
            return 100 * float((model.eval()(self.images).argmax(1) == self.labels).float().mean())

    def cut(self, scored: Program, select: Select) -> nn.Module:
        """What is left of the network. Raises `PassError` where the budget is out of reach."""
        found, groups = select.run(scored, self.context).program.facts["selection"], analyse(scored).groups
        keep = np.ones(analyse(scored).size, dtype=bool)
        for name, units in found.items():
            keep[groups[name].start + units] = False
        return remove_units(scored, keep).module


def measured(network: str, seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """Every score, way and budget."""
    subject = Subject.of(network, seed, options.keep)
    dense = f"{subject.accuracy(subject.program.module):.1f}"
    for name in options.scores:
        scored = subject.scored(SCORES[name])
        ways = options.ways if name in MORE else options.ways[:1]
        for groups, way in itertools.product(options.groups, ways):
            only = subject.inner if groups == "inner" else []
            for budget in BUDGETS[groups]:
                select = Select.model_validate({"budget": {"macs": budget}, "only": only, **WAYS[way]})
                try:
                    found = subject.accuracy(subject.cut(scored, select))
                except PassError:
                    continue
                case = (network, groups, name, way, str(budget), str(seed))
                yield {**dict(zip(CASE, case, strict=True)), "dense": dense, "accuracy": f"{found:.1f}"}


def table_of(rows: Iterable[Row], groups: str) -> Table:
    """A line for each score and way: the mean by network, and over networks."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["groups"] == groups:
            mine = found.setdefault((row["score"], row["way"]), {})
            mine.setdefault(row["network"], []).append(float(row["accuracy"]))
    networks = list(dict.fromkeys(name for by_network in found.values() for name in by_network))
    table = Table("score", "way", *networks, "mean", title=f"{groups} groups: accuracy, %")
    for case, by_network in found.items():
        means = [statistics.fmean(by_network[name]) for name in networks if name in by_network]
        table.add_row(*case, *(f"{mean:.1f}" for mean in means), f"{statistics.fmean(means):.1f}")
    return table


def write_csv(rows: list[Row], path: Path) -> None:
    """Every single result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Read the command line and measure; what is known is written after every network and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES), help="some scores")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="some ways to select")
    parser.add_argument("--groups", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="which groups are cut")
    parser.add_argument("--keep", type=Path, help="a folder for trained weights")
    parser.add_argument("--csv", type=Path, help="write every result there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, rows = Console(width=max(120, Console().width)), list[Row]()
    for network, seed in itertools.product(options.networks, options.seeds):
        console.print(f"[dim]{network}, seed {seed} ...[/dim]")
        rows.extend(measured(network, seed, options))
        if options.csv and rows:
            write_csv(rows, options.csv)
    for groups in options.groups:
        console.print(table_of(rows, groups))


if __name__ == "__main__":
    main()
