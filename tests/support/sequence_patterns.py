"""Patterns of models for text, sound, graphs and tables, entered beside those of `model_patterns`.

Masks that were made as wide as the channels, sums at positions that an index says, Fourier transforms, products of
features with each other, tables of positions that are longer than the example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from model_patterns import FIVE, between, moving, pattern
from nets import IMAGE, pooled
from torch import Tensor, nn

# -- copies of what has no channels ------------------------------------------------------------------------------------


def _bright(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True) > 0


def _zeroed_by_index(y: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y[~_bright(x).repeat(1, y.shape[1], 1, 1)] = 0
    return y


COPIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expanded to a size": lambda y, x: y.masked_fill(_bright(x).expand(y.size()), 0.0),
    "expanded to a width": lambda y, x: y * _bright(x).expand(-1, y.shape[1], -1, -1),
    "expanded to a number": lambda y, x: y * x.mean(1, keepdim=True).sigmoid().expand(-1, 8, 6, 6),
    "in front": lambda y, x: _bright(x).expand(-1, 8, -1, -1).to(y.dtype) * y,
    "expanded like another": lambda y, x: y.masked_fill(_bright(x).expand_as(y), 1.0),
    "repeated": lambda y, x: torch.where(_bright(x).repeat(1, 8, 1, 1), y, y.tanh()),
    "repeated to a width": lambda y, x: y * x[:, :1].sigmoid().repeat(1, y.size(1), 1, 1),
    "repeated one by one": lambda y, x: y * x[:, :1].sigmoid().repeat_interleave(8, dim=1),
    "each repeated": lambda y, x: y * x[:, :2].sigmoid().repeat_interleave(4, dim=1),
    "all repeated": lambda y, x: y * x[:, :2].sigmoid().repeat(1, 4, 1, 1),
    "as a mask of elements": _zeroed_by_index,
    "added to zeros": lambda y, x: y + (torch.zeros(1, 8, 6, 6).to(y) + x[:, :1]),
}
for _name, _copy in COPIES.items():
    _size = {"each repeated": 4, "all repeated": 4}.get(_name, 8)
    pattern(
        f"copies: {_name}",
        between(8),
        lambda m, x, _copy=_copy: m.fc(pooled(m.b(_copy(m.a(x).relu(), x)))),
        {"a": (_size, _size), **FIVE},
    )

READ_AS_THEY_ARE: Mapping[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "convolved": lambda m, y, x: m.b(x[:, :1].expand(-1, y.shape[1], -1, -1)) + m.b(y),
    "added up": lambda m, y, x: m.b(y) * x[:, :1].expand(-1, y.shape[1], -1, -1).sum(1, keepdim=True) + m.b(y),
    "added to zeros and convolved": lambda m, y, x: m.b(y.new_zeros(1, 8, 6, 6) + x[:, :1]) + m.b(y),
}
for _name, _read in READ_AS_THEY_ARE.items():
    _free = 8 if _name == "added up" else 0
    pattern(
        f"copies read: {_name}",
        between(8),
        lambda m, x, _read=_read: m.fc(pooled(_read(m, m.a(x), x))),
        {"a": (8, _free), **FIVE},
    )

# -- positions from an index -------------------------------------------------------------------------------------------

_TURNED = (torch.arange(36) * 7 + 3) % 36

ADDRESSED: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "index_add": lambda m, y: torch.zeros_like(y).index_add_(2, m.turned, y),
    "index_add with a factor": lambda m, y: y.index_add(2, m.turned, y.tanh(), alpha=2),
    "index_copy": lambda m, y: y.index_copy(2, m.turned[:5], y[..., :5] * 2),
    "scatter_add": lambda m, y: torch.zeros_like(y).scatter_add_(2, m.turned.expand_as(y), y),
    "scatter_add into zeros": lambda m, y: y.new_zeros(y.shape[0], 8, 36).scatter_add(2, _wide(m, y), y),
    "scatter": lambda m, y: y.scatter(-1, m.turned.view(1, 1, -1).expand(y.shape[0], y.size(1), -1), y.tanh()),
    "scatter of a number": lambda m, y: y.scatter(2, m.turned.expand_as(y), 0.5) + y,
    "scatter_reduce": lambda m, y: y.scatter_reduce(2, _wide(m, y), y, reduce="amax", include_self=False),
    "gather": lambda m, y: torch.gather(y, 2, _wide(m, y)),
    "gather from fewer": lambda m, y: y.gather(-1, (m.turned % 9).expand(y.shape[0], y.shape[1], 36)),
    "take along": lambda m, y: torch.take_along_dim(y, _wide(m, y), dim=2),
}


def _wide(m: Any, y: Tensor) -> Tensor:
    return m.turned.view(1, 1, -1).repeat(y.shape[0], 8, 1)


for _name, _address in ADDRESSED.items():
    pattern(
        f"addressed: {_name}",
        between(8, turned=lambda: _TURNED.clone()),
        moving(lambda m, y, _address=_address: _address(m, y.flatten(2)).unflatten(2, (6, 6))),
        {"a": (8, 8), **FIVE},
    )

# -- transforms, padding, products -------------------------------------------------------------------------------------

MIXED: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "rfft": lambda m, y: torch.fft.irfft(torch.fft.rfft(y, n=12) * 0.5, n=12)[..., :6],
    "fft of images": lambda m, y: torch.fft.ifft2(torch.fft.fftshift(torch.fft.fft2(y), dim=(-2, -1))).real + y,
    "fft over all of space": lambda m, y: torch.fft.fftn(y, dim=(2, 3)).imag,
    "spectrum": lambda m, y: torch.fft.fft(y.flatten(2), dim=-1).abs().unflatten(2, (6, 6)),
    "product over space": lambda m, y: y.tanh().flatten(2).prod(-1)[..., None, None] + y,
    "shifted tokens": lambda m, y: m.shift(y.flatten(2).mT).mT.unflatten(2, (6, 6)),
}
for _name, _mix in MIXED.items():
    pattern(
        f"mixed: {_name}",
        between(8, shift=lambda: nn.ZeroPad2d((0, 0, 1, -1))),
        moving(_mix),
        {"a": (8, 8), **FIVE},
    )


def _crossed(m: Any, x: Tensor) -> Tensor:
    """Two features and their product with each other, as recommenders have it."""
    both = torch.cat([pooled(m.a(x)), pooled(m.b(x))], 1).view(-1, 2, 8)
    return m.fc(torch.bmm(both, both.mT).flatten(1))


pattern(
    "products of features",
    lambda: {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(3, 8, 1), "fc": nn.Linear(4, 4)},
    _crossed,
    {"a": (8, 8)},
)
pattern(
    "positions beyond the example",
    lambda: {"a": nn.Conv2d(3, 8, 1), "pos": nn.Parameter(torch.randn(50, 8)), "fc": nn.Linear(8, 4)},
    lambda m, x: (lambda y: m.fc((y + m.pos[: y.shape[1]]).relu().mean(1)))(m.a(x).flatten(2).mT),
    {"a": (8, 8), "pos": (50, 0)},
    {"pos": "for this size of the input alone"},
    (IMAGE,),
)

# -- what channels meet that no parameter writes -----------------------------------------------------------------------


def _waves(places: Tensor, width: int, like: Tensor) -> Tensor:
    """[..., places] -> [..., places, width]: the usual sine and cosine of places."""
    rates = torch.exp(torch.arange(0, width, 2, device=places.device).to(like) * (-4.0 / width))
    angles = places.unsqueeze(-1).to(like) * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _table(length: int, width: int, like: Tensor) -> Tensor:
    """The same, written into zeros column by column."""
    table = torch.zeros(length, width, dtype=like.dtype)
    waves = _waves(torch.arange(length), width, like)
    table[:, 0::2] = waves[:, : width // 2]
    table[:, 1::2] = waves[:, width // 2 :]
    return table


def _map_of_waves(y: Tensor) -> Tensor:
    """[1, C, H, W]: half of the channels tell the row, half the column."""
    rows, columns = (_waves(torch.arange(size), y.shape[1] // 2, y) for size in y.shape[2:])
    both = torch.cat(torch.broadcast_tensors(rows[:, None], columns[None]), -1)
    return both.permute(2, 0, 1)[None]


def _written_twice(y: Tensor) -> Tensor:
    """A table that isn't the same when it is read again."""
    table = torch.ones(y.shape[2], y.shape[1], dtype=y.dtype).cumsum(0)
    y = y + table.mT[..., None]
    table[:, ::2] = table[:, 1::2].flip(1) / 7
    return y + table.mT[..., None]


GIVEN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "waves": lambda y: (y.flatten(2).mT + _waves(torch.arange(y.shape[2] * y.shape[3]), 8, y)).mT.unflatten(2, (6, 6)),
    "waves of a map": lambda y: y + _map_of_waves(y),
    "waves in front": lambda y: _map_of_waves(y) * y,
    "a written table": lambda y: y + _table(y.shape[3], 8, y).mT[:, None],
    "read twice": lambda y: (lambda waves: (y + waves).relu() * waves)(_map_of_waves(y)),
    "read and written": _written_twice,
    "a ramp over channels": lambda y: y * torch.linspace(0.5, 2.0, y.shape[1], dtype=y.dtype).view(1, -1, 1, 1),
    "chosen": lambda y: torch.where(torch.arange(y.shape[1])[:, None, None] % 3 == y.shape[2] % 3, y, y.tanh()),
    "another value": lambda y: torch.where(y > 0, y, _map_of_waves(y)),
    "a lerp": lambda y: torch.lerp(y, y.tanh(), _map_of_waves(y)),
    "after a detour": lambda y: y + _map_of_waves(y).flip(1).roll(1, 1).sort(1).values,
    "into the map": lambda y: y.clone().add_(_map_of_waves(y)),
}
for _name, _meeting in GIVEN.items():
    pattern(
        f"given: {_name}",
        between(8),
        moving(lambda m, y, _meeting=_meeting: _meeting(y)),
        {"a": (8, 8), **FIVE},
    )

KEPT: Mapping[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "of the image": lambda m, y, x: y + x.repeat_interleave(3, 1)[:, :8].sin().cumsum(1),
    "with some of the image": lambda m, y, x: y + (_map_of_waves(y) * x[:, :1]).sort(1).values,
    "into the table": lambda m, y, x: _map_of_waves(y).expand(y.shape).clone().add_(y),
}
for _name, _kept in KEPT.items():
    pattern(
        f"given, but {_name}",
        between(8),
        lambda m, x, _kept=_kept: m.fc(pooled(m.b(_kept(m, m.a(x).relu(), x)))),
        {"a": (8, 0), **FIVE},
    )
pattern(
    "given: waves of a time",
    lambda: {"a": nn.Conv2d(3, 8, 1), "t": nn.Linear(6, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: m.fc(pooled((m.a(x) + m.t(_waves(torch.arange(x.shape[0]), 6, x))[:, :, None, None]).relu())),
    {"a": (8, 8)},
)
