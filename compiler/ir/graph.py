"""Questions about any torch.fx node or graph, whatever it computes: its operands, arguments, output and value."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx


def output_of(graph: fx.Graph) -> fx.Node:
    """The graph's output node."""
    node: fx.Node = next(iter(reversed(graph.nodes)))
    return node


def new_node(
    graph: fx.Graph,
    op: str,
    target: str | Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> fx.Node:
    """A node at the graph's insert point, as `create_node` makes it, in a third of the time.

    It gets its operands after it is made: fx would search them for symbolic numbers. Its name, unless it is given, is
    what fx makes of the target, where that takes no search for letters to replace.
    """
    if name is None and isinstance(target, str) and target.islower() and not target.startswith("__"):
        joined = target.replace(".", "_")
        name = joined if joined.isidentifier() else _NOT_IN_NAMES.sub("_", target)
    node = graph.create_node(op, target, name=name)
    if args:
        _set_args(node, args)
    if kwargs:
        _set_kwargs(node, kwargs)
    return node


_NOT_IN_NAMES = re.compile("[^0-9a-zA-Z_]+")
_set_args, _set_kwargs = (vars(fx.Node)[name].__set__ for name in ("args", "kwargs"))
"""What `node.args = ...` does in the end; before that, fx takes the node out of its tables and puts it back."""


def is_impure(node: fx.Node) -> bool:
    """Whether a node does something besides giving its value, so that it must stay though nobody reads it."""
    if node.op in {"placeholder", "output"} or node.meta.get("mutates"):
        return True
    return node.op == "call_function" and node.is_impure(impure_random=False)


def operand(node: fx.Node) -> fx.Node | None:
    """The node's first operand, given by position or as `input`; None where that is no node."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    return value if isinstance(value, fx.Node) else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call to a Python function by parameter name, defaults included. Raises ValueError on a
    function that has no Python signature."""
    assert callable(node.target), f"{node.name} calls no function"
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def call(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a `call_function` or `call_method` node gives for these arguments."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target), f"{node.name} calls a function"
    return node.target(*args, **kwargs)
