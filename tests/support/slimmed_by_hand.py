"""Networks and their slim forms, made by hand: what leaves each axis, and what surgery sets besides."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec.compiler.ir.program import Axis, IntArray, Program

Removed = Mapping[Axis, IntArray]


def program_of(model: nn.Module, *inputs: Tensor) -> Program:
    """The model as a program, by torch's own tracer: `verify` asks nothing of the nodes but what they call."""
    traced = fx.symbolic_trace(model)
    state = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            state[node.target] = traced.get_submodule(node.target)
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            state[node.target] = getattr(traced.get_submodule(owner), name)
    return Program(traced.graph, state, inputs)


def seeded(model: nn.Module) -> nn.Module:
    """The model with weights, biases and statistics of which no two are alike."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            spread = torch.rand(tensor.shape, generator=generator) + 0.5
            sign = 1 if "var" in name else torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            tensor.data.copy_(spread * sign / max(1, tensor[0].numel() if tensor.ndim > 1 else 1) ** 0.5)
    return model.eval()


class Net(nn.Module):
    """Layers by name; the subclass says how they meet."""

    def __init__(self, **layers: nn.Module | Tensor) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Plain(Net):
    def forward(self, x):
        return self.conv2(F.relu(self.bn1(self.conv1(x))))


class Residual(Net):
    def forward(self, x):
        y = self.conv1(x)
        return self.head(F.relu(y + self.conv2(F.relu(y))))


class Concat(Net):
    def forward(self, x):
        return self.conv3(torch.cat([self.conv1(x), x, self.conv2(x)], 1))


class Flat(Net):
    def forward(self, x):
        return self.fc(F.max_pool2d(F.relu(self.conv1(x)), 2).flatten(1))


class Chain(Net):
    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Shared(Net):
    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.again(x))
        return self.head(self.again(x))


class Gate(Net):
    def forward(self, x):
        y = self.conv1(x)
        gate = torch.sigmoid(self.expand(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.conv2(y * gate)


class PaddedShortcut(Net):
    def forward(self, x):
        y = self.stem(x)
        shortcut = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, self.extra))
        return self.head(F.relu(self.conv(y) + shortcut))


class Functional(Net):
    def forward(self, x):
        return self.conv2(F.relu(F.conv2d(x, self.weight, self.bias, padding=1)) * self.scale.view(1, -1, 1, 1))


class Shuffle(Net):
    def forward(self, x):
        y = self.conv1(x)
        b, _, h, w = y.shape
        y = y.view(b, 2, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return self.conv2(y)


class Attention(Net):
    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, 2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class ManualAttention(Net):
    def forward(self, x):
        q, k, v = self.qk(x), self.k(x), self.v(x)
        scores = torch.einsum("bic,bjc->bij", q, k).softmax(-1)
        return self.out(scores @ v)


class Chunked(Net):
    def forward(self, x):
        a, b = self.fc1(x).split(self.sizes, -1)
        return self.fc2(a) + self.fc3(b) + self.fc4(F.glu(self.fc5(x), -1))


class Position(Net):
    def forward(self, x):
        y = self.embed(x) + self.position
        return self.fc(self.norm(y))


@dataclass(frozen=True)
class Case:
    """A network, an input shape, the positions that leave each axis, and what surgery sets besides."""

    model: nn.Module
    shape: tuple[int, ...]
    removed: Mapping[str, Mapping[int, list[int]]]
    attributes: Mapping[str, object] = field(default_factory=dict)
    integer: bool = False

    def axes(self) -> Removed:
        return {Axis(n, d): np.array(p) for n, dims in self.removed.items() for d, p in dims.items()}

    def example(self) -> Tensor:
        return torch.randint(0, 7, self.shape) if self.integer else torch.zeros(self.shape, dtype=torch.float64)

    @cached_property
    def before(self) -> Program:
        return program_of(seeded(copy.deepcopy(self.model).double()), self.example())

    def slim(self) -> nn.Module:
        """A fresh copy of the model with every axis gathered."""
        return copy.deepcopy(self._slim)

    @cached_property
    def _slim(self) -> nn.Module:
        model = seeded(copy.deepcopy(self.model).double())
        for axis, lost in self.axes().items():
            owner, _, name = axis.tensor.rpartition(".")
            module = model.get_submodule(owner)
            gathered = without(getattr(module, name).detach(), axis.dim, lost, getattr(module, "groups", 1))
            getattr(module, name).data = gathered
        for target, value in self.attributes.items():
            owner, _, name = target.rpartition(".")
            setattr(model.get_submodule(owner), name, value)
        return model

    def after(self) -> Program:
        return program_of(self.slim(), self.example())


def without(tensor: Tensor, dim: int, lost: IntArray, groups: int) -> Tensor:
    """The tensor without positions of a dimension; dimension 1 of a grouped convolution counts over all groups.

    Rows of grouped tensors are taken as they are: the same positions leave each group.
    """
    local = {int(i) % tensor.shape[1] for i in lost} if dim == 1 and groups > 1 else set(lost.tolist())
    if len(local) == tensor.shape[dim]:
        return tensor
    return tensor.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i not in local]))


def layer(name: str, out: list[int] | None = None, into: list[int] | None = None) -> dict[str, dict[int, list[int]]]:
    """Removed positions of a layer with weight and bias."""
    weight = {d: p for d, p in ((0, out), (1, into)) if p}
    return {f"{name}.weight": weight, **({f"{name}.bias": {0: out}} if out else {})}


def norm(name: str, lost: list[int], *tensors: str) -> dict[str, dict[int, list[int]]]:
    return {f"{name}.{tensor}": {0: lost} for tensor in ("weight", "bias", *tensors)}


IMAGE = (2, 3, 6, 6)


STATISTICS = ("running_mean", "running_var")


CASES: dict[str, Case] = {
    "conv-bn-relu-conv": Case(
        Plain(conv1=conv(3, 5), bn1=nn.BatchNorm2d(5), conv2=conv(5, 4)), IMAGE,
        {**layer("conv1", [1, 3]), **norm("bn1", [1, 3], *STATISTICS), **layer("conv2", None, [1, 3])},
    ),
    "residual": Case(
        Residual(conv1=conv(3, 5), conv2=conv(5, 5), head=conv(5, 2)), IMAGE,
        {**layer("conv1", [2]), **layer("conv2", [2], [2]), **layer("head", None, [2])},
    ),
    "concat": Case(
        Concat(conv1=conv(3, 4), conv2=conv(3, 4), conv3=conv(11, 3)), IMAGE,
        {**layer("conv1", [0]), **layer("conv2", [3, 1]), **layer("conv3", None, [0, 8, 10])},
    ),
    "flatten-linear": Case(
        Flat(conv1=conv(3, 4), fc=nn.Linear(36, 5)), IMAGE,
        {**layer("conv1", [2]), **layer("fc", None, list(range(18, 27)))},
    ),
    "depthwise": Case(
        Chain(a=conv(3, 5), dw=conv(5, 5, groups=5), act=nn.ReLU6(), b=conv(5, 3)), IMAGE,
        {**layer("a", [1]), **layer("dw", [1]), **layer("b", None, [1])}, {"dw.groups": 4},
    ),
    "grouped": Case(
        Chain(a=conv(3, 6), g=conv(6, 8, groups=2), b=conv(8, 3)), IMAGE,
        {**layer("a", [1, 4]), **layer("g", [0, 4], [1, 4]), **layer("b", None, [0, 4])},
    ),
    "grouped-transposed": Case(
        Chain(a=conv(3, 6), g=nn.ConvTranspose2d(6, 8, 2, groups=2), b=conv(8, 3)), IMAGE,
        {**layer("a", [1, 4]), "g.weight": {0: [1, 4], 1: [0, 4]}, "g.bias": {0: [0, 4]}, **layer("b", None, [0, 4])},
    ),
    "layer-norm": Case(
        Chain(fc1=nn.Linear(4, 6), norm=nn.LayerNorm(6), act=nn.GELU(), fc2=nn.Linear(6, 3)), (2, 5, 4),
        {**layer("fc1", [1, 4]), **norm("norm", [1, 4]), **layer("fc2", None, [1, 4])}, {"norm.normalized_shape": (4,)},
    ),
    "rms-norm": Case(
        Chain(fc1=nn.Linear(4, 6), norm=nn.RMSNorm(6), act=nn.SiLU(), fc2=nn.Linear(6, 3)), (2, 4),
        {**layer("fc1", [5]), "norm.weight": {0: [5]}, **layer("fc2", None, [5])}, {"norm.normalized_shape": (5,)},
    ),
    "group-norm": Case(
        Chain(a=conv(3, 8), norm=nn.GroupNorm(2, 8), act=nn.PReLU(8), b=conv(8, 3)), IMAGE,
        {**layer("a", [0, 6]), **norm("norm", [0, 6]), "act.weight": {0: [0, 6]}, **layer("b", None, [0, 6])},
        {"norm.num_channels": 6},
    ),
    "group-norm-whole-group": Case(
        Chain(a=conv(3, 6), norm=nn.GroupNorm(3, 6), b=conv(6, 3)), IMAGE,
        {**layer("a", [2, 3]), **norm("norm", [2, 3]), **layer("b", None, [2, 3])},
        {"norm.num_channels": 4, "norm.num_groups": 2},
    ),
    "shared": Case(
        Shared(stem=conv(3, 4), again=conv(4, 4), head=conv(4, 2)), IMAGE,
        {**layer("stem", [1]), **layer("again", [1], [1]), **layer("head", None, [1])},
    ),
    "gate": Case(
        Gate(conv1=conv(3, 5), squeeze=nn.Conv2d(5, 3, 1), expand=nn.Conv2d(3, 5, 1), conv2=conv(5, 2)), IMAGE,
        {
            **layer("conv1", [1]), **layer("squeeze", [2], [1]),
            **layer("expand", [1], [2]), **layer("conv2", None, [1]),
        },
    ),
    "zero-pad-shortcut": Case(
        PaddedShortcut(stem=conv(3, 3), conv=conv(3, 6, stride=2), head=conv(6, 2), extra=2), IMAGE,
        {**layer("stem", [1]), **layer("conv", [2, 5], [1]), **layer("head", None, [2, 5])}, {"extra": 1},
    ),
    "functional": Case(
        Functional(
            weight=nn.Parameter(torch.empty(5, 3, 3, 3)), bias=nn.Parameter(torch.empty(5)),
            scale=nn.Parameter(torch.empty(5)), conv2=conv(5, 2),
        ), IMAGE,
        {"weight": {0: [0, 3]}, "bias": {0: [0, 3]}, "scale": {0: [0, 3]}, **layer("conv2", None, [0, 3])},
    ),
    "shuffle": Case(  # channels 0 1 2 | 3 4 5 leave as 0 3 1 4 2 5
        Shuffle(conv1=conv(3, 6), conv2=conv(6, 2)), IMAGE,
        {**layer("conv1", [1, 4]), **layer("conv2", None, [2, 3])},
    ),
    "attention-head": Case(
        Attention(
            query=nn.Linear(4, 6), key=nn.Linear(4, 6, bias=False), value=nn.Linear(4, 6), out=nn.Linear(6, 4),
        ), (2, 5, 4),
        {**layer("query", [2, 3]), "key.weight": {0: [2, 3]}, **layer("value", [2, 3]), **layer("out", None, [2, 3])},
    ),
    "einsum-matmul": Case(
        ManualAttention(
            qk=nn.Linear(4, 6), k=nn.Linear(4, 6, bias=False), v=nn.Linear(4, 5), out=nn.Linear(5, 3),
        ), (2, 5, 4),
        {**layer("qk", [2, 5]), "k.weight": {0: [2, 5]}, **layer("v", [1]), **layer("out", None, [1])},
    ),
    "split-glu": Case(
        Chunked(
            fc1=nn.Linear(3, 6), fc2=nn.Linear(4, 3), fc3=nn.Linear(2, 3), fc4=nn.Linear(3, 3), fc5=nn.Linear(3, 6),
            sizes=[4, 2],
        ), (2, 3),
        {
            **layer("fc1", [1, 5]), **layer("fc2", None, [1]), **layer("fc3", None, [1]), **layer("fc4", None, [2]),
            **layer("fc5", [2, 5]),
        }, {"sizes": [3, 1]},
    ),
    "embedding-position": Case(
        Position(embed=nn.Embedding(7, 5), position=nn.Parameter(torch.empty(1, 4, 5)), norm=nn.LayerNorm(5),
                 fc=nn.Linear(5, 2)), (2, 4),
        {"embed.weight": {1: [3]}, "position": {2: [3]}, **norm("norm", [3]), **layer("fc", None, [3])},
        {"norm.normalized_shape": (4,)}, integer=True,
    ),
    "pools": Case(
        Chain(a=conv(3, 4), bn=nn.BatchNorm2d(4), pad=nn.ZeroPad2d(1), max=nn.MaxPool2d(2), act=nn.Hardswish(),
              up=nn.Upsample(scale_factor=2), drop=nn.Dropout(), avg=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten(),
              fc=nn.Linear(16, 3)), IMAGE,
        {**layer("a", [1]), **norm("bn", [1], *STATISTICS), **layer("fc", None, [4, 5, 6, 7])},
    ),
    "pixel-shuffle": Case(
        Chain(a=conv(3, 8), shuffle=nn.PixelShuffle(2), b=conv(2, 3)), IMAGE,
        {**layer("a", [0, 1, 2, 3]), **layer("b", None, [0])},
    ),
}  # fmt: skip


by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
