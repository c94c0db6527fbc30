"""The results of `repair.py`: rows of a CSV file, and the tables made of them.

    python benchmarks/repair_rows.py                        the tables of benchmarks/results/repair.csv
    python benchmarks/repair_rows.py FILE --samples 512

A cell is the points of accuracy that are lost, the mean over the seeds with the standard deviation; `-` where a budget
is out of reach.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

RESULTS: Final = Path(__file__).parent / "results" / "repair.csv"
CASE: Final = ("network", "choice", "repair", "budget", "samples", "seed")
FIELDS: Final = (*CASE, "dense", "accuracy", "macs", "seconds", "epoch")
PEER: Final = "torch-pruning"
SAMPLES: Final = "50%"
"""The budget, beside a transformer's half, at which samples are compared, and seconds told."""

Row = dict[str, str]


class Method(NamedTuple):
    """How channels are chosen, and what is done then."""

    choice: str
    repair: str

    def __str__(self) -> str:
        return self.choice if self.repair == "none" else f"{self.choice}, {self.repair}"


PEERS: Final = tuple(itertools.product(("l1", "taylor"), ("local", "global")))
"""torch-pruning's importance, and whether every layer loses the same share or the least important of all go."""
METHODS: Final = (
    *(Method(PEER, f"{importance}, {scope}") for importance, scope in PEERS),
    *(
        Method(choice, repair)
        for repair in ("none", "bias", "batch_norm", "least_squares")
        for choice in ("random", "l1", "taylor")
    ),
    Method("reconstruction", "none"),
    Method("reconstruction", "least_squares"),
    Method("l1", "in rounds"),
    Method("reconstruction", "in rounds"),
    Method("merged", "none"),
    Method("merged", "least_squares"),
    Method("factorised", "none"),
    Method("factorised", "least_squares"),
)
COMPARED: Final = (Method("l1", "least_squares"), Method("reconstruction", "least_squares"))
"""Those that are measured with several counts of samples."""


def read(path: Path | None) -> list[Row]:
    """What was measured before; of a result that is there several times the last."""
    if path is None or not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        found = {tuple(row[key] for key in CASE): row for row in csv.DictReader(file)}
    return list(found.values())


def write(row: Row, path: Path) -> None:
    """Add a result to the file."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)


# -- tables ----------------------------------------------------------------------------------------------------------


def tables(rows: Sequence[Row], samples: int) -> Iterator[str]:
    """The lines of all tables: for each budget points lost by each method, then by samples, then seconds."""
    for budget in _all(rows, "budget"):
        title = f"{budget} of the MACs" if budget.endswith("%") else f"{budget} of the heads and of the MLPs' widths"
        yield from _table(title, _having(rows, budget=budget, samples=str(samples)), _lost, METHODS)
    counts = sorted(_all(rows, "samples"), key=int)
    for budget in (each for each in _all(rows, "budget") if len(counts) > 1):
        for count in counts:
            found = _having(rows, budget=budget, samples=count)
            chosen = [
                each for each in METHODS if each in {("l1", "least_squares"), ("reconstruction", "least_squares")}
            ]
            if budget in (SAMPLES, "half"):
                yield from _table(f"{budget}, {count} samples", found, _lost, chosen)
    timed = _having(rows, budget=SAMPLES, samples=str(samples))
    yield from _table(f"CPU seconds at {SAMPLES}", timed, _seconds, METHODS)
    yield _line(
        "an epoch of training", [_mean(_having(timed, network=each), "epoch") for each in _all(timed, "network")]
    )


def _table(
    title: str, rows: Sequence[Row], cell: Callable[[Sequence[Row]], str], methods: Sequence[Method]
) -> Iterator[str]:
    """A line for each method, a column for each network; of torch-pruning the best of each network."""
    names = _all(rows, "network")
    yield f"\n| {title} | {' | '.join(name.removeprefix('fashion_') for name in names)} |\n|---|{'---|' * len(names)}"
    dense = [_mean(_having(rows, network=name), "dense") for name in names]
    yield _line("dense, accuracy", dense)
    peers = [[_having(rows, network=n, choice=PEER, repair=f"{i}, {s}") for i, s in PEERS] for n in names]
    yield _line(f"{PEER}'s best", [cell(max(each, key=_kept)) for each in peers])
    for method in methods:
        found = [cell(_having(rows, network=n, choice=method.choice, repair=method.repair)) for n in names]
        if method.choice != PEER and any(found):
            yield _line(str(method), found)


def _line(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _all(rows: Sequence[Row], key: str) -> list[str]:
    """The values that there are, in the order of the rows; shares of MACs before what is none, and falling."""
    found = dict.fromkeys(row[key] for row in rows)
    return sorted(found, key=lambda text: (not text.endswith("%"), -_number(text)))


def _number(text: str) -> float:
    return float(text.rstrip("%")) if text.endswith("%") else 0.0


def _having(rows: Sequence[Row], **values: str) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _kept(rows: Sequence[Row]) -> float:
    """The mean accuracy; nothing where a network couldn't be had."""
    found = [float(row["accuracy"] or "nan") for row in rows]
    mean = statistics.fmean(found) if found else float("nan")
    return mean if mean == mean else -1.0


def _mean(rows: Sequence[Row], key: str) -> str:
    """Over seeds, each of which counts once."""
    found = {row["seed"]: float(row[key]) for row in rows}
    return f"{statistics.fmean(found.values()):.1f}" if found else ""


def _lost(rows: Sequence[Row]) -> str:
    """Points lost; empty where nothing was measured."""
    done = [float(row["accuracy"]) - float(row["dense"]) for row in rows if row["accuracy"]]
    if len(done) < len(rows):
        return "-"
    spread = f" ± {statistics.stdev(done):.1f}" if len(done) > 1 else ""
    return f"{statistics.fmean(done):+.1f}{spread}".replace("-", "−") if done else ""


def _seconds(rows: Sequence[Row]) -> str:
    done = [float(row["seconds"]) for row in rows if row["seconds"]]
    return f"{statistics.fmean(done):.1f}" if done else ""


def main() -> None:
    """Print the tables of a file."""
    parser = argparse.ArgumentParser(description="The tables of benchmarks/repair.py.")
    parser.add_argument("csv", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--samples", type=int, default=256, help="which rows the tables of budgets are of")
    options = parser.parse_args()
    print("\n".join(tables(read(options.csv), options.samples)))


if __name__ == "__main__":
    main()
