"""What becomes of labels where an operation broadcasts tensors against each other, such as `x + y`.

    x [N, C, 1, 1] + y [N, C, 1, 1]           each channel of x goes with that of y
    x [N, heads, T, d] * image [T, d]         no labels along d: x can lose whole heads, not single widths
    x [N, heads, T, d] * angles [T, d]        whole heads go, and the angles stay; or the same widths of all heads go
    x [N, heads, T, d] * gate [heads, 1, 1]   whole heads of both go; or widths, and the gate stays
    x [N, T, C] + waves [T, C]                no parameter writes the waves: the columns that x keeps are picked of them

*Loose* labels are those of copies that have met no channels yet (`Flow.loosen`):

    gate.expand(-1, 8, -1, -1)                a convolution that reads the eight copies would miss one: all are pinned
    y * gate.expand(-1, 8, -1, -1)            y's labels stand for both: a copy goes with its channel
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import fx

from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.ir.sizes import comes_again
from prunec.compiler.labels.fields import compress, overlap
from prunec.compiler.labels.flow import Fields, Flow, Pick


def combine(flow: Flow, node: fx.Node, operands: Iterable[tuple[Fields, tuple[int, ...]]]) -> Fields:
    """Unify the labels of operands that node broadcasts against each other; returns the fields of the result.

    `operands` are (fields, shape) pairs, aligned from the last dimension on. Fields that vary along the same dimensions
    unify position by position. Where one of them is a grid and the other varies along some of its dimensions alone, the
    grid stays, and what it loses is decided once all is known (`Flow.meet`). Where a field meets an operand that is as
    wide but has no labels there, positions can't go: a field that is met so along all its dimensions is pinned; of one
    that is met along some (the widths of all heads), all positions that differ along these go together.
    """
    lifted = [(fields, shape) for fields, shape in operands if shape]
    if flow.loose:  # what copies meet stands for them
        lifted.sort(key=lambda operand: any(is_loose(flow, labels) for labels in operand[0]))
    if len(lifted) == 1:
        return lifted[0][0]
    rank = max((len(shape) for _, shape in lifted), default=0)
    sized = [(1,) * (rank - len(shape)) + shape for _, shape in lifted]
    raised = [[_as_known(flow, _lift(flow, f, rank)) for f in fields] for fields, _ in lifted]
    taken: list[IntArray] = []
    for index, fields in enumerate(raised):
        for labels in fields:
            met = labels
            for other, shape in enumerate(sized):
                if other != index:
                    met = _meet(flow, node, met, raised[other], shape)
            _take(taken, met)
    return tuple(taken)


def with_picks(flow: Flow, node: fx.Node) -> list[tuple[Fields, tuple[int, ...]]]:
    """The operands of an elementwise node, as `combine` takes them.

    An operand that no parameter writes (`Flow.parameter_free`) gets labels of its own along dimensions where others
    have channels. It is noted as a `Pick`: once channels go, the node reads the columns that are left of it.
    """
    values = node.all_input_nodes
    for value in values:
        follow_folded(flow, node, value, tuple(f for other in values if other is not value for f in flow.fields(other)))
    operands = [(flow.fields(value), shape_of_argument(value)) for value in values]
    met = [labels for fields, _ in operands for labels in fields]
    for place, value in enumerate(values if met else ()):
        fields, shape = operands[place]
        for dim in _open_dims(flow, fields, shape, met):
            if value not in flow.parameter_free or (node.meta.get("mutates") and node.args[0] is value):
                break
            labels = flow.own(shape[dim])
            flow.count_matters(labels, f"goes with a computed value at {node.name}")
            flow.picks[node] = (*flow.picks.get(node, ()), Pick(value, dim, labels))
            fields += flow.result(labels, len(shape), dim)
        operands[place] = (fields, shape)
    return operands


def operand(flow: Flow, value: object) -> tuple[Fields, tuple[int, ...]]:
    """An argument as `combine` takes it: its fields and its shape."""
    return flow.fields(value), shape_of_argument(value)


def follow_folded(flow: Flow, node: fx.Node, blank: object, met: Fields) -> None:
    """Give zeros that are made for all samples and heads at once, `torch.zeros(n * heads, t, t)`, a label for each head
    that they meet at `node`: their first dimension lies as that of the field that they meet.

    `blank` is the operand that may be such (`Flow.blanks`), `met` are the other's fields. Only their first reader can
    say so: what has read them before took them for fixed.
    """
    chain = _made_for(flow, node, blank)
    shape = shape_of_argument(blank)
    folded = [f for f in met if f.ndim == len(shape) and f.size == f.shape[0] == shape[0] > 1 and comes_again(f, 0)]
    if chain and len(folded) == 1 and all(labels.shape[0] == 1 for labels in flow.fields(blank)):
        heads, lies = np.unique(folded[0], return_inverse=True)
        if len(heads) > 1:
            own = flow.own(len(heads))[lies].reshape(folded[0].shape)
            flow.values.update({value: (*flow.fields(value), own) for value in chain})


def _made_for(flow: Flow, node: fx.Node, blank: object) -> list[fx.Node]:
    """The node that makes an operand of zeros, and those that convert it; none where anything else has read them."""
    chain = [node]
    while blank in flow.blanks:
        assert isinstance(blank, fx.Node)
        if any(user is not chain[-1] and user in flow.values for user in blank.users):
            return []
        chain.append(blank)
        blank = flow.blanks[blank]
    return chain[1:]


def _open_dims(flow: Flow, fields: Fields, shape: tuple[int, ...], met: list[IntArray]) -> Iterator[int]:
    """The dimensions along which an operand has no labels, and others have."""
    for dim, size in enumerate(shape):
        back = dim - len(shape)
        here = [labels for labels in met if labels.ndim >= -back and labels.shape[back] > 1]
        if size == 1 or not here or any(labels.shape[dim] > 1 for labels in fields):
            continue
        if all(labels.shape[back] == size and not flow.is_own(labels) and _is_line_of(labels, back) for labels in here):
            yield dim


def _is_line_of(labels: IntArray, dim: int) -> bool:
    """Whether a position of a dimension is a channel's, and not also a sample's, of a batch that heads are folded into.
    What varies along one dimension alone, and not the first, is taken for such."""
    return (labels.size == labels.shape[dim] and dim > -labels.ndim) or not comes_again(labels, dim)


def _lift(flow: Flow, labels: IntArray, rank: int) -> IntArray:
    """A field at a higher rank: dimensions of size 1 are put before its own."""
    if labels.ndim == rank:
        return labels
    if labels.size == max(labels.shape):
        dim = int(np.argmax(labels.shape)) + rank - labels.ndim
        return flow.result(flow.flat(labels), rank, dim)[0]
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _as_known(flow: Flow, labels: IntArray) -> IntArray:
    """A field, of size 1 along dimensions of which all positions are known to go together (`Flow.squash`)."""
    known = flow.squashed(labels) if labels.size > max(labels.shape) else labels
    return labels if known is labels else compress(known)


def _meet(flow: Flow, node: fx.Node, labels: IntArray, others: list[IntArray], shape: tuple[int, ...]) -> IntArray:
    """A field after it has met one operand (its fields `others`, its shape): unchanged, or of size 1 along dimensions
    that the operand spans without labels."""
    support = [d for d, size in enumerate(labels.shape) if size > 1]
    touching = [other for other in others if any(other.shape[d] > 1 for d in support)]
    for other in touching:
        if _is_within(labels, other) == _is_within(other, labels):
            flow.unify(labels, other, node)
        elif _is_within(other, labels):
            flow.meet(labels, other, node)
    spanned = [d for d in support if shape[d] > 1]
    if touching or not spanned:
        return labels
    if spanned == support:
        flow.pin(labels, f"meets positions that are fixed at {node.name}")
        return labels
    for dim in spanned:
        labels = whole(flow, labels, dim, node)
    return labels


def whole(flow: Flow, labels: IntArray, dim: int, node: fx.Node) -> IntArray:
    """Unify all labels that differ along `dim` alone: single positions of it can't go. Returns the field at size 1
    there."""
    index = [slice(None)] * labels.ndim
    index[dim] = slice(0, 1)
    first = labels[tuple(index)]
    flow.squash(labels, first, node)
    return first


def _is_within(line: IntArray, grid: IntArray) -> bool:
    """Whether a field varies only along dimensions along which another of its rank does, too."""
    return all(a == 1 or b > 1 for a, b in zip(line.shape, grid.shape, strict=True))


def _take(taken: list[IntArray], labels: IntArray) -> None:
    """Add a field. Of those that overlap one is kept: a grid, which knows of the lines that it has met, or of two that
    are unified the one that spans fewer dimensions."""
    for index, other in enumerate(taken):
        if overlap(labels, other):
            inside, around = _is_within(labels, other), _is_within(other, labels)
            fewer = sum(a > 1 for a in labels.shape) < sum(b > 1 for b in other.shape)
            if (around and not inside) or (not inside and not around and fewer):
                taken[index] = labels
            return
    taken.append(labels)


def is_loose(flow: Flow, labels: IntArray) -> bool:
    """Whether any of the field's labels is a loose one."""
    return any(bool(_inside(labels, own).any()) for own in flow.loose)


def pin_loose(flow: Flow, fields: Iterable[IntArray], reason: str) -> None:
    """Pin the loose ones among the fields' labels: for an operation, such as a sum, that would miss a copy."""
    for labels in fields if flow.loose else ():
        for own in flow.loose:
            inside = _inside(labels, own)
            if inside.any():
                flow.pin(labels[inside], reason)


def _inside(labels: IntArray, own: range) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which labels lie in a run of loose ones."""
    return (labels >= own.start) & (labels < own.stop)
