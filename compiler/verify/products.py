"""Which nodes are products, norms and activations: layers and functions of torch that do the same to each sample.

product       conv, linear, attention      sums over channels, kernels or keys
norm          batch, layer, group norm     in evaluation mode
activation    relu, gelu, dropout          each element by itself
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.modules import clone_module, to_meta
from prunec.compiler.ir.program import Program
from prunec.compiler.verify.masks import Marked, leaves_of

_PRODUCTS: Final = frozenset(
    [
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention),
        *(torch.conv1d, torch.conv2d, torch.conv3d),
    ]
)
_NORMS: Final = frozenset([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, F.layer_norm])
_ACTIVATIONS: Final = frozenset(
    [
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
        *(nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Dropout2d, nn.Identity),
        *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid),
    ]
)
"""Where these can't be left out they are computed: drawn numbers might be none that they give."""


SAMPLED: Final = 10**7
"""Products of so many multiplications a sample, or of more, are `costly`."""


def given_nodes(before: Program, after: Program) -> tuple[frozenset[str], frozenset[str]]:
    """The nodes that are given in both programs, and those of them whose values only such nodes read."""
    new = {node.name: node for node in after.graph.nodes}
    given: set[str] = set()
    unseen: set[str] = set()
    for node in reversed(before.graph.nodes):
        other = new.get(node.name)
        kind = kind_of(before, node)
        if kind is None or other is None or kind != kind_of(after, other):
            continue
        hidden = all(each.users and all(user.name in given for user in each.users) for each in (node, other))
        if hidden:
            unseen.add(node.name)
        if hidden or kind != "activation":
            given.add(node.name)
    return frozenset(given), frozenset(unseen)


def kind_of(program: Program, node: fx.Node) -> str | None:
    """Whether a node is a product, a norm or an activation that may be given."""
    called = called_by(program, node)
    kind = type(called) if isinstance(called, nn.Module) else called
    if kind in _PRODUCTS:
        return "product"
    if kind in _NORMS:
        return None if getattr(called, "running_mean", False) is None else "norm"  # else samples meet in it
    if kind not in _ACTIVATIONS or len(node.all_input_nodes) != 1:
        return None
    return None if _writes(called, node) and not _is_private(program, node.all_input_nodes[0]) else "activation"


def _writes(called: Any, node: fx.Node) -> bool:
    """Whether an activation may write into its operand."""
    return bool(getattr(called, "inplace", False) or len(node.args) > 1 or node.kwargs.get("inplace"))


def _is_private(program: Program, node: fx.Node) -> bool:
    """Whether an activation that writes into a node's value is the only one to see it."""
    return len(node.users) == 1 and kind_of(program, node) is not None


def called_by(program: Program, node: fx.Node) -> Any:
    """The module or the function that a node calls; None of the others."""
    if node.op == "call_module":
        return program.state[str(node.target)]
    return node.target if node.op == "call_function" else None


def is_costly(program: Program, node: fx.Node) -> bool:
    """Whether a node is a product that takes long on the example: `SAMPLED` multiplications, or more."""
    if kind_of(program, node) != "product":
        return False
    called, value = called_by(program, node), node.meta.get("val")
    operands = [each.meta.get("val") for each in node.all_input_nodes]
    if not isinstance(value, Tensor):
        return SAMPLED <= 0
    weight = getattr(called, "weight", None) if isinstance(called, nn.Module) else operands[min(1, len(operands) - 1)]
    if not isinstance(weight, Tensor):
        return False
    attention = called is F.scaled_dot_product_attention  # its "weight" is the key, [.., keys, channels]
    times = 2 * weight.shape[-2] if attention else prod(weight.shape[1:])
    return value.numel() * times >= SAMPLED


def has_tensors_alone(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether all that a node reads from others are tensors: a number may follow the batch, and so may its effect."""
    pairs = zip(leaves_of((node.args, node.kwargs)), leaves_of((args, kwargs)), strict=True)
    return all(isinstance(value, Tensor | Marked) for place, value in pairs if isinstance(place, fx.Node))


def shape_of(program: Program, node: fx.Node, args: Any, kwargs: Any) -> torch.Size:
    """The shape of a given node's value; nothing is computed."""
    run = called_by(program, node)
    if (type(run) if isinstance(run, nn.Module) else run) not in _PRODUCTS:
        shape: torch.Size = (args[0] if args else next(iter(kwargs.values()))).shape
        return shape
    if isinstance(run, nn.Linear) and args:
        return torch.Size([*args[0].shape[:-1], run.out_features])
    if run is F.linear and len(args) > 1 and args[1].ndim == 2:
        return torch.Size([*args[0].shape[:-1], args[1].shape[0]])
    if isinstance(run, nn.Conv1d | nn.Conv2d | nn.Conv3d) and args and args[0].ndim == run.weight.ndim:
        return _convolved(run, args[0].shape)
    if run is F.scaled_dot_product_attention and len(args) >= 3:
        return torch.Size([*args[0].shape[:-1], args[2].shape[-1]])
    if isinstance(run, nn.Module):
        run = clone_module(run, {name: to_meta(tensor) for name, tensor in run.named_parameters()})
    args, kwargs = pytree.tree_map(lambda x: to_meta(x) if isinstance(x, Tensor) else x, (args, kwargs))
    found: Tensor = run(*args, **kwargs)
    return found.shape


def _convolved(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, shape: torch.Size) -> torch.Size:
    """The shape of a convolution's result on a batch of this shape, by the formula in torch's documentation."""
    pads = (0,) * len(shape[2:]) if isinstance(layer.padding, str) else layer.padding
    settings = zip(shape[2:], layer.kernel_size, layer.stride, layer.dilation, pads, strict=True)
    sizes = [(n + 2 * int(pad) - apart * (kernel - 1) - 1) // stride + 1 for n, kernel, stride, apart, pad in settings]
    return torch.Size([shape[0], layer.out_channels, *(shape[2:] if layer.padding == "same" else sizes)])
