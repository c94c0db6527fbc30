"""Which nodes are layers that can be refit: modules, and functions whose weight is a parameter of the model.

conv(x)                           Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear
F.conv2d(x, w, b), F.linear(x, w, b), x @ w, torch.addmm(b, x, w)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from prunec.compiler.ir.ops import argument, op_name
from prunec.compiler.ir.program import Program
from prunec.passes.repairing.rows import Form

CONVS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEARS: Final = (nn.Linear, NonDynamicallyQuantizableLinear)
_BY_FUNCTION: Final = {
    getattr(F, name): made
    for name, made in (
        ("conv1d", nn.Conv1d),
        ("conv2d", nn.Conv2d),
        ("conv3d", nn.Conv3d),
        ("conv_transpose1d", nn.ConvTranspose1d),
        ("conv_transpose2d", nn.ConvTranspose2d),
        ("conv_transpose3d", nn.ConvTranspose3d),
    )
}
"""torch's functions that convolve -> the module that does the same."""
_OPTIONS: Final = ("stride", "padding", "dilation", "groups")
_TURNED_OPTIONS: Final = ("stride", "padding", "output_padding", "groups", "dilation")


@dataclass(frozen=True)
class Call:
    """A node that is a layer."""

    form: Form
    source: fx.Node | None
    """What it reads; None where that is no value of the graph."""
    weight: str
    bias: str | None

    @property
    def dim(self) -> int:
        """The dimension of what it gives along which its channels lie."""
        return -1 if self.form.conv is None else 1


def call_of(node: fx.Node, program: Program) -> Call | None:
    """The layer that a node is; None where it is none."""
    if node.op == "call_module":
        return _of_module(node, program)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _BY_FUNCTION:
        return _of_convolution(node, program)
    name = op_name(node)
    if node.target is F.linear:
        return _of_product(node, program, ("input", 0), ("weight", 1), ("bias", 2))
    if name in ("matmul", "mm", "__matmul__"):
        return _of_product(node, program, ("input", 0), ("mat2" if name == "mm" else "other", 1), None)
    if name == "addmm" and not {"alpha", "beta"} & set(node.kwargs):
        return _of_product(node, program, ("mat1", 1), ("mat2", 2), ("input", 0))
    return None


def _of_module(node: fx.Node, program: Program) -> Call | None:
    module: Any = program.state.get(str(node.target))
    if type(module) not in (*CONVS, *_TRANSPOSED, *LINEARS):
        return None
    conv = None if type(module) in LINEARS else module
    form = Form(conv, conv is not None and conv.transposed)
    return Call(
        form, _node(node, "input", 0), f"{node.target}.weight", None if module.bias is None else f"{node.target}.bias"
    )


def _of_convolution(node: fx.Node, program: Program) -> Call | None:
    weight = _parameter(argument(node, 1, "weight"), program)
    made: Any = _BY_FUNCTION[node.target]
    if weight is None:
        return None
    turned = "transpose" in op_name(node)
    places = enumerate(_TURNED_OPTIONS if turned else _OPTIONS, start=3)
    said = {name: argument(node, place, name) for place, name in places}
    options = {name: value for name, value in said.items() if value is not None}
    bias = argument(node, 2, "bias")
    named = _parameter(bias, program)
    if any(isinstance(x, fx.Node) for x in torch.utils._pytree.tree_leaves(options)) or (named is None) != (
        bias is None
    ):
        return None
    shape, groups = program.tensors[weight].shape, int(options.get("groups", 1))
    inputs, outputs = (shape[0], shape[1] * groups) if turned else (shape[1] * groups, shape[0])
    conv = made(inputs, outputs, tuple(shape[2:]), bias=False, device="meta", **options)
    return Call(Form(conv, turned), _node(node, "input", 0), weight, named)


def _of_product(
    node: fx.Node, program: Program, source: tuple[str, int], weight: tuple[str, int], bias: tuple[str, int] | None
) -> Call | None:
    found = _parameter(argument(node, weight[1], weight[0]), program)
    if found is None or program.tensors[found].ndim != 2:
        return None
    added = None if bias is None else argument(node, bias[1], bias[0])
    named = _parameter(added, program)
    if (named is None) != (added is None) or (named is not None and program.tensors[named].ndim != 1):
        return None
    return Call(Form(None, weight[0] != "weight"), _node(node, *source), found, named)


def _parameter(value: object, program: Program) -> str | None:
    """The name of a parameter that is read as it is."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    name = str(value.target)
    return name if isinstance(program.tensors.get(name), nn.Parameter) else None


def _node(node: fx.Node, name: str, place: int) -> fx.Node | None:
    found = argument(node, place, name)
    return found if isinstance(found, fx.Node) else None
