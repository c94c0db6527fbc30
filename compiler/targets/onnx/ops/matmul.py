"""Products of tensors: matrices, einsum, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from prunec.compiler.targets.onnx.call import Call, on_op


@on_op("matmul", "bmm", "mm", "mv")
def matmul(call: Call) -> str:
    """A product of matrices, with torch's rules for vectors and batches."""
    left, right = call.given(0, "input"), call.given(1, "other")
    right = call.given(1, "mat2") if right is None else right
    return call.add("MatMul", call.name(left), call.name(right))


@on_op("addmm", "baddbmm")
def add_product(call: Call) -> str:
    """beta * input + alpha * a @ b."""
    if call.literal(3, "beta", 1) != 1 or call.literal(4, "alpha", 1) != 1:
        call.decline("it has factors")
    product = call.add("MatMul", call.name(call.given(1, "mat1")), call.name(call.given(2, "mat2")))
    return call.add("Add", product, call.name(call.subject))


@on_op("einsum")
def einsum(call: Call) -> str:
    """Two operands become one MatMul where each letter is a batch, a contracted one, or of one side; else Einsum."""
    equation = str(call.literal(0, "equation")).replace(" ", "")
    operands: Any = call.node.args[1:]
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if "->" not in equation or "." in equation or len({call.dtype_of(x) for x in operands}) > 1:
        call.decline("an equation of this form")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if any(len(set(term)) < len(term) for term in (*terms, output)):
        call.decline("a letter stands twice in a term")
    if len(operands) == 2:
        product = _as_product(call, terms, output, operands)
        if product is not None:
            return product
    order = {letter: chr(ord("a") + place) for place, letter in enumerate(dict.fromkeys(inputs.replace(",", "")))}
    plain = "".join(order.get(letter, letter) for letter in equation)
    return call.add("Einsum", *(call.name(x) for x in operands), equation=plain)


def _as_product(call: Call, terms: Sequence[str], output: str, operands: Sequence[Any]) -> str | None:
    left, right = terms
    batch = [x for x in output if x in left and x in right]
    summed = [x for x in left if x in right and x not in output]
    rows, columns = ([x for x in output if x in mine and x not in other] for mine, other in (terms, terms[::-1]))
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1:
        return None
    if len(left) != len(batch) + 2 or len(right) != len(batch) + 2:
        return None
    first = call.transposed(call.name(operands[0]), [left.index(x) for x in (*batch, *rows, *summed)])
    second = call.transposed(call.name(operands[1]), [right.index(x) for x in (*batch, *summed, *columns)])
    made = [*batch, *rows, *columns]
    return call.transposed(call.add("MatMul", first, second), [made.index(x) for x in output])


@on_op("scaled_dot_product_attention")
def attention(call: Call) -> str:
    """softmax(q @ k.T * scale + mask) @ v."""
    query, key, value = (call.given(place, name) for place, name in enumerate(("query", "key", "value")))
    if call.literal(4, "dropout_p", 0.0):
        call.decline("it drops values also in eval mode")
    if call.given(7, "enable_gqa", False):
        call.decline("its heads share keys")
    rank = call.rank_of(query)
    width = call.fixed_shape_of(query, [-1])[0]
    scale = call.literal(6, "scale")
    scale = 1 / math.sqrt(width) if scale is None else float(scale)
    turned = call.transposed(call.name(key), [*range(rank - 2), rank - 1, rank - 2])
    scores = call.add("MatMul", call.add("Mul", call.name(query), call.scalar(scale)), turned)
    for mask in _masks(call, query, key):
        scores = call.add("Add", scores, mask)
    return call.add("MatMul", call.add("Softmax", scores, axis=-1), call.name(value))


def _masks(call: Call, query: Any, key: Any) -> list[str]:
    """What is added to the scores."""
    found = []
    mask = call.given(3, "attn_mask")
    if mask is not None and call.dtype_of(mask) is torch.bool:
        fixed = call.constant(mask)
        if fixed is None or not bool(fixed.any(-1).all()):
            call.decline("its mask may hide everything")
        found.append(call.graph.tensor(_hidden(fixed, call.dtype)))
    elif mask is not None:
        found.append(call.name(mask, call.dtype))
    if call.literal(5, "is_causal", False):
        rows, columns = call.fixed_shape_of(query, [-2])[0], call.fixed_shape_of(key, [-2])[0]
        allowed = torch.ones(rows, columns, dtype=torch.bool).tril()
        found.append(call.graph.tensor(_hidden(allowed, call.dtype)))
    return found


def _hidden(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Zero where attention is allowed, minus infinity elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -math.inf)
