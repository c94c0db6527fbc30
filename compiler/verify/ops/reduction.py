"""What sums, windows and recurrent layers do to the marks of their arguments: rows of the verifier's table.

sums        removed elements are zeros, and are counted           sum, mean, norm, amax, normalize, ...
windows     marks don't vary over the image                       fold, grid_sample, max_unpool2d
recurrent   rows and columns of a state go in every tensor        lstm, gru, rnn, and their cells
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.modules import clone_module
from prunec.compiler.verify.masks import (
    FREE,
    KEPT,
    REMOVED,
    Call,
    Marked,
    Value,
    collapse,
    contract,
    full_marks,
    mark,
    marks_of,
    meet,
    plain,
    zeroed,
)
from prunec.compiler.verify.ops.matmul import run_zeroed

# --- sums -----------------------------------------------------------------------------------------------------------


def _added(marks: Tensor, dims: Iterable[int]) -> Tensor:
    """The marks of sums: kept where any term is, removed where all terms are."""
    for dim in dims:
        kept, free = ((marks == bit).any(dim, keepdim=True) for bit in (KEPT, FREE))
        marks = torch.where(kept, KEPT, torch.where(free, FREE, REMOVED)).to(torch.uint8)
    return marks


def reduced_dims(call: Call, position: int = 1, default: int | None = None) -> list[int]:
    """The dimensions that a call names in its argument `dim` (or `axis`) at a position; all of them for none."""
    bound = call.bind("input", *["_"] * (position - 1), "dim")
    dim = call.kwargs.get("axis", bound["dim"])
    dim = default if dim is None or isinstance(dim, bool) else dim  # `x.var(False)` names none
    rank = plain(bound["input"]).ndim
    if dim is None or dim in ((), []):
        return list(range(rank))
    return [d % rank for d in ([dim] if isinstance(dim, int) else dim)] if rank else []


def add_up(call: Call, position: int = 1) -> Any:
    """Sums, means and norms."""
    dims = reduced_dims(call, position)
    marks, data = _added(marks_of(call.args[0]), dims), run_zeroed(call)
    return mark(data, marks if data.ndim == marks.ndim else marks.squeeze(dims))


def extreme(call: Call, otherwise: Callable[[Call], Any]) -> Any:
    """The largest (or smallest) element, where removed ones are zeros, and its place.

    A place is a number among all channels, and among those that are left another, so that it may not be used.
    """
    second = call.args[1] if len(call.args) > 1 else call.kwargs.get("other")
    if call.name not in ("max", "min") or (second is None and "dim" not in call.kwargs):
        return add_up(call)
    removed = marks_of(call.args[0]) == REMOVED
    if isinstance(second, Tensor | Marked) or not any(removed.shape[dim] > 1 for dim in reduced_dims(call)):
        return otherwise(call)
    dims, largest = reduced_dims(call), run_zeroed(call)
    marks = _added(marks_of(call.args[0]), dims)
    values = mark(largest.values, marks if largest.values.ndim == marks.ndim else marks.squeeze(dims))
    return values, mark(largest.indices, torch.full([1] * largest.indices.ndim, REMOVED, dtype=torch.uint8))


def _normalize(call: Call) -> Any:
    """Divided by a norm of what is kept."""
    return mark(run_zeroed(call), marks_of(call.args[0]))


def _as_it_is(call: Call) -> Any:
    """Another type; of a second operand only that is read."""
    return mark(call.plain(), marks_of(call.args[0]))


def _similarity(call: Call) -> Any:
    """Cosine similarity: what is removed of one operand must be removed of the other."""
    left, right = call.args[:2]
    rank = max(plain(left).ndim, plain(right).ndim)
    given = getattr(call.module, "dim", None) if call.module is not None else (*call.args[2:], *call.kwargs.values())
    dim = (given if isinstance(given, int) else given[0] if given else 1) % rank
    shape = torch.broadcast_tensors(plain(left), plain(right))[0].shape  # type: ignore[no-untyped-call]
    return mark(run_zeroed(call), _added(meet(call, [left, right], shape), [dim]).squeeze(dim))


def _over_channels(call: Call) -> Any:
    """Each channel is divided by what others hold: none may be removed."""
    marks = marks_of(call.args[0])
    return mark(call.plain(), collapse(call, marks, {1, marks.ndim - 3}, "a norm over removed channels"))


def _transformed(call: Call, default: int | tuple[int, int] | None, shifts: bool = False) -> Any:
    """Fourier transforms, and shifts of their frequencies: along what they run over, all is kept or nothing is."""
    value, bound = call.args[0], call.bind("input", "dim") if shifts else call.bind("input", "s", "dim")
    dims = default if bound["dim"] is None else bound["dim"]
    if dims is None:
        dims = range(-len(bound["s"]), 0) if bound.get("s") is not None else range(plain(value).ndim)
    along = [dim % plain(value).ndim for dim in ([dims] if isinstance(dims, int) else dims)]
    return mark(call.plain(), collapse(call, marks_of(value), along, "a transform runs over removed channels"))


# --- windows --------------------------------------------------------------------------------------------------------


def _fold(call: Call) -> Any:
    """Windows [.., channels * kernel, places] back to an image: all columns of a channel are removed, or none is."""
    data, value = call.plain(), call.args[0]
    marks = collapse(call, marks_of(value), [plain(value).ndim - 1], "the removed elements are no whole channels")
    rows = marks.expand(*marks.shape[:-2], plain(value).shape[-2], 1)
    rows = rows.reshape(*rows.shape[:-2], data.shape[-3], -1)
    whole = collapse(call, rows, [rows.ndim - 1], "the removed elements are no whole channels")
    return mark(data, whole[..., None])


def _sample(call: Call) -> Any:
    """Pixels taken from the places of a grid: whole rows of a batch may be removed, in both."""
    image, grid = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs["grid"]
    data, rank = call.plain(), marks_of(image).ndim
    marks = collapse(call, marks_of(image), range(2, rank), "the removed elements are no whole channels")
    rows = collapse(call, marks_of(grid), range(1, rank), "removed channels are used as a grid")
    if not bool((rows == REMOVED).any()):
        return mark(data, marks)
    shapes = [*data.shape[:2], *[1] * (rank - 2)], [data.shape[0], *[1] * (rank - 1)]
    pair = [mark(data.new_empty(1).expand(shape), each) for shape, each in zip(shapes, (marks, rows), strict=True)]
    return mark(data, meet(call, pair, shapes[0]))


def _unpool(call: Call) -> Any:
    """Pixels put back where the indices say; both lose the same channels. Removed indices may be any."""
    data, pair = call.plain(), [*call.args[:2], *(call.kwargs[key] for key in ("indices",) if key in call.kwargs)]
    digits = re.search(r"(\d)d$", call.name)
    assert digits is not None, f"{call.name} names its dimensions"
    marks = meet(call, pair, plain(pair[0]).shape)
    space = range(data.ndim - int(digits.group(1)), data.ndim)
    return mark(data, collapse(call, marks, space, "the removed elements are no whole channels"))


# --- readers --------------------------------------------------------------------------------------------------------


def _bag(call: Call) -> Any:
    """Rows of a table, added up: its columns are the channels."""
    weight = call.bind("input", "weight")["weight"]
    data = call.plain()
    return mark(data, full_marks(weight)[:1].to(torch.uint8).expand(1, data.shape[-1]))


def _bilinear(call: Call) -> Any:
    """Two inputs and a weight [out, in1, in2]."""
    (left, right), weight, bias = call.args[:2], call.params["weight"], call.params.get("bias")
    operands = [marks_of(x).expand(*marks_of(x).shape[:-1], plain(x).shape[-1]) for x in (left, right)]
    own = full_marks(weight).to(torch.uint8)
    rank = plain(left).ndim
    lead = [max(sizes) for sizes in zip(*(m.shape[:-1] for m in operands), strict=True)]
    wide = [m.expand(*lead, m.shape[-1]) for m in operands]
    marks = contract(call, F.bilinear, left, right, weight, marks=(*wide, own))
    assert call.module is not None, "the row is for the module"
    data = call.run(zeroed(left), zeroed(right))
    result = mark(data, marks)
    if bias is None:
        return result
    vector = plain(bias).reshape([1] * (rank - 1) + [-1]), marks_of(bias).reshape([1] * (rank - 1) + [-1])
    return mark(data, meet(call, [result, mark(*vector)], data.shape))


def _gone(value: Value, dim: int) -> Tensor:
    """Which positions of a matrix's (a vector's) dimension are removed in all of it."""
    marks: Tensor = full_marks(value)
    return marks == REMOVED if marks.ndim == 1 else (marks == REMOVED).all(1 - dim)


def _last(call: Call, value: Value) -> Tensor:
    """Which positions of a value's last dimension are removed."""
    marks = collapse(call, marks_of(value), range(marks_of(value).ndim - 1), "a step lost some of its elements")
    return (marks == REMOVED).flatten().expand(plain(value).shape[-1])


def _columns(call: Call, value: Value, own: Tensor) -> Tensor:
    """Which columns of a weight should be removed: those of the channels that arrive. Where zeros arrive that are a
    constant, either will do: the weight's own."""
    free = torch.zeros(plain(value).shape[-1], dtype=torch.bool)
    if isinstance(value, Marked):
        loose = ((value.marks == FREE).expand(value.data.shape) & (value.data == 0)).flatten(0, -2)
        free = loose.all(0)
        marks = torch.where(free & (value.marks == FREE), KEPT, value.marks).to(torch.uint8)
        value = mark(value.data, marks)
    return torch.where(free, own, _last(call, value))


def _recurrent(call: Call, gates: int) -> Any:
    """LSTM, GRU, RNN and their cells: what is removed of the state goes in all tensors, and what arrives in the first
    layer's columns. A removed unit's weights are zero, so no other unit reads it."""
    module = call.module
    assert module is not None, "the row is for modules"
    cell = isinstance(module, nn.RNNCellBase)
    state = _gone(call.params["weight_hh" if cell else "weight_hh_l0"], 1)
    sides = 1 if cell else 1 + int(module.bidirectional)  # type: ignore[arg-type]
    for name, value in call.params.items():
        first = cell or "_l0" in name
        columns = state if "_hh" in name else state.repeat(sides)
        if first and name.startswith("weight_ih"):
            columns = _columns(call, call.args[0], _gone(value, 1))
        expected = [state.repeat(gates), columns]
        if any(not torch.equal(_gone(value, dim), expected[dim]) for dim in range(plain(value).ndim)):
            raise call.error(f"the removed positions of {name} are not those of the state or of what arrives")
    clean = clone_module(module, {name: zeroed(value) for name, value in call.params.items()})
    given = pytree.tree_map(lambda x: zeroed(x) if isinstance(x, Tensor | Marked) else x, call.args)
    return pytree.tree_map(partial(_as_state, state=state), replace(call, run=clean, args=given).plain())


def _as_state(data: Tensor, *, state: Tensor) -> Value:
    line = state.repeat(data.shape[-1] // state.numel()).to(torch.uint8) * (REMOVED - KEPT) + KEPT
    return mark(data, line.reshape([1] * (data.ndim - 1) + [-1]))


def _named(rule: Callable[[Call], Any], names: str) -> Mapping[str, Callable[[Call], Any]]:
    return dict.fromkeys(names.split(), rule)


ROWS: Final[Mapping[str, Callable[[Call], Any]]] = {
    **_named(_as_it_is, "to type_as"),
    **_named(add_up, "sum mean nansum var std"),
    **_named(partial(add_up, position=2), "norm linalg_norm linalg_vector_norm"),
    **_named(_over_channels, "local_response_norm cross_map_lrn2d softmax2d"),
    **_named(_unpool, "max_unpool1d max_unpool2d max_unpool3d"),
    **_named(partial(_recurrent, gates=4), "lstm lstmcell"),
    **_named(partial(_recurrent, gates=3), "gru grucell"),
    **_named(partial(_recurrent, gates=1), "rnn rnncell"),
    **{
        f"fft_{kind}{end}": partial(_transformed, default=dim)
        for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
        for end, dim in (("", -1), ("2", (-2, -1)), ("n", None))
    },
    **_named(partial(_transformed, default=None, shifts=True), "fft_fftshift fft_ifftshift"),
    "normalize": _normalize,
    "cosine_similarity": _similarity,
    "fold": _fold,
    "grid_sample": _sample,
    "embedding_bag": _bag,
    "bilinear": _bilinear,
}
