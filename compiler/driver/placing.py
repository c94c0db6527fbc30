"""Which device a compile runs on: the model's, a CUDA device where there are data and one is there, or the plan's.

The model itself stays where it is, and so do the artifacts. A plan's `train` says what training runs on.
"""

from __future__ import annotations

import os

import torch

from prunec.compiler.errors import PlanError, first_line
from prunec.compiler.ir.devices import device_of, on_device
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.wrappers import Tell
from prunec.compiler.plan.plan import Plan


def placed(program: Program, plan: Plan, has_data: bool, tell: Tell) -> Program:
    """The program where the plan wants it. Where that isn't where the model is, it is told.

    Raises `PlanError` for a device that isn't there, or that the model can't run on.
    """
    home = device_of(program)
    auto = plan.device == "auto"
    device = _found(home, has_data and plan.region is None) if auto else torch.device(plan.device)
    if device == home:
        return program
    at = plan.at("device")
    if plan.region is not None:
        hint = f"leave out device: the model is on {home}"
        raise PlanError("a region of a model is compiled where the model is", at=at, hint=hint)
    try:
        moved = on_device(program, device)
        with torch.no_grad():
            moved.module(*moved.inputs)
    except Exception as error:  # whatever a driver raises, or a forward that makes its tensors on the CPU
        if auto:
            tell(f"it ran on {home}, since the model can't on {device}: {first_line(error)}")
            return program
        message = f"the model can't run on device {plan.device}: {first_line(error)}"
        raise PlanError(message, at=at, hint=f"leave out device, and it runs on {home}") from error
    tell(f"scores, {'the metric, ' if has_data else ''}and checks were computed on {device}")
    return moved


def _found(home: torch.device, wanted: bool) -> torch.device:
    """A CUDA device where one is there and wanted, and the model isn't on another device already."""
    if not wanted or home.type != "cpu" or not torch.cuda.is_available():
        return home
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
