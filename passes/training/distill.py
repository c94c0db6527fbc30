"""Knowledge distillation: the slim model also learns what the dense original says (Hinton et al. 2015).

    loss = (1 - weight) * task loss + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))
                                    + features * mean over layers of  |student's map - teacher's kept channels|^2

With `weight: 1` no labels are needed. Where the loss isn't one of classes, outputs are compared by their mean squared
difference. A layer's map is what a convolution or linear layer gives; the teacher's is read at the channels that the
student still has, and each layer's difference is measured in units of the teacher's mean square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch
from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.plan.options import Fraction01


class Distill(BaseModel):
    """How much the original's answers count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Fraction01 = Field(default=0.5, description="the share of the original's answers; at 1 no labels are read")
    temperature: float = Field(
        default=4.0, gt=0, allow_inf_nan=False, description="what both sides' logits are divided by"
    )
    features: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="weight of the difference of the layers' outputs"
    )
    of: Literal["auto", "logits", "values"] = Field(
        default="auto", description="what outputs are: logits of classes, or values; auto goes by the loss"
    )


_OF_LOGITS: Final = ("cross_entropy", "nll")
"""Losses of outputs that are scores of classes, or their logarithms."""


class Teacher:
    """The original, and which of its channels the student still has."""

    def __init__(self, options: Distill, original: Program, student: Program, loss: str) -> None:
        self.options = options
        self.classes = options.of == "logits" or (options.of == "auto" and loss in _OF_LOGITS)
        self.module = original.deployed.module
        self.layers = dict(_layers(original, student)) if options.features else {}
        if options.features and not self.layers:
            message = "no convolution or linear layer of the original is left, so there are no features to match"
            raise PassError(message, keys=("distill", "features"))

    def loss(self, student: nn.Module, run: Callable[[], Any], batch: Batch) -> tuple[Any, Tensor]:
        """What the student gives for a batch, and how far that is from what the original gives."""
        self.module.eval()
        with ExitStack() as stack, torch.no_grad():
            wanted = self._watched(stack, self.module)
            answers = batch.through(self.module)
        with ExitStack() as stack:
            found = self._watched(stack, student)
            outputs = run()
        distance = self.options.weight * self._answers(outputs, answers, batch)
        if self.layers:
            distance = distance + self.options.features * self._features(found, wanted)
        return outputs, distance

    def _answers(self, outputs: Any, answers: Any, batch: Batch) -> Tensor:
        pairs = [(y, t) for y, t in zip(_floats(outputs), _floats(answers), strict=False) if y.shape == t.shape]
        if not pairs:
            raise batch.place.fault("the slim model and the original give outputs of other shapes, of which none fit")
        return torch.stack([self._answer(y.float(), t.float()) for y, t in pairs]).sum()

    def _answer(self, output: Tensor, answer: Tensor) -> Tensor:
        if not self.classes or output.ndim < 2:
            return F.mse_loss(output, answer)
        heat = self.options.temperature
        apart = F.kl_div(
            F.log_softmax(output / heat, 1), F.log_softmax(answer / heat, 1), reduction="none", log_target=True
        )
        return apart.sum(1).mean() * heat**2

    def _watched(self, stack: ExitStack, module: nn.Module) -> dict[str, Tensor]:
        """The layers' outputs by name, filled while the context is open."""
        found: dict[str, Tensor] = {}

        def watch(name: str) -> Callable[..., None]:
            def seen(part: nn.Module, given: Any, output: Tensor) -> None:
                found[name] = output

            return seen

        for name in self.layers:
            handle = module.get_submodule(name).register_forward_hook(watch(name))
            stack.callback(handle.remove)
        return found

    def _features(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        apart = []
        for name, (index, dim) in self.layers.items():
            if name not in found or name not in wanted:
                continue
            target = wanted[name].index_select(dim, index.to(wanted[name].device)) if index.numel() else wanted[name]
            apart.append(F.mse_loss(found[name].float(), target.float()) / target.float().square().mean().clamp(1e-12))
        return torch.stack(apart).mean()


def _layers(original: Program, student: Program) -> Sequence[tuple[str, tuple[Tensor, int]]]:
    """Each convolution and linear layer that both have: the channels of the original's output that are left (none
    listed where all are), and the dimension that they lie along."""
    found = []
    for name, module in student.state.items():
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            continue
        if type(original.state.get(name)) is not type(module):
            continue
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
            continue  # its outputs are counted in two dimensions
        left = student.left_of(original, Axis(f"{name}.weight", 1 if transposed else 0))
        index = torch.zeros(0, dtype=torch.long) if left is None else torch.from_numpy(left)
        found.append((name, (index, -1 if isinstance(module, nn.Linear) else 1)))
    return found


def _floats(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
