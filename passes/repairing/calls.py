"""Which nodes are layers that can be refit: modules, and functions whose weight is a parameter of the model.

conv(x)                           Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear
F.conv2d(x, w, b), F.linear(x, w, b), x @ w, torch.addmm(b, x, w), torch.einsum("btd,dhe->bthe", x, w)
F.linear(x, w.chunk(3)[0])        a part of a parameter, such as one of three projections that lie in one weight
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from prunec.compiler.ir.graph import call
from prunec.compiler.ir.ops import argument, op_name, rank_of
from prunec.compiler.ir.program import Program
from prunec.compiler.ops.matmul import letters_of
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


VIEWS: Final = frozenset(
    "chunk split split_with_sizes tensor_split unbind getitem __getitem__ narrow select t transpose permute view "
    "reshape flatten unflatten squeeze unsqueeze movedim moveaxis swapaxes swapdims".split()
)
"""What gives parts of a tensor, or turns it, and computes nothing."""


@dataclass(frozen=True)
class Part:
    """A parameter, or what some views leave of it."""

    name: str
    views: tuple[fx.Node, ...] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """The same part of the parameter, or of another tensor of its shape."""
        found: Any = tensor
        for node in self.views:
            found = call(node, [found, *node.args[1:]], node.kwargs)
        return found  # type: ignore[no-any-return]

    def key(self, program: Program) -> Hashable:
        """What parts that are the same have in common."""
        tensor = program.tensors[self.name]
        found = self.of(tensor)
        return id(tensor), found.storage_offset(), found.shape, found.stride()


@dataclass(frozen=True)
class Call:
    """A node that is a layer."""

    form: Form
    source: fx.Node | None
    """What it reads; None where that is no value of the graph."""
    weight: Part
    bias: Part | None


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
    return _of_einsum(node, program) if name == "einsum" else None


def _of_module(node: fx.Node, program: Program) -> Call | None:
    module: Any = program.state.get(str(node.target))
    if type(module) not in (*CONVS, *_TRANSPOSED, *LINEARS):
        return None
    conv = None if type(module) in LINEARS else module
    form = Form(conv, conv is not None and conv.transposed)
    bias = None if module.bias is None else Part(f"{node.target}.bias")
    return Call(form, _node(node, "input", 0), Part(f"{node.target}.weight"), bias)


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
    shape, groups = weight.of(program.tensors[weight.name]).shape, int(options.get("groups", 1))
    inputs, outputs = (shape[0], shape[1] * groups) if turned else (shape[1] * groups, shape[0])
    conv = made(inputs, outputs, tuple(shape[2:]), bias=False, device="meta", **options)
    return Call(Form(conv, turned), _node(node, "input", 0), weight, named)


def _of_product(
    node: fx.Node, program: Program, source: tuple[str, int], weight: tuple[str, int], bias: tuple[str, int] | None
) -> Call | None:
    found = _parameter(argument(node, weight[1], weight[0]), program)
    if found is None or found.of(program.tensors[found.name]).ndim != 2:
        return None
    added = None if bias is None else argument(node, bias[1], bias[0])
    named = _parameter(added, program)
    if (named is None) != (added is None) or (named is not None and named.of(program.tensors[named.name]).ndim != 1):
        return None
    return Call(Form(None, weight[0] != "weight"), _node(node, *source), found, named)


def _of_einsum(node: fx.Node, program: Program) -> Call | None:
    """A sum of products with a parameter, whose dimensions are either added up over or are outputs."""
    equation, operands = node.args[0], node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if len(operands) != 2 or not all(isinstance(each, fx.Node) for each in operands):
        return None
    spelled = letters_of(equation, [rank_of(each) for each in operands if isinstance(each, fx.Node)])
    found = [(place, part) for place in (1, 0) if (part := _parameter(operands[place], program)) is not None]
    if spelled is None or len(found) != 1:
        return None
    ((place, weight),), (terms, result) = found, spelled
    mine, read = terms[place], terms[1 - place]
    summed = [letter for letter in read if letter in mine]
    outputs = [letter for letter in result if letter in mine]
    rows = [[letter for letter in each if letter not in mine] for each in (read, result)]
    if not summed or not outputs or set(summed) & set(outputs) or rows[0] != rows[1]:
        return None
    if len(summed) + len(outputs) != len(mine) or any(letter in result for letter in summed):
        return None
    order = tuple(mine.index(letter) for letter in (*summed, *outputs))
    reads, gives = (tuple(t.index(x) for x in some) for t, some in ((read, summed), (result, outputs)))
    source = operands[1 - place]
    return Call(
        Form(reads=reads, gives=gives, order=order), source if isinstance(source, fx.Node) else None, weight, None
    )


def _parameter(value: object, program: Program) -> Part | None:
    """The parameter that a value is, or is a part of."""
    views: list[fx.Node] = []
    while isinstance(value, fx.Node) and value.op != "get_attr":
        if value.op not in ("call_function", "call_method") or op_name(value) not in VIEWS:
            return None
        if len(value.all_input_nodes) != 1 or not value.args or value.args[0] is not value.all_input_nodes[0]:
            return None
        views.append(value)
        value = value.args[0]
    if not isinstance(value, fx.Node):
        return None
    name, part = str(value.target), Part(str(value.target), tuple(reversed(views)))
    tensor = program.tensors.get(name)
    if not isinstance(tensor, nn.Parameter):
        return None
    found = part.of(tensor.detach())
    is_view = isinstance(found, Tensor) and found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return part if is_view else None


def _node(node: fx.Node, name: str, place: int) -> fx.Node | None:
    found = argument(node, place, name)
    return found if isinstance(found, fx.Node) else None
