"""Which values can't hold anything below zero, as far as the operations that they come from tell.

    F.max_pool2d(self.conv(x).relu(), 2) * self.gate(x).sigmoid()      never below zero
    self.conv(x)                                                       may be

The largest of several such values stays the largest when zeros join them (`compares_zeros` in ops/reduction.py).
"""

from __future__ import annotations

from typing import Final

from torch import fx

from prunec.compiler.ir.ops import op_name
from prunec.compiler.labels.flow import Flow

_POSITIVE: Final = frozenset(
    """relu relu6 sigmoid hardsigmoid softplus abs absolute square exp exp2 softmax norm linalg_vector_norm
    ReLU ReLU6 Sigmoid Hardsigmoid Softplus Softmax""".split()
)
"""What gives nothing below zero, whatever it gets."""
_VIEWS: Final = frozenset(
    """view reshape flatten unflatten permute transpose squeeze unsqueeze expand getitem chunk split narrow select
    contiguous detach unbind to float double half type expand_as view_as index_select gather Flatten Unflatten
    Identity""".split()
)
"""What may give a view of its first operand."""
_SAME_SIGN: Final = _VIEWS | frozenset(
    """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d dropout dropout2d mean sum amax
    amin clone cat stack flip roll repeat repeat_interleave pixel_shuffle lp_pool2d MaxPool1d MaxPool2d MaxPool3d
    AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d
    AdaptiveMaxPool2d AdaptiveMaxPool3d Dropout Dropout1d Dropout2d Dropout3d PixelShuffle PixelUnshuffle
    ChannelShuffle""".split()
)
"""What gives nothing below zero if its first operand holds nothing below zero."""
_OF_TWO: Final = frozenset({"add", "mul", "truediv"})
"""What gives nothing below zero if neither of its two operands does."""


def not_negative(flow: Flow, value: object, depth: int = 32) -> bool:
    """Whether a value (a node, a number, or several of them) holds nothing below zero for certain.

    Looks at most `depth` operations back. What is written into in place counts as negative.
    """
    if isinstance(value, int | float):
        return value >= 0
    if isinstance(value, tuple | list):
        return all(not_negative(flow, part, depth) for part in value)
    if not isinstance(value, fx.Node) or depth == 0 or not value.op.startswith("call") or _is_written_to(value):
        return False
    name = _name(flow, value)
    if name in _POSITIVE:
        return True
    count = 2 if name in _OF_TWO else 1 if name in _SAME_SIGN else 0
    operands = value.args[:count]
    return bool(operands) and all(not_negative(flow, part, depth - 1) for part in operands)


def _name(flow: Flow, node: fx.Node) -> str:
    return type(flow.program.state[str(node.target)]).__name__ if node.op == "call_module" else op_name(node)


def _is_written_to(node: fx.Node) -> bool:
    """Whether anything writes into the value, or into a view of it."""
    return any(
        user.meta.get("mutates") or (user.op != "call_module" and op_name(user) in _VIEWS and _is_written_to(user))
        for user in node.users
        if user.op != "output"
    )
