"""Functions that take the flag `training`: which follow the program's own flag, where they were given a true one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F

from prunec.compiler.tracing.symbolic_numbers import Flag

FOLLOWS: Mapping[Callable[..., Any], tuple[int, bool]] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (2, True)),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), (2, False)),
    F.rrelu: (3, False),
    F.batch_norm: (5, False),
}
"""Functions with a parameter `training` -> its position and its default."""


def following(
    flag: Flag, parameter: tuple[int, bool], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the flag in the place of a true `training`.

    In train mode, Python makes `self.training and self.noisy` a bare True, which would drop out in eval mode as well.
    """
    position, default = parameter
    if len(args) > position:
        return (*args[:position], args[position] and flag, *args[position + 1 :]), kwargs
    return args, {**kwargs, "training": kwargs.get("training", default) and flag}
