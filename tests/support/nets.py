"""Small networks, one for each way in which channels can be tied together, with what the analysis has to find.

An entry is a name, the network's parts, its forward, and for each group (units, how many of them may be removed);
`pins` holds a part of the reason that a group's pinned units give. A part `fc` is the classifier, whose outputs are
pinned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.trace import trace

Parts = Mapping[str, nn.Module | Tensor]
Run = Callable[..., Any]
IMAGE = (2, 3, 6, 6)
TOKENS = (2, 5, 6)


class Made(nn.Module):
    """A module of named parts with a function for its forward."""

    def __init__(self, parts: Parts, run: Run) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


@dataclass(frozen=True)
class Net:
    """A network, the shapes of its inputs, and what is expected of its analysis."""

    parts: Callable[[], Parts]
    run: Run
    shapes: tuple[tuple[int, ...], ...]
    groups: Mapping[str, tuple[int, int]]
    pins: Mapping[str, str]

    def build(self) -> Made:
        """The network in float64 and evaluation mode, with seeded weights and lively norms."""
        torch.manual_seed(0)
        return lively(Made(self.parts(), self.run))

    def inputs(self, batch: int | None = None, seed: int = 1) -> tuple[Tensor, ...]:
        """Seeded inputs, of another batch size where one is given."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [(batch or shape[0], *shape[1:]) for shape in self.shapes]
        return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)


def lively(model: Any) -> Any:
    """In float64 and evaluation mode, no parameter or running statistic at a default that hides a mistake."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.data, 0.5, 1.5) if name.endswith("var") else nn.init.normal_(tensor.data, std=0.5)
    return model.double().eval()


NETS: dict[str, Net] = {}


def net(
    name: str,
    parts: Callable[[], Parts],
    run: Run,
    groups: Mapping[str, tuple[int, int]],
    pins: Mapping[str, str] | None = None,
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,),
) -> None:
    """Enter a network into the table."""
    made = parts()
    heads = {"fc": (made["fc"].out_features, 0)} if isinstance(made.get("fc"), nn.Linear) else {}
    NETS[name] = Net(parts, run, shapes, {**heads, **groups}, pins or {})


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def pooled(x: Tensor) -> Tensor:
    """The mean over the image."""
    return x.mean((2, 3))


def free(*shape: int) -> nn.Parameter:
    """A parameter of its own."""
    return nn.Parameter(torch.randn(shape))


def tied(inputs: int, outputs: int) -> Parts:
    """Two linear layers that share their weight."""
    first, second = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
    second.weight = first.weight
    return {"a": first, "b": second}


# -- chains, additions, shortcuts --------------------------------------------------------------------------------------

net(
    "chain",
    lambda: {"a": conv(3, 8), "bn": nn.BatchNorm2d(8), "b": conv(8, 6), "fc": nn.Linear(6, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.b(F.max_pool2d(F.relu(m.bn(m.a(x))), 2))))),
    {"a": (8, 8), "b": (6, 6)},
)
net(
    "residual",
    lambda: {"a": conv(3, 8), "b": conv(8, 6), "c": conv(6, 8), "bn": nn.BatchNorm2d(8), "fc": nn.Linear(8, 4)},
    lambda m, x: (lambda y: m.fc(pooled(F.relu(y + m.bn(m.c(F.relu(m.b(y))))))))(F.relu(m.a(x))),
    {"a": (8, 8), "b": (6, 6)},
)
net(
    "zero_pad_shortcut",
    lambda: {"a": conv(3, 4), "b": conv(4, 10), "fc": nn.Linear(10, 4)},
    lambda m, x: (lambda y: m.fc(pooled(F.relu(F.pad(y, (0, 0, 0, 0, 3, 3)) + m.b(y)))))(F.relu(m.a(x))),
    {"a": (10, 10)},
)
net(
    "padding_read_directly",
    lambda: {"a": conv(3, 4), "b": conv(7, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.b(F.pad(m.a(x), (1, 1, 0, 0, 1, 2), value=0.5))))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "cropped_channels",
    lambda: {"a": conv(3, 8), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.pad(m.a(x), (0, 0, 0, 0, -1, -1))))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "added_to_image",
    lambda: {"a": conv(3, 3), "b": conv(3, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.b(m.a(x) + x)))),
    {"a": (3, 0), "b": (5, 5)},
    {"a": "meets positions that are fixed"},
)
net(
    "shared_module",
    lambda: {"a": conv(3, 6), "b": conv(6, 6), "bn": nn.BatchNorm2d(6), "fc": nn.Linear(6, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.b(F.relu(m.bn(m.b(m.bn(m.a(x))))))))),
    {"a": (6, 6)},
)
net(
    "in_place",
    lambda: {"a": conv(3, 6), "b": conv(6, 6), "r": nn.ReLU(inplace=True), "fc": nn.Linear(6, 4)},
    lambda m, x: m.fc(pooled(m.r(m.b(m.r(m.a(x)).mul_(2)).add_(m.a(x)).clamp_(min=0.1)))),
    {"a": (6, 6)},
)
net(
    "item_assignment",
    lambda: {"a": conv(3, 4), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(_assigned(m.a(x))))),
    {"a": (4, 4), "b": (5, 5)},
)


def _assigned(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, 2:6] = x
    return y


# -- joining and taking apart ------------------------------------------------------------------------------------------

net(
    "concat",
    lambda: {"a": conv(3, 4), "b": conv(3, 6), "c": conv(10, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.c(torch.cat([F.relu(m.a(x)), m.b(x)], 1))))),
    {"a": (4, 4), "b": (6, 6), "c": (5, 5)},
)
net(
    "concat_by_names",
    lambda: {"a": conv(3, 4), "b": conv(3, 6), "c": conv(10, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(m.c(torch.cat(tensors=[m.a(x), m.b(x)], dim=-3)).mean(dim=(-1, -2))),
    {"a": (4, 4), "b": (6, 6), "c": (5, 5)},
)
net(
    "concat_axis",
    lambda: {"a": conv(3, 4), "b": conv(3, 6), "c": conv(10, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(torch.sum(m.c(torch.cat([m.a(x), m.b(x)], axis=1)), axis=(2, 3), keepdims=True).flatten(1)),
    {"a": (4, 4), "b": (6, 6), "c": (5, 5)},
)
net(
    "concat_image",
    lambda: {"a": conv(3, 8), "b": conv(11, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.b(torch.cat([x, F.relu(m.a(x))], 1))))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "concat_norm",
    lambda: {"a": conv(3, 4), "bn": nn.BatchNorm2d(7), "b": conv(7, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.bn(torch.cat([m.a(x), x], 1)))))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "concat_over_batch",
    lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.c(torch.cat([m.a(x), m.b(x)]))))),
    {"a": (4, 4), "c": (5, 5)},
)
net(
    "stack",
    lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.relu(m.c(torch.stack([m.a(x), m.b(x)], 1).sum(1))))),
    {"a": (4, 4), "c": (5, 5)},
)
net(
    "unbind",
    lambda: {"a": conv(3, 12), "b": conv(4, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(torch.cat(m.a(x).unflatten(1, (3, 4)).unbind(1)[:1], 1)))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "unbind_of_channels",
    lambda: {"a": conv(3, 4), "fc": nn.Linear(36, 4)},
    lambda m, x: m.fc(sum(m.a(x).unbind(1)).flatten(1)),
    {"a": (1, 0)},
    {"a": "picks a single channel"},
)
net(
    "chunk_two_readers",
    lambda: {"a": conv(3, 10), "b": conv(5, 4), "c": conv(5, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda p: m.fc(pooled(m.b(p[0]) + m.c(p[1]))))(F.relu(m.a(x)).chunk(2, 1)),
    {"a": (10, 10), "b": (4, 4)},
)
net(
    "chunk_multiplied",
    lambda: {"a": conv(3, 10), "b": conv(5, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda p: m.fc(pooled(m.b(p[0] * p[1].sigmoid()))))(torch.chunk(m.a(x), chunks=2, dim=1)),
    {"a": (5, 5), "b": (4, 4)},
)
net(
    "uneven_split",
    lambda: {"a": conv(3, 10), "b": conv(3, 4), "c": conv(7, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda p: m.fc(pooled(m.b(p[0]) + m.c(p[1]))))(m.a(x).split([3, 7], dim=1)),
    {"a": (10, 10), "b": (4, 4)},
)
net(
    "split_by_size_of_another",
    lambda: {"a": conv(3, 4), "b": conv(4, 8), "c": conv(4, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda y: m.fc(pooled(sum(m.c(p) for p in m.b(y).split(y.shape[1], 1)))))(F.relu(m.a(x))),
    {"a": (4, 4), "b": (4, 4), "c": (4, 4)},
)
net(
    "split_pinned_by_size_of_another",
    lambda: {"a": conv(3, 4), "fc": nn.Linear(8, 4)},
    lambda m, x, y: (lambda z: m.fc(pooled(z).repeat(1, 2)) + sum(y.split(z.shape[1], 1)).mean())(m.a(x)),
    {"a": (4, 4)},
    shapes=(IMAGE, (2, 8)),
)
net(
    "one_channel_piece",
    lambda: {"a": conv(3, 5), "b": conv(4, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y[:, 1:]) * y[:, :1].sigmoid())))(m.a(x)),
    {"a": (5, 4), "b": (4, 4)},
    {"a": "picks a single channel"},
)
net(
    "slices_with_step",
    lambda: {"a": conv(3, 10), "b": conv(5, 4), "c": conv(5, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y[:, ::2]) + m.c(y[:, 1::2]))))(F.relu(m.a(x))),
    {"a": (10, 10), "b": (4, 4)},
)
net(
    "narrow_and_select",
    lambda: {"a": conv(3, 10), "b": conv(4, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y.narrow(1, 2, 4)) * y.select(1, -1)[:, None])))(m.a(x)),
    {"a": (10, 9), "b": (4, 4)},
    {"a": "picks a single channel"},
)
net(
    "index_select",
    lambda: {"a": conv(3, 6), "b": conv(6, 4), "order": torch.tensor([3, 1, 0, 2, 5, 4]), "fc": nn.Linear(4, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x).index_select(1, m.order)))),
    {"a": (6, 6), "b": (4, 4)},
)
net(
    "indexed_by_tensor",
    lambda: {"a": nn.Linear(6, 8), "order": torch.tensor([3, 1, 0]), "b": nn.Linear(8, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(m.b(F.relu(m.a(x)))[:, m.order].sum(1) + m.b(m.a(x))[:, 0]),
    {"a": (8, 8), "b": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "channels_indexed_by_tensor",
    lambda: {"a": conv(3, 6), "b": conv(2, 4), "order": torch.tensor([3, 1]), "fc": nn.Linear(4, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x)[:, m.order]))),
    {"a": (6, 6), "b": (4, 4)},
)
net(
    "roll_over_channels",
    lambda: {"a": conv(3, 6), "b": conv(6, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: m.fc(pooled(torch.roll(m.b(torch.roll(m.a(x), 1, 1)), (1, 1), (2, 3)))),
    {"a": (6, 6), "b": (4, 4)},
)
net(
    "flip_over_channels",
    lambda: {"a": conv(3, 6), "b": conv(6, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x).flip(1)))),
    {"a": (6, 6), "b": (4, 4)},
)
net(
    "repeat",
    lambda: {"a": conv(3, 4), "b": conv(8, 4), "c": conv(8, 4), "fc": nn.Linear(4, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x).repeat(1, 2, 1, 1)) + m.c(m.a(x).repeat_interleave(2, dim=1)))),
    {"a": (4, 4), "b": (4, 4)},
)

# -- grouped convolutions ----------------------------------------------------------------------------------------------

net(
    "depthwise",
    lambda: {
        "a": conv(3, 8),
        "d": conv(8, 8, groups=8),
        "bn": nn.BatchNorm2d(8),
        "b": conv(8, 5),
        "fc": nn.Linear(5, 4),
    },
    lambda m, x: m.fc(pooled(m.b(F.relu6(m.bn(m.d(m.a(x))))))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "depthwise_of_concat",
    lambda: {"a": conv(3, 4), "d": conv(7, 7, groups=7), "b": conv(7, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.d(torch.cat([m.a(x), x], 1))))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "depthwise_shared",
    lambda: {"a": conv(3, 4), "b": conv(3, 4), "d": conv(4, 4, groups=4), "c": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.c(torch.cat([m.d(m.a(x)), m.d(m.b(x))], 1)))),
    {"a": (4, 4), "c": (5, 5)},
)
net(
    "depthwise_multiplier",
    lambda: {"a": conv(3, 6), "d": conv(6, 12, groups=6), "b": conv(12, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.d(F.relu(m.a(x))))))),
    {"a": (6, 6), "b": (5, 5)},
)
net(
    "one_output_a_group",
    lambda: {"a": conv(3, 12), "d": conv(12, 6, groups=6), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.d(F.relu(m.a(x))))))),
    {"a": (6, 6), "b": (5, 5)},
)
net(
    "grouped",
    lambda: {"a": conv(3, 8), "g": conv(8, 12, groups=2), "b": conv(12, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.g(F.relu(m.a(x))))))),
    {"a": (4, 4), "g": (6, 6), "b": (5, 5)},
)
net(
    "grouped_on_concat",
    lambda: {"a": conv(3, 4), "b": conv(3, 4), "g": conv(8, 12, groups=2), "fc": nn.Linear(12, 4)},
    lambda m, x: m.fc(pooled(m.g(torch.cat([m.a(x), m.b(x)], 1)))),
    {"a": (4, 4), "g": (6, 6)},
)
net(
    "grouped_on_image",
    lambda: {"g": conv(3, 6, groups=3), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.g(x))))),
    {"g": (6, 0), "b": (5, 5)},
    {"g": "meets positions that are fixed"},
)
net(
    "transposed",
    lambda: {"a": conv(3, 8), "t": nn.ConvTranspose2d(8, 6, 2, stride=2), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.t(m.a(x)))))),
    {"a": (8, 8), "t": (6, 6), "b": (5, 5)},
)
net(
    "grouped_transposed",
    lambda: {"a": conv(3, 8), "t": nn.ConvTranspose2d(8, 6, 2, groups=2), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.t(m.a(x)))))),
    {"a": (4, 4), "t": (3, 3), "b": (5, 5)},
)
net(
    "depthwise_transposed",
    lambda: {"a": conv(3, 6), "t": nn.ConvTranspose2d(6, 6, 2, groups=6), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.t(m.a(x)))))),
    {"a": (6, 6), "b": (5, 5)},
)
net(
    "transposed_multiplier",
    lambda: {"a": conv(3, 4), "t": nn.ConvTranspose2d(4, 8, 2, groups=4), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.t(m.a(x)))))),
    {"a": (4, 4), "b": (5, 5)},
)

# -- free tensors ------------------------------------------------------------------------------------------------------

net(
    "free_scale",
    lambda: {"a": conv(3, 8), "scale": free(8, 1, 1), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x) * m.scale))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "buffer_factor",
    lambda: {"a": conv(3, 8), "factor": torch.rand(1, 8, 1, 1), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x) * m.factor))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "integer_buffer",
    lambda: {"a": conv(3, 8), "mask": torch.arange(8).view(1, 8, 1, 1) % 3, "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x) * m.mask))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "functional_conv",
    lambda: {"w": free(8, 3, 3, 3), "bias": free(8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(F.conv2d(x, m.w, m.bias, padding=1))))),
    {"w[0]": (8, 8), "w[1]": (3, 0), "w[2]": (3, 0), "w[3]": (3, 0), "b": (5, 5)},
    {"w[2]": "kernel dimension"},
)
net(
    "functional_depthwise",
    lambda: {"a": conv(3, 8), "w": free(8, 1, 3, 3), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(F.conv2d(m.a(x), weight=m.w, padding=1, groups=8))))),
    {"a": (8, 8), "b": (5, 5), "w[2]": (3, 0), "w[3]": (3, 0)},
)
net(
    "functional_linear",
    lambda: {"w": free(8, 6), "v": free(7, 8), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(F.linear(F.relu(F.linear(x, m.w)), m.v).mean(1)),
    {"w[0]": (8, 8), "w[1]": (6, 0), "v": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "matmul_with_parameters",
    lambda: {"w": free(6, 8), "v": free(7, 8), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc((F.relu(x @ m.w) @ m.v.t()).mean(1)),
    {"w[1]": (8, 8), "w[0]": (6, 0), "v": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "einsum",
    lambda: {"w": free(6, 8), "v": free(7, 8), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(torch.einsum("btd,ed->bte", torch.einsum("btc,cd->btd", x, m.w).relu(), m.v).mean(1)),
    {"w[1]": (8, 8), "w[0]": (6, 0), "v": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "einsum_with_ellipsis",
    lambda: {"w": free(6, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(torch.einsum("...c,cd->...d", x, m.w).mean(1)),
    {"w[1]": (8, 8), "w[0]": (6, 0)},
    {"w[0]": "meets positions that are fixed"},
    shapes=(TOKENS,),
)
net(
    "tied_weights",
    lambda: {**tied(6, 6), "fc": nn.Linear(6, 4)},
    lambda m, x: m.fc(F.relu(m.b(F.relu(m.a(x)))).mean(1)),
    {"a": (6, 0)},
    {"a": "meets positions that are fixed"},
    shapes=(TOKENS,),
)
net(
    "tied_twins",
    lambda: {**tied(6, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc((F.relu(m.a(x)) + m.b(x)).mean(1)),
    {"a": (8, 8)},
    shapes=(TOKENS,),
)
net(
    "module_and_its_weight",
    lambda: {"a": nn.Linear(6, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc((F.relu(m.a(x)) + F.linear(x, m.a.weight)).mean(1)),
    {"a": (8, 8)},
    shapes=(TOKENS,),
)


# -- reshaping ---------------------------------------------------------------------------------------------------------

net(
    "flatten_linear",
    lambda: {"a": conv(3, 8), "h": nn.Linear(8 * 9, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(F.relu(m.h(F.max_pool2d(m.a(x), 2).flatten(1)))),
    {"a": (8, 8), "h": (7, 7)},
)
net(
    "hard_coded_view",
    lambda: {"a": conv(3, 8), "h": nn.Linear(8 * 9, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(F.relu(m.h(F.max_pool2d(m.a(x), 2).view(-1, 8 * 3 * 3)))),
    {"a": (8, 8), "h": (7, 7)},
)
net(
    "view_by_sizes",
    lambda: {"a": conv(3, 8), "h": nn.Linear(8 * 9, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: (lambda y: m.fc(F.relu(m.h(y.view(y.size(0), y.size(1) * y.size(2) * y.size(3))))))(
        F.max_pool2d(m.a(x), 2)
    ),
    {"a": (8, 8), "h": (7, 7)},
)
net(
    "view_by_size_of_another",
    lambda: {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 5), "d": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda p, q: m.fc(pooled(m.c(p) + m.d(q.flatten(2).view(p.shape)))))(m.a(x), m.b(x)),
    {"a": (8, 8), "b": (8, 8), "c": (5, 5)},
)
net(
    "view_as",
    lambda: {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 5), "d": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda p, q: m.fc(pooled(m.c(p) + m.d(q.flatten(2).view_as(p)))))(m.a(x), m.b(x)),
    {"a": (8, 8), "c": (5, 5)},
)
net(
    "expand_as",
    lambda: {"a": conv(3, 8), "g": nn.Linear(3, 1), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(m.g(pooled(x))[:, :, None, None].expand_as(y)))))(m.a(x)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "squeeze",
    lambda: {"a": conv(3, 4), "p": nn.AdaptiveAvgPool2d(1), "fc": nn.Linear(4, 4)},
    lambda m, x: m.fc(m.p(m.a(x)).squeeze(3).squeeze(2).squeeze(1)),
    {"a": (4, 4)},
)
net(
    "squeeze_all",
    lambda: {"a": conv(3, 2), "fc": nn.Linear(2, 4)},
    lambda m, x: m.fc(pooled(m.a(x)).sum(0, keepdim=True).squeeze()),
    {"a": (2, 2)},
)
net(
    "unflatten_module",
    lambda: {"a": conv(3, 8), "u": nn.Unflatten(1, (2, 4)), "b": conv(4, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.u(m.a(x)).sum(1)))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "channel_shuffle",
    lambda: {"a": conv(3, 8), "g": conv(8, 8, groups=2), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.g(_shuffled(m.a(x), 2))))),
    {"a": (2, 2), "g": (4, 4), "b": (5, 5)},
)
net(
    "channel_shuffle_module",
    lambda: {"a": conv(3, 8), "s": nn.ChannelShuffle(2), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.s(m.a(x))))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "shuffle_of_concat",
    lambda: {"a": conv(3, 3), "b": conv(6, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(_shuffled(torch.cat([m.a(x), x], 1), 2)))),
    {"a": (1, 0), "b": (5, 5)},
    {"a": "shares a block with fixed positions"},
)
net(
    "shuffle_over_uneven_blocks",
    lambda: {"a": conv(3, 3), "b": conv(4, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(_shuffled(torch.cat([x[:, :1], m.a(x)], 1), 2)))),
    {"a": (2, 1), "b": (5, 5)},
    {"a": "shares a block with fixed positions"},
)
net(
    "pixel_shuffle",
    lambda: {"a": conv(3, 16), "p": nn.PixelShuffle(2), "b": conv(4, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.p(m.a(x))))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "pixel_unshuffle",
    lambda: {"a": conv(3, 4), "b": conv(16, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.pixel_unshuffle(m.a(x), 2)))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "space_to_depth",
    lambda: {"a": conv(3, 4), "b": conv(16, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(torch.cat([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)))))(
        m.a(x)
    ),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "unfold",
    lambda: {"a": conv(3, 4), "h": nn.Conv1d(4 * 9, 5, 1), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(m.h(F.unfold(m.a(x), 3)).mean(2)),
    {"a": (4, 4), "h": (5, 5)},
)
net(
    "channels_last",
    lambda: {"a": conv(3, 8), "h": nn.Linear(8, 7), "b": conv(7, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.gelu(m.h(m.a(x).permute(0, 2, 3, 1))).permute(0, -1, 1, 2)))),
    {"a": (8, 8), "h": (7, 7), "b": (5, 5)},
)
net(
    "heads_in_batch",
    lambda: {"a": nn.Linear(6, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(_through_batch(m.a(x), 4, *x.shape[:2]).mean(1)),
    {"a": (4, 4)},
    shapes=(TOKENS,),
)  # fmt: skip


def _through_batch(x: Tensor, heads: int, n: int, t: int) -> Tensor:
    """Heads are folded into the batch and taken out again."""
    folded = x.view(n, t, heads, 2).transpose(1, 2).reshape(n * heads, t, 2)
    return folded.reshape(n, heads, t, 2).transpose(1, 2).flatten(2)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


# -- gates, attention, norms -------------------------------------------------------------------------------------------

net(
    "se_gate",
    lambda: {"a": conv(3, 8), "s": nn.Linear(8, 2), "e": nn.Linear(2, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y * m.e(F.relu(m.s(pooled(y)))).sigmoid()[:, :, None, None]))))(m.a(x)),
    {"a": (8, 8), "s": (2, 2), "b": (5, 5)},
)
net(
    "se_gate_expanded",
    lambda: {"a": conv(3, 8), "s": conv(8, 1, 1), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(m.s(y).expand(-1, y.shape[1], -1, -1)) + m.b(y))))(m.a(x)),
    {"a": (8, 0), "b": (5, 5)},
)
net(
    "divided_by_root_of_width",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y / math.sqrt(y.shape[1])) * y.shape[1])))(m.a(x)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "divided_by_counts_of_the_batch",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y / (y.shape[0] * y.shape[1] + 3) + 1 / y.numel()))))(m.a(x)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "width_in_the_output",
    lambda: {"a": conv(3, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: (lambda y: (m.fc(pooled(y)), y.shape[1], x.shape[0]))(m.a(x)),
    {"a": (8, 8)},
)


def _attention(m: Any, x: Tensor, heads: int) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (f(x).view(n, t, heads, -1).transpose(1, 2) for f in (m.q, m.k, m.v))
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    return m.o((weights @ v).transpose(1, 2).reshape(n, t, -1))


def _fused(m: Any, x: Tensor, heads: int) -> Tensor:
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


def _chunked(m: Any, x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (part.view(n, t, heads, -1).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return m.o(out.transpose(1, 2).flatten(2))


def _projections() -> dict[str, nn.Module]:
    return {name: nn.Linear(6, 8) for name in "qkv"} | {"o": nn.Linear(8, 6), "fc": nn.Linear(6, 4)}


def _packed() -> dict[str, nn.Module]:
    return {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 6), "fc": nn.Linear(6, 4)}


net(
    "attention",
    _projections,
    lambda m, x: m.fc((x + _attention(m, x, 4)).mean(1)),
    {"q": (4, 4), "o": (6, 0)},
    shapes=(TOKENS,),
)
net(
    "attention_of_one_head",
    _projections,
    lambda m, x: m.fc(_attention(m, x, 1).mean(1)),
    {"q": (8, 8), "v": (8, 8), "o": (6, 6)},
    shapes=(TOKENS,),
)
net(
    "packed_qkv",
    _packed,
    lambda m, x: m.fc(_fused(m, x, 4).mean(1)),
    {"qkv": (4, 4), "o": (6, 6)},
    shapes=(TOKENS,),
)
net(
    "packed_qkv_one_head",
    _packed,
    lambda m, x: m.fc(_fused(m, x, 1).mean(1)),
    {"qkv": (12, 12), "o": (6, 6)},
    shapes=(TOKENS,),
)
net(
    "chunked_qkv",
    _packed,
    lambda m, x: m.fc(_chunked(m, x, 4).mean(1)),
    {"qkv": (4, 4), "o": (6, 6)},
    shapes=(TOKENS,),
)
net(
    "masked_attention",
    lambda: {**_packed(), "mask": torch.randn(1, 4, 5, 5)},
    lambda m, x: m.fc(_chunked(m, x, 4, m.mask).mean(1)),
    {"qkv": (4, 4), "o": (6, 6)},
    shapes=(TOKENS,),
)
net(
    "attention_with_boolean_mask",
    lambda: {**_packed(), "mask": torch.ones(1, 4, 5, 5, dtype=torch.bool).tril()},
    lambda m, x: m.fc(_chunked(m, x, 4, m.mask).mean(1)),
    {"qkv": (4, 4), "o": (6, 6)},
    shapes=(TOKENS,),
)
net(
    "attention_by_einsum",
    _projections,
    lambda m, x: m.fc(_by_einsum(m, x, 4).mean(1)),
    {"q": (4, 4), "o": (6, 6)},
    shapes=(TOKENS,),
)


def _by_einsum(m: Any, x: Tensor, heads: int) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (heads, 2)) for f in (m.q, m.k, m.v))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(dim=-1)
    return m.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


net(
    "mixer",
    lambda: {"t": nn.Linear(5, 7), "u": nn.Linear(7, 5), "c": nn.Linear(6, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(m.u(F.gelu(m.t(m.c(x).transpose(1, 2)))).mean(-1)),
    {"t": (7, 7), "u": (5, 5), "c": (8, 8)},
    shapes=(TOKENS,),
)
net(
    "layer_norm",
    lambda: {"a": nn.Linear(6, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(m.b(F.gelu(m.n(m.a(x)))).mean(1)),
    {"a": (8, 8), "b": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "layer_norm_without_scale",
    lambda: {
        "a": nn.Linear(6, 8),
        "n": nn.LayerNorm(8, elementwise_affine=False),
        "b": nn.Linear(6, 8),
        "fc": nn.Linear(8, 4),
    },
    lambda m, x: m.fc((m.n(m.a(x)) * 2).mean(1)) + m.fc(m.n(m.b(x)).mean(1)),
    {"a": (8, 8)},
    shapes=(TOKENS,),
)
net(
    "layer_norm_without_scale_on_two_groups",
    lambda: {
        "a": nn.Linear(6, 8),
        "n": nn.LayerNorm(8, elementwise_affine=False),
        "b": nn.Linear(6, 8),
        "c": nn.Linear(16, 5),
    },
    lambda m, x: m.c(torch.cat([m.n(m.a(x)), m.n(m.b(x))], -1)),
    {"a": (8, 8), "c": (5, 0)},
    shapes=(TOKENS,),
)
net(
    "functional_layer_norm",
    lambda: {"a": nn.Linear(6, 8), "w": free(8), "bias": free(8), "b": nn.Linear(8, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: (lambda y: m.fc(m.b(F.layer_norm(y, y.shape[-1:], m.w, m.bias)).mean(1)))(m.a(x)),
    {"a": (8, 8), "b": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "literal_layer_norm",
    lambda: {"a": nn.Linear(6, 8), "b": nn.Linear(8, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(m.b(F.layer_norm(m.a(x), (8,))).mean(1)),
    {"a": (8, 8), "b": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "rms_norm",
    lambda: {"a": nn.Linear(6, 8), "n": nn.RMSNorm(8), "b": nn.Linear(8, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(m.b(m.n(m.a(x))).mean(1)),
    {"a": (8, 8), "b": (7, 7)},
    shapes=(TOKENS,),
)
net(
    "group_norm",
    lambda: {"a": conv(3, 8), "n": nn.GroupNorm(2, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(F.relu(m.n(m.a(x)))))),
    {"a": (4, 4), "b": (5, 5)},
)
net(
    "group_norm_of_single_channels",
    lambda: {"a": conv(3, 8), "n": nn.GroupNorm(8, 8), "m": nn.GroupNorm(8, 8, affine=False), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(F.relu(m.m(m.n(m.a(x)))).amax((2, 3))),
    {"a": (8, 8)},
)
net(
    "functional_group_norm",
    lambda: {"a": conv(3, 8), "w": free(8), "bias": free(8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(F.group_norm(F.group_norm(m.a(x), 4, m.w, m.bias).relu(), 8).amax((2, 3))),
    {"a": (2, 2)},
)
net(
    "instance_norm",
    lambda: {"a": conv(3, 8), "n": nn.InstanceNorm2d(8), "m": nn.InstanceNorm2d(8, affine=True), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(F.relu(m.m(F.relu(m.n(m.a(x))))).amax((2, 3))),
    {"a": (8, 8)},
)
net(
    "functional_batch_norm",
    lambda: {"a": conv(3, 8), "mean": torch.randn(8), "var": torch.rand(8), "w": free(8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(pooled(F.relu(F.batch_norm(m.a(x), m.mean, m.var, m.w)))),
    {"a": (8, 8)},
)
net(
    "prelu",
    lambda: {"a": conv(3, 8), "p": nn.PReLU(8), "one": nn.PReLU(), "w": free(8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(pooled(F.prelu(m.one(m.p(m.a(x))) - 0.5, m.w))),
    {"a": (8, 8)},
)
net(
    "glu",
    lambda: {"a": conv(3, 10), "b": conv(5, 6), "g": nn.GLU(1), "fc": nn.Linear(3, 4)},
    lambda m, x: m.fc(pooled(m.g(m.b(F.glu(m.a(x), 1))))),
    {"a": (5, 5), "b": (3, 3)},
)
net(
    "parametrized",
    lambda: {"a": conv(3, 8), "b": nn.utils.parametrizations.weight_norm(conv(8, 5)), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x)))),
    {"a": (8, 8), "b": (5, 5)},
)

# -- what mixes channels -----------------------------------------------------------------------------------------------

net(
    "mean_over_channels",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y) * y.mean(dim=1, keepdim=True))))(m.a(x)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "maximum_over_axis",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(pooled(m.b(y) * torch.amax(y, axis=-3)[:, None])))(m.a(x)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "deviation_over_the_image",
    lambda: {"a": conv(3, 8), "b": nn.Linear(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(m.b(m.a(x).flatten(2).std(2, True, keepdim=True).squeeze(-1) + torch.var(m.a(x).flatten(2), -1))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "maximum_with_indices",
    lambda: {"a": conv(3, 8), "b": nn.Linear(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda top: m.fc(m.b(top.values + top[0] + top.indices)))(m.a(x).flatten(2).max(-1)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "pooling_with_indices",
    lambda: {
        "a": conv(3, 8),
        "p": nn.MaxPool2d(2, return_indices=True),
        "u": nn.MaxUnpool2d(2),
        "b": conv(3, 8),
        "fc": nn.Linear(8, 4),
    },
    lambda m, x: (lambda p: m.fc(pooled(m.u(F.max_pool2d(m.b(x), 2), p[1]))))(m.p(m.a(x))),
    {"a": (8, 8)},
)
net(
    "softmax_over_channels",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.softmax(m.b(F.softmax(m.a(x), dim=1)).flatten(2), -1)[..., None])),
    {"a": (8, 0), "b": (5, 5)},
    {"a": "is normalised over"},
)
net(
    "normalize_over_channels",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.normalize(m.b(F.normalize(m.a(x))), dim=2))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "cumsum",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(m.a(x).cumsum(1).cumsum(-1)).cumsum(dim=2))),
    {"a": (8, 0), "b": (5, 5)},
)
net(
    "sorted_channels",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(torch.sort(m.a(x), 1)[0]))),
    {"a": (8, 0), "b": (5, 5)},
    {"a": "is sorted over"},
)
net(
    "where",
    lambda: {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda p, q: m.fc(pooled(m.c(torch.where(p > q, p, q).masked_fill(q < 0, 0.5)))))(m.a(x), m.b(x)),
    {"a": (8, 8), "c": (5, 5)},
)
net(
    "sampled_by_a_grid",
    lambda: {"a": conv(3, 8), "g": conv(3, 2), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(pooled(F.grid_sample(m.a(x), m.g(x).permute(0, 2, 3, 1), align_corners=False))),
    {"a": (8, 8), "g": (2, 0)},
    {"g": "is a grid"},
)
net(
    "interpolated",
    lambda: {"a": conv(3, 8), "u": nn.Upsample(scale_factor=2), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(F.interpolate(m.b(m.u(m.a(x))), size=x.shape[2:], mode="bilinear"))),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "type_of_another",
    lambda: {"a": conv(3, 8), "b": nn.Linear(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: m.fc(m.b(pooled(y).to(x).type_as(y)) + pooled(y).sum() * 0))(m.a(x)),
    {"a": (8, 8), "b": (5, 5)},
)
net(
    "two_inputs",
    lambda: {"a": conv(3, 8), "l": nn.Linear(6, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x, y: m.fc(pooled(m.b(F.relu(m.a(x)) + m.l(y)[:, :, None, None]))),
    {"a": (8, 8), "b": (5, 5)},
    shapes=(IMAGE, (2, 6)),
)
net(
    "several_outputs",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda y: {"logits": m.fc(pooled(y)), "features": (y, [m.a(x).flatten(1).sum(1)])})(m.b(m.a(x))),
    {"a": (8, 8), "b": (5, 0)},
    {"b": "reaches the model's output"},
)
net(
    "own_function",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)},
    lambda m, x: m.fc(pooled(m.b(torch.special.bessel_j0(m.a(x))))),
    {"a": (8, 0), "b": (5, 5)},
    {"a": "unknown op special_bessel_j0"},
)


def program_of(name: str) -> Program:
    """A network of the table, traced."""
    net = NETS[name]
    return trace(net.build(), net.inputs())
