"""Products that sum over a dimension which both operands have: matmul, einsum, attention.

    x [N, T, C] @ y [C, D]                    each channel of x goes with a row of y; D is left
    q [N, heads, T, d] @ k^T                  whole heads go: all that share one are summed together
    q, by head_width                          or the same position of every head's d (`labels/heads.py`)

Labels along the contracted dimension unify. Where they vary along a batch dimension too (an attention head), a label
can only go with all that the sum runs over, so that the head is the unit, unless the granularity is `head_width`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from prunec.compiler.ir.ops import argument, elements, op_name, rank_of, shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray
from prunec.compiler.labels.broadcast import combine, follow_folded, operand, pin_loose, whole
from prunec.compiler.labels.flow import FIXED, Fields, Flow, Labelled
from prunec.compiler.labels.heads import divided
from prunec.compiler.labels.propagate import count_macs, unknown
from prunec.compiler.labels.registry import Slim, on_op, rewriter

Operand = tuple[Fields, tuple[int, ...]]


@on_op("matmul", "bmm", "mm", "mv", "__matmul__", carries_copies=True)
def matmul(flow: Flow, node: fx.Node) -> Labelled:
    """[..., m, k] by [..., k, n]; a vector is a matrix of one row or column."""
    name = _SECOND.get(op_name(node), "other")
    left, right = operand(flow, argument(node, 0, "input")), operand(flow, argument(node, 1, name))
    row, column = len(left[1]) == 1, len(right[1]) == 1
    if row:
        left = tuple(f[None] for f in left[0]), (1, *left[1])
    if column:
        right = tuple(f[:, None] for f in right[0]), (*right[1], 1)
    gone = tuple(dim for dim, single in ((-2, row), (-1, column)) if single)
    axis = None if row or column else _weight(flow, node, argument(node, 0, "input"), argument(node, 1, name))
    fields = _product(flow, node, left, right, rank_of(node) + len(gone), axis)
    return flow.moved((np.squeeze(f, gone) for f in fields), node) if gone else fields


_SECOND = {"mm": "mat2", "bmm": "mat2", "mv": "vec"}


@on_op("addmm", "baddbmm", carries_copies=True)
def added_product(flow: Flow, node: fx.Node) -> Labelled:
    """A product that is added to a third operand."""
    names = ("mat1", "mat2") if op_name(node) == "addmm" else ("batch1", "batch2")
    first, second = (argument(node, i, name) for i, name in enumerate(names, start=1))
    left, right = operand(flow, first), operand(flow, second)
    shape = shape_of_argument(node)
    fields = _product(flow, node, left, right, len(shape), _weight(flow, node, first, second))
    added = argument(node, 0, "input")
    follow_folded(flow, node, added, fields)
    return combine(flow, node, (operand(flow, added), (fields, shape)))


@on_op("outer", "ger", carries_copies=True)
def outer(flow: Flow, node: fx.Node) -> Labelled:
    """Each element of one vector times each of another."""
    (left, rows), (right, columns) = (operand(flow, argument(node, i, n)) for i, n in enumerate(("input", "vec2")))
    lifted = ((tuple(f[:, None] for f in left), (*rows, 1)), (tuple(f[None] for f in right), (1, *columns)))
    return combine(flow, node, lifted)


def _weight(flow: Flow, node: fx.Node, left: object, right: object) -> Axis | None:
    """The axis of a matrix along which a product adds up, where one of its operands is a parameter. Of two parameters
    neither is the other's weight."""
    if all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (left, right)):
        return None
    found = [(each, dim) for each, dim in ((right, 0), (left, 1)) if len(shape_of_argument(each)) == 2]
    axes = (flow.weight_along(each, dim, node) for each, dim in found)
    return next((axis for axis in axes if axis is not None), None)


def _product(flow: Flow, node: fx.Node, left: Operand, right: Operand, rank: int, weight: Axis | None) -> Fields:
    """The fields of a matrix product [..., m, k] by [..., k, n], whose value has that rank; `weight` is the axis of a
    parameter along which it adds up."""
    left, right = _by_columns(flow, node, *divided(flow, node, (left, right), inner=(-2, -1)))
    flat, a_rest, b_rest = contracted(flow, node, (left, -1), (right, -2), weight)
    a_shape = (1,) * (rank - len(left[1])) + (*left[1][:-1], 1)
    b_shape = (1,) * (rank - len(right[1])) + (*right[1][:-2], 1, right[1][-1])
    fields = combine(flow, node, ((a_rest, a_shape), (b_rest, b_shape)))
    count_macs(flow, node, elements(shape_of_argument(node)) * left[1][-1], (flat, *fields))
    return fields


def _by_columns(flow: Flow, node: fx.Node, left: Operand, right: Operand) -> tuple[Operand, Operand]:
    """The factors of a product of two blocks [features, width] over their width, so that it loses the same width of
    every feature: the features are what the result's rows and columns stand for, so they stay."""
    pair = [(left, -1, -2), (right, -2, -1)]
    blocks = [[f for f in value[0] if f.shape[inner] > 1] for value, inner, _ in pair]
    if not all(blocks) or any(f.size != f.shape[-1] * f.shape[-2] or 1 in f.shape[-2:] for fs in blocks for f in fs):
        return left, right
    narrow = []
    for value, _, outer in pair:
        fields = [whole(flow, f, outer % f.ndim, node) if min(f.shape[-2:]) > 1 else f for f in value[0]]
        narrow.append((flow.moved(fields, node), value[1]))
    return narrow[0], narrow[1]


def contracted(
    flow: Flow, node: fx.Node, left: tuple[Operand, int], right: tuple[Operand, int], weight: Axis | None = None
) -> tuple[IntArray, Fields, Fields]:
    """The labels along the dimension that two operands share, flat, and each operand's other fields, at size 1 there.

    `left` and `right` are an operand and its contracted dimension. A field that varies along other dimensions too (the
    widths of all heads) goes as a whole along them, unless the other operand has the same widths for all of them.
    """
    (a_fields, a_rest), (b_fields, b_rest) = (_along(value[0], dim) for value, dim in (left, right))
    pin_loose(flow, (*a_fields, *b_fields), f"is one of several copies that {node.name} adds up")
    for fields, dim in ((a_fields, left[1]), (b_fields, right[1])):
        for labels in fields:
            flow.count_matters(labels, f"is contracted at {node.name}", along=dim, weight=weight)
    size = left[0][1][left[1]]
    flat = _common(flow, node, [(f, left[1]) for f in a_fields] + [(f, right[1]) for f in b_fields], size)
    if flat is None:
        a_rest += flow.moved((whole(flow, f, left[1] % f.ndim, node) for f in a_fields), node)
        b_rest += flow.moved((whole(flow, f, right[1] % f.ndim, node) for f in b_fields), node)
        return np.full(size, FIXED, dtype=np.int64), a_rest, b_rest
    for mine in (a_fields, b_fields):
        if not mine:
            flow.unify(flat, np.full(size, FIXED, dtype=np.int64), node)
    return flat, a_rest, b_rest


def _along(fields: Fields, dim: int) -> tuple[Fields, Fields]:
    """The fields that vary along a dimension, and those that don't."""
    return tuple(f for f in fields if f.shape[dim] > 1), tuple(f for f in fields if f.shape[dim] == 1)


def _common(flow: Flow, node: fx.Node, fields: list[tuple[IntArray, int]], size: int) -> IntArray | None:
    """A dimension's flat labels, unified with all that varies along it; None where no field varies along it alone."""
    flat = next((flow.flat(f) for f, _ in fields if f.size == size), None)
    if flat is None:
        return None
    for labels, dim in fields:
        behind = labels.ndim - 1 - dim % labels.ndim
        flow.unify(flat.reshape(-1, *[1] * behind), labels, node)
    return flat


# -- einsum --------------------------------------------------------------------------------------------------------


@on_op("einsum", carries_copies=True)
def einsum(flow: Flow, node: fx.Node) -> Labelled:
    """Every letter is a dimension of one large product, which is summed over the letters that the result lacks.

    'bchw,cd->bdhw': the operands as [b, c, h, w, d] of size 1 where they lack a letter, multiplied, summed over c.
    """
    equation, operands = node.args[0], node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    parsed = letters_of(equation, [len(shape_of_argument(value)) for value in operands])
    if parsed is None:
        return unknown(flow, node)
    terms, result = parsed
    letters = list(dict.fromkeys("".join(terms)))
    spread = [_spread(operand(flow, value), term, letters) for value, term in zip(operands, terms, strict=True)]
    single = [d for d, letter in enumerate(letters) if letter not in result or sum(letter in t for t in terms) == 1]
    spread = divided(flow, node, spread, inner=[d - len(letters) for d in single])
    summed = [d for d, letter in enumerate(letters) if letter not in result]
    for dim, labels in ((d, f) for d in summed for fs, _ in spread for f in fs):
        pin_loose(
            flow, (labels,) if labels.shape[dim] > 1 else (), f"is one of several copies that {node.name} adds up"
        )
    fields = combine(flow, node, spread)
    sizes = [max(shape[d] for _, shape in spread) for d in range(len(letters))]
    count_macs(flow, node, elements(sizes), fields)
    for dim in summed:
        fields = _summed(flow, node, fields, dim, sum(letters[dim] in term for term in terms))
    order = [letters.index(letter) for letter in result]
    moved = (np.transpose(np.squeeze(f, tuple(summed)), _ranks(order)) for f in fields)
    return flow.moved(moved, node)


def letters_of(equation: object, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The operands' letters and the result's; None where a letter comes twice in one of them (a diagonal).

    The dimensions that an ellipsis stands for are broadcast from the last one on: they get characters of their own.
    """
    if not isinstance(equation, str):
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    widths = [rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    dots = "".join(chr(_ELLIPSIS + i) for i in range(max(widths, default=0)))
    spelled = [
        term.replace("...", dots[len(dots) - (rank - len(term) + 3) :]) for term, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        single = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        result = "..." * bool(dots) + "".join(single)
    result = result.replace("...", dots)
    return (spelled, result) if all(len(set(term)) == len(term) for term in (*spelled, result)) else None


_ELLIPSIS = ord("0")
"""The character of the first dimension of an ellipsis: letters are none of these."""


def _spread(value: Operand, term: str, letters: Sequence[str]) -> Operand:
    """An operand with one dimension for each letter, of size 1 where it lacks the letter."""
    fields, shape = value
    order = np.argsort([letters.index(letter) for letter in term], kind="stable")
    absent = [d for d, letter in enumerate(letters) if letter not in term]
    spread = tuple(np.expand_dims(np.transpose(f, order), absent) for f in fields)
    return spread, tuple(shape[term.index(letter)] if letter in term else 1 for letter in letters)


def _summed(flow: Flow, node: fx.Node, fields: Fields, dim: int, factors: int) -> Fields:
    """The fields after a sum over `dim`; labels along a dimension that one factor alone has are pinned."""
    rest: list[IntArray] = []
    for labels in fields:
        if labels.shape[dim] == 1:
            rest.append(labels)
        elif factors == 1:
            flow.pin(labels, f"is reduced over at {node.name}")
        else:
            flow.count_matters(labels, f"is contracted at {node.name}", along=dim)
            rest += [] if labels.size == labels.shape[dim] else flow.moved((whole(flow, labels, dim, node),), node)
    return tuple(rest)


def _ranks(order: Sequence[int]) -> list[int]:
    """Dimensions renumbered from 0, in their order, once all others are gone."""
    left = sorted(order)
    return [left.index(dim) for dim in order]


# -- attention -----------------------------------------------------------------------------------------------------


@on_op("scaled_dot_product_attention", carries_copies=True)
def attention(flow: Flow, node: fx.Node) -> Labelled:
    """softmax(q k^T) v, as two contractions with a softmax over the keys between them."""
    query, key, value = (operand(flow, argument(node, i, n)) for i, n in enumerate(("query", "key", "value")))
    if flow.constant(argument(node, 7, "enable_gqa", False)):
        key, value = (_repeated(shared, query[1][-3]) for shared in (key, value))
    mask = argument(node, 3, "attn_mask")
    given = [query, key, value, *([operand(flow, mask)] if isinstance(mask, fx.Node) else [])]
    factors = divided(flow, node, given, inner=(-2, -1))
    (_, q_shape), (_, k_shape), (v_fields, v_shape) = factors[:3]
    flat, rest_q, rest_k = contracted(flow, node, (factors[0], -1), (factors[1], -1))
    parts = [_heads(flow, node, rest_q, q_shape), _heads(flow, node, rest_k, k_shape)]
    parts += [_heads(flow, node, *factor) for factor in factors[3:]]
    scores = combine(flow, node, parts)
    summed, out = _along(v_fields, -2)
    flow.pin_all(summed, f"is summed over at {node.name}")
    shapes = ((*v_shape[:-2], 1, v_shape[-1]), (*q_shape[:-2], 1, 1))
    fields = combine(flow, node, zip((out, scores), shapes, strict=True))
    tokens = elements(q_shape[:-1]) * k_shape[-2]
    count_macs(flow, node, tokens * q_shape[-1], (flat, *scores))
    count_macs(flow, node, tokens * v_shape[-1], fields)
    return fields


def _repeated(value: Operand, heads: int) -> Operand:
    """Keys or values of fewer heads than the queries have: each serves as many queries, one after the other."""
    fields, shape = value
    times = heads // shape[-3]
    wide = tuple(np.repeat(f, times, axis=-3) if f.shape[-3] > 1 else f for f in fields)
    return wide, (*shape[:-3], heads, *shape[-2:])


def _heads(flow: Flow, node: fx.Node, fields: Fields, shape: tuple[int, ...]) -> Operand:
    """An operand without its tokens and width: labels along batch and heads pass, those along tokens are pinned."""
    heads = tuple(f for f in fields if all(size == 1 for size in f.shape[-2:]))
    flow.pin_all((f for f in fields if all(f is not h for h in heads)), f"is a token of {node.name}")
    return heads, (*shape[:-2], 1, 1)


@rewriter("scaled_dot_product_attention")
def attention_scale(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Keep the scale: where none is given, torch takes it from the width, and that is smaller now."""
    query = argument(old, 0, "query")
    width = shape_of_argument(query)[-1]
    if old.kwargs.get("scale") is None and slim.shape(query)[-1] != width:
        new.kwargs = {**new.kwargs, "scale": width**-0.5}
