"""Patterns of networks for images: channels that are folded into the batch, picked, sampled, transformed, or written to
through another object. They are entered beside those of `model_patterns`, and tested like them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from model_patterns import FIVE, between, gating, moving, pattern
from nets import IMAGE, TOKENS, Parts, conv
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

# -- channels in the batch ---------------------------------------------------------------------------------------------


def _heads_in_batch(m: Any, y: Tensor) -> Tensor:
    """Attention with heads as rows of the batch and the width of a head from the number of channels."""
    b, _, h, w = y.shape
    qkv = m.q(y.reshape(b, 8, -1))
    width = qkv.shape[1] // 6
    q, k, v = qkv.reshape(b * 2, width * 3, h * w).split(width, dim=1)
    weight = torch.einsum("bct,bcs->bts", q * width**-0.25, k * width**-0.25).softmax(-1)
    return m.o(torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, h * w)).reshape(b, 8, h, w) + y


def _heads_by_minus_one(m: Any, y: Tensor) -> Tensor:
    """The same with `-1` for a head's width, so that the rows can't be left to the view."""
    b, _, h, w = y.shape
    q, k, v = (t.reshape(t.shape[0] * 2, -1, h * w) for t in m.q(y.reshape(b, 8, -1)).chunk(3, dim=1))
    weight = torch.bmm(q.transpose(1, 2), k).softmax(-1)
    return m.o(torch.bmm(v, weight).reshape(b, -1, h * w)).reshape(b, 8, h, w) + y


_ATTENTION = {"q": lambda: nn.Conv1d(8, 24, 1), "o": lambda: nn.Conv1d(8, 8, 1)}
for _name, _step in {"from the width": _heads_in_batch, "by minus one": _heads_by_minus_one}.items():
    for _batch in (1, 2):
        pattern(
            f"heads in the batch: {_name}, {_batch}",
            between(8, **_ATTENTION),
            moving(_step),
            {"a": (8, 8), "q": (2, 2), **FIVE},
            shapes=((_batch, *IMAGE[1:]),),
        )


def _blurred(m: Any, y: Tensor) -> Tensor:
    """Every channel is a row of the batch, of one channel."""
    h, w = y.shape[-2:]
    return F.conv2d(y.reshape(-1, 1, h, w), m.k[None, None], padding=1).reshape(-1, y.shape[1], h, w)


def _sampled(m: Any, y: Tensor) -> Tensor:
    """Heads are rows of the batch, each with places of its own."""
    b, _, h, w = y.shape
    grid = m.g(y).view(b, 2, 2, h, w).flatten(0, 1).permute(0, 2, 3, 1).tanh()
    return F.grid_sample(m.v(y).reshape(b * 2, 4, h, w), grid, align_corners=False).reshape(b, -1, h, w)


pattern("in the batch: blurred", between(8, k=lambda: torch.rand(3, 3)), moving(_blurred), {"a": (8, 8), **FIVE})
pattern(
    "in the batch: sampled",
    between(8, g=lambda: conv(8, 4), v=lambda: conv(8, 8)),
    moving(_sampled),
    {"a": (8, 8), "g": (2, 2), **FIVE},
)

# -- objects and places ------------------------------------------------------------------------------------------------


def _unsqueezed_in_place(m: Any, y: Tensor) -> Tensor:
    parts = [m.c(y), m.d(y)]
    stacked = torch.cat([part.unsqueeze_(1) for part in parts], 1)
    return (stacked * stacked.mean((3, 4), keepdim=True).softmax(1)).sum(1)


def _turned_in_place(m: Any, y: Tensor) -> Tensor:
    tokens = y.flatten(2)
    tokens.transpose_(1, 2)
    return (tokens * 2).mT.unflatten(2, (6, 6))


def _gathered(m: Any, y: Tensor) -> Tensor:
    """The best places of an image, whatever the channel."""
    tokens = y.flatten(2).mT
    best = tokens.square().sum(-1).topk(4, dim=1).indices
    picked = torch.gather(tokens, 1, best.unsqueeze(-1).repeat(1, 1, tokens.shape[2]))
    return picked.mT.reshape(y.shape[0], -1, 2, 2)


def _variable(m: Any, y: Tensor) -> Tensor:
    zeros = torch.autograd.Variable(torch.zeros(y.shape[0], 2, *y.shape[2:]))
    return torch.cat((m.c(y)[:, :6], zeros), 1) + y


OBJECTS: Mapping[str, tuple[Callable[[Any, Tensor], Tensor], Mapping[str, tuple[int, int]]]] = {
    "unsqueezed": (_unsqueezed_in_place, {"a": (8, 8), "c": (8, 8)}),
    "transposed": (_turned_in_place, {"a": (8, 8)}),
    "gathered": (_gathered, {"a": (8, 8)}),
    "a variable": (_variable, {"a": (10, 10)}),
}
for _name, (_move, _groups) in OBJECTS.items():
    _parts = between(8, c=lambda: conv(8, 8), d=lambda: conv(8, 8))
    if _name in ("transposed", "gathered"):
        _parts = between(8)
    pattern(f"objects: {_name}", _parts, moving(_move), {**_groups, **FIVE})

pattern(
    "objects: an index as a variable",
    between(8, turned=lambda: torch.arange(8).flip(0)),
    moving(lambda m, y: torch.index_select(y, dim=1, index=torch.autograd.Variable(m.turned))),
    {"a": (8, 8), **FIVE},
)


def _freed(m: Any, y: Tensor) -> Tensor:
    """A reversible network gives memory back that it computes again in the backward pass."""
    left, right = (part.contiguous() * 1 for part in y.chunk(2, 1))
    both = torch.cat([left + right.tanh(), right], 1)
    left.set_()
    right.data.set_()
    return both


pattern("objects: freed", between(8), moving(_freed), {"a": (4, 4), **FIVE})

LARGEST: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "item": lambda m, y: torch.max(y.relu(), 1)[0][:, None],
    "values": lambda m, y: y.abs().max(dim=1, keepdim=True).values,
    "of a gate": lambda m, y: (y.relu() * m.g(y).sigmoid().expand_as(y)).max(1, keepdim=True)[0],
}
TWO: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "function": lambda m, y: torch.max(y, y.flip(2)),
    "method": lambda m, y: y.min(other=m.rows),
    "a scalar's tensor": lambda m, y: torch.min(y, y.new_tensor(0.5)),
    "reversed": lambda m, y: torch.max(y.new_zeros(()), y - 0.2),
}
for _name, _larger in TWO.items():
    pattern(
        f"largest of two: {_name}",
        between(8, rows=lambda: torch.rand(8, 1, 1) - 0.5),
        moving(lambda m, y, _larger=_larger: _larger(m, y)),
        {"a": (8, 8), **FIVE},
    )
for _name, _gate in LARGEST.items():
    _more = {"g": lambda: conv(8, 1)} if "gate" in _name else {}
    pattern(f"largest by dimension: {_name}", between(8, **_more), gating(_gate), {"a": (8, 8), **FIVE})


def _places(m: Any, x: Tensor) -> Tensor:
    """Rows of a mask in which nothing may be seen are opened."""
    scores = m.a(x)
    hidden = x.mean(-1)[:, None].repeat(1, 5, 1) < 0
    hidden[torch.where(hidden.sum(-1) == hidden.shape[-1])] = False
    hidden[(~hidden).all(-1).nonzero(as_tuple=True)] = True
    return m.fc(scores + hidden.to(x.dtype).mean(-1)[..., None])


def _tokens() -> Parts:
    return {"a": nn.Linear(6, 8), "fc": nn.Linear(8, 4)}


pattern("places of a mask", _tokens, _places, {"a": (8, 8)}, shapes=(TOKENS,))

# -- spectra and offsets -----------------------------------------------------------------------------------------------


def _filtered(m: Any, y: Tensor) -> Tensor:
    """Every frequency of every channel by a factor of its own, and a convolution of real and imaginary parts."""
    spectrum = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(m.w)
    both = m.c(torch.cat((spectrum.real, spectrum.imag), 1)).relu().chunk(2, 1)
    return torch.fft.irfftn(torch.complex(*both), s=y.shape[-2:], dim=(-2, -1), norm="ortho")


def _spectral(m: Any, y: Tensor) -> Tensor:
    """A product of channels at some frequencies; the others are zero."""
    spectrum = torch.fft.rfft2(y)
    out = torch.zeros(y.shape[0], 7, *spectrum.shape[-2:], dtype=spectrum.dtype)
    out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :2, :2], torch.view_as_complex(m.w))
    return torch.fft.irfft2(torch.fft.ifftshift(torch.fft.fftshift(out, dim=(2, 3)), dim=(2, 3)), s=y.shape[-2:])


pattern(
    "spectrum: filtered",
    between(8, w=lambda: nn.Parameter(torch.randn(8, 6, 4, 2)), c=lambda: conv(16, 16)),
    moving(_filtered),
    {"a": (8, 8), "w[1]": (6, 0), "w[2]": (4, 0), "w[3]": (1, 0), "c": (8, 8), **FIVE},
    {"w[1]": "meets positions that are fixed"},
)
pattern(
    "spectrum: product",
    between(7, w=lambda: nn.Parameter(torch.randn(8, 7, 2, 2, 2))),
    moving(_spectral),
    {"a": (8, 8), "w[1]": (7, 7), "w[2]": (2, 0), "w[3]": (2, 0), "w[4]": (1, 0), **FIVE},
)
pattern(
    "spectrum: of channels",
    between(8),
    moving(lambda m, y: y + torch.fft.fft(y, dim=1).real),
    {"a": (8, 0), **FIVE},
    {"a": "is transformed at"},
)
pattern(
    "offsets",
    between(
        7,
        o=lambda: conv(8, 27),
        w=lambda: nn.Parameter(torch.randn(7, 8, 3, 3)),
        v=lambda: nn.Parameter(torch.randn(7)),
    ),
    moving(lambda m, y: deform_conv2d(y, m.o(y)[:, :18], m.w, m.v, padding=1, mask=m.o(y)[:, 18:].sigmoid())),
    {"a": (8, 8), "o": (27, 0), "w[0]": (7, 7), "w[2]": (3, 0), "w[3]": (3, 0), **FIVE},
    {"o": "is a place at"},
)

# -- kernels of size 1 beside the channels -----------------------------------------------------------------------------


def _mixed_tokens(m: Any, y: Tensor, convolve: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """Tokens are the channels of a convolution, whose kernel passes over features one by one."""
    tokens = y.flatten(2).mT
    return (tokens + convolve(m, tokens)).mT.unflatten(2, (6, 6))


PASSED: Mapping[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "a layer": (lambda: nn.Conv1d(36, 36, 1), lambda m, t: m.mix(t)),
    "a layer without bias": (lambda: nn.Conv1d(36, 36, 1, padding="same", bias=False), lambda m, t: m.mix(t)),
    "a function": (lambda: nn.Conv1d(36, 36, 1), lambda m, t: F.conv1d(t, m.mix.weight, m.mix.bias)),
    "depthwise": (lambda: nn.Conv1d(36, 36, 1, groups=36), lambda m, t: m.mix(t)),
    "an image": (lambda: nn.Conv2d(36, 36, (1, 3), padding=(0, 1)), lambda m, t: m.mix(t[..., None]).squeeze(-1)),
    "transposed": (lambda: nn.ConvTranspose1d(36, 36, 1), lambda m, t: m.mix(t)),
}
for _name, (_mix, _convolve) in PASSED.items():
    _groups = {"a function": {"mix.weight[0]": (6, 0), "mix.weight[1]": (36, 0)}, "depthwise": {}}
    pattern(
        f"kernels of size 1: {_name}",
        between(8, mix=_mix),
        moving(lambda m, y, _convolve=_convolve: _mixed_tokens(m, y, _convolve)),
        {"a": (8, 8), **_groups.get(_name, {"mix": (6, 0)}), **FIVE},
    )
STEPPED: Mapping[str, Callable[[], nn.Module]] = {
    "wider": lambda: nn.Conv1d(36, 36, 3, padding=1),
    "padded and stepped": lambda: nn.Conv1d(36, 36, 1, padding=4, stride=2),
}
for _name, _mix in STEPPED.items():
    pattern(
        f"kernels over features: {_name}",
        between(8, mix=_mix),
        moving(lambda m, y: _mixed_tokens(m, y, lambda m, t: m.mix(t)[..., :8])),
        {"a": (8, 0), "mix": (6, 0), **FIVE},
    )
