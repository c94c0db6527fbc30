"""Numbers of the slim graph: what is read off sizes, and the arithmetic on it.

    q [n heads, t, d], one head of four gone    q.size(0)          3 n, where it was 4 n
    t.repeat(q.size(0) // 4, 1, 1)              q.size(0) // 4     would round: the old number is n
                                                q.size(0) * 4 // 3 // 4
    x / math.sqrt(q.shape[1])                   a scale            the old number, 2

Where a number is a size, it has to be what is left for every batch: it *follows* if it is so by itself. Else the old
number is computed, from sizes that are scaled back to what they were, and scaled to what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from torch import fx

from prunec.compiler.ir.program import IntArray
from prunec.compiler.ir.sizes import dims_read, is_open, is_open_dim, item, reads, scaled, valued

TRIED: Final = (2, 3, 5)
"""How often the example's batch a number is tried on."""

FieldsOf = Callable[[fx.Node], tuple[IntArray, ...]]


class Numbers:
    """The numbers of one slim graph. `values` holds slim values where these differ from the old ones; `mapping` the new
    node of each old one; `fields` is `Flow.fields`."""

    def __init__(self, values: dict[fx.Node, Any], mapping: Mapping[fx.Node, fx.Node], fields: FieldsOf) -> None:
        self.values, self.mapping, self.fields = values, mapping, fields

    def slim(self, old: fx.Node) -> Any:
        """The value of a node that gives no tensor, on the slim values of its operands."""
        return self._on(old, lambda node: self.mapping[node].meta.get("val"))

    def differs(self, old: fx.Node) -> bool:
        """Whether the slim value of a number differs from its old one for the example's batch, or for another."""
        before, now = old.meta["val"], self.slim(old)
        if before != now or reads(old):
            return bool(before != now)
        return any(self._tried(old, times, slim=True) != self._tried(old, times, slim=False) for times in TRIED)

    def follows(self, number: object, wanted: int) -> bool:
        """Whether an argument is `wanted` in the slim graph by itself, whatever the batch."""
        if not isinstance(number, fx.Node) or number not in self.values:
            return bool((number.meta["val"] if isinstance(number, fx.Node) else number) == wanted)
        if self.values[number] != wanted:
            return False
        before = number.meta["val"]
        tried = ([self._tried(number, times, slim=which) for which in (True, False)] for times in TRIED)
        return all(new * before == wanted * old for new, old in tried)

    def scaled(self, number: fx.Node, wanted: int) -> fx.Node | None:
        """A node that gives `wanted` for the example and follows the batch as the old `number` does; None where that
        counts channels alone."""
        before = number.meta["val"]
        if not isinstance(before, int) or not before or not wanted or not is_open(number, self.fields):
            return None
        base = self.frozen(number)
        shared = math.gcd(before, wanted)
        return scaled(base, wanted // shared, before // shared, wanted) if isinstance(base, fx.Node) else None

    def frozen(self, old: fx.Node) -> Any:
        """The old value of a number, as an argument that holds for every batch size.

        Arithmetic, on whole sizes too, is done again on the operands' old values; what is read off a tensor becomes a
        literal, or, where it counts the batch too, is scaled.
        """
        new = self.mapping[old]
        if old not in self.values:
            return new
        before, now = old.meta["val"], self.values[old]
        if not reads(old) or (isinstance(before, tuple) and not isinstance(dims_read(old)[1], tuple)):
            args, kwargs = fx.node.map_arg((old.args, old.kwargs), self.frozen)
            with new.graph.inserting_after(_last(new, args, kwargs)):
                return valued(new.graph.create_node(old.op, old.target, args, kwargs), before)
        if not isinstance(before, tuple):
            return self._restored(new, before, now, is_open(old, self.fields))
        return tuple(
            self._restored(item(new, place, here) if was == here or free else new, was, here, free)
            for place, (was, here, free) in enumerate(zip(before, now, self._open_items(old), strict=True))
        )

    def _restored(self, new: fx.Node, before: int, now: int, is_free: bool) -> Any:
        """A size of which `now` is left, as it was."""
        if before == now:
            return new
        shared = math.gcd(before, now) or 1
        return scaled(new, before // shared, now // shared, before) if is_free and now else before

    def _open_items(self, size: fx.Node) -> Iterable[bool]:
        tensor, dims = dims_read(size)
        assert tensor is not None
        assert isinstance(dims, tuple), "a size that is read off no tensor is computed again"
        return [is_open_dim(self.fields(tensor), dim) for dim in dims]

    def _tried(self, number: fx.Node, times: int, slim: bool) -> Any:
        """What a number is for `times` the example's batch: the slim one, or the old one."""
        if reads(number) or not number.all_input_nodes:
            value = self.values.get(number, number.meta["val"]) if slim else number.meta["val"]
            return value * times if reads(number) and is_open(number, self.fields) else value
        return self._on(number, lambda node: self._tried(node, times, slim))

    def _on(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        """A node's value on values of its operands. NaN where it can't be divided: a factor such as `(width // heads)
        ** -0.5` keeps its old value anyway."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        function = node.target if callable(node.target) else partial(_method, str(node.target))
        try:
            return function(*args, **kwargs)
        except ZeroDivisionError:
            return math.nan


def _method(name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(value, name)(*args, **kwargs)


def _last(node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    """The last in the graph of a node and of those among arguments."""
    found = [node]
    fx.node.map_arg((args, kwargs), found.append)
    return max(found)
