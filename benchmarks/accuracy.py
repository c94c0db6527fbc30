"""Accuracy beside torch-pruning, on the same trained networks, data, criteria and MACs; and in one round or several.

    python benchmarks/accuracy.py                               both tools, five seeds
    python benchmarks/accuracy.py mlp cnn --seeds 0 1           some networks, some seeds
    python benchmarks/accuracy.py --alike                       also torch-pruning's scores in prunec's selection
    python benchmarks/accuracy.py --rounds                      one round against four, Taylor against signed Taylor
    python benchmarks/accuracy.py --csv FILE                    keep every single result

Every seed has a split of the digits, a training and an order of batches of its own. torch-pruning goes first, and what
its network costs is the budget of ours, so that ours never has more multiply-accumulates. A difference is ours minus
the peer's in points of accuracy, averaged over the budgets for each seed; its standard error is that over seeds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import rivals
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

BUDGETS: Final = (0.75, 0.5, 0.3)
SCOPES: Final = ("global", "local")
MATCHES: Final = {
    "mlp": ("l1", "taylor", "fpgm"),
    "cnn": ("l1", "taylor", "fpgm", "bn_scale", "bn_scale_raw"),
    "cnn_sparse": ("bn_scale", "bn_scale_raw"),
    "resnet": ("l1", "taylor", "fpgm", "bn_scale", "bn_scale_raw"),
}
"""The criteria by network: an MLP has no batch norm, and the network with sparse scales is there for these alone."""
ROUNDS: Final = (1, 4)
ROUNDS_SHARE: Final = 0.3
ROUNDS_CRITERIA: Final = ("taylor", "taylor_signed")
ROUNDS_WAYS: Final = {
    "local": rivals.Way("none", "local"),
    "global, l2": rivals.Way("l2", "global"),
    "global, mean": rivals.Way("mean", "global"),
}
"""With `local`, one round and several end with the same widths; with the others, widths are what scores make them."""

CASE: Final = ("network", "criterion", "seed", "tool")
"""What a line of the file is known by, as far as it has these columns."""

Row = dict[str, str]


def figures(model: nn.Module, subject: rivals.Subject) -> Row:
    """What a slim network costs and reaches, before and after the short fine-tuning."""
    before = rivals.quality(model, subject.data)
    after = rivals.quality(rivals.fine_tuned(model, subject.data), subject.data)
    return {
        "macs": f"{rivals.macs(model) / subject.macs:.4f}",
        "dense": f"{subject.quality.accuracy:.4f}",
        "before": f"{before.accuracy:.4f}",
        "after": f"{after.accuracy:.4f}",
        "loss_after": f"{after.loss:.4f}",
    }


def matches(network: str, seed: int, criteria: Sequence[str], alike: bool) -> Iterator[Row]:
    """Every criterion, scope and budget with every tool."""
    subject = rivals.Subject.of(network, seed)
    for criterion, scope, budget in itertools.product(criteria, SCOPES, BUDGETS):
        contest = rivals.CONTESTS[criterion]
        peer = rivals.peer_slim(subject, contest, scope, budget * subject.macs)
        select = {"budget": {"macs": rivals.macs(peer)}, "scope": scope}
        slim = {"peer": peer, "ours": rivals.our_slim(subject.model, subject.data, contest.ours, select)}
        if alike:
            slim["alike"] = rivals.our_slim(subject.model, subject.data, contest.alike, select)
        case = {"network": network, "criterion": criterion, "scope": scope, "budget": str(budget), "seed": str(seed)}
        yield from ({**case, "tool": tool, **figures(model, subject)} for tool, model in slim.items())


def in_rounds(network: str, seed: int) -> Iterator[Row]:
    """Both forms of Taylor's criterion, in one round and in several."""
    subject = rivals.Subject.of(network, seed)
    for (name, way), criterion, rounds in itertools.product(ROUNDS_WAYS.items(), ROUNDS_CRITERIA, ROUNDS):
        model = rivals.in_rounds(subject, criterion, way, ROUNDS_SHARE, rounds)
        found = rivals.quality(model, subject.data)
        case = {"network": network, "criterion": criterion, "way": name, "rounds": str(rounds), "seed": str(seed)}
        yield {
            **case,
            "macs": f"{rivals.macs(model) / subject.macs:.4f}",
            "dense": f"{subject.quality.accuracy:.4f}",
            "after": f"{found.accuracy:.4f}",
            "loss_after": f"{found.loss:.4f}",
        }


# -- what it comes to ------------------------------------------------------------------------------------------------


def by_seed(rows: Iterable[Row], figure: str) -> dict[str, float]:
    """Seed -> the mean of a figure over budgets."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["seed"], []).append(float(row[figure]))
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, in per cent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * deviation:.1f}"


def paired(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """The mean difference and its standard error, in points, and how many seeds have it above, at and below zero."""
    differences = [100 * (ours[seed] - theirs[seed]) for seed in ours]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    above, below = sum(d > 1e-9 for d in differences), sum(d < -1e-9 for d in differences)
    return f"{statistics.fmean(differences):+.1f} ± {error:.1f}  ({above}/{len(differences) - above - below}/{below})"


def chosen(rows: Sequence[Row], **case: str) -> list[Row]:
    """The rows of a case."""
    return [row for row in rows if all(row[key] == value for key, value in case.items())]


def distinct(rows: Sequence[Row], *keys: str) -> list[tuple[str, ...]]:
    """The values of some columns, in the order in which they come."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


def summary(rows: Sequence[Row]) -> Table:
    """A line for each network, criterion and scope, and one for all defaults in a scope."""
    table = Table(title="accuracy, %: mean ± standard deviation over seeds; difference ± its standard error (+/=/-)")
    for name in ("network", "criterion", "scope", "tool", "peer before", "before", "ours - peer"):
        table.add_column(name)
    for name in ("peer after", "after", "ours - peer"):
        table.add_column(name)
    tools = [tool for (tool,) in distinct(rows, "tool") if tool != "peer"]
    keys = ("network", "criterion", "scope")
    defaults = [row for row in rows if row["criterion"] != "bn_scale_raw"]
    cases = [(rows, dict(zip(keys, values, strict=True))) for values in distinct(rows, *keys)]
    everything = [(defaults, {"scope": scope}) for (scope,) in distinct(rows, "scope")]
    for (some, case), tool in itertools.product((*cases, *everything), tools):
        table.add_row(*(case.get(key, "all") for key in keys), tool, *_line(some, case, tool))
    return table


def _line(rows: Sequence[Row], case: dict[str, str], tool: str) -> Iterator[str]:
    for figure in ("before", "after"):
        theirs = by_seed(chosen(rows, tool="peer", **case), figure)
        ours = by_seed(chosen(rows, tool=tool, **case), figure)
        yield from (spread(list(theirs.values())), spread(list(ours.values())), paired(ours, theirs))


def rounds_summary(rows: Sequence[Row]) -> Table:
    """A line for each network and criterion, and what signed Taylor is short of Taylor, in one round and in several."""
    first, last = (str(number) for number in (ROUNDS[0], ROUNDS[-1]))
    table = Table(title=f"accuracy at {ROUNDS_SHARE:.0%} of the MACs, %, after the same fine-tuning")
    for name in ("network", "way", "criterion", f"{first} round", f"{last} rounds", f"{last} - {first}"):
        table.add_column(name)
    for network, way in distinct(rows, "network", "way"):
        mine = chosen(rows, network=network, way=way)
        found = {
            key: by_seed(chosen(mine, criterion=key[0], rounds=key[1]), "after")
            for key in itertools.product(ROUNDS_CRITERIA, (first, last))
        }
        for criterion in ROUNDS_CRITERIA:
            one, more = found[criterion, first], found[criterion, last]
            table.add_row(
                network, way, criterion, spread(list(one.values())), spread(list(more.values())), paired(more, one)
            )
        signs = [paired(*(found[criterion, rounds] for criterion in ROUNDS_CRITERIA)) for rounds in (first, last)]
        table.add_row(network, way, " - ".join(ROUNDS_CRITERIA), *signs, "")
    return table


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Every single result. What was not measured this time keeps its lines."""
    kept: list[Row] = []
    new = {tuple(row[key] for key in CASE if key in row) for row in rows}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [old for old in csv.DictReader(file) if tuple(old[key] for key in CASE if key in old) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    order = [(network, criterion) for network in MATCHES for criterion in (*rivals.CONTESTS, *ROUNDS_CRITERIA)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted((*kept, *rows), key=lambda row: order.index((row["network"], row["criterion"]))))


def main() -> None:
    """Read the command line and measure; what is known is written after every network and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(MATCHES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--criteria", nargs="+", choices=rivals.CONTESTS, help="some criteria")
    parser.add_argument("--alike", action="store_true", help="also torch-pruning's scores in prunec's selection")
    parser.add_argument("--rounds", action="store_true", help="one round against several")
    parser.add_argument("--csv", type=Path, help="write every result there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console, rows = Console(width=max(160, Console().width)), list[Row]()
    networks = options.networks or [n for n in MATCHES if not options.rounds or n != "cnn_sparse"]
    for network, seed in itertools.product(networks, options.seeds):
        console.print(f"[dim]{network}, seed {seed} ...[/dim]")
        criteria = options.criteria or MATCHES[network]
        rows.extend(in_rounds(network, seed) if options.rounds else matches(network, seed, criteria, options.alike))
        if options.csv:
            write_csv(rows, options.csv)
    console.print(rounds_summary(rows) if options.rounds else summary(rows))


if __name__ == "__main__":
    main()
