"""Patterns that real models are written in, each in several forms, with what the analysis has to find.

They are those on which tools that trace gradients or guess by position crash, or go wrong without a word: statistics
over channels, data movement with literals, convolutions in every spelling, constants of a channel's width, item
assignment, recurrent layers. An entry is like one of `nets.NETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from nets import IMAGE, TOKENS, Net, Parts, Run, conv, free, pooled
from torch import Tensor, nn
from torch.nn import functional as F

PATTERNS: dict[str, Net] = {}
SIGNAL = (2, 3, 9)
VOLUME = (2, 3, 4, 4, 4)
FIVE = {"b": (5, 5)}


def pattern(
    name: str,
    parts: Callable[[], Parts],
    run: Run,
    groups: Mapping[str, tuple[int, int]],
    pins: Mapping[str, str] | None = None,
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,),
) -> None:
    """Enter a network, whose classifier `fc` has four outputs that stay."""
    assert name not in PATTERNS, f"there are two patterns '{name}'"
    PATTERNS[name] = Net(parts, run, shapes, {"fc": (4, 0), **groups}, pins or {})


def between(width: int, **more: Callable[[], nn.Module | Tensor]) -> Callable[[], Parts]:
    """Convolution `a` of 8 channels, `b` that reads `width`, the classifier, and further parts."""
    return lambda: {
        "a": conv(3, 8),
        "b": conv(width, 5),
        "fc": nn.Linear(5, 4),
        **{name: make() for name, make in more.items()},
    }


def moving(move: Callable[..., Tensor]) -> Run:
    """A forward with a step between `a` and `b`, that gets the module and a's rectified channels."""
    return lambda m, x: m.fc(pooled(m.b(move(m, m.a(x).relu()))))


def gating(gate: Callable[[Any, Tensor], Tensor]) -> Run:
    """A forward that multiplies what `b` gives by a gate of a's channels (which may be negative)."""
    return lambda m, x: (lambda y: m.fc(pooled(m.b(y) * gate(m, y))))(m.a(x))


# -- statistics over channels ------------------------------------------------------------------------------------------

ADDED: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "mean": lambda m, y: y.mean(1, keepdim=True),
    "mean by names": lambda m, y: torch.mean(y, dim=-3, keepdim=True),
    "mean by axis": lambda m, y: torch.mean(y, axis=1, keepdims=True),
    "mean squeezed": lambda m, y: y.mean(1)[:, None],
    "mean of all": lambda m, y: y.mean((1, 2, 3), keepdim=True),
    "mean of everything": lambda m, y: y.mean(),
    "mean of a slice": lambda m, y: y[:, 2:6].mean(1, keepdim=True),
    "sum": lambda m, y: y.sum(1, keepdim=True),
    "sum of all": lambda m, y: y.flatten(1).sum(1)[:, None, None, None],
    "sum of squares": lambda m, y: y.square().sum(1, keepdim=True).sqrt(),
    "norm": lambda m, y: y.norm(dim=1, keepdim=True),
    "norm by position": lambda m, y: y.norm(2, 1, True),
    "norm of one": lambda m, y: torch.norm(y, p=1, dim=1, keepdim=True),
    "norm without limit": lambda m, y: torch.norm(y, p=float("inf"), dim=1, keepdim=True),
    "norm of linalg": lambda m, y: torch.linalg.norm(y, dim=1, keepdim=True),
    "norm of linalg by order": lambda m, y: torch.linalg.norm(y, 3, 1, True),
    "vector norm": lambda m, y: torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True),
    "variance": lambda m, y: y.var(1, keepdim=True),
    "variance of all": lambda m, y: y.var((1, 2, 3), unbiased=False, keepdim=True),
    "variance of everything": lambda m, y: torch.var(y, correction=0),
    "variance by position": lambda m, y: y.var(1, False, True),
    "deviation": lambda m, y: torch.std(y, dim=1, keepdim=True),
    "deviation squeezed": lambda m, y: y.std(1)[:, None],
    "mean square": lambda m, y: torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6),
    "largest of what isn't negative": lambda m, y: y.relu().amax(1, keepdim=True),
    "largest of squares": lambda m, y: F.avg_pool2d(y**2 + y.abs(), 1).abs().amax(dim=(1, 2), keepdim=True),
    "largest": lambda m, y: y.max(1, keepdim=True)[0],
    "largest of what may be negative": lambda m, y: (y.relu() - 1).amax(1, keepdim=True),
    "largest of what is written to": lambda m, y: _lowered(y.relu()).amax(1, keepdim=True),
    "largest of all": lambda m, y: y.max() * y.amax((0, 2, 3), keepdim=True).amax(1, keepdim=True),
    "smallest": lambda m, y: y.amin(1, keepdim=True),
    "smallest values": lambda m, y: torch.min(y, dim=1).values[:, None],
    "smallest of what isn't negative": lambda m, y: y.relu().amin(-3, keepdim=True) + y.min(),
    "cosine similarity": lambda m, y: F.cosine_similarity(y, y.flip(2), dim=1)[:, None],
    "cosine similarity over space": lambda m, y: _likeness(y, m.g(y)).sum(1)[:, None, None, None],
    "commonest pixels": lambda m, y: y.flatten(2).mode()[0].sum(1)[:, None, None, None],
    "cosine similarity module": lambda m, y: m.c(y, y.flip(3))[:, None],
}
for _name, _gate in ADDED.items():
    _more = {"c": lambda: nn.CosineSimilarity(1), "g": lambda: conv(8, 1)}
    pattern(f"added up: {_name}", between(8, **_more), gating(_gate), {"a": (8, 8), **FIVE})

COUNTED: Mapping[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "variance with its mean": (lambda m, y: sum(torch.var_mean(y, 1, keepdim=True)), "is reduced over"),
    "largest place": (lambda m, y: y.max(1, keepdim=True)[1] * 0.5, "is reduced over"),
    "product": (lambda m, y: y.prod(1, keepdim=True), "is reduced over"),
    "variance over space, corrected": (lambda m, y: y.var((1, 2), keepdim=True), "is reduced over"),
    "smallest magnitude": (lambda m, y: y.norm(float("-inf"), 1, True), "is reduced over"),
    "smallest magnitude of linalg": (lambda m, y: torch.linalg.norm(y, -float("inf"), 1, True), "is reduced over"),
    "norm of linalg by a negative order": (lambda m, y: torch.linalg.norm(y, -1, dim=1, keepdim=True), "is reduced"),
    "commonest": (lambda m, y: y.mode(1, keepdim=True).values, "is sorted over"),
    "logsumexp": (lambda m, y: y.logsumexp(1, keepdim=True), "is reduced over"),
    "median": (lambda m, y: y.median(1, keepdim=True).values, "is reduced over"),
    "softmax": (lambda m, y: y.softmax(1).sum(1, keepdim=True), "is normalised over"),
    "softmax module": (lambda m, y: m.s(y).sum(1, keepdim=True), "is normalised over"),
    "local response norm": (lambda m, y: m.n(y).sum(1, keepdim=True), "is normalised over"),
    "functional response norm": (lambda m, y: F.local_response_norm(y, 3).sum(1, True), "is normalised over"),
    "cumulated": (lambda m, y: y.cumsum(1).sum(1, keepdim=True), "is normalised over"),
    "topk": (lambda m, y: y.topk(2, dim=1).values.sum(1, keepdim=True), "is sorted over"),
    "pooled as space": (lambda m, y: F.adaptive_avg_pool1d(y.flatten(2).mT, 1).mean(1)[..., None, None], "is pooled"),
}
for _name, (_gate, _why) in COUNTED.items():
    _more = {"s": lambda: nn.Softmax2d(), "n": lambda: nn.LocalResponseNorm(3)}
    pattern(f"counted: {_name}", between(8, **_more), gating(_gate), {"a": (8, 0), **FIVE}, {"a": _why})


def _likeness(y: Tensor, g: Tensor) -> Tensor:
    """How like the map g each channel is."""
    return F.cosine_similarity(y.flatten(2), g.expand(-1, 8, -1, -1).flatten(2), dim=2)


def _lowered(y: Tensor) -> Tensor:
    z = y[:, :4]
    z.sub_(1)
    return y


def _spatial(m: Any, y: Tensor) -> Tensor:
    """Spatial attention: a map from the mean and the largest over the channels."""
    return m.g(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)).sigmoid()


def _normed_by_hand(y: Tensor) -> Tensor:
    centred = y - y.mean(1, keepdim=True)
    return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()


pattern(
    "spatial attention",
    between(8, g=lambda: conv(2, 1)),
    moving(lambda m, y: y * _spatial(m, y)),
    {"a": (8, 8), **FIVE},
)
pattern("layer norm by hand", between(8), moving(lambda m, y: _normed_by_hand(y)), {"a": (8, 8), **FIVE})
pattern(
    "normalised features",
    between(8),
    moving(lambda m, y: F.normalize(y) + F.normalize(y, p=1.0, dim=1, eps=1e-6)),
    {"a": (8, 8), **FIVE},
)
pattern("sorted pixels", between(8), moving(lambda m, y: y.flatten(2).sort(-1)[0][..., None]), {"a": (8, 8), **FIVE})
pattern("best pixels", between(8), moving(lambda m, y: y.flatten(2).topk(3)[0][..., None]), {"a": (8, 8), **FIVE})

HALVES: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "maxout": lambda m, y: y.view(y.shape[0], 4, 2, *y.shape[2:]).amax(2),
    "maxout with places": lambda m, y: y.unflatten(1, (4, 2)).max(dim=2)[0],
    "maxout of halves": lambda m, y: y.view(y.shape[0], 2, 4, *y.shape[2:]).max(1).values,
    "maxout of chunks": lambda m, y: torch.max(*y.chunk(2, 1)),
    "glu": lambda m, y: F.glu(y, 1),
    "glu module": lambda m, y: m.glu(y),
    "glu by chunks": lambda m, y: (lambda p, q: p * q.sigmoid())(*torch.chunk(y, 2, dim=1)),
    "glu by slices": lambda m, y: y[:, :4] * torch.sigmoid(y[:, 4:]),
    "swiglu": lambda m, y: (lambda p, q: F.silu(p) * q)(*y.split(4, dim=1)),
    "halves added": lambda m, y: y.view(-1, 2, 4, *y.shape[2:]).sum(1),
    "halves averaged": lambda m, y: torch.stack(y.chunk(2, 1)).mean(0),
    "by steps": lambda m, y: y[:, ::2] * y[:, 1::2],
    "selected branches": lambda m, y: _branches(y),
}
for _name, _move in HALVES.items():
    pattern(f"halves: {_name}", between(4, glu=lambda: nn.GLU(1)), moving(_move), {"a": (4, 4), **FIVE})


def _branches(y: Tensor) -> Tensor:
    """Two branches, weighed by a softmax over the branches."""
    both = y.view(y.shape[0], 2, 4, *y.shape[2:])
    return (both * pooled(both.flatten(1, 2)).view(-1, 2, 4).softmax(1)[..., None, None]).sum(1)


# -- movement ----------------------------------------------------------------------------------------------------------

MOVED: Mapping[str, tuple[int, int, Callable[[Any, Tensor], Tensor]]] = {
    "roll": (8, 8, lambda m, y: y.roll(3, 1)),
    "roll back": (8, 8, lambda m, y: torch.roll(y, -2, dims=1)),
    "roll of all dimensions": (8, 8, lambda m, y: torch.roll(y, shifts=(1, 11, -1), dims=(2, 1, 3))),
    "flip": (8, 8, lambda m, y: torch.flip(y, [1, 2])),
    "turned": (8, 8, lambda m, y: torch.rot90(y, 1, (2, 3))),
    "permuted by a list": (8, 8, lambda m, y: y[:, [3, 1, 0, 2, 7, 5, 6, 4]]),
    "permuted by a buffer": (8, 8, lambda m, y: y[:, m.order]),
    "index_select": (8, 8, lambda m, y: torch.index_select(y, 1, m.order)),
    "index_select of some": (4, 8, lambda m, y: y.index_select(dim=1, index=torch.tensor([0, 0, 6, 2]))),
    "permuted in two steps": (8, 8, lambda m, y: y[:, m.order][:, m.order]),
    "picked with gaps": (4, 8, lambda m, y: y[:, [-1, 0, 4, 5]]),
    "steps": (3, 8, lambda m, y: y[:, ::3]),
    "narrow": (4, 8, lambda m, y: y.narrow(1, 2, 4)),
    "tensor_split": (5, 8, lambda m, y: y.tensor_split((3,), dim=1)[1]),
    "repeat": (16, 8, lambda m, y: y.repeat(1, 2, 1, 1)),
    "tile": (16, 8, lambda m, y: torch.tile(y, (1, 2, 1, 1))),
    "repeat_interleave": (16, 8, lambda m, y: y.repeat_interleave(2, dim=1)),
    "expanded and flattened": (16, 8, lambda m, y: y[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)),
    "hstack": (16, 8, lambda m, y: torch.hstack([y, y.tanh()])),
    "unbound and stacked": (8, 4, lambda m, y: torch.stack(y.unflatten(1, (4, 2)).unbind(2), 1).flatten(1, 2)),
    "pixel shuffle": (2, 2, lambda m, y: F.pixel_shuffle(y, 2)),
    "pixel shuffle by views": (
        2,
        2,
        lambda m, y: y.view(-1, 2, 2, 2, 6, 6).permute(0, 1, 4, 2, 5, 3).reshape(-1, 2, 12, 12),
    ),
    "pixel unshuffle module": (32, 8, lambda m, y: m.down(y)),
    "pixel unshuffle by views": (
        32,
        8,
        lambda m, y: y.view(-1, 8, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 32, 3, 3),
    ),
    "space to depth": (
        32,
        8,
        lambda m, y: torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1),
    ),
    "unfold": (32, 8, lambda m, y: F.unfold(y, 2, stride=2).view(-1, 32, 3, 3)),
    "unfold module": (72, 8, lambda m, y: m.windows(y).unflatten(2, (6, 6))),
    "unfold and fold": (8, 8, lambda m, y: F.fold(F.unfold(y, 2), (6, 6), 2)),
    "steps that start at zero, added up": (
        8,
        8,
        lambda m, y: torch.einsum("zbchw,zd->dbchw", torch.cat([torch.zeros_like(y)[None], y[None]]), y.new_ones(2, 1))[
            0
        ],
    ),
    "an empty piece": (8, 8, lambda m, y: torch.cat([y[:, : y.shape[1]] * 2, y[:, y.shape[1] :]], 1)),
    "an empty parameter": (
        8,
        8,
        lambda m, y: torch.cat([m.none.expand(y.shape[0], -1, -1), y.flatten(2).mT], 1).mT.unflatten(2, (6, 6)),
    ),
    "a list that starts with nothing": (8, 8, lambda m, y: torch.cat([torch.tensor([]), y], 1)),
    "an empty chunk": (8, 8, lambda m, y: torch.cat([p.tanh() for p in y.split([0, 5, 3], 1)], 1)),
    "pooled beside its channels": (8, 8, lambda m, y: F.avg_pool2d(y.movedim(1, -1), (2, 1)).movedim(-1, 1)),
    "pooled beside its channels by size": (
        8,
        8,
        lambda m, y: F.adaptive_max_pool2d(y.movedim(1, -1), (3, None)).movedim(-1, 1),
    ),
    "pooled beside its channels by a module": (8, 8, lambda m, y: m.tall(y.movedim(1, 3)).movedim(3, 1)),
    "padded tokens": (8, 8, lambda m, y: m.later(y.flatten(2).mT).mT.unflatten(2, (6, 6))),
    "as a tensor": (8, 8, lambda m, y: torch.asarray(torch.as_tensor(y))),
    "fold module": (2, 2, lambda m, y: m.back(y[:, :, :3, :3].flatten(2))),
    "windows of a tensor": (8, 8, lambda m, y: y.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))),
    "interpolated": (8, 8, lambda m, y: F.interpolate(y, scale_factor=2, mode="bicubic", align_corners=False)),
    "interpolated to the nearest": (8, 8, lambda m, y: F.interpolate(y, size=(5, 7), mode="nearest-exact")),
    "interpolated by areas": (8, 8, lambda m, y: F.interpolate(y, (4, 4), mode="area")),
    "reflected": (8, 8, lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect")),
    "circular": (8, 8, lambda m, y: F.pad(y, (1, 0, 2, 0), mode="circular")),
    "replicated": (8, 8, lambda m, y: F.pad(y, [1, 0, 2, 0], "replicate")),
    "padded channels by a module": (13, 8, lambda m, y: m.wider(y)),
    "padded channels": (13, 8, lambda m, y: F.pad(y, (0, 0, 0, 0, 2, 3))),
    "padded by a cat": (12, 8, lambda m, y: torch.cat([y, y.new_zeros(y.shape[0], 4, 6, 6)], 1)),
    "cropped and padded": (8, 8, lambda m, y: F.pad(y, (0, 0, 0, 0, -2, 2))),
    "grid": (
        8,
        8,
        lambda m, y: F.grid_sample(
            y, F.affine_grid(m.theta.expand(y.shape[0], -1, -1), y.shape, False), align_corners=False
        ),
    ),
}
_PLACES: Mapping[str, Callable[[], nn.Module | Tensor]] = {
    "order": lambda: torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]),
    "down": lambda: nn.PixelUnshuffle(2),
    "windows": lambda: nn.Unfold(3, padding=1),
    "back": lambda: nn.Fold((6, 6), 2, stride=2),
    "none": lambda: nn.Parameter(torch.zeros(1, 0, 8)),
    "tall": lambda: nn.MaxPool2d((3, 1), stride=(2, 1), padding=(1, 0)),
    "later": lambda: nn.ZeroPad2d((0, 0, 1, -1)),
    "wider": lambda: nn.ConstantPad3d((0, 0, 0, 0, 2, 3), 0.5),
    "theta": lambda: torch.tensor([[[0.7, 0.2, 0.1], [-0.3, 0.8, 0.0]]]),
}
for _name, (_width, _units, _move) in MOVED.items():
    pattern(f"moved: {_name}", between(_width, **_PLACES), moving(_move), {"a": (_units, _units), **FIVE})

pattern(
    "patches taken in steps, of places that a layer has looked up",
    between(
        32, places=lambda: nn.Linear(2, 8), table=lambda: torch.randn(11, 11, 2), where=lambda: torch.arange(36) * 3
    ),
    moving(lambda m, y: _patches(y + m.places(m.table).flatten(0, 1)[m.where].view(6, 6, 8).permute(2, 0, 1))),
    {"a": (8, 8), **FIVE},
)


def _patches(y: Tensor) -> Tensor:
    return torch.cat([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


JOINED: Mapping[str, tuple[int, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "image": (11, lambda m, y, x: torch.cat([x, y], 1)),
    "image behind": (11, lambda m, y, x: torch.cat((y, x), dim=1)),
    "detached": (16, lambda m, y, x: torch.cat([y.detach(), y], 1)),
    "coordinates": (10, lambda m, y, x: torch.cat([y, _coordinates(x)], 1)),
    "constant": (9, lambda m, y, x: torch.cat([torch.ones(x.shape[0], 1, 6, 6).to(y), y], 1)),
    "buffer": (10, lambda m, y, x: torch.cat([y, m.map.expand(x.shape[0], -1, -1, -1)], 1)),
    "pooled image": (11, lambda m, y, x: torch.cat([F.avg_pool2d(x, 3, 1, 1), y], -3)),
    "mean": (9, lambda m, y, x: torch.cat([y, y.mean(1, keepdim=True)], 1)),
}


def _coordinates(x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 6), indexing="ij")
    return torch.stack([rows, columns])[None].expand(x.shape[0], -1, -1, -1).to(x)


for _name, (_width, _join) in JOINED.items():
    pattern(
        f"joined with: {_name}",
        between(_width, map=lambda: torch.randn(1, 2, 6, 6)),
        lambda m, x, _join=_join: m.fc(pooled(m.b(_join(m, m.a(x).relu(), x)))),
        {"a": (8, 8), **FIVE},
    )

pattern(
    "uneven pieces with several readers",
    lambda: {
        "a": conv(3, 8),
        "b": conv(5, 5),
        "c": conv(3, 5),
        "d": conv(5, 6),
        "fc": nn.Linear(5, 4),
        "h": conv(6, 5),
    },
    lambda m, x: (lambda p, q: m.fc(pooled(m.b(p) + m.c(q) + m.h(m.d(p)))))(*m.a(x).split([5, 3], 1)),
    {"a": (8, 8), "b": (5, 5), "d": (6, 6)},
)
pattern(
    "zero-padded shortcut by a cat",
    lambda: {"a": conv(3, 4), "b": conv(4, 8), "fc": nn.Linear(8, 4)},
    lambda m, x: (lambda y: m.fc(pooled(F.relu(torch.cat([y, torch.zeros_like(y)], 1) + m.b(y)))))(m.a(x).relu()),
    {"a": (4, 4)},
)
pattern(
    "zero-padded shortcut by new zeros",
    lambda: {"a": conv(3, 4), "b": conv(4, 9), "fc": nn.Linear(9, 4)},
    lambda m, x: (lambda y: m.fc(pooled(F.relu(torch.cat([y, _zeros(y, 5)], 1) + m.b(y)))))(m.a(x).relu()),
    {"a": (9, 9)},
)
pattern(
    "unpooled by indices",
    lambda: {"a": conv(3, 8), "b": conv(8, 5), "u": nn.MaxUnpool2d(2), "fc": nn.Linear(5, 4)},
    lambda m, x: (lambda top: m.fc(pooled(m.b(m.u(*top) + F.max_unpool2d(top[0], top[1], 2)))))(
        F.max_pool2d(m.a(x), 2, return_indices=True)
    ),
    {"a": (8, 8), **FIVE},
)


def _zeros(y: Tensor, channels: int) -> Tensor:
    return torch.zeros(y.size(0), channels, y.size(2), y.size(3), device=y.device, dtype=y.dtype)


# -- writing into tensors ----------------------------------------------------------------------------------------------


def _interleaved(m: Any, y: Tensor) -> Tensor:
    out = y.new_zeros(y.shape[0], 2 * y.shape[1], *y.shape[2:])
    out[:, ::2] = y
    out[:, 1::2] = y.tanh()
    return out


def _copied(m: Any, y: Tensor) -> Tensor:
    out = torch.zeros(y.shape[0], 12, 6, 6, dtype=y.dtype)
    out[:, :8].copy_(y)
    out.narrow(1, 8, 4).add_(y[:, 4:])
    return out


def _overwritten(m: Any, y: Tensor) -> Tensor:
    z = y.clone()
    z[:, :4] = y[:, 4:]
    z[:, 6:] = 0.5
    return z


def _stuffed(m: Any, y: Tensor) -> Tensor:
    out = y.new_zeros((*y.shape[:2], 12, 12))
    out[:, :, ::2, ::2] = y
    return out


def _patched(m: Any, y: Tensor) -> Tensor:
    y[:, [0, 2]] = y[:, [5, 7]]
    y[..., 0, 0] = 1.0
    y[:, 1:3].mul_(2)
    y[y > 1] = 1.0
    return y


def _shifted(m: Any, y: Tensor) -> Tensor:
    """A temporal shift: a part of the channels moves along the rows."""
    out = torch.zeros_like(y)
    out[:, :3, 1:] = y[:, :3, :-1]
    out[:, 3:6, :-1] = y[:, 3:6, 1:]
    out[:, 6:] = y[:, 6:]
    return out


WRITTEN: Mapping[str, tuple[int, int, int, Callable[[Any, Tensor], Tensor]]] = {
    "interleaved": (16, 8, 8, _interleaved),
    "copied into views": (12, 8, 8, _copied),
    "overwritten": (8, 4, 4, _overwritten),
    "stuffed with zeros": (8, 8, 8, _stuffed),
    "shifted parts": (8, 8, 8, _shifted),
    "filled where negative": (8, 8, 8, lambda m, y: y.masked_fill_(y < 0.1, 0.3).clamp_(max=2).add_(1)),
    "added in place": (8, 8, 8, lambda m, y: y.add_(m.factor).mul_(m.factor).sub_(y.mean(1, keepdim=True))),
}
for _name, (_width, _units, _free, _move) in WRITTEN.items():
    pattern(
        f"written: {_name}",
        between(_width, factor=lambda: torch.randn(8, 1, 1)),
        moving(_move),
        {"a": (_units, _free), **FIVE},
    )
pattern(
    "written: into places",
    between(8),
    moving(_patched),
    {"a": (6, 6), **FIVE},
)

# -- constants of a channel's width ------------------------------------------------------------------------------------

WIDE: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "factor": lambda m, y: y * m.factor,
    "vector": lambda m, y: y * m.vector.view(1, -1, 1, 1) + m.vector[None, :, None, None],
    "literal view": lambda m, y: y * m.vector.view(1, 8, 1, 1),
    "mask": lambda m, y: y * m.mask.view(1, -1, 1, 1),
    "mask as numbers": lambda m, y: y * m.mask.to(y.dtype).reshape(8, 1, 1),
    "where": lambda m, y: torch.where(m.mask.view(-1, 1, 1), y, -y),
    "masked_fill": lambda m, y: y.masked_fill(m.mask.reshape(1, 8, 1, 1), 0.5),
    "whole numbers": lambda m, y: y * m.counts.view(1, -1, 1, 1) + m.counts.view(8, 1, 1),
    "permuted factor": lambda m, y: y * m.vector.flip(0).view(1, -1, 1, 1),
    "matrix": lambda m, y: y + torch.matmul(m.vector[:, None], m.vector[None, :3]).sum(1).view(1, -1, 1, 1),
}
_CONSTANTS: Mapping[str, Callable[[], nn.Module | Tensor]] = {
    "factor": lambda: torch.randn(1, 8, 1, 1),
    "vector": lambda: torch.randn(8),
    "mask": lambda: torch.tensor([True, False] * 4),
    "counts": lambda: torch.arange(8),
}
for _name, _move in WIDE.items():
    pattern(f"wide: {_name}", between(8, **_CONSTANTS), moving(_move), {"a": (8, 8), **FIVE})

# -- convolutions and other layers -------------------------------------------------------------------------------------

LAYERS: Mapping[str, tuple[Callable[[], nn.Module], Mapping[str, tuple[int, int]]]] = {
    "depthwise": (lambda: conv(8, 8, groups=8), {"a": (8, 8)}),
    "depthwise with multiplier": (lambda: conv(8, 16, groups=8), {"a": (8, 8)}),
    "depthwise transposed with multiplier": (lambda: nn.ConvTranspose2d(8, 16, 2, groups=8), {"a": (8, 8)}),
    "grouped": (lambda: conv(8, 12, groups=4), {"a": (2, 2), "l": (3, 3)}),
    "groups to single channels": (lambda: conv(8, 4, groups=4), {"a": (4, 4)}),
    "grouped transposed": (lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2), {"a": (4, 4), "l": (6, 6)}),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, 2, output_padding=1), {"a": (8, 8), "l": (6, 6)}),
    "dilated": (lambda: nn.Conv2d(8, 6, 3, dilation=2, padding=2), {"a": (8, 8), "l": (6, 6)}),
    "same": (lambda: nn.Conv2d(8, 6, (3, 5), padding="same"), {"a": (8, 8), "l": (6, 6)}),
    "valid": (lambda: nn.Conv2d(8, 6, 3, padding="valid"), {"a": (8, 8), "l": (6, 6)}),
    "circular": (lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), {"a": (8, 8), "l": (6, 6)}),
    "reflecting": (lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="reflect"), {"a": (8, 8), "l": (6, 6)}),
    "group norm": (lambda: nn.GroupNorm(4, 8), {"a": (2, 2)}),
    "instance norm": (lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), {"a": (8, 8)}),
}


def _width(layer: nn.Module) -> int:
    return int(getattr(layer, "out_channels", 8))


for _name, (_make, _groups) in LAYERS.items():
    pattern(
        f"layer: {_name}",
        between(_width(_make()), l=_make),
        moving(lambda m, y: m.l(y).relu()),
        {**_groups, **FIVE},
    )

FUNCTIONS: Mapping[str, tuple[Mapping[str, tuple[int, ...]], Run, Mapping[str, tuple[int, int]]]] = {
    "transposed": (
        {"w": (8, 6, 2, 2), "v": (6,)},
        lambda m, y: F.conv_transpose2d(y, m.w, m.v, stride=2),
        {"a": (8, 8), "w[1]": (6, 6), "w[2]": (2, 0), "w[3]": (2, 0)},
    ),
    "transposed in groups": (
        {"w": (8, 3, 1, 1), "v": (6,)},
        lambda m, y: F.conv_transpose2d(y, m.w, m.v, groups=2),
        {"a": (4, 4), "w": (3, 3)},
    ),
    "transposed with multiplier": (
        {"w": (8, 2, 1, 1), "v": (16,)},
        lambda m, y: F.conv_transpose2d(y, m.w, m.v, groups=8),
        {"a": (8, 8), "w": (2, 0)},
    ),
    "in groups": (
        {"w": (6, 4, 1, 1), "v": (6,)},
        lambda m, y: F.conv2d(y, m.w, m.v, groups=2),
        {"a": (4, 4), "w": (3, 3)},
    ),
    "with multiplier": ({"w": (16, 1, 1, 1)}, lambda m, y: F.conv2d(y, m.w, groups=8), {"a": (8, 8)}),
    "groups to single channels": (
        {"w": (4, 2, 1, 1)},
        lambda m, y: F.conv2d(y, m.w, None, 1, 0, 1, 4),
        {"a": (4, 4), "w": (2, 0)},
    ),
    "sliced weight": (
        {"w": (9, 8, 1, 1), "v": (9,)},
        lambda m, y: F.conv2d(y, m.w[:6], m.v[:6]),
        {"a": (8, 8), "w": (12, 12)},
    ),
    "stacked weights": (
        {"w": (3, 8, 1, 1), "v": (3, 8, 1, 1)},
        lambda m, y: F.conv2d(y, torch.cat([m.w, m.v])),
        {"a": (8, 8), "w": (3, 3), "v": (3, 3)},
    ),
    "weight made of two": (
        {"w": (6, 8, 1, 1), "v": (6, 1, 1, 1)},
        lambda m, y: F.conv2d(y, m.w * m.v, padding="same"),
        {"a": (8, 8), "w": (6, 6)},
    ),
    "standardised weight": (
        {"w": (6, 8, 1, 1)},
        lambda m, y: F.conv2d(y, F.normalize(m.w, dim=(1, 2, 3))),
        {"a": (8, 8), "w": (6, 6)},
    ),
    "weight as a matrix": (
        {"w": (6, 8)},
        lambda m, y: (m.w @ y.flatten(2)).unflatten(2, y.shape[2:]),
        {"a": (8, 8), "w": (6, 6)},
    ),
    "weight in an einsum": (
        {"w": (6, 8)},
        lambda m, y: torch.einsum("oc,nchw->nohw", m.w, y),
        {"a": (8, 8), "w": (6, 6)},
    ),
    "unfolded and multiplied": (
        {"w": (6, 8, 3, 3)},
        lambda m, y: (m.w.view(6, -1) @ F.unfold(y, 3, padding=1)).view(-1, 6, 6, 6),
        {"a": (8, 8), "w[0]": (6, 6), "w[2]": (3, 0), "w[3]": (3, 0)},
    ),
    "batch norm": (
        {"w": (8,), "v": (8,)},
        lambda m, y: F.batch_norm(y, m.mean, m.var, m.w, bias=m.v),
        {"a": (8, 8)},
    ),
    "instance norm": ({"w": (8,), "v": (8,)}, lambda m, y: F.instance_norm(y, weight=m.w, bias=m.v), {"a": (8, 8)}),
    "layer norm": (
        {"w": (8,), "v": (8,)},
        lambda m, y: F.layer_norm(y.permute(0, 2, 3, 1), (8,), m.w, m.v, 1e-6).permute(0, 3, 1, 2),
        {"a": (8, 8)},
    ),
    "rms norm": (
        {"w": (8,)},
        lambda m, y: F.rms_norm(y.movedim(1, -1), [y.shape[1]], m.w).movedim(-1, 1),
        {"a": (8, 8)},
    ),
    "rms norm by hand": (
        {"w": (8,)},
        lambda m, y: y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-6) * m.w.view(1, -1, 1, 1),
        {"a": (8, 8)},
    ),
}


def _read_by(width: int, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[], Parts]:
    more = {name: (lambda shape=shape: free(*shape)) for name, shape in shapes.items()}
    return between(width, **more, mean=lambda: torch.randn(8), var=lambda: torch.rand(8))


for _name, (_shapes, _move, _groups) in FUNCTIONS.items():
    _wide = {"transposed with multiplier": 16, "with multiplier": 16, "groups to single channels": 4}
    _reads = 8 if "norm" in _name else _wide.get(_name, 6)
    pattern(f"function: {_name}", _read_by(_reads, _shapes), moving(_move), {**_groups, **FIVE})

for _rank, _shape in ((1, SIGNAL), (3, VOLUME)):
    _space = tuple(range(2, _rank + 2))
    pattern(
        f"{_rank}-d layers",
        lambda r=_rank: {
            "a": getattr(nn, f"Conv{r}d")(3, 8, 3, padding=1),
            "n": getattr(nn, f"BatchNorm{r}d")(8),
            "d": getattr(nn, f"Conv{r}d")(8, 16, 1, groups=8),
            "t": getattr(nn, f"ConvTranspose{r}d")(16, 6, 2),
            "i": getattr(nn, f"InstanceNorm{r}d")(6, affine=True),
            "p": getattr(nn, f"AdaptiveAvgPool{r}d")(2),
            "fc": nn.Linear(6, 4),
        },
        lambda m, x, s=_space: m.fc(m.p(m.i(m.t(m.d(m.n(m.a(x)).relu())))).mean(s)),
        {"a": (8, 8), "t": (6, 6)},
        shapes=(_shape,),
    )
    pattern(
        f"{_rank}-d functions",
        lambda r=_rank: {"w": free(8, 3, *[1] * r), "v": free(8, 6, *[1] * r), "fc": nn.Linear(6, 4)},
        lambda m, x, r=_rank, s=_space: m.fc(
            getattr(F, f"conv_transpose{r}d")(getattr(F, f"conv{r}d")(x, m.w).relu(), m.v).mean(s)
        ),
        {"w[0]": (8, 8), "w[1]": (3, 0), "v": (6, 6)},
        shapes=(_shape,),
    )

pattern(
    "bilinear",
    lambda: {"a": nn.Linear(6, 8), "b": nn.Linear(6, 5), "l": nn.Bilinear(8, 5, 7), "fc": nn.Linear(7, 4)},
    lambda m, x: m.fc(m.l(m.a(x).tanh(), m.b(x)).mean(1)),
    {"a": (8, 8), "b": (5, 5), "l": (7, 7)},
    shapes=(TOKENS,),
)
pattern(
    "embeddings",
    lambda: {
        "e": nn.Embedding(9, 8, padding_idx=0),
        "g": nn.EmbeddingBag(9, 8, mode="sum"),
        "w": free(9, 8),
        "l": nn.Linear(6, 8),
        "fc": nn.Linear(8, 4),
    },
    lambda m, x: (lambda i: m.fc((m.e(i) + F.embedding(i, m.w)).mean(1) + m.g(i) + m.l(x).mean(1)))(_places(x)),
    {"e": (8, 8), "w": (9, 0)},
    shapes=(TOKENS,),
)

pattern(
    "rows of a table",
    lambda: {
        "a": nn.Linear(6, 8),
        "table": free(3, 8),
        "places": torch.tensor([0, 0, 2, 1, 2]),
        "fc": nn.Linear(8, 4),
    },
    lambda m, x: m.fc((m.a(x) + m.table[m.places]).relu().mean(1)),
    {"a": (8, 8), "table": (3, 0)},
    {"table": "is picked from"},
    shapes=(TOKENS,),
)


def _places(x: Tensor) -> Tensor:
    """Whole numbers from 0 to 8."""
    return (x[..., 0].abs() * 3).clamp(max=8).long()


# -- recurrent layers --------------------------------------------------------------------------------------------------


def _steps(m: Any, x: Tensor) -> Tensor:
    """A loop over a cell."""
    y = m.a(x)
    state = y.new_zeros(y.shape[0], 5), y.new_zeros(y.shape[0], 5)
    for step in range(y.shape[1]):
        state = m.r(y[:, step], state)
    return m.fc(state[0] + state[1])


def _units_of(kind: type[nn.Module], **options: Any) -> Callable[[], Parts]:
    return lambda: {
        "a": nn.Linear(6, 8),
        "r": kind(8, 5, **options),
        "fc": nn.Linear(10 if options.get("bidirectional") else 5, 4),
    }


RECURRENT: Mapping[str, tuple[Callable[[], Parts], Run]] = {
    "lstm": (_units_of(nn.LSTM, batch_first=True), lambda m, x: m.fc(m.r(m.a(x))[0].mean(1))),
    "last state": (_units_of(nn.LSTM), lambda m, x: m.fc(m.r(m.a(x).transpose(0, 1))[1][0][-1])),
    "gru": (_units_of(nn.GRU, batch_first=True, bias=False), lambda m, x: m.fc(m.r(m.a(x))[0][:, -1])),
    "rnn": (
        _units_of(nn.RNN, nonlinearity="relu"),
        lambda m, x: (lambda out, last: m.fc(out[-1] + last[0]))(*m.r(m.a(x).mT.permute(2, 0, 1))),
    ),
    "deep and both ways": (
        _units_of(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
        lambda m, x: m.fc(m.r(m.a(x))[0].mean(1)),
    ),
    "cell": (_units_of(nn.LSTMCell), _steps),
    "gru cell": (_units_of(nn.GRUCell), lambda m, x: m.fc(m.r(m.a(x)[:, 1], m.r(m.a(x)[:, 0])))),
}
for _name, (_parts, _run) in RECURRENT.items():
    _weight = "r.weight_ih" if "cell" in _name else "r.weight_ih_l0"
    pattern(f"recurrent: {_name}", _parts, _run, {"a": (8, 8), _weight: (5, 5)}, shapes=(TOKENS,))


def _projected(**options: Any) -> Callable[[], Parts]:
    sides = 2 if options.get("bidirectional") else 1
    return lambda: {
        "a": nn.Linear(6, 8),
        "r": nn.LSTM(8, 6, proj_size=3, batch_first=True, **options),
        "h": nn.Linear(6, 3),
        "c": nn.Linear(6, 6),
        "s": nn.Linear(6, 4),
        "fc": nn.Linear(3 * sides, 4),
    }


def _begun(m: Any, x: Tensor) -> Tensor:
    out, _ = m.r(m.a(x), (m.h(x[:, 0])[None], m.c(x[:, 0])[None]))
    return m.fc(out.mean(1))


def _ended(m: Any, x: Tensor) -> Tensor:
    _, (last, inner) = m.r(m.a(x))
    return m.fc(last[-1]) + m.s(inner[-1])


_INNER = {"r.weight_ih_l0": (6, 6), "r.weight_hr_l0": (3, 3)}
PROJECTED: Mapping[str, tuple[Callable[[], Parts], Run, Mapping[str, tuple[int, int]]]] = {
    "projected": (_projected(), lambda m, x: m.fc(m.r(m.a(x))[0].mean(1)), _INNER),
    "projected, deep": (
        _projected(num_layers=2, bias=False),
        lambda m, x: m.fc(m.r(m.a(x))[0][:, -1]),
        _INNER,
    ),
    "projected, both ways": (
        _projected(num_layers=2, bidirectional=True),
        lambda m, x: m.fc(m.r(m.a(x))[0].mean(1)),
        _INNER,
    ),
    "projected, last states": (_projected(), _ended, _INNER),
    "projected, begun": (_projected(), _begun, {"h": (3, 3), "c": (6, 6)}),
}
for _name, (_parts, _run, _groups) in PROJECTED.items():
    pattern(f"recurrent: {_name}", _parts, _run, {"a": (8, 8), **_groups}, shapes=(TOKENS,))
pattern(
    "recurrent: projected to one less",
    lambda: {"a": nn.Linear(6, 8), "r": nn.LSTM(8, 4, proj_size=3), "fc": nn.Linear(3, 4)},
    lambda m, x: m.fc(m.r(m.a(x))[0].mean(1)),
    {"a": (8, 8), "r.weight_ih_l0": (4, 0), "r.weight_hr_l0": (3, 3)},
    {"r.weight_ih_l0": "is needed beside a projection"},
    shapes=(TOKENS,),
)
