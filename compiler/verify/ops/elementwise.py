"""Marks of elementwise operations: removed where any operand is, provided that nothing kept is lost by that.

a    K R K K        a + b    K R K K
b    K R K K        a * c    K R K K      constants (FREE) go with what they meet
c    F F F F        a + d    an error: an element of d is kept, and would be lost
d    K K K K
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec.compiler.ir.ops import words
from prunec.compiler.verify.masks import Call, full_marks, mark, marks_of, meet, plain
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row(
    *words("""
        add iadd radd sub isub rsub subtract mul imul multiply div truediv itruediv divide floordiv floor_divide
        pow neg negative abs exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos tan tanh erf sigmoid
        round floor ceil trunc sign where masked_fill clamp clip clamp_min clamp_max minimum maximum eq ne lt le
        gt ge and_ or_ xor invert not_ logical_and logical_or logical_not isnan isinf nan_to_num lerp addcmul
        addcdiv atan2 fmod remainder mod pos relu relu6 leaky_relu elu selu celu gelu silu mish softplus
        softsign hardtanh hardsigmoid hardswish hardshrink softshrink tanhshrink threshold _threshold
        logsigmoid rrelu type
        float half bfloat16 double int long bool contiguous clone detach dropout dropout1d dropout2d dropout3d
        alpha_dropout feature_dropout identity copy requires_grad expand_as absolute acos asin atan cosh sinh
        erfc exp2 bitwise_and bitwise_or bitwise_not copysign fmax fmin frac heaviside hypot isfinite log10
        logical_xor positive xlogy true_divide alias cpu feature_alpha_dropout fill zero as_tensor asarray
        by_mode complex polar conj conj_physical resolve_conj resolve_neg angle real imag
    """)
)
def elementwise(call: Call) -> Any:
    """`add`, `relu`, `where` and their like; see `verify.masks.meet`."""
    data = call.plain()
    return mark(data, meet(call, call.operands(), data.shape))


@row("to", "type_as")
def _converted(call: Call) -> Any:
    """`x.to(...)`, `x.type_as(y)`: x's marks. Of y only the dtype is read."""
    data = call.plain()
    return mark(data, marks_of(call.args[0])) if isinstance(data, Tensor) else data


@row("glu")
def _gated(call: Call) -> Any:
    """GLU: one half of a dimension times the sigmoid of the other; both must lose the same."""
    data = call.plain()
    bound = call.bind("input", "dim")
    dim = -1 if bound["dim"] is None else bound["dim"]
    halves = zip(
        plain(bound["input"]).chunk(2, dim), full_marks(bound["input"]).to(torch.uint8).chunk(2, dim), strict=True
    )
    return mark(data, meet(call, [mark(x, m) for x, m in halves], data.shape))


row("size", "dim", "ndimension", "numel", "stride", "is_floating_point")(moved)
