"""The functional name of what a node calls, by which the verifier's table finds its rule.

nn.Conv2d(3, 8, 1)     conv2d        a module of torch, by its class
torch.linalg.norm      linalg_norm   a function of torch or `operator`
x.add_(y)              add           a method
Gate(8)                acme_gate     an operation that another package has registered
anyone else's          (empty)       no rule: removed channels may not reach it
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler.ir import train_eval
from prunec.compiler.ir.operations import operation_of
from prunec.compiler.verify.table import RULES

_NAMESPACES: Final = (
    *(torch, F, operator, torch.Tensor, torch.special, torch.linalg, torch.fft, torch.ops.torchvision, train_eval),
)
"""Where a function must be found under its own name to count as torch's."""
_FAMILIES: Final[Mapping[str, str]] = {
    nn.modules.dropout.__name__: "dropout",
    nn.modules.padding.__name__: "pad",
    nn.modules.upsampling.__name__: "interpolate",
    nn.modules.activation.__name__: "relu",
}
"""A file of torch's layers -> the functional name that stands for all of them."""
_MODULES: Final[Mapping[type[nn.Module], str]] = {
    nn.PReLU: "prelu", nn.GLU: "glu", nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax", nn.Softmin: "softmin",
    nn.RMSNorm: "rms_norm", nn.MultiheadAttention: "", nn.Softmax2d: "", nn.Unfold: "unfold",
}  # fmt: skip
"""Layers whose class name isn't their functional name in CamelCase; an empty name means that there is no rule."""


def function_name(target: Any) -> str:
    """The name of a function of torch or `operator`, without in-place underscores, or of a registered operation; empty
    for anyone else's."""
    operation = operation_of(target)
    if operation is not None:
        return operation.name
    name = getattr(target, "__name__", "")
    if target is getattr:
        return "getattr"
    short = name.removeprefix("linalg_").removeprefix("fft_")  # the name that `torch.linalg.vector_norm` has itself
    return method_name(name) if _is_torchs(target, name, short) else ""


@cache
def _is_torchs(target: Callable[..., Any], name: str, short: str) -> bool:
    return any(getattr(space, key, None) is target for space in _NAMESPACES for key in (name, short))


def method_name(name: str) -> str:
    """A method's name without in-place underscores."""
    return name if name in RULES else name.rstrip("_")


def module_name(module: nn.Module) -> str:
    """The functional name of a standard module's operation, or of a registered one; empty for others."""
    operation = operation_of(module)
    if operation is not None:
        return operation.name
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        return ""
    if kind in _MODULES:
        return _MODULES[kind]
    if kind.__module__ in _FAMILIES:
        return _FAMILIES[kind.__module__]
    return _snake_case(kind.__name__)


@cache
def _snake_case(name: str) -> str:
    """`BatchNorm2d` as `batch_norm`, `MaxPool2d` as `max_pool2d`."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return re.sub(r"(?<=norm)\dd$", "", snake)
