"""Functions that take the flag `training`: which follow the program's own flag, where they were given a true one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch.nn.functional as F
from torch import fx

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


# --- flags -------------------------------------------------------------------------------------------------------


def is_flag(node: fx.Node) -> bool:
    """Whether a node reads the model's mode."""
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


def with_flag(node: fx.Node, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with another value in the place of its flag."""
    args, kwargs = arguments_of(node)
    place = flag_place(node)
    assert place is not None, f"{node.name} has a place for a flag"
    position, name, _ = place
    if position is None:
        return args, {**kwargs, name: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs


_DROPPED: Final = {F.scaled_dot_product_attention: "dropout_p"}
"""Functions with a share to drop instead of a flag: code gives them 0 in eval mode."""


def flag_place(node: fx.Node) -> tuple[int | None, str, Any] | None:
    """Where a node's arguments hold what may be the mode's alone: the position, if any, the name, and the default."""
    if node.op != "call_function" or not callable(node.target):
        return None
    if node.target in FOLLOWS:
        position, default = FOLLOWS[node.target]
        return (position if len(node.args) > position else None), "training", default
    name = _DROPPED.get(node.target, "")
    return (None, name, None) if name in node.kwargs else None


def arguments_of(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments, in order and by name."""
    return tuple(node.args), dict(node.kwargs)
