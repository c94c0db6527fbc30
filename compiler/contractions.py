"""Products that sum over a dimension which both operands have: matmul, einsum, attention.

Labels along the contracted dimension unify. A label that varies along a batch dimension too (an attention head) can
only go with all that the sum runs over, so the head becomes the unit; or, where a plan divides it so, the same
position of every head (`heads.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from prunec.compiler.heads import by_width
from prunec.compiler.ir import IntArray
from prunec.compiler.labels import FIXED, Fields, Flow, Labelled, elements, shape_of_argument
from prunec.compiler.rules import argument, combine, count_macs, on_op, op_name, operand, rank_of, unknown

Operand = tuple[Fields, tuple[int, ...]]


@on_op("matmul", "bmm", "mm", "__matmul__")
def matmul(flow: Flow, node: fx.Node) -> Labelled:
    """[..., m, k] by [..., k, n]."""
    left, right = argument(node, 0, "input"), argument(node, 1, "mat2" if op_name(node) in ("mm", "bmm") else "other")
    return _product(flow, node, operand(flow, left), operand(flow, right))


def _product(flow: Flow, node: fx.Node, left: Operand, right: Operand) -> Fields:
    rank = rank_of(node)
    if min(len(left[1]), len(right[1])) < 2:
        flow.pin_all((*left[0], *right[0]), f"is contracted with a vector at {node.name}")
        return ()
    left, right = by_width(flow, node, (left, right), inner=(-2, -1))
    a_flat, a_rest = _contracted(flow, node, left, -1)
    b_flat, b_rest = _contracted(flow, node, right, -2)
    flow.unify(a_flat, b_flat, node)
    a_shape = (1,) * (rank - len(left[1])) + (*left[1][:-1], 1)
    b_shape = (1,) * (rank - len(right[1])) + (*right[1][:-2], 1, right[1][-1])
    fields = combine(flow, node, ((a_rest, a_shape), (b_rest, b_shape)))
    count_macs(flow, node, elements(shape_of_argument(node)) * left[1][-1], (a_flat, *fields))
    return fields


def _contracted(flow: Flow, node: fx.Node, value: Operand, dim: int) -> tuple[IntArray, Fields]:
    """The labels along the contracted dimension, and the fields that are left when it is gone (of size 1)."""
    flat = np.full(value[1][dim], FIXED, dtype=np.int64)
    rest: list[IntArray] = []
    for labels in value[0]:
        if labels.shape[dim] == 1:
            rest.append(labels)
            continue
        flow.count_matters(labels.reshape(-1), f"contracted at {node.name}")
        if labels.size == labels.shape[dim]:
            flat = flow.flat(labels)
        else:
            rest += flow.moved((whole(flow, labels, dim, node),), node)
    return flat, tuple(rest)


def whole(flow: Flow, labels: IntArray, dim: int, node: fx.Node) -> IntArray:
    """The field at size 1 along `dim`, with all that differ along it unified."""
    index = [slice(None)] * labels.ndim
    index[dim] = slice(0, 1)
    first = labels[tuple(index)]
    flow.unify(labels, np.broadcast_to(first, labels.shape), node)
    return first


# -- einsum --------------------------------------------------------------------------------------------------------


@on_op("einsum")
def einsum(flow: Flow, node: fx.Node) -> Labelled:
    """Every letter is a dimension of one large product, which is summed over the letters that the result lacks.

    'bchw,cd->bdhw': the operands as [b, c, h, w, d] of size 1 where they lack a letter, multiplied, summed over c.
    """
    equation, operands = node.args[0], node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    parsed = _letters(equation, len(operands))
    if parsed is None:
        return unknown(flow, node)
    terms, result = parsed
    letters = list(dict.fromkeys("".join(terms)))
    spread = [_spread(operand(flow, value), term, letters) for value, term in zip(operands, terms, strict=True)]
    single = [d for d, letter in enumerate(letters) if letter not in result or sum(letter in t for t in terms) == 1]
    spread = by_width(flow, node, spread, inner=[d - len(letters) for d in single])
    summed = [d for d, letter in enumerate(letters) if letter not in result]
    fields = combine(flow, node, spread)
    sizes = [max(shape[d] for _, shape in spread) for d in range(len(letters))]
    count_macs(flow, node, elements(sizes), fields)
    for dim in summed:
        fields = _summed(flow, node, fields, dim, sum(letters[dim] in term for term in terms))
    order = [letters.index(letter) for letter in result]
    moved = (np.transpose(np.squeeze(f, tuple(summed)), _ranks(order)) for f in fields)
    return flow.moved(moved, node)


def _letters(equation: object, count: int) -> tuple[list[str], str] | None:
    """The operands' letters and the result's; None where an ellipsis or a diagonal is asked for."""
    if not isinstance(equation, str) or "." in equation:
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        result = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    plain = len(terms) == count and all(len(set(term)) == len(term) for term in (*terms, result))
    return (terms, result) if plain else None


def _spread(value: Operand, term: str, letters: Sequence[str]) -> Operand:
    """An operand with one dimension a letter."""
    fields, shape = value
    order = np.argsort([letters.index(letter) for letter in term], kind="stable")
    absent = [d for d, letter in enumerate(letters) if letter not in term]
    spread = tuple(np.expand_dims(np.transpose(f, order), absent) for f in fields)
    return spread, tuple(shape[term.index(letter)] if letter in term else 1 for letter in letters)


def _summed(flow: Flow, node: fx.Node, fields: Fields, dim: int, factors: int) -> Fields:
    """The fields after a sum over `dim`. A sum that only one factor takes part in is a reduction like any other."""
    rest: list[IntArray] = []
    for labels in fields:
        if labels.shape[dim] == 1:
            rest.append(labels)
        elif factors == 1:
            flow.pin(labels, f"is reduced over at {node.name}")
        else:
            flow.count_matters(labels.reshape(-1), f"contracted at {node.name}")
            rest += [] if labels.size == labels.shape[dim] else flow.moved((whole(flow, labels, dim, node),), node)
    return tuple(rest)


def _ranks(order: Sequence[int]) -> list[int]:
    """Dimensions renumbered from 0 once the others are gone."""
    left = sorted(order)
    return [left.index(dim) for dim in order]


# -- attention -----------------------------------------------------------------------------------------------------


@on_op("scaled_dot_product_attention")
def attention(flow: Flow, node: fx.Node) -> Labelled:
    """softmax(q k^T) v, as two contractions with a softmax over the keys between them."""
    query, key, value = (argument(node, i, n) for i, n in enumerate(("query", "key", "value")))
    if argument(node, 7, "enable_gqa", False):
        return unknown(flow, node)
    mask = argument(node, 3, "attn_mask")
    given = [operand(flow, factor) for factor in (query, key, value, mask) if factor is not None]
    factors = by_width(flow, node, given, inner=(-2, -1))
    (_, q_shape), (_, k_shape), (v_fields, v_shape) = factors[:3]
    flat_q, rest_q = _contracted(flow, node, factors[0], -1)
    flat_k, rest_k = _contracted(flow, node, factors[1], -1)
    flow.unify(flat_q, flat_k, node)
    parts = [_heads(flow, node, rest_q, q_shape), _heads(flow, node, rest_k, k_shape)]
    parts += [_heads(flow, node, *factor) for factor in factors[3:]]
    scores = combine(flow, node, parts)
    summed = tuple(labels for labels in v_fields if labels.shape[-2] > 1)
    flow.pin_all(summed, f"is summed over at {node.name}")
    out = tuple(labels for labels in v_fields if labels.shape[-2] == 1)
    shapes = ((*v_shape[:-2], 1, v_shape[-1]), (*q_shape[:-2], 1, 1))
    fields = combine(flow, node, zip((out, scores), shapes, strict=True))
    tokens = elements(q_shape[:-1]) * k_shape[-2]
    count_macs(flow, node, tokens * q_shape[-1], (flat_q, *scores))
    count_macs(flow, node, tokens * v_shape[-1], fields)
    return fields


def _heads(flow: Flow, node: fx.Node, fields: Fields, shape: tuple[int, ...]) -> Operand:
    """What varies over batch and heads only; what varies over tokens is pinned."""
    heads = tuple(f for f in fields if all(size == 1 for size in f.shape[-2:]))
    flow.pin_all((f for f in fields if all(f is not h for h in heads)), f"is a token of {node.name}")
    return heads, (*shape[:-2], 1, 1)
