"""What is left of networks without labels and without training: each way to choose channels with each way to repair.

    python benchmarks/repair.py                                     the embedded networks for digits: minutes
    python benchmarks/repair.py fashion_resnet20 fashion_vit --seeds 0 1 --keep weights --csv FILE     trained first
    python benchmarks/repair.py embedded_cnn --samples 64 --budgets 50% 25%
    python benchmarks/repair.py fashion_vit --budgets half          half of the MLPs' widths and of the heads

The networks are those of `trained.py`, where a seed decides weights and data. Of each result: the accuracy on the test
images in percent, and the CPU seconds on one thread of all passes, without tracing and verification; beside them the
seconds that training takes for one epoch of the real training set. Labels are read by `taylor` alone. torch-pruning's
ratio is bisected until its network fits the budget. A result that the CSV file has isn't measured again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import rivals
import torch
import torch.nn.functional as F
from repair_rows import CASE, METHODS, PEER, Method, Row, read, tables, write
from torch import Tensor, nn
from trained import NETWORKS, trained

from prunec.compiler import Plan, trace
from prunec.compiler.cost.model import cost
from prunec.compiler.data import Data
from prunec.compiler.driver.steps import Composite, Outcome
from prunec.compiler.errors import ModelError, PassError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass
from prunec.models.data import TensorData
from prunec.models.resnet import ZeroPad
from prunec.models.train import accuracy

CHOICES: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "random": ({"criterion": "random"}, {}),
    "l1": ({"criterion": "l1"}, {}),
    "taylor": ({"criterion": "taylor"}, {}),
    "reconstruction": ({"criterion": "reconstruction"}, {"method": "knapsack"}),
}
"""How channels are chosen -> the options of `score` and of `select`."""
LOOKS: Final = ("taylor", "reconstruction")
"""Those that look at samples."""
ROUNDS: Final = 3
BISECTIONS: Final = 8
HALF: Final = "half"
"""Of a transformer: not a budget, but half of each MLP's width and half of the heads."""
EPOCH: Final = {"embedded": 1_257, "fashion": 60_000}
"""Kind of network -> how many images the real training set has."""
TIMED: Final = 6
"""Steps of training by which the seconds of an epoch are known."""
FIELDS: Final = (
    "network",
    "choice",
    "repair",
    "budget",
    "samples",
    "seed",
    "dense",
    "accuracy",
    "macs",
    "seconds",
    "epoch",
)


class Made(NamedTuple):
    """A program, and the CPU seconds of the passes that gave it."""

    program: Program
    seconds: float = 0.0


class Slim(NamedTuple):
    """What comes out: a network, its MACs, and the CPU seconds that it took."""

    module: nn.Module
    macs: int
    seconds: float


def passes_of(*entries: Any) -> list[Pass]:
    """The passes of a plan's entries."""
    return [entry.pass_ for entry in Plan.of({"plan": 1, "passes": list(entries)}).passes]


def run(program: Program, passes: Iterable[Pass], context: Context) -> Outcome:
    """Run the passes as a compile does, and verify nothing."""
    for each in passes:
        if isinstance(each, Composite):
            program = each.run_inside(program, context, run).program
        else:
            program = each.run(program, context).program
    return Outcome(program, (), ())


@dataclass(frozen=True)
class Subject:
    """A trained network, and what is asked of it."""

    network: str
    seed: int
    keep: Path | None

    @cached_property
    def _trained(self) -> tuple[nn.Module, TensorData]:
        return trained(self.network, self.seed, self.keep)

    @property
    def model(self) -> nn.Module:
        """The dense network."""
        return self._trained[0]

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The training images in an order of the seed's: the first ones are looked at."""
        return list(self._trained[1].train())

    @cached_property
    def example(self) -> Tensor:
        """Two images."""
        return self.batches[0][0][:2]

    @cached_property
    def start(self) -> Program:
        """The network, traced."""
        return trace(self.model, (self.example,))

    @cached_property
    def context(self) -> Context:
        """What the passes are given."""
        return Context(self.seed, Data.of({"train": self.batches}), traced=self.start)

    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        return 100 * accuracy(model, self._trained[1].test())

    @cached_property
    def dense(self) -> float:
        """The accuracy of the whole network."""
        return self.accuracy(self.model)

    @cached_property
    def epoch(self) -> float:
        """CPU seconds of training for one epoch of the real training set."""
        model, images = (
            copy.deepcopy(self.model).train(),
            EPOCH[self.network.split("_")[0].replace("embedded", "digits")],
        )
        optimizer = torch.optim.AdamW(model.parameters())
        seen, start = 0, 0.0
        for index, (inputs, labels) in enumerate(self.batches[: TIMED + 1]):
            if index == 1:  # the first one also sets things up
                seen, start = 0, time.process_time()
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            seen += len(labels)
        return (time.process_time() - start) / seen * images

    # -- what passes give, each once ---------------------------------------------------------------------------------

    def made(self, made: Made, *entries: Any) -> Made:
        """What the entries of a plan make of a program."""
        passes, start = passes_of(*entries), time.process_time()
        program = run(made.program, passes, self.context).program
        return Made(program, made.seconds + time.process_time() - start)

    @cache  # noqa: B019  (subjects are few, and all are needed to the end)
    def scored(self, choice: str, samples: int) -> Made:
        """The program with scores."""
        score = CHOICES[choice][0]
        return self.made(Made(self.start), {"score": {**score, "samples": samples} if choice in LOOKS else score})

    @cache  # noqa: B019
    def cut(self, choice: str, budget: str, samples: int) -> Made:
        """The slim program, with nothing repaired."""
        if choice == "merged":
            merge = {"merge": {"inexact": "least_squares", "samples": samples}}
            return self.made(Made(self.start), {"cluster": _amount(budget)}, merge)
        if choice == "factorised":
            return self.made(Made(self.start), {"factorise": {**_amount(budget), "samples": samples}})
        select = _amount(budget) if budget == HALF else {**_select(choice), **_amount(budget)}
        return self.made(self.scored(choice, samples), {"select": select}, "shrink")

    def slim(self, method: Method, budget: str, samples: int) -> Made:
        """What a method gives. Raises `PassError` where the budget is out of reach."""
        choice, repair = method
        if repair == "none":
            return self.cut(choice, budget, samples)
        if repair != "in rounds":
            return self.made(self.cut(choice, budget, samples), {"repair": {"method": repair, "samples": samples}})
        score = {**CHOICES[choice][0], **({"samples": samples} if choice in LOOKS else {})}
        squares = {"repair": {"method": "least_squares", "samples": samples}}
        inside = [{"score": score}, {"select": _select(choice)}, "shrink", squares]
        return self.made(Made(self.start), {"repeat": {"steps": ROUNDS, "to": {"macs": budget}, "passes": inside}})

    # -- torch-pruning -----------------------------------------------------------------------------------------------

    @cached_property
    def gradients(self) -> list[Tensor]:
        """Those that Taylor's importance is of."""
        images, labels = (torch.cat(parts)[: rivals.CALIBRATION] for parts in zip(*self.batches, strict=True))
        return list(torch.autograd.grad(F.cross_entropy(self.model(images), labels), list(self.model.parameters())))

    @cache  # noqa: B019
    def peer_at(self, importance: str, scope: str, ratio: float, *, inside: bool = False) -> Slim | None:
        """torch-pruning's network of a ratio; None for one that doesn't run, since no head is left."""
        contest, start = rivals.CONTESTS[importance], time.process_time()
        gradients = self.gradients if contest.gradients else ()
        module = rivals.peer_cut(self.model, gradients, contest, (scope, ratio), self.example, inside=inside)
        try:
            found = cost(trace(module, (self.example,))).macs
        except ModelError:
            return None
        return Slim(module, found, time.process_time() - start)

    def peer(self, importance: str, scope: str, budget: str) -> Slim:
        """The largest of its networks that fits a budget. Raises `PassError` where there is none."""
        inside = any(isinstance(module, ZeroPad) for module in self.model.modules())  # else its network doesn't run
        most = float("inf") if budget == HALF else float(budget.rstrip("%")) / 100 * cost(self.start).macs
        low, high, best = 0.0, 1.0, None
        for _ in range(1 if budget == HALF else BISECTIONS):
            ratio = (low + high) / 2
            found = self.peer_at(importance, scope, ratio, inside=inside or budget == HALF)
            if found is None or found.macs <= most:
                high, best = ratio, found or best
            else:
                low = ratio
        if best is None:
            raise PassError(f"torch-pruning reaches {budget} with no ratio")
        return best


def _amount(budget: str) -> dict[str, Any]:
    """What a pass is told that chooses how much goes."""
    half = {"ratio": {"*.query": "50%", "*.fc1": "50%"}}
    return half if budget == HALF else {"budget": {"macs": budget}}


def _select(choice: str) -> dict[str, Any]:
    return {"multiple_of": 1, **CHOICES[choice][1]}


def _applies(method: Method, budget: str) -> bool:
    """Whether a method can be told so: what takes a budget alone can't cut this and not that in half."""
    return budget != HALF or (method.choice not in ("merged", "factorised") and method.repair != "in rounds")


def measured(subject: Subject, method: Method, budget: str, samples: int) -> Row:
    """One result; without accuracy where the budget is out of reach."""
    found: Slim | None
    try:
        if method.choice == PEER:
            importance, scope = method.repair.split(", ")
            found = subject.peer(importance, scope, budget)
        else:
            made = subject.slim(method, budget, samples)
            found = Slim(made.program.module, cost(made.program).macs, made.seconds)
    except PassError as error:
        print(f"{subject.network}, {', '.join(method)}, {budget}: {error}", file=sys.stderr)
        found = None
    case = (subject.network, *method, budget, str(samples), str(subject.seed))
    row = {**dict(zip(CASE, case, strict=True)), "dense": f"{subject.dense:.2f}", "epoch": f"{subject.epoch:.1f}"}
    if found is None:
        return {**row, "accuracy": "", "macs": "", "seconds": ""}
    right, share = subject.accuracy(found.module), found.macs / cost(subject.start).macs
    return {**row, "accuracy": f"{right:.2f}", "macs": f"{share:.4f}", "seconds": f"{found.seconds:.2f}"}


# -- the command line ------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure what isn't known yet, and print the tables."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    rows = read(options.csv)
    known = {tuple(row[key] for key in CASE) for row in rows}
    methods = [each for each in METHODS if not options.methods or ", ".join(each) in options.methods]
    for seed, network in itertools.product(options.seeds, options.networks):
        subject = Subject(network, seed, options.keep)
        for samples, budget, method in itertools.product(options.samples, options.budgets, methods):
            if (network, *method, budget, str(samples), str(seed)) in known or not _applies(method, budget):
                continue
            rows.append(measured(subject, method, budget, samples))
            if options.csv:
                write(rows[-1], options.csv)
    print("\n".join(tables(rows, options.samples[0])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Accuracy without labels and without training.")
    parser.add_argument("networks", nargs="*", default=["embedded_cnn", "embedded_resnet"], help=", ".join(NETWORKS))
    parser.add_argument("--budgets", nargs="+", default=["75%", "50%", "35%", "25%"], help="shares of the MACs")
    parser.add_argument("--samples", type=int, nargs="+", default=[256], help="how many training images are looked at")
    parser.add_argument("--methods", nargs="+", choices=[", ".join(each) for each in METHODS], help="some of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", type=Path, help="a folder for trained weights")
    parser.add_argument("--csv", type=Path, help="where results are read and added")
    return parser


if __name__ == "__main__":
    main()
