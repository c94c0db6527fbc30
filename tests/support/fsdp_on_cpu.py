"""Trains with fsdp in two processes on the CPU, which the engine refuses by itself; run by torch.distributed.run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.strategies import FSDPStrategy
from several import batches
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from training_nets import small

from prunec.compiler import compile
from prunec.passes.training.engine import Engine


class OnCpu(FSDPStrategy):
    """The engine looks for the class itself, not for those of its kind; and torch wants to be told of the CPU."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        """The module, divided."""
        return FullyShardedDataParallel(module, use_orig_params=True, device_id=torch.device("cpu"))


def main() -> None:
    """Train two rounds, whose second takes up the first one's momentum; the first process saves the weights."""
    real = Engine._arguments
    Engine._arguments = lambda self: {**real(self), "strategy": OnCpu()}  # type: ignore[method-assign]
    options: dict[str, Any] = {"updates": 4, "lr": 0.1, "batch_norm": "freeze", "seed": 1, "schedule": "constant"}
    rounds = [{"finetune": {**options, "rounds": [number, 2]}} for number in range(2)]
    plan = {"plan": 1, "train": {"devices": 2, "accelerator": "cpu"}, "passes": rounds}
    module = compile(small(), plan, (torch.zeros(2, 3, 6, 6),), batches(8)).module
    torch.save(module.state_dict(), Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
