"""Masks: entries of parameters that are zero, and stay zero through every training.

    block           conv2.weight [64, 64, 3, 3]     mask, True where entries stay
    finetune        after every step, the others are zero again
    shrink          the weight loses rows and columns, and so does its mask

A mask is carried by the program: every training pass holds it. What a later rewrite has filled in (two columns that
`merge` has added) is masked no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from prunec.compiler.ir.program import Program
from prunec.passes.training.carried import Carried
from prunec.passes.training.updates import PROJECTS, Update

MASKS: Final = "masks"
"""Under which name a program carries masks."""
_STAYS: Final = "stays"


@torch.no_grad()
def apply_masks(masks: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Put zeros where a mask, of the parameter's shape, is False; to be called after each step."""
    for parameter, stays in masks:
        parameter.masked_fill_(~stays, 0)


class Masks(Update):
    """Holds masked entries at zero. Their gradients are taken away before the step, so that no momentum gathers."""

    rank: ClassVar[int] = PROJECTS + 1

    def __init__(self, masks: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        self.gone = [(parameter, ~stays.to(parameter.device, torch.bool)) for parameter, stays in masks]

    @torch.no_grad()
    def before_step(self) -> None:
        """Take the gradients of masked entries away."""
        for parameter, gone in self.gone:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the zeros back."""
        for parameter, gone in self.gone:
            parameter.masked_fill_(gone, 0)

    def measures(self) -> Mapping[str, float]:
        """`masked`: the share of these parameters' entries that is held at zero."""
        total = sum(parameter.numel() for parameter, _ in self.gone)
        return {"masked": sum(int(gone.sum()) for _, gone in self.gone) / max(total, 1)}


def masks_of(program: Program) -> dict[str, Tensor]:
    """Parameter -> its mask, True where entries stay, fitted to what is left of it."""
    said: Any = program.carried.get(MASKS)
    if said is None:
        return {}
    fitted = {name: memory[_STAYS] for name, memory in Carried.of_plain(said).fitted(program)}
    return {name: stays | (program.tensors[name].detach() != 0).to(stays.device) for name, stays in fitted.items()}


def with_masks(program: Program, masks: Mapping[str, Tensor]) -> Program:
    """The program with these masks in place of those that it carries."""
    kept = {name: {_STAYS: stays.detach().cpu()} for name, stays in masks.items() if not stays.all()}
    carried = {name: value for name, value in program.carried.items() if name != MASKS}
    if kept:
        carried[MASKS] = Carried.of(MASKS, kept, program).plain()
    return program.derive(carried=carried)


def updates_of(module: nn.Module, program: Program) -> list[Update]:
    """What holds a program's masks on a module with its parameter names; nothing where it carries none."""
    known = dict(module.named_parameters(remove_duplicate=False))
    found: dict[nn.Parameter, Tensor] = {}
    for name, stays in masks_of(program).items():
        if name in known:
            mine = stays.to(known[name].device)
            found[known[name]] = found[known[name]] & mine if known[name] in found else mine
    return [Masks(found.items())] if found else []
