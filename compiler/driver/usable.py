"""What a traced model must have to be compiled: parameters, with values that are plain numbers in memory."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses import FakeTensor

from prunec.compiler.errors import ModelError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.ir.program import Program


def check_module(model: object) -> None:
    """Raise `ModelError` for what a caller of Python gives as a model and is none."""
    if not isinstance(model, nn.Module):
        of = (
            f"the class '{model.__name__}'"
            if isinstance(model, type)
            else f"an object of type '{type(model).__name__}'"
        )
        raise ModelError(f"the model must be an nn.Module, got {of}", hint="give a model that is made, such as Net()")


def check_usable(program: Program) -> None:
    """Raise `ModelError` for a model that has nothing to compile, or that holds tensors without data."""
    if not any(isinstance(tensor, nn.Parameter) for tensor in program.tensors.values()) and not analyse(program).groups:
        raise ModelError(
            f"{program.name} has no parameters that its forward reads: there is nothing to compile",
            hint="is this the model that was meant, and are its layers attributes of it?",
        )
    empty = [name for name, tensor in program.tensors.items() if _has_no_data(tensor)]
    if empty:
        who = f"'{empty[0]}' and {len(empty) - 1} more have" if len(empty) > 1 else f"'{empty[0]}' has"
        raise ModelError(
            f"{who} no data, only a shape, as on the meta device",
            hint="make the model on the CPU, or give it its weights, before it is compiled",
        )
    if any(map(_has_no_data, tensors_in(program.inputs))):
        raise ModelError("the example inputs have no data, only shapes", hint="give tensors with values")


def _has_no_data(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)
