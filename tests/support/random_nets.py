"""Random small networks: layers of every kind, one after the other, on maps of six by six."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from nets import conv, lively
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Tensor, list[Tensor]], Tensor]
"""(the current map, the maps before it) -> the next map"""


class Builder(nn.Module):
    """Layers that are added one by one; `width` is the current number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.widths = [3]
        self.head = nn.Identity()

    @property
    def width(self) -> int:
        return self.widths[-1]

    def layer(self, module: Any) -> Any:
        self.layers.append(module)
        return module

    def step(self, width: int, step: Step) -> None:
        self.steps.append(step)
        self.widths.append(width)

    def even(self, factor: int = 2) -> None:
        """See to it that the width is a multiple of `factor`."""
        if self.width % factor:
            convolution(self, factor * 2)

    def forward(self, x: Tensor) -> Any:
        maps = [x]
        for step in self.steps:
            maps.append(step(maps[-1], maps[:-1]))
        return self.head(maps[-1])


def convolution(b: Builder, n: int) -> None:
    c = b.layer(conv(b.width, n, 1 + 2 * (n % 2)))
    b.step(n, lambda x, _: c(x))


def norm(b: Builder, n: int) -> None:
    bn = b.layer(nn.BatchNorm2d(b.width) if n % 2 else nn.InstanceNorm2d(b.width, affine=n % 4 == 0))
    b.step(b.width, lambda x, _: bn(x))


def activation(b: Builder, n: int) -> None:
    f = (F.relu, torch.sigmoid, F.gelu, lambda x: x.clamp(min=-0.5), lambda x: F.max_pool2d(x, 3, 1, 1))[n % 5]
    b.step(b.width, lambda x, _: f(x))


def residual(b: Builder, n: int) -> None:
    c = b.layer(conv(b.width, b.width))
    b.step(b.width, lambda x, _: x + c(F.relu(x)) if n % 2 else torch.maximum(c(x), x))


def addition(b: Builder, n: int) -> None:
    """With an earlier map of the same width, where there is one."""
    earlier = [i for i, width in enumerate(b.widths[:-1]) if width == b.width]
    if earlier:
        place = earlier[n % len(earlier)]
        b.step(b.width, lambda x, maps: x + maps[place])


def concatenation(b: Builder, n: int) -> None:
    place = n % len(b.widths)
    width = b.widths[place] if place < len(b.widths) - 1 else b.width
    if b.width + width <= 24:
        b.step(b.width + width, lambda x, maps: torch.cat([(*maps, x)[place], x], 1))


def halves(b: Builder, n: int) -> None:
    b.even()
    width = b.width // 2
    one, two = b.layer(conv(width, 4)), b.layer(conv(width, 4))
    if n % 3 == 0:
        b.step(4, lambda x, _: (lambda p, q: one(p) + two(q))(*x.chunk(2, 1)))
    elif n % 3 == 1:
        b.step(width, lambda x, _: (lambda p, q: p * q.sigmoid())(*x.split(width, 1)))
    else:
        b.step(4 + width, lambda x, _: torch.cat([one(x[:, ::2]), x[:, 1::2]], 1))


def pieces(b: Builder, n: int) -> None:
    cut = 1 + n % max(b.width - 1, 1)
    rest = b.layer(conv(b.width - cut, 5)) if cut < b.width else None
    if rest is not None:
        b.step(cut + 5, lambda x, _: torch.cat([rest(x[:, cut:]), x[:, :cut]], 1))


def depthwise(b: Builder, n: int) -> None:
    times = 1 + n % 2 if b.width <= 8 else 1
    d = b.layer(conv(b.width, b.width * times, groups=b.width))
    b.step(b.width * times, lambda x, _: d(x))


def grouped(b: Builder, n: int) -> None:
    b.even()
    c = b.layer(conv(b.width, 2 * n, groups=2))
    b.step(2 * n, lambda x, _: c(x))


def transposed(b: Builder, n: int) -> None:
    c = b.layer(nn.ConvTranspose2d(b.width, n, 3, padding=1))
    b.step(n, lambda x, _: c(x))


def shuffle(b: Builder, n: int) -> None:
    groups = 2 + n % 2
    b.even(groups)
    if n % 4 < 2:
        shuffled = b.layer(nn.ChannelShuffle(groups))
        b.step(b.width, lambda x, _: shuffled(x))
        return

    def by_hand(x: Tensor, _: list[Tensor]) -> Tensor:
        k, c, h, w = x.shape
        return x.view(k, groups, c // groups, h, w).transpose(1, 2).reshape(k, -1, h, w)

    b.step(b.width, by_hand)


def gate(b: Builder, n: int) -> None:
    s, e = b.layer(nn.Linear(b.width, n)), b.layer(nn.Linear(n, b.width))
    b.step(b.width, lambda x, _: x * e(F.relu(s(x.mean((2, 3))))).sigmoid()[..., None, None].expand_as(x))


def layer_norm(b: Builder, n: int) -> None:
    ln = b.layer(nn.LayerNorm(b.width, elementwise_affine=bool(n % 2)))
    b.step(b.width, lambda x, _: ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def group_norm(b: Builder, n: int) -> None:
    b.even()
    gn = b.layer(nn.GroupNorm((1, 2, b.width)[n % 3], b.width))
    b.step(b.width, lambda x, _: gn(x))


def glu(b: Builder, n: int) -> None:
    b.even()
    b.step(b.width // 2, lambda x, _: F.glu(x, 1) if n % 2 else F.glu(x.movedim(1, -1)).movedim(-1, 1))


def pixels(b: Builder, n: int) -> None:
    b.even(4)
    c = b.layer(conv(b.width // 4, 3))
    b.step(12, lambda x, _: F.pixel_unshuffle(c(F.pixel_shuffle(x, 2)), 2))


def padding(b: Builder, n: int) -> None:
    c, extra = b.layer(conv(b.width, b.width + 3)), n % 3
    b.step(b.width + 3, lambda x, _: c(x) + F.pad(x, (0, 0, 0, 0, extra, 3 - extra)))


def attention(b: Builder, n: int) -> None:
    heads = 1 + n % 2
    qkv, out = b.layer(nn.Linear(b.width, 12 * heads)), b.layer(nn.Linear(4 * heads, b.width))

    def step(x: Tensor, _: list[Tensor]) -> Tensor:
        k, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, key, v = qkv(tokens).reshape(k, h * w, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, key, v).transpose(1, 2).flatten(2)
        return (tokens + out(mixed)).transpose(1, 2).reshape(k, c, h, w)

    b.step(b.width, step)


def mean_over_channels(b: Builder, n: int) -> None:
    b.step(b.width, lambda x, _: x * x.mean(1, keepdim=True) if n % 2 else x - x.amax(dim=1)[:, None])


def waves(b: Builder, n: int) -> None:
    """A table that the forward computes, of places and channels."""

    def step(x: Tensor, _: list[Tensor]) -> Tensor:
        rates = torch.arange(1, x.shape[1] + 1, device=x.device).to(x) / n
        table = torch.sin(torch.arange(x.shape[2], device=x.device).to(x)[:, None] * rates)
        return x + table.mT[..., None] if n % 2 else x * (1 + table.t()[:, None])

    b.step(b.width, step)


KINDS = (
    *(convolution, convolution, convolution, norm, activation, residual, addition, concatenation, halves, pieces),
    *(depthwise, grouped, transposed, shuffle, gate, layer_norm, group_norm, glu, pixels, padding, attention),
    *(mean_over_channels, waves),
)


@dataclass(frozen=True)
class RandomNet:
    """A model, and how it was made."""

    model: nn.Module
    recipe: tuple[tuple[str, int], ...]

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(batch)
        return (torch.randn(batch, 3, 6, 6, generator=generator, dtype=torch.float64),)

    def __repr__(self) -> str:
        return f"RandomNet({self.recipe})"


@st.composite
def programs(draw, longest: int = 7) -> RandomNet:
    """A random network that ends in a linear layer, on the flattened map or on its mean."""
    chosen = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 8)), min_size=1, max_size=longest))
    torch.manual_seed(0)
    builder = Builder()
    convolution(builder, 8)
    for kind, number in chosen:
        kind(builder, number)
    flat = draw(st.booleans())
    head = nn.Linear(builder.width * (36 if flat else 1), 4)
    builder.head = nn.Sequential(nn.Flatten() if flat else nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return RandomNet(lively(builder), tuple((kind.__name__, number) for kind, number in chosen))
