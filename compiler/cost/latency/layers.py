"""A layer as a key of a latency table: its operation without its widths; and programs of it alone at any widths.

    conv1      Layer("conv", sizes=(1, 56, 56), kernel=(3, 3), ...), inner 64, outer 128
    parts_of   x [1, 32, 56, 56] -> conv -> y [1, 48, 28, 28]       of 32 channels that arrive and 48 that leave,
               and beside it the same layer at other widths, so that all are converted at once

Two layers of one shape are equal, so they are measured once. A layer is whatever multiplies and has a row in
`_READERS`; what else multiplies (attention, a recurrence) is charged with what the whole network's profile says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, op_name, shape_of_argument
from prunec.compiler.ir.program import Program

FloatArray = npt.NDArray[np.float32]
Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layer:
    """An operation and its sizes; `inner` and `outer` are the full numbers of input and output channels."""

    kind: Literal["conv", "conv_transpose", "linear"]
    inner: int
    outer: int
    batch: int
    sizes: tuple[int, ...]
    """The image that arrives; of a linear layer, the dimensions between the batch and the channels."""
    groups: int = 1
    whole: bool = False
    """Whether groups leave as a whole: each keeps its width, and the outer width decides the inner one."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pads: Pads = ()
    dilation: tuple[int, ...] = ()
    output_pads: tuple[int, ...] = ()
    bias: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def steps(self) -> tuple[int, int]:
        """What the inner and the outer width must be multiples of."""
        if self.whole:
            return self.inner // self.groups, self.outer // self.groups
        return (self.groups, self.groups)

    def at(self, inner: int, outer: int) -> tuple[int, int, int]:
        """(inner, outer, groups) when so many channels are left; where groups leave as a whole, `outer` decides."""
        if not self.whole:
            return inner, outer, self.groups
        groups = outer * self.groups // self.outer
        return groups * self.inner // self.groups, outer, groups

    def weights(self, inner: int, outer: int) -> int:
        """Elements of the weight at these widths."""
        inner, outer, groups = self.at(inner, outer)
        return inner * outer // groups * int(np.prod(self.kernel))

    def values(self, inner: int, outer: int) -> int:
        """Elements that arrive and leave at these widths, but for what padding adds."""
        inner, outer, _ = self.at(inner, outer)
        arriving, step = self.batch * int(np.prod(self.sizes)), int(np.prod(self.stride))
        leaving = arriving * step if self.kind == "conv_transpose" else arriving // step
        return inner * arriving + outer * leaving

    def describe(self) -> str:
        """A name for people, without widths: `conv 3x3 /2, 56x56`."""
        words = [self.kind.replace("_", " ")]
        words += ["x".join(map(str, self.kernel))] if self.kernel else []
        words += [f"/{max(self.stride)}"] if max(self.stride, default=1) > 1 else []
        words += [f"{self.groups} groups"] if self.groups > 1 else []
        sizes = "x".join(map(str, self.sizes)) or "1"
        return f"{' '.join(words)}, {sizes}{f', batch {self.batch}' if self.batch > 1 else ''}"


# -- reading the program -------------------------------------------------------------------------------------------


def layer_at(program: Program, node: fx.Node, whole: bool) -> Layer | None:
    """The layer at a node, None where its operation has no tiny model. `whole`: its groups leave as a whole."""
    module = program.state.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.modules.conv._ConvNd):
        return _module_convolution(module, node, whole)
    if isinstance(module, nn.Linear):
        return _linear(node, module.in_features, module.out_features, module.bias is not None)
    reader = _READERS.get(op_name(node)) if node.op in ("call_function", "call_method") else None
    return reader(node) if reader else None


def _linear(node: fx.Node, inner: int, outer: int, bias: bool) -> Layer:
    batch, *sizes = (1, *shape_of_argument(node)[:-1])[-max(1, len(shape_of_argument(node)) - 1) :]
    return Layer("linear", inner, outer, batch, tuple(sizes), bias=bias)


def _functional_linear(node: fx.Node) -> Layer | None:
    weight = shape_of_argument(argument(node, 1, "weight"))
    if len(weight) != 2:
        return None
    return _linear(node, weight[1], weight[0], argument(node, 2, "bias") is not None)


def _module_convolution(module: nn.modules.conv._ConvNd, node: fx.Node, whole: bool) -> Layer | None:
    rank = len(module.kernel_size)
    kernel, dilation = module.kernel_size, module.dilation
    pads = _pads(module.padding, kernel, dilation)
    plain = {
        "groups": module.groups,
        "whole": whole and module.groups > 1,
        "kernel": tuple(kernel),
        "stride": tuple(module.stride),
        "pads": pads,
        "dilation": tuple(dilation),
        "bias": module.bias is not None,
    }
    if module.transposed:
        plain |= {"output_pads": tuple(module.output_padding)}
    kind: Literal["conv", "conv_transpose"] = "conv_transpose" if module.transposed else "conv"
    return _convolution(kind, node, (module.in_channels, module.out_channels), rank, plain)


def _convolution(
    kind: Literal["conv", "conv_transpose"], node: fx.Node, widths: tuple[int, int], rank: int, plain: dict[str, Any]
) -> Layer:
    arriving = shape_of_argument(argument(node, 0, "input"))
    batch = int(np.prod(arriving[: -rank - 1]))
    return Layer(kind, *widths, batch, arriving[-rank:], **plain)


def _functional_convolution(node: fx.Node) -> Layer | None:
    """`conv2d(input, weight, bias, stride, padding, dilation, groups)` and its like; None where an argument is
    computed.

    Groups of one channel leave as a whole.
    """
    transposed = "transpose" in op_name(node)
    weight, names = shape_of_argument(argument(node, 1, "weight")), _TRANSPOSED if transposed else _PLAIN
    given = {name: argument(node, place, name, default) for place, (name, default) in enumerate(names, start=3)}
    if any(isinstance(leaf, fx.Node) for value in given.values() for leaf in _leaves(value)):
        return None
    kernel, groups = weight[2:], int(given["groups"])
    spread = {name: _each(given[name], len(kernel)) for name in ("stride", "dilation")}
    widths = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    plain = {
        "groups": groups,
        "whole": groups > 1 and groups in widths,
        "kernel": kernel,
        "pads": _pads(given["padding"], kernel, spread["dilation"]),
        "bias": argument(node, 2, "bias") is not None,
        **spread,
    }
    if not transposed:
        return _convolution("conv", node, widths, len(kernel), plain)
    plain["output_pads"] = _each(given["output_padding"], len(kernel))
    return _convolution("conv_transpose", node, widths, len(kernel), plain)


_PLAIN: Final = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
_TRANSPOSED: Final = (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1))
_CONVOLUTIONS: Final = tuple(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3))
_READERS: Final[Mapping[str, Callable[[fx.Node], Layer | None]]] = {
    "linear": _functional_linear,
    **dict.fromkeys(_CONVOLUTIONS, _functional_convolution),
}
"""Operation -> what reads its sizes off a node."""


def _leaves(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in (value if isinstance(value, tuple | list) else (value,)))
    return values * rank if len(values) == 1 else values


def _pads(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Pads:
    """(before, after) of each dimension; of an odd amount, `same` puts one more behind."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in _each(padding, len(kernel)))


# -- the layer alone ---------------------------------------------------------------------------------------------------


PART: Final = re.compile(r"part(\d{4})")
"""What the names hold of what belongs to one pair of widths in `parts_of`."""


def parts_of(layer: Layer, points: Sequence[tuple[int, int]]) -> Program:
    """A program of the layer at each of these pairs of widths, side by side: one input and one output for each.

    All that belongs to the pair with the number 12 has `part0012` in its name.
    """
    graph, state, inputs = fx.Graph(), dict[str, nn.Module](), []
    names = [f"part{number:04d}" for number in range(len(points))]
    read = [graph.placeholder(f"{name}_x") for name in names]
    written: dict[str, fx.Node] = {}
    for name, x, point in zip(names, read, points, strict=True):
        inner, outer, groups = layer.at(*point)
        module, shape = _MODULES[layer.kind](layer, inner, outer, groups)
        module = module.eval().requires_grad_(requires_grad=False)
        arriving = torch.empty(shape, device="meta")
        y = graph.call_module(name, (x,))
        x.meta["val"] = arriving
        y.meta["val"] = module(arriving) if layer.kind != "linear" else arriving.new_empty((*shape[:-1], outer))
        state[name], written[f"{name}_y"] = _filled(module), y
        inputs.append(torch.from_numpy(_data(shape)))
    graph.output(written).meta["val"] = {name: y.meta["val"] for name, y in written.items()}
    return Program(graph, state, tuple(inputs), name="Layer")


def _filled(module: nn.Module) -> nn.Module:
    """The module on the CPU, with numbers."""
    made = module.to_empty(device="cpu")
    for parameter in made.parameters():
        parameter.data = torch.from_numpy(_data(tuple(parameter.shape)))
    return made


_Made = tuple[nn.Module, tuple[int, ...]]
"""A layer on the meta device, and the shape that arrives."""


def _convolution_module(layer: Layer, inner: int, outer: int, groups: int) -> _Made:
    rank = len(layer.kernel)
    even = all(before == after for before, after in layer.pads)
    more: dict[str, Any] = {"output_padding": layer.output_pads} if layer.kind == "conv_transpose" else {}
    module = _CLASSES[layer.kind, rank](
        inner,
        outer,
        layer.kernel,
        stride=layer.stride,
        padding=tuple(before for before, _ in layer.pads) if even else "same",
        dilation=layer.dilation,
        groups=groups,
        bias=layer.bias,
        device="meta",
        **more,
    )
    return module, (layer.batch, inner, *layer.sizes)


def _linear_module(layer: Layer, inner: int, outer: int, groups: int) -> _Made:
    return nn.Linear(inner, outer, bias=layer.bias, device="meta"), (layer.batch, *layer.sizes, inner)


_CLASSES: Final[Mapping[tuple[str, int], Any]] = {
    ("conv", 1): nn.Conv1d,
    ("conv", 2): nn.Conv2d,
    ("conv", 3): nn.Conv3d,
    ("conv_transpose", 1): nn.ConvTranspose1d,
    ("conv_transpose", 2): nn.ConvTranspose2d,
    ("conv_transpose", 3): nn.ConvTranspose3d,
}
_MODULES: Final[Mapping[str, Callable[[Layer, int, int, int], _Made]]] = {
    "conv": _convolution_module,
    "conv_transpose": _convolution_module,
    "linear": _linear_module,
}

_NUMBERS: Final = np.random.default_rng(0).standard_normal(4093).astype(np.float32)


def _data(shape: tuple[int, ...]) -> FloatArray:
    """Normal random numbers: a product's time doesn't depend on them, unless they are denormal."""
    return np.resize(_NUMBERS, shape)
