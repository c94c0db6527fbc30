"""Gathers in a slim graph: an `index_select` at positions in a buffer, where the old operations fit no more.

    %shuffle = index_select(%cat, 1, %shuffle_order)     a shuffle whose rows lost different positions (`Flow.gathers`)
    %y + index_select(%waves, 1, %order)                 what is left of a value that no parameter writes (`Flow.picks`)
    %bn = bn(index_select(%add, 1, %bn_incoming))        what a reader has kept of a stream (`Flow.incoming`); a slice
                                                         where that lies together

The positions are buffers of the slim program (`View.indices`). A later round of pruning shortens them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Flow, Gather, Incoming, Pick
from prunec.compiler.rewrite.slim_view import View, own_tensors


def torn_apart(view: View) -> dict[fx.Node, Gather]:
    """The nodes that must become gathers, since their operations don't fit what is left of their source."""
    return {
        node: gather
        for node, gather in view.analysis.flow.gathers.items()
        if not view.kept(gather.source, gather.dim).all()
        and (gather.blocks is None or not all(map(view.is_rectangular, gather.blocks)))
    }


def gather_at(new: fx.Node, source: fx.Node, found: Gather, view: View) -> None:
    """Make the new node an `index_select` of the new `source`, at the positions that are left of `found.order`."""
    kept = view.kept(found.source, found.dim)
    places = (np.cumsum(kept) - 1)[found.order[kept[found.order]]]
    index = view.positions(places, new, "order", own_tensors(new))
    new.op, new.target = "call_function", torch.index_select
    new.args, new.kwargs = (source, found.dim, index), {}


def pick_all(old: fx.Node, new: fx.Node, view: View, mapping: Mapping[fx.Node, fx.Node]) -> None:
    """Let a node read, of operands that no parameter writes, the positions that are left: `Flow.picks`."""
    chosen: dict[fx.Node, fx.Node] = {}
    for pick in view.analysis.flow.picks.get(old, ()):
        mask = view.mask(pick.labels)
        if mask is not None:
            source = chosen.get(pick.source, mapping[pick.source])
            chosen[pick.source] = _picked(source, pick, np.flatnonzero(mask), new, view)
    for source, picked in chosen.items():
        new.replace_input_with(mapping[source], picked)


def _picked(source: fx.Node, pick: Pick, places: IntArray, new: fx.Node, view: View) -> fx.Node:
    """A node that picks `places` of `source`; the same one for all its readers. Where a former round has picked from
    the source already, one gather with fewer positions takes that gather's place."""
    key = (source, pick.dim, places.tobytes())
    if key in view.picked and not view.analysis.flow.parameter_free.is_rewritten:
        return view.picked[key]
    base, order, free = _former(source, pick, view)
    left = places if order is None else order[places]
    index = view.positions(left, new, "order", free, base.name)
    with new.graph.inserting_before(new):
        picked = new.graph.call_function(torch.index_select, (base, pick.dim, index))
    shape = list(source.meta["val"].shape)
    shape[pick.dim] = left.size
    picked.meta = {**new.meta, "val": source.meta["val"].new_empty(shape)}
    view.picked[key] = picked
    return picked


def read_selected(old: fx.Node, new: fx.Node, view: View, mapping: Mapping[fx.Node, fx.Node]) -> None:
    """Let a node that selects by itself read what it has kept of its source: `Flow.incoming`."""
    flow = view.analysis.flow
    entry = flow.incoming.get(old)
    if entry is None:
        return
    mine = view.kept(entry.source, entry.dim)
    source, places = entry.source, np.flatnonzero(mine)
    view.reader = None
    if not np.array_equal(mine, view.kept(source, entry.dim)):
        while (former := _selects(flow, source, entry.dim)) is not None:
            source, places = former.source, former.order[places]
        selected = _selected(mapping[source], entry, (np.cumsum(view.kept(source, entry.dim)) - 1)[places], new, view)
        new.replace_input_with(mapping[entry.source], selected)
    view.reader = old


def _selects(flow: Flow, node: fx.Node, dim: int) -> Gather | None:
    """What a node picks along a dimension, if that is all it does: a selection of a former round."""
    found = flow.gathers.get(node)
    if found is not None and found.dim == dim and not found.inner:
        return found
    index = node.args[1] if node.target is operator.getitem else None
    entries = index if isinstance(index, tuple) else ()
    if len(entries) != dim + 1 or any(entry != slice(None) for entry in entries[:dim]):
        return None
    source, last = node.args[0], entries[dim]
    if not isinstance(last, slice) or not all(part is None or isinstance(part, int) for part in _parts(last)):
        return None
    assert isinstance(source, fx.Node)
    return Gather(source, dim, np.arange(shape_of_argument(source)[dim])[last])


def _parts(entry: slice) -> tuple[object, object, object]:
    return entry.start, entry.stop, entry.step


def _selected(source: fx.Node, entry: Incoming, places: IntArray, new: fx.Node, view: View) -> fx.Node:
    """A node before `new` that gives these places of `source`: the source itself where it has no others."""
    value, dim = source.meta["val"], entry.dim
    size = value.shape[dim]
    if places.size == size and bool((places == np.arange(size)).all()):
        return source
    shape = [places.size if d == dim else s for d, s in enumerate(value.shape)]
    together = bool((np.diff(places) == 1).all())
    with new.graph.inserting_before(new):
        if together:
            index = (*[slice(None)] * dim, slice(int(places[0]), int(places[-1]) + 1))
            found = new.graph.call_function(operator.getitem, (source, index))
        else:
            order = view.positions(places, new, "incoming")
            found = new.graph.call_function(torch.index_select, (source, dim, order))
    found.meta = {**{key: kept for key, kept in new.meta.items() if key != "mutates"}, "val": value.new_empty(shape)}
    return found


def drop_former_selections(mapping: Mapping[fx.Node, fx.Node], view: View) -> None:
    """Erase the selections of former rounds that the new ones have taken the place of."""
    flow = view.analysis.flow
    for entry in flow.incoming.values():
        old = entry.source
        while (former := _selects(flow, old, entry.dim)) is not None and not mapping[old].users:
            new = mapping[old]
            if not new._erased:
                new.graph.erase_node(new)
            old = former.source


def _former(source: fx.Node, pick: Pick, view: View) -> tuple[fx.Node, IntArray | None, set[str]]:
    """What a former round picked from, the positions, and their buffer's name if it is free; else the value itself."""
    if source.target is torch.index_select and len(source.args) == 3 and source.args[1] == pick.dim:
        base, _, index = source.args
        order = view.constant(index)
        if isinstance(base, fx.Node) and isinstance(order, torch.Tensor):
            return base, order.numpy(force=True), own_tensors(source) if len(source.users) == 1 else set()
    return source, None, set()


def drop_idle_picks(mapping: Mapping[fx.Node, fx.Node], view: View) -> None:
    """Erase the gathers that nobody reads: those of former rounds, and those for an index that has become a buffer."""
    for picked in view.picked.values():
        if not picked.users:
            index = picked.all_input_nodes[-1]
            picked.graph.erase_node(picked)
            if not index.users:
                del view.indices[str(index.target)]
                index.graph.erase_node(index)
    for source in {pick.source for picks in view.analysis.flow.picks.values() for pick in picks}:
        new = mapping[source]
        if not new.users and not new._erased and new.target is torch.index_select:
            new.graph.erase_node(new)
