"""Inputs of other sizes than the example's: larger images, longer sequences.

    [2, 3, 32, 32]            [2, 3, 64, 64]         images and clips twice as large in every direction
    [2, 3, 40]                [2, 3, 80]             signals twice as long
    [2, 16, 8], [2, 16]       [2, 32, 8], [2, 32]    sequences twice as long, with their masks

and each of them once more, shorter by one: what is padded to a multiple shows there alone. Which of them a model takes
is found by running it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.ir.inputs import map_tensors, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import LONG, fresh_inputs, seeded
from prunec.compiler.verify.interpreter import Interpreter, StepError


def other_sizes(program: Program, seed: int) -> Iterator[tuple[Any, ...]]:
    """Fresh inputs of other sizes; the model needn't take them. Large images are halved, not doubled."""
    fresh = fresh_inputs(program, None, seed)
    shapes = [tuple(x.shape) for x in tensors_in(fresh)]
    for change, less in product((_image, _signal, _sequence), (0, 1)):
        changed = tuple(map_tensors(partial(change, less=less), value) for value in fresh)
        if [tuple(x.shape) for x in tensors_in(changed)] != shapes:
            yield changed


def takes_other_sizes(program: Program) -> bool:
    """Whether the program runs on larger or smaller images, or on sequences of another length."""
    return program.cached("takes other sizes", lambda: any(_runs(program, x) for x in other_sizes(program, 0)))


def _runs(program: Program, inputs: tuple[Any, ...]) -> bool:
    try:
        with seeded(0):
            Interpreter(program, torch.float32).run(inputs)
    except StepError:
        return False
    return True


def _image(value: Tensor, less: int) -> Tensor:
    """An image or a clip, [N, C, H, W, ...], in another size."""
    if value.ndim < 4 or not value.is_floating_point():
        return value
    return _other(value, range(2, value.ndim), less)


def _signal(value: Tensor, less: int) -> Tensor:
    """A signal, [N, C, L], in another length."""
    return _other(value, [2], less) if value.ndim == 3 and value.is_floating_point() else value


def _sequence(value: Tensor, less: int) -> Tensor:
    """A sequence [N, T, C], or one of whole numbers or truth values, [N, T], in another length."""
    is_one = value.ndim == 3 if value.is_floating_point() else value.ndim == 2
    return _other(value, [1], less) if is_one else value


def _other(value: Tensor, dims: Sequence[int], less: int) -> Tensor:
    """Twice as long along these dimensions, half as long where one is long; and so much less than that."""
    if max((value.shape[dim] for dim in dims), default=0) > LONG:
        sizes = {dim: (value.shape[dim] + 1) // 2 for dim in dims}
    else:
        sizes = {dim: 2 * value.shape[dim] for dim in dims}
        value = value.repeat(*(2 if dim in dims else 1 for dim in range(value.ndim)))
    for dim, size in sizes.items():
        value = value.narrow(dim, 0, max(size - less, 1))
    return value.contiguous()
