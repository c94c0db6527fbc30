"""Classifiers of ten classes, by how their heads come to the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Returned = Callable[["Classifier", Tensor, Tensor], Any]
"""(the model, its map [N, 8, 6, 6], the map's mean [N, 8]) -> what the model gives."""


class Classifier(nn.Module):
    """A convolution, a batch norm, and layers for heads; `returned` says which of them are used, and how."""

    def __init__(self, returned: Returned) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.aux, self.after = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 10)
        self.head, self.wide = nn.Conv2d(8, 10, 1), nn.Linear(8 * 36, 10)
        self.norm, self.softmax = nn.BatchNorm1d(10), nn.Softmax(dim=1)
        self.prototypes = nn.Parameter(torch.randn(10, 8))
        self.register_buffer("offset", torch.rand(10))
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        """`[N, 3, 6, 6]` -> what `returned` makes of it."""
        maps = F.relu(self.bn(self.conv(x)))
        return self.returned(self, maps, maps.mean((2, 3)))


def pooled(s: Classifier, h: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(s.head(h), 1)


LOGITS: Mapping[str, Returned] = {
    "linear": lambda s, h, p: s.fc(p),
    "linear behind a flatten": lambda s, h, p: s.wide(h.flatten(1)),
    "conv": lambda s, h, p: s.head(h).mean((2, 3)),
    "conv and flatten": lambda s, h, p: pooled(s, h).flatten(1),
    "conv and view": lambda s, h, p: pooled(s, h).view(-1, 10),
    "conv and squeeze": lambda s, h, p: pooled(s, h).squeeze(-1).squeeze(-1),
    "pixels": lambda s, h, p: s.head(h),
    "two layers": lambda s, h, p: s.after(F.relu(s.aux(p))),
    "norm": lambda s, h, p: s.norm(s.fc(p)),
    "offset": lambda s, h, p: s.fc(p) + s.offset,
    "prototypes": lambda s, h, p: -torch.cdist(p, s.prototypes),
    "cosine": lambda s, h, p: F.linear(F.normalize(p, dim=1), F.normalize(s.prototypes, dim=1)),
    "ensemble": lambda s, h, p: (s.fc(p) + s.aux(p)) / 2,
    "concatenated": lambda s, h, p: torch.cat([s.fc(p)[:, :5], s.aux(p)[:, :5]], 1),
    "sigmoid": lambda s, h, p: s.fc(p).sigmoid(),
    "two heads": lambda s, h, p: (s.fc(p), s.aux(p)),
    "heads by name": lambda s, h, p: {"out": s.fc(p), "aux": {"deep": s.aux(p)}},
}
"""Heads whose outputs are picked."""

SHARES: Mapping[str, Returned] = {
    "softmax": lambda s, h, p: s.fc(p).softmax(1),
    "softmax module": lambda s, h, p: s.softmax(s.fc(p)),
    "softmax of pixels": lambda s, h, p: s.softmax(s.head(h)),
    "softmax and view": lambda s, h, p: s.softmax(pooled(s, h)).view(h.shape[0], 10),
    "softmax at a temperature": lambda s, h, p: F.softmax(s.fc(p) / 3, dim=-1),
}
"""Heads whose outputs are probabilities."""

LOG_SHARES: Mapping[str, Returned] = {
    "log softmax": lambda s, h, p: F.log_softmax(s.fc(p), dim=1),
    "log of a softmax": lambda s, h, p: s.fc(p).softmax(1).log(),
}

HEADS: Mapping[str, Returned] = {**LOGITS, **SHARES, **LOG_SHARES}


def head(returned: str | Returned) -> Classifier:
    """A model in eval mode, of the head of this name."""
    torch.manual_seed(0)
    return Classifier(HEADS[returned] if isinstance(returned, str) else returned).eval()
