"""Elementwise operations: activations, arithmetic with torch's rules of types, comparisons, choices, casts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op

_PLAIN: Final[Mapping[str, str]] = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "sin": "Sin",
    "cos": "Cos",
    "erf": "Erf",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "softsign": "Softsign",
    "mish": "Mish",
    "reciprocal": "Reciprocal",
}
_KEEPING: Final[Mapping[str, str]] = {"abs": "Abs", "absolute": "Abs", "neg": "Neg", "negative": "Neg"}
"""Those that whole numbers have, too."""


def _one(kind: str, *names: str, floating: bool = True) -> None:
    @on_op(*names)
    def row(call: Call) -> str:
        if floating and not call.dtype_of(call.subject).is_floating_point and kind in {"Floor", "Ceil", "Round"}:
            return call.first
        if names[0] == "round" and call.literal(1, "decimals", 0):
            call.decline("it rounds to decimals")
        return call.add(kind, call.name(call.subject, call.dtype))


for _name, _kind in _PLAIN.items():
    _one(_kind, _name)
for _name, _kind in _KEEPING.items():
    _one(_kind, _name, floating=False)


@on_module(nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Mish)
def activation(call: Call) -> str:
    """Activations without options."""
    kinds = {nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh", nn.Softsign: "Softsign", nn.Mish: "Mish"}
    return call.add(next(kind for cls, kind in kinds.items() if isinstance(call.module, cls)), call.first)


def _bounded(call: Call, low: float | None, high: float | None) -> str:
    name = call.name(call.subject, call.dtype)
    bounds = ["" if bound is None else call.scalar(bound) for bound in (low, high)]
    return call.add("Clip", name, *(bounds if high is not None else bounds[:1]))


@on_module(nn.ReLU6)
@on_op("relu6")
def relu6(call: Call) -> str:
    """min(max(0, x), 6)."""
    return _bounded(call, 0.0, 6.0)


@on_module(nn.Hardtanh)
@on_op("hardtanh")
def hardtanh(call: Call) -> str:
    """Between two bounds."""
    return _bounded(call, call.option(1, "min_val", -1.0), call.option(2, "max_val", 1.0))


@on_op("clamp", "clip", "clamp_min", "clamp_max")
def clamp(call: Call) -> str:
    """Between bounds that are numbers or tensors; either may be missing."""
    kind = call.kind
    low = None if kind == "clamp_max" else call.given(1, "min")
    high = call.given(1, "max") if kind == "clamp_max" else call.given(2, "max")
    if not any(call.is_tensor(bound) for bound in (low, high)):
        return _bounded(call, call.plain(low), call.plain(high))
    name = call.name(call.subject, call.dtype)
    name = name if low is None else call.add("Max", name, call.name(low, call.dtype))
    return name if high is None else call.add("Min", name, call.name(high, call.dtype))


@on_module(nn.Hardswish)
@on_op("hardswish")
def hardswish(call: Call) -> str:
    """x * relu6(x + 3) / 6."""
    return call.add("HardSwish", call.first)


@on_module(nn.Hardsigmoid)
@on_op("hardsigmoid")
def hardsigmoid(call: Call) -> str:
    """relu6(x + 3) / 6."""
    return call.add("HardSigmoid", call.first, alpha=1 / 6, beta=0.5)


@on_module(nn.SiLU)
@on_op("silu")
def silu(call: Call) -> str:
    """x * sigmoid(x)."""
    name = call.first
    return call.add("Mul", name, call.add("Sigmoid", name))


@on_module(nn.GELU)
@on_op("gelu")
def gelu(call: Call) -> str:
    """x * Phi(x), exactly or by tanh."""
    name, kind = call.first, str(call.option(1, "approximate", "none"))
    if call.graph.opset >= 20:
        return call.add("Gelu", name, approximate=kind)
    half = call.add("Mul", name, call.scalar(0.5))
    if kind == "none":
        inner = call.add("Erf", call.add("Mul", name, call.scalar(math.sqrt(0.5))))
    else:
        cube = call.add("Mul", call.add("Mul", name, name), name)
        sum_ = call.add("Add", name, call.add("Mul", cube, call.scalar(0.044715)))
        inner = call.add("Tanh", call.add("Mul", sum_, call.scalar(math.sqrt(2 / math.pi))))
    return call.add("Mul", half, call.add("Add", inner, call.scalar(1.0)))


@on_module(nn.LeakyReLU)
@on_op("leaky_relu")
def leaky_relu(call: Call) -> str:
    """x where positive, else slope * x."""
    return call.add("LeakyRelu", call.first, alpha=float(call.option(1, "negative_slope", 0.01)))


@on_module(nn.ELU)
@on_op("elu")
def elu(call: Call) -> str:
    """x where positive, else alpha * (exp(x) - 1)."""
    if not call.is_module and (call.literal(2, "scale", 1.0) != 1.0 or call.literal(3, "input_scale", 1.0) != 1.0):
        call.decline("it has scales")  # torch's own functions give none
    return call.add("Elu", call.first, alpha=float(call.option(1, "alpha", 1.0)))


@on_module(nn.SELU)
@on_op("selu")
def selu(call: Call) -> str:
    """ELU with the constants that keep mean and variance."""
    return call.add("Selu", call.first, alpha=1.6732632423543772, gamma=1.0507009873554805)


@on_module(nn.CELU)
@on_op("celu")
def celu(call: Call) -> str:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return call.add("Celu", call.first, alpha=float(call.option(1, "alpha", 1.0)))


@on_module(nn.Softplus)
@on_op("softplus")
def softplus(call: Call) -> str:
    """log(1 + exp(beta * x)) / beta; above the threshold it is x to the last digit."""
    beta, threshold = float(call.option(1, "beta", 1.0)), float(call.option(2, "threshold", 20.0))
    if threshold < 17:
        call.decline("its threshold cuts early")
    if beta == 1:
        return call.add("Softplus", call.first)
    inner = call.add("Softplus", call.add("Mul", call.first, call.scalar(beta)))
    return call.add("Div", inner, call.scalar(beta))


@on_module(nn.LogSigmoid)
@on_op("log_sigmoid")
def log_sigmoid(call: Call) -> str:
    """-softplus(-x)."""
    return call.add("Neg", call.add("Softplus", call.add("Neg", call.first)))


@on_module(nn.Tanhshrink)
@on_op("tanhshrink")
def tanhshrink(call: Call) -> str:
    """x - tanh(x)."""
    return call.add("Sub", call.first, call.add("Tanh", call.first))


@on_module(nn.Softshrink, nn.Hardshrink)
@on_op("softshrink", "hardshrink")
def shrink(call: Call) -> str:
    """Zero near zero; soft, the rest moves towards zero."""
    soft = call.kind.lower() == "softshrink"
    lambd = float(call.option(1, "lambd", 0.5))
    return call.add("Shrink", call.first, lambd=lambd, bias=lambd if soft else 0.0)


@on_module(nn.Threshold)
@on_op("_threshold")
def threshold(call: Call) -> str:
    """x above the threshold, else a value."""
    above = call.add("Greater", call.first, call.scalar(call.option(1, "threshold")))
    return call.add("Where", above, call.first, call.scalar(call.option(2, "value")))


@on_module(nn.GLU)
@on_op("glu")
def glu(call: Call) -> str:
    """One half times the sigmoid of the other."""
    axis = call.bound(call.option(1, "dim", -1), call.rank_of(call.subject))
    half = call.fixed_shape_of(call.subject, [axis])[0] // 2
    left, right = call.graph.add_many("Split", 2, call.first, call.numbers(half, half), axis=axis)
    return call.add("Mul", left, call.add("Sigmoid", right))


@on_module(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
@on_op("clone", "contiguous", "detach", "positive")
def same(call: Call) -> str:
    """What does nothing in eval mode."""
    return call.first


@on_op("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def dropout(call: Call) -> str:
    """Nothing, where it isn't told to train."""
    if call.literal(2, "training", True):
        call.decline("it drops values also in eval mode")
    return call.first


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _operands(call: Call, dtype: torch.dtype) -> tuple[str, str]:
    left = call.given(0, "input")
    right = call.given(1, "other")
    return call.name(left, dtype), call.name(right, dtype)


def _arithmetic(kind: str, *names: str, reverse: bool = False) -> None:
    @on_op(*names)
    def row(call: Call) -> str:
        if call.given(2, "alpha", 1) != 1 and kind in {"Add", "Sub"}:
            call.decline("it has an alpha")
        if call.literal(2, "rounding_mode") is not None and kind == "Div":
            call.decline("it rounds")
        if not (call.dtype.is_floating_point or (kind != "Div" and call.dtype is not torch.bool)):
            call.decline(f"its value is {call.dtype}")
        left, right = _operands(call, call.dtype)
        return call.add(kind, *((right, left) if reverse else (left, right)))


_arithmetic("Add", "add", "iadd")
_arithmetic("Sub", "sub", "subtract", "isub")
_arithmetic("Sub", "rsub", reverse=True)
_arithmetic("Mul", "mul", "multiply", "imul")
_arithmetic("Div", "div", "divide", "truediv", "itruediv")
_arithmetic("Max", "maximum", "fmax")
_arithmetic("Min", "minimum")


@on_op("rsqrt")
def rsqrt(call: Call) -> str:
    """1 / sqrt(x)."""
    return call.add("Reciprocal", call.add("Sqrt", call.first))


@on_op("square")
def square(call: Call) -> str:
    """x * x."""
    return call.add("Mul", call.first, call.first)


@on_op("pow", "ipow")
def power(call: Call) -> str:
    """x ** y; a square is a product."""
    base, exponent = call.given(0, "input"), call.given(1, "exponent")
    if not call.dtype.is_floating_point:
        call.decline(f"its value is {call.dtype}")
    if not call.is_tensor(exponent):
        number = call.plain(exponent)
        if number == 2:
            name = call.name(base, call.dtype)
            return call.add("Mul", name, name)
        if number == 0.5:
            return call.add("Sqrt", call.name(base, call.dtype))
    return call.add("Pow", call.name(base, call.dtype), call.name(exponent, call.dtype))


@on_op("addcmul")
def addcmul(call: Call) -> str:
    """input + value * a * b."""
    if call.literal(3, "value", 1) != 1:
        call.decline("it has a value")
    product = call.add(
        "Mul", call.name(call.given(1, "tensor1"), call.dtype), call.name(call.given(2, "tensor2"), call.dtype)
    )
    return call.add("Add", call.name(call.subject, call.dtype), product)


@on_op("lerp")
def lerp(call: Call) -> str:
    """start + weight * (end - start)."""
    start = call.name(call.subject, call.dtype)
    way = call.add("Sub", call.name(call.given(1, "end"), call.dtype), start)
    return call.add("Add", start, call.add("Mul", way, call.name(call.given(2, "weight"), call.dtype)))


# -- comparisons and choices -------------------------------------------------------------------------------------------


def _common(call: Call, *operands: Any) -> torch.dtype:
    """The type in which torch compares operands."""
    values = [call.example(operand) for operand in operands]
    if not all(isinstance(value, torch.Tensor | bool | int | float) for value in values):
        call.decline("an operand is neither a tensor nor a number")
    found: torch.dtype = torch.result_type(*values)
    return found


def _comparison(kind: str, *names: str, negated: bool = False) -> None:
    @on_op(*names)
    def row(call: Call) -> str:
        left, right = call.given(0, "input"), call.given(1, "other")
        dtype = _common(call, left, right)
        found = call.add(kind, call.name(left, dtype), call.name(right, dtype))
        return call.add("Not", found) if negated else found


_comparison("Greater", "gt", "greater")
_comparison("GreaterOrEqual", "ge", "greater_equal")
_comparison("Less", "lt", "less")
_comparison("LessOrEqual", "le", "less_equal")
_comparison("Equal", "eq")
_comparison("Equal", "ne", "not_equal", negated=True)


def _logical(kind: str, *names: str) -> None:
    @on_op(*names)
    def row(call: Call) -> str:
        if not all(call.dtype_of(x) is torch.bool for x in call.node.all_input_nodes):
            call.decline("an operand holds no truth values")
        return call.add(kind, *_operands(call, torch.bool))


_logical("And", "logical_and", "bitwise_and", "and")
_logical("Or", "logical_or", "bitwise_or", "or")
_logical("Xor", "logical_xor", "bitwise_xor", "xor")


@on_op("logical_not", "bitwise_not", "invert")
def logical_not(call: Call) -> str:
    """Of truth values, the other one."""
    if call.dtype_of(call.subject) is not torch.bool:
        call.decline("its operand holds no truth values")
    return call.add("Not", call.first)


@on_op("where")
def where(call: Call) -> str:
    """One or the other, by a condition."""
    condition, left, right = call.given(0, "condition"), call.given(1, "input"), call.given(2, "other")
    if call.node.op == "call_method":  # x.where(condition, other)
        condition, left = left if left is not None else call.given(1, "condition"), call.given(0, "self")
    return call.add(
        "Where", call.name(condition, torch.bool), call.name(left, call.dtype), call.name(right, call.dtype)
    )


@on_op("masked_fill")
def masked_fill(call: Call) -> str:
    """A value where the mask is true."""
    mask, value = call.given(1, "mask"), call.given(2, "value")
    return call.add("Where", call.name(mask, torch.bool), call.name(value, call.dtype), call.first)


# -- types -------------------------------------------------------------------------------------------------------------


@on_op("to", "type", "type_as", "float", "double", "half", "int", "long", "cpu")
def convert(call: Call) -> str:
    """A value in another type; torch cuts fractions off as ONNX does."""
    return call.name(call.subject, call.dtype)
