"""The flag `training` among a node's arguments: where it stands, and how it follows the mode of the slim module.

code                                                   in train mode     the node's argument
F.dropout(x, training=self.training)                   traced flag       get_attr training
F.dropout(x, training=self.training and self.noisy)    a plain True      get_attr training (`following`)
F.dropout(x, training=False)                           a plain False     False
F.scaled_dot_product_attention(.., dropout_p=p)        a share           p times the flag, where eval mode has 0
"""

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


_DROPPED: Final = {F.scaled_dot_product_attention: "dropout_p"}
"""Functions with a share to drop in place of a flag -> its name. Code gives them 0.0 in eval mode."""


def following(
    flag: Flag, parameter: tuple[int, bool], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the traced `flag` in place of a true `training`; `parameter` is its position and default.

    In train mode, Python makes a bare True of `self.training and self.noisy`, which would drop out in eval mode as
    well.
    """
    position, default = parameter
    if len(args) > position:
        return (*args[:position], args[position] and flag, *args[position + 1 :]), kwargs
    return args, {**kwargs, "training": kwargs.get("training", default) and flag}


def is_flag(node: fx.Node) -> bool:
    """Whether a node reads the flag `training`."""
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


def flag_place(node: fx.Node) -> tuple[int | None, str, Any] | None:
    """(position or None, name, default) of a node's flag, or share to drop; None where its function has neither."""
    if node.op != "call_function" or not callable(node.target):
        return None
    if node.target in FOLLOWS:
        position, default = FOLLOWS[node.target]
        return (position if len(node.args) > position else None), "training", default
    name = _DROPPED.get(node.target, "")
    return (None, name, None) if name in node.kwargs else None


def arguments_of(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments: a tuple of those by position, a dict of those by name."""
    return tuple(node.args), dict(node.kwargs)


def with_flag(node: fx.Node, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with another value in place of its flag, or of its share to drop (`flag_place`)."""
    args, kwargs = arguments_of(node)
    place = flag_place(node)
    assert place is not None, f"{node.name} has a place for a flag"
    position, name, _ = place
    if position is None:
        return args, {**kwargs, name: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs
