"""What padding, pooling and cuts do to the marks of their arguments: rows of the verifier's table.

pad         constants are free, but for the rim of a removed channel
pooling     a window sees kept elements alone, or removed ones
tril        tokens are cut, of which none is removed
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import KEPT, REMOVED, Call, collapse, full_marks, mark, marks_of, plain


def _pad(call: Call) -> Any:
    """Padding: constants are free, but for the rim of a removed channel; reflected and repeated elements are what they
    are copied from."""
    data = call.plain()
    bound = call.bind("input", "padding" if call.module is not None else "pad", "mode")
    source = full_marks(bound["input"])
    if call.module is not None:
        constant = isinstance(call.module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d)
        marks = _rimmed(source, bound["padding"]) if constant else call.run(source)
        return mark(data, marks.to(torch.uint8))
    mode = bound["mode"] or "constant"
    marks = _rimmed(source, plain(bound["pad"])) if mode == "constant" else F.pad(source, plain(bound["pad"]), mode)
    return mark(data, marks.to(torch.uint8))


def _rimmed(source: Tensor, pad: Sequence[int]) -> Tensor:
    """Marks that are padded, one dimension after the other: with REMOVED beside a line of removed elements (statistics
    over channels don't count the rim of one that is gone), else with FREE."""
    for index in range(0, len(pad), 2):
        dim = source.ndim - 1 - index // 2
        lost = (source == REMOVED).all(dim, keepdim=True).to(source.dtype) * REMOVED
        before, after = (max(amount, 0) for amount in pad[index : index + 2])
        rims = [lost.expand(*[-1] * dim, amount, *[-1] * (source.ndim - dim - 1)) for amount in (before, after)]
        kept = F.pad(source, [0] * index + [min(amount, 0) for amount in pad[index : index + 2]])
        source = torch.cat([rims[0], kept, rims[1]], dim)
    return source


def _windows(call: Call) -> Any:
    """Pooling and interpolation: marks don't vary over what is pooled at a time, nor over images."""
    value = call.args[0] if call.args else call.kwargs["input"]
    digits = re.search(r"(\d)d", call.name)
    rank = plain(value).ndim
    space = range(rank - (int(digits.group(1)) if digits else rank - 2), rank)
    marks = marks_of(value)
    if "pool" in call.name and any(marks.shape[dim] > 1 for dim in space):
        marks = _pooled_marks(call, value)
    else:
        marks = collapse(call, marks, space, "the removed elements are no whole channels")
    return pytree.tree_map(partial(mark, marks=marks), call.plain())


def _pooled_marks(call: Call, value: Any) -> Tensor:
    """What each window has seen: nothing but kept elements, or nothing but removed ones."""
    marks, dtype = full_marks(value), plain(value).dtype
    rest = {key: given for key, given in call.kwargs.items() if key != "input"}

    def seen(bit: int) -> Tensor:
        found: Tensor = pytree.tree_leaves(call.run((marks == bit).to(dtype), *call.args[1:], **rest))[0]
        return found > 0

    kept, removed = seen(KEPT), seen(REMOVED)
    if bool((kept & removed).any()):
        raise call.error("the removed elements are no whole channels")
    return kept.to(torch.uint8) * KEPT + removed.to(torch.uint8) * REMOVED


def _triangle(call: Call) -> Any:
    marks = marks_of(call.args[0])
    return mark(call.plain(), collapse(call, marks, [marks.ndim - 2, marks.ndim - 1], "removed tokens are cut"))


_POOLS: Final = [
    f"{adapt}{kind}_pool{rank}d" for adapt in ("", "adaptive_") for kind in ("avg", "max", "lp") for rank in (1, 2, 3)
]

WINDOWS: Final[Mapping[str, Callable[[Call], Any]]] = {
    **dict.fromkeys([*_POOLS, *(f"{pool}_with_indices" for pool in _POOLS), "interpolate", "upsample"], _windows),
    **dict.fromkeys(["tril", "triu"], _triangle),
    "pad": _pad,
}
