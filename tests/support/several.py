"""What processes run that a test starts: such functions and data are found by import."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.errors import DataError, Span


class TwoHeads(nn.Module):
    """A network of two outputs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.body, self.a, self.b = nn.Linear(108, 8), nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x.flatten(1)).relu()
        return self.a(x), self.b(x)


def batches(count: int = 6, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random images, [size, 3, 6, 6], with labels of 5 classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (count, size), generator=generator)
    return list(zip(images, labels, strict=True))


def splits(count: int = 6, size: int = 8) -> dict[str, Any]:
    """Data for a plan: `train` and `val`."""
    return {"train": batches(count, size), "val": batches(2, size)}


def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, as a loss of the user's."""
    return F.cross_entropy(outputs, labels, reduction="none")


def gathered(given: Any, progress: Any) -> Any:
    """What a process was given, with what it knows of the others; tells that it is there."""
    progress("gather", 1, 1, "there")
    return given, [os.environ[key] for key in ("RANK", "WORLD_SIZE")]


def failing(given: Any, progress: Any) -> Any:
    """Fail in the way that is asked for, in the second process alone; the first waits for it."""
    if os.environ["RANK"] == "0":
        signal.pause()
    if given == "data":
        raise DataError("the data are bad", at=Span("plan.yaml", 3, 4), hint="mend them")
    if given == "bug":
        raise ZeroDivisionError("a bug")
    os.kill(os.getpid(), signal.SIGKILL)
