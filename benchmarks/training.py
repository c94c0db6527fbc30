"""What is done beside a step, and what it costs: a step with it and a plain one in turns, on the same network.

    python benchmarks/training.py                           ResNet-20, batch 64, one thread
    python benchmarks/training.py --device cuda --rounds 20
    python benchmarks/training.py centripetal --network resnet56

Both networks have the same weights, see the same batch, and are stepped by SGD with momentum. CPU seconds on a CPU
(seconds by the clock on a GPU), for a number of steps at a time; of all rounds the fastest counts. The rows of
`finetune` and `slim_train` are whole passes, with all that the engine does, beside a loop written by hand over the same
batches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from prunec.compiler import trace
from prunec.compiler.data import Data
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import PASSES as PASSES_BY_NAME
from prunec.compiler.pass_base import Context
from prunec.models.resnet import resnet20, resnet56
from prunec.passes.cluster import Cluster
from prunec.passes.training.candidates import Candidates
from prunec.passes.training.centripetal import ClusterSlices, Collapse
from prunec.passes.training.constraints import Constraints
from prunec.passes.training.penalties import GroupNorm, Growing, batch_norm_slices
from prunec.passes.training.unit_slices import UnitSlices
from prunec.passes.training.updates import L1, Update, batch_norm_scales, in_order

BATCH = 64
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "resnet56": resnet56}
Make = Callable[[nn.Module, Program], Sequence[Update]]


def _growing(module: nn.Module, program: Program) -> Sequence[Update]:
    units = UnitSlices.of(program, module)
    return [Growing(units, np.arange(units.analysis.size) % 2 == 0)]


def _centripetal(module: nn.Module, program: Program) -> Sequence[Update]:
    clustered = Cluster(method="even", ratio=0.375).run(program, Context(traced=program)).program
    return [Collapse(ClusterSlices.of(clustered, module), 3e-3)]


BESIDE: Mapping[str, Make] = {
    "bn_scale": lambda module, program: [L1(batch_norm_scales(module), 1e-4)],
    "group_norm": lambda module, program: [GroupNorm(UnitSlices.of(program, module), 1e-4)],
    "coupled_scales": lambda module, program: [GroupNorm(batch_norm_slices(program, module), 1e-4)],
    "growing": _growing,
    "centripetal": _centripetal,
    "hold_below": lambda module, program: Constraints(hold_below=1e-5).updates(module, program),
    "candidates": lambda module, program: [Candidates(UnitSlices.of(program, module), 1e-3, 100)],
    "clamp": lambda module, program: Constraints(clamp=(-1, 1)).updates(module, program),
    "max_norm": lambda module, program: Constraints(max_norm=3).updates(module, program),
}
"""What is measured -> how it is bound to a network."""


class Stepper:
    """A network that is stepped on one batch, with updates beside it."""

    def __init__(self, make: Make | None, device: torch.device, network: str) -> None:
        torch.manual_seed(0)
        self.model = NETWORKS[network]().to(device)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(BATCH, 3, 32, 32, generator=generator).to(device)
        self.y = torch.randint(10, (BATCH,), generator=generator).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        program = trace(NETWORKS[network](), (torch.zeros(1, 3, 32, 32),))
        self.updates = in_order(make(self.model, program)) if make else []
        for update in self.updates:
            update.attach(self.optimizer)

    def step(self) -> None:
        """One update of the weights."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        for update in self.updates:
            update.before_step()
        self.optimizer.step()
        for update in self.updates:
            update.after_step()

    def seconds(self, steps: int) -> float:
        """How long so many steps take, each."""
        if self.x.is_cuda:
            torch.cuda.synchronize()
            start = time.perf_counter()
        else:
            start = time.process_time()
        for _ in range(steps):
            self.step()
        if self.x.is_cuda:
            torch.cuda.synchronize()
            return (time.perf_counter() - start) / steps
        return (time.process_time() - start) / steps

    def alone(self, times: int) -> float:
        """How long the updates take by themselves, with the gradients of the last step: the fastest of some times."""
        found = []
        for _ in range(times):
            start = time.process_time()
            for update in self.updates:
                update.before_step()
            for update in self.updates:
                update.after_step()
            found.append(time.process_time() - start)
        return min(found)


def overhead(
    make: Make, device: torch.device, rounds: int, steps: int, network: str = "resnet20"
) -> tuple[float, float, float]:
    """(seconds of a plain step, the ratio of a step with updates to it, seconds of the updates by themselves), of the
    fastest of steps in turns."""
    plain, beside = Stepper(None, device, network), Stepper(make, device, network)
    for stepper in (plain, beside):
        stepper.seconds(2)
    found = [(plain.seconds(steps), beside.seconds(steps)) for _ in range(rounds)]
    base, more = (min(column) for column in zip(*found, strict=True))
    return base, more / base, beside.alone(30)


PASSES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "finetune": {"finetune": {}},
    "slim_train": {"slim_train": {}},
    "slim_train, group_norm": {"slim_train": {"method": "group_norm"}},
}
"""Whole passes that are measured beside a loop by hand: name -> the plan's entry."""


def whole(
    entry: Mapping[str, Mapping[str, str]], device: torch.device, rounds: int, network: str, updates: int = 16
) -> tuple[float, float]:
    """(seconds of a step of a loop by hand, the ratio of a step of the pass to it), of the fastest of runs in turns."""
    ((name, options),) = entry.items()
    said = {"updates": updates, "evaluate": False, "lr": 0.01, "schedule": "constant", **options}
    made = PASSES_BY_NAME.named(name).model_validate(said)
    program = trace(NETWORKS[network](), (torch.zeros(1, 3, 32, 32),))
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(BATCH, 3, 32, 32, generator=generator), torch.randint(10, (BATCH,), generator=generator))
        for _ in range(updates)
    ]
    context = Context(data=Data.of(batches), traced=program)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def by_hand() -> float:
        stepper = Stepper(None, device, network)
        start = clock()
        for x, y in batches:
            stepper.x, stepper.y = x.to(device), y.to(device)
            stepper.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / updates

    def by_pass() -> float:
        start = clock()
        made.run(program, context)
        return (clock() - start) / updates

    found = [(by_hand(), by_pass()) for _ in range(rounds)]
    base, more = (min(column) for column in zip(*found, strict=True))
    return base, more / base


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[], help="some of: " + "; ".join({**PASSES, **BESIDE}))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(chosen.device)
    table = Table("beside a step", "plain step", "ratio", "by itself, of a plain step")
    for name, entry in PASSES.items():
        if not chosen.names or name in chosen.names:
            base, ratio = whole(entry, device, max(chosen.rounds // 8, 2), chosen.network)
            table.add_row(f"{name}, the whole pass", f"{base * 1e3:.1f} ms", f"{ratio:.3f}")
    for name, make in BESIDE.items():
        if not chosen.names or name in chosen.names:
            base, ratio, alone = overhead(make, device, chosen.rounds, chosen.steps, chosen.network)
            table.add_row(name, f"{base * 1e3:.1f} ms", f"{ratio:.3f}", f"{alone / base:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
