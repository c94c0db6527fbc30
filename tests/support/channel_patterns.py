"""Patterns in which channels are compared, chosen and put in places, entered beside those of `model_patterns`.

Distances over channels, masks of channels, known positions among channels, windows over channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from model_patterns import FIVE, Parts, between, moving, pattern
from nets import conv, pooled
from torch import Tensor, nn

# -- distances ---------------------------------------------------------------------------------------------------------

POWERS = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)


def _pair(**more: Callable[[], nn.Module | Tensor]) -> Callable[[], Parts]:
    return lambda: {
        "a": conv(3, 8),
        "d": conv(3, 8),
        "fc": nn.Linear(5, 4),
        **{name: make() for name, make in more.items()},
    }


def _pixels(y: Tensor) -> Tensor:
    """[N, 36, C]."""
    return y.flatten(2).mT


def _heads(y: Tensor) -> Tensor:
    """[N, 2, 36, C / 2]."""
    return _pixels(y).unflatten(2, (2, -1)).transpose(1, 2)


def _prototypes() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-2, 2, 40).sin().view(5, 8))


def _row() -> nn.Module:
    return nn.PairwiseDistance(p=2.0, eps=0.3, keepdim=True)


Compared = Callable[[Any, Tensor, Tensor], Tensor]
DISTANCES: Mapping[str, tuple[Compared, dict[str, tuple[int, int]]]] = {
    **{
        f"cdist, p = {p}": (lambda m, y, z, p=p: torch.cdist(_pixels(y), _pixels(z)[:, :5], p=p).mean(1), {"a": (8, 8)})
        for p in POWERS
    },
    **{
        f"pairwise, p = {p}": (
            lambda m, y, z, p=p: F.pairwise_distance(_pixels(y), _pixels(z), p=p, eps=0.2)[:, :5],
            {"a": (8, 8)},
        )
        for p in POWERS
    },
    "pairwise, no eps": (lambda m, y, z: F.pairwise_distance(_pixels(y), _pixels(z), eps=0.0)[:, 3:8], {"a": (8, 8)}),
    "pairwise, a layer": (lambda m, y, z: m.row(_pixels(y), _pixels(z)).squeeze(-1)[:, :5], {"a": (8, 8)}),
    "pairwise, a grid": (
        lambda m, y, z: F.pairwise_distance(_pixels(y)[:, :, None], _pixels(z)[:, None]).mean(1)[:, :5],
        {"a": (8, 8)},
    ),
    "pairwise, heads": (
        lambda m, y, z: F.pairwise_distance(_heads(y), _heads(z), eps=0.1).sum(1)[:, :5],
        {"a": (2, 2)},
    ),
    "cdist, heads": (lambda m, y, z: torch.cdist(_heads(y), _heads(z)).sum((1, 2))[:, :5], {"a": (2, 2)}),
    "cdist, prototypes": (lambda m, y, z: torch.cdist(pooled(y), m.w) + pooled(z).sum(1, True), {"d": (8, 8)}),
    "cdist, without products": (
        lambda m, y, z: torch.cdist(_pixels(y), _pixels(z)[:, :5], compute_mode="donot_use_mm_for_euclid_dist").mean(1),
        {"a": (8, 8)},
    ),
    "cdist, itself": (lambda m, y, z: torch.cdist(_pixels(y * z), _pixels(y * z))[:, 7, :5], {"a": (8, 8)}),
    "dist": (lambda m, y, z: torch.dist(y, z, 3) + torch.ones(1, 5).to(y), {"a": (8, 8)}),
}
for _name, (_compare, _groups) in DISTANCES.items():
    _groups = {"a": (8, 8), "d": (8, 8), "w": (5, 5)} if "prototypes" in _name else _groups
    pattern(
        f"distance: {_name}",
        _pair(w=_prototypes, row=_row),
        lambda m, x, _compare=_compare: m.fc(_compare(m, m.a(x).tanh(), m.d(x).tanh())),
        _groups,
    )
pattern(
    "distance: to the image",
    lambda: {"a": conv(3, 3), "fc": nn.Linear(36, 4)},
    lambda m, x: m.fc(torch.cdist(_pixels(m.a(x)), _pixels(x)).mean(1)),
    {"a": (3, 0)},
    {"a": "meets positions that are fixed"},
)
pattern(
    "distance: the smallest element",
    lambda: {"a": conv(3, 8), "d": conv(3, 8), "fc": nn.Linear(36, 4)},
    lambda m, x: m.fc(F.pairwise_distance(_pixels(m.a(x)), _pixels(m.d(x)), p=-1.0)),
    {"a": (8, 0), "d": (8, 0)},
    {"a": "unknown op pairwise_distance"},
)

# -- masks of channels -------------------------------------------------------------------------------------------------

_CHOSEN = [True, False, True, True, False, True, True, False]


def _mask() -> Tensor:
    return torch.tensor(_CHOSEN)


def _strengths() -> Tensor:
    return torch.tensor([0.3, -0.2, 0.5, 0.1, -0.7, 0.4, 0.9, -0.1])


def _assigned(m: Any, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, m.mask] = 0.5
    return y


def _put_among_zeros(m: Any, y: Tensor) -> Tensor:
    wide = y.new_zeros(y.shape[0], 8, 6, 6)
    wide[:, m.mask] = y[:, ~m.mask].repeat(1, 2, 1, 1)[:, :5]
    return wide + y


MASKS: Mapping[str, tuple[int, Callable[[Any, Tensor], Tensor]]] = {
    "buffer": (5, lambda m, y: y[:, m.mask]),
    "others": (3, lambda m, y: y[:, ~m.mask]),
    "computed": (5, lambda m, y: y[:, m.mask.to(y.dtype) - 0.5 > 0]),
    "both": (3, lambda m, y: y[:, (m.order > 2) & m.mask]),
    "last dimension": (5, lambda m, y: y.permute(0, 2, 3, 1)[..., m.mask].permute(0, 3, 1, 2)),
    "list": (5, lambda m, y: y[:, _CHOSEN]),
    "of whole numbers": (4, lambda m, y: y[:, m.order > 3]),
    "as positions": (5, lambda m, y: y[:, m.mask.nonzero().squeeze(1)]),
    "from 8 bits": (5, lambda m, y: y[:, m.bits.bool()]),
    "filled": (8, lambda m, y: y.masked_fill(m.mask[:, None, None], -2.0)),
    "filled by another shape": (8, lambda m, y: y.masked_fill(~m.mask.view(1, -1, 1, 1), 0.7)),
    "where": (8, lambda m, y: torch.where(m.mask[:, None, None], y, y.tanh())),
    "where, a number": (8, lambda m, y: torch.where(m.strengths.view(8, 1, 1) > 0, y, 0.0)),
    "multiplied": (8, lambda m, y: y * m.mask[:, None, None]),
    "assigned": (8, _assigned),
    "used twice": (5, lambda m, y: y.masked_fill(m.strengths.view(-1, 1, 1) > 0.35, 0.2)[:, m.mask]),
}
for _name, (_width, _choose) in MASKS.items():
    pattern(
        f"mask: {_name}",
        between(
            _width,
            mask=_mask,
            strengths=_strengths,
            order=lambda: torch.arange(8),
            bits=lambda: _mask().to(torch.uint8),
        ),
        moving(_choose),
        {"a": (8, 8), **FIVE},
    )

# -- known positions among channels ------------------------------------------------------------------------------------

_SEGMENTS = (0, 2, 1, 0, 3, 3, 2, 1)
_TURNED = (3, 1, 0, 2, 7, 6, 5, 4)


def _as_index(places: Tensor, y: Tensor) -> Tensor:
    return places.view(1, -1, 1, 1).expand(y.shape[0], -1, *y.shape[2:])


def _zeros(y: Tensor, width: int) -> Tensor:
    return y.new_zeros(y.shape[0], width, 6, 6)


PLACES: Mapping[str, tuple[int, int, Callable[[Any, Tensor], Tensor]]] = {
    "index_add": (4, 4, lambda m, y: _zeros(y, 4).index_add(1, m.segments, y)),
    "index_add in place": (4, 4, lambda m, y: torch.zeros(y.shape[0], 4, 6, 6).to(y).index_add_(-3, m.segments, y)),
    "index_add with a factor": (4, 4, lambda m, y: _zeros(y, 4).index_add(1, m.segments, y, alpha=-0.5)),
    "index_add of a part": (8, 4, lambda m, y: y.index_add(1, m.segments[:4] * 2, y[:, 4:])),
    "index_copy": (8, 8, lambda m, y: _zeros(y, 8).index_copy(1, m.turned, y)),
    "index_fill": (8, 8, lambda m, y: y.index_fill(1, m.segments[:3], 0.4)),
    "scatter_add": (4, 4, lambda m, y: _zeros(y, 4).scatter_add(1, _as_index(m.segments, y), y)),
    "scatter_add like another": (
        4,
        4,
        lambda m, y: _zeros(y, 4).scatter_add(1, m.segments.view(1, -1, 1, 1).expand_as(y), y),
    ),
    "scatter": (8, 8, lambda m, y: _zeros(y, 8).scatter_(1, _as_index(m.turned, y), y)),
    "scatter_reduce": (
        4,
        4,
        lambda m, y: _zeros(y, 4).scatter_reduce(1, _as_index(m.segments, y), y, "amax", include_self=False),
    ),
    "gather": (8, 8, lambda m, y: y.gather(1, _as_index(m.turned, y))),
    "gather of some": (5, 8, lambda m, y: torch.gather(y, 1, _as_index(m.turned[2:7], y))),
    "take along": (8, 8, lambda m, y: torch.take_along_dim(y, m.turned.view(1, -1, 1, 1), 1)),
    "segment": (4, 4, lambda m, y: _zeros(y, 4).index_add(1, m.segments, y) / (m.segments.numel() / 4)),
}
for _name, (_width, _free, _place) in PLACES.items():
    pattern(
        f"placed: {_name}",
        between(_width, segments=lambda: torch.tensor(_SEGMENTS), turned=lambda: torch.tensor(_TURNED)),
        moving(_place),
        {"a": (_free, _free), **FIVE},
    )
pattern(
    "placed: by the input",
    between(4),
    lambda m, x: m.fc(pooled(m.b(_zeros(x, 4).index_add(1, (x[0, 0, :2, :4].flatten() > 0).long(), m.a(x))))),
    {"a": (8, 0), **FIVE},
    {"a": "is addressed"},
)

# -- windows over channels ---------------------------------------------------------------------------------------------

WINDOWS: Mapping[str, tuple[int, int, Callable[[Any, Tensor], Tensor]]] = {
    "tiles": (4, 4, lambda m, y: y.unfold(1, 4, 4).amax(1).permute(0, 3, 1, 2)),
    "tiles by name": (2, 2, lambda m, y: y.unfold(dimension=-3, size=4, step=4).sum(-1)),
    "tiles of the last": (4, 4, lambda m, y: y.permute(0, 2, 3, 1).unfold(3, 2, 2).sum(-1).permute(0, 3, 1, 2)),
    "over space": (8, 8, lambda m, y: y.unfold(2, 3, 1).unfold(3, 3, 2).amax((-1, -2))),
    "over tokens": (8, 8, lambda m, y: y.flatten(2).mT.unfold(1, 6, 6).mT.transpose(1, 3)),
}
for _name, (_width, _free, _unfold) in WINDOWS.items():
    pattern(f"windows: {_name}", between(_width), moving(_unfold), {"a": (_free, _free), **FIVE})
for _name, _size, _step in (("overlapping", 3, 1), ("with gaps", 2, 3), ("with a rest", 3, 3)):
    pattern(
        f"windows: {_name}",
        between(_size),
        moving(lambda m, y, _size=_size, _step=_step: y.unfold(1, _size, _step).amax(1).permute(0, 3, 1, 2)),
        {"a": (8, 0), **FIVE},
        {"a": "windows that overlap or leave channels out"},
    )
