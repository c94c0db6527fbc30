"""A training whose parameters are divided among the processes (fsdp): what all of them have together.

Between the steps a process holds a part of every parameter alone, and so of what the optimizer keeps for it. What reads
whole parameters beside the steps can't be had then: penalties, constraints, scores, the weights of the best epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunec.compiler.errors import PassError
from prunec.passes.training.carried import Memory
from prunec.passes.training.options import TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def is_sharded(fabric: Fabric) -> bool:
    """Whether the engine divides the parameters."""
    from lightning_fabric.strategies.fsdp import FSDPStrategy  # noqa: PLC0415  (takes seconds, and is an optional extra)

    return isinstance(fabric.strategy, FSDPStrategy)


def check_sharded(options: TrainingOptions, beside: bool, masked: bool = False) -> None:
    """Raise `PassError` for what reads whole parameters: options, what is done `beside` the steps, and zeros that are
    held where parameters are `masked`."""
    said = {"early_stop": options.early_stop is not None, "keep": options.keep == "best"}
    wrong = next((key for key, holds in said.items() if holds), None)
    if wrong is not None or beside or masked:
        beside_them = "what this pass does beside the steps" if beside else "holding the zeros that `block` has set"
        what = f"'{wrong}'" if wrong else beside_them
        message = f"{what} needs whole parameters, which strategy fsdp divides among the processes"
        raise PassError(message, keys=(wrong,) if wrong else (), hint="strategy: ddp keeps them whole")


def gathered(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Tensor], Mapping[str, Memory]]:
    """All values by name, and what the optimizer keeps for each parameter: in the first process, on the CPU.

    Every process calls this, with the module as the engine has wrapped it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # noqa: PLC0415  (takes long)

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    values, kept = get_state_dict(model, [optimizer], options=options)
    found: tuple[Any, Any] = values, kept.get("state", {})
    return found


def scatter(model: nn.Module, optimizer: torch.optim.Optimizer, memory: Mapping[str, Memory]) -> None:
    """Give the optimizer what is kept for whole parameters, each process its part."""
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415  (takes long)
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    known: Any = get_optimizer_state_dict(model, [optimizer], options=StateDictOptions(full_state_dict=True))
    for name, kept in known.get("state", {}).items():
        kept.update({key: value for key, value in memory.get(name, {}).items() if key in kept})
    set_optimizer_state_dict(model, [optimizer], known, options=options)
