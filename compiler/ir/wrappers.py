"""What is put around a model, or a part of it, to run or train it: `torch.compile`, `DataParallel` and the like.

    torch.compile(nn.DataParallel(net))   ->   net

A wrapper calls the model in it and names its parameters anew; what is compiled is the model. The wrapper goes on
working, since nothing of it is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

Tell = Callable[[str], None]
"""Is given a note for the user."""

_WRAPPERS: Final = (DataParallel, DistributedDataParallel, AveragedModel)


def untold(note: str) -> None:
    """Drop a note."""


def unwrapped(model: nn.Module, tell: Tell = untold) -> nn.Module:
    """The innermost model; `tell` is given a note for each wrapper."""
    while (inner := wrapped(model)) is not None:
        name = "torch.compile" if _is_compiled(model) else type(model).__name__
        tell(f"the model is wrapped by {name}: the {type(inner).__name__} in it is compiled")
        model = inner
    return model


def wrapped(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None where the module is none."""
    if _is_compiled(module):
        return module._modules["_orig_mod"]
    return module._modules["module"] if isinstance(module, _WRAPPERS) else None


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is what torch.compile gives: of a class that is imported, slowly, by the first such call."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def uncompiled() -> AbstractContextManager[object]:
    """A context in which functions that torch.compile gave run as they were written."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
