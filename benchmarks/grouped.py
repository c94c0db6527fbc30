"""A grouped layer beside its dense original, and beside fewer channels at equal MACs: seconds in onnxruntime.

    python benchmarks/grouped.py                                  all networks, 2 and 4 groups
    python benchmarks/grouped.py example --groups 4 --batch 1 8

The plans are `block: {into: groups=N}`, `regroup`, and `select: {budget: {macs: ...}}`, `shrink`, with the MACs that
the grouped network has. Weights are random, the runtime has one thread. All three take turns, a run each; of every
model's seconds (the thread's own) the lower quintile counts. The ratios are those of the seconds to the dense
original's; at the MACs' own ratio, a network would be as much faster as it is smaller.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from latency_per_mac import in_turns, onnx_runs
from rich.console import Console
from torch import nn

from prunec.compiler import trace
from prunec.compiler.cost.model import cost
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.targets.onnx_export import onnx_bytes
from prunec.models.example import example
from prunec.models.vgg import vgg16_bn
from prunec.passes.block import Block
from prunec.passes.fold_bn import FoldBN
from prunec.passes.regroup import Regroup
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink


class Layer(nn.Module):
    """A convolution between two others of one pixel, which put its channels in order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` -> `[N, 4, H, W]`."""
        found: torch.Tensor = self.last(self.middle(self.first(x)).relu())
        return found


NETWORKS: Mapping[str, tuple[Any, int]] = {
    "conv 64": (lambda: Layer(64), 32),
    "conv 256": (lambda: Layer(256), 16),
    "example": (example, 32),
    "vgg16_bn": (vgg16_bn, 32),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), 224),
}
"""Name -> the network, and the size of its images."""


def grouped(program: Program, groups: int) -> tuple[Program, dict[str, Any]]:
    """The network with groups wherever they fit, and what `regroup` says of it."""
    blocked = Block.model_validate({"into": {"groups": groups}}).run(program, Context()).program
    found = Regroup().run(blocked, Context())
    return found.program, found.details["grouped"]


def narrow(program: Program, macs: int) -> Program:
    """The network with fewer channels, of so many MACs."""
    context = Context(traced=program, runtime="onnxruntime")
    scored = Score().run(program, context).program
    selected = Select.model_validate({"budget": {"macs": str(macs)}}).run(scored, context)
    return Shrink().run(selected.program, context).program


def main() -> None:
    """Measure, and print a row for each network and number of groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each model")
    options = parser.parse_args()
    out = Console(width=160)
    for name in options.networks:
        factory, size = NETWORKS[name]
        for batch in options.batch:
            torch.manual_seed(0)
            program = trace(factory().eval(), (torch.randn(batch, 3, size, size),))
            dense = FoldBN().run(program, Context()).program
            for groups in options.groups:
                made, layers = grouped(dense, groups)
                fewer = narrow(dense, cost(made).macs)
                whole, *shares = (cost(each).macs for each in (dense, made, fewer))
                files = [onnx_bytes(each) for each in (dense, made, fewer)]
                (old, *new), parts = in_turns(onnx_runs(files, dense), options.seconds * 3)
                ratios = [
                    f"{label}: MACs {share / whole:.3f}, seconds {mine / old:.3f} "
                    f"({min(spread):.3f} to {max(spread):.3f})"
                    for label, share, mine, spread in zip(
                        ("grouped", "fewer channels"),
                        shares,
                        new,
                        ([m / o for m, o in zip(part, parts[0], strict=True)] for part in parts[1:]),
                        strict=True,
                    )
                ]
                gathers = sum(found["gathers"] for found in layers.values())
                head = f"{name}, batch {batch}, {groups} groups: {len(layers)} layers, {gathers} gathers"
                out.print(f"{head}; dense {1e3 * old:.2f} ms; {'; '.join(ratios)}")


if __name__ == "__main__":
    main()
