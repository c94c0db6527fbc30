"""What each operation does to the marks of its arguments: the verifier's own table of operations; see `masks`.

    moves           the operation itself is run on the marks                      reshape, cat, pixel_shuffle, pad, ...
    elementwise     removed where any operand is; nothing kept may be lost        add, relu, where, batch_norm, ...
    reductions      the dimensions that it runs over must not hold removed ones   var, softmax, argmax, ...
    sums            removed elements are zeros (mask_layers.py)                   sum, mean, norm, ...
    windows         marks don't vary over space                                   max_pool2d, interpolate, ...
    readers         data are zeroed; the weight's removed positions must fit      conv2d, linear, matmul, einsum, ...
    norms           statistics of the kept elements alone                         layer_norm, group_norm, rms_norm

An operation without a row is fine as long as no removed channel reaches it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import (
    FREE,
    KEPT,
    REMOVED,
    Call,
    Marked,
    Value,
    collapse,
    compressed,
    constant,
    contract,
    full_marks,
    linked,
    mark,
    mark_all,
    marks_of,
    meet,
    plain,
    small_marks,
)
from prunec.compiler.verify.ops.gather_scatter import ADDRESSED
from prunec.compiler.verify.ops.image import WINDOWS
from prunec.compiler.verify.ops.matmul import PRODUCTS, along_channels, run_zeroed, with_bias
from prunec.compiler.verify.ops.reduction import ROWS, extreme, reduced_dims

Rule = Callable[[Call], Any]


def apply(call: Call) -> Any:
    """The operation's value: tensors that are kept everywhere, and `Marked` ones.

    Raises `VerifyError` where something kept would be lost, and where it isn't known what a removed channel does.
    """
    operands = call.operands()
    marked = [x for x in operands if isinstance(x, Marked)]
    if not operands:
        return pytree.tree_map(_freely, call.plain())
    if not marked and call.name not in MARKING:
        return call.plain()
    free = len(marked) == len(operands) and all(bool((x.marks == FREE).all()) for x in marked)
    rule = RULES.get(call.name)
    if rule is not None:
        value = _written_in_place(call, rule(call))
    elif any(x.has_removed for x in marked):
        raise call.error("removed channels reach an operation that the reference doesn't know")
    else:
        value = call.plain()
    return pytree.tree_map(_freely, value) if free else value


def _freely(value: Any) -> Any:
    """What is computed from constants alone is a constant."""
    if isinstance(value, Marked) and bool((value.marks == FREE).all()):
        return value
    data = plain(value)
    return constant(data) if isinstance(data, Tensor) else value


def _written_in_place(call: Call, value: Any) -> Any:
    first = call.args[0] if call.args else None
    if not call.in_place or not isinstance(first, Marked) or not isinstance(value, Tensor | Marked):
        return value
    first.write(marks_of(value))
    return first if plain(value).data_ptr() == first.data.data_ptr() else value


# --- rules: movement and elementwise --------------------------------------------------------------------------------


def _move(call: Call) -> Any:
    """Operations that move data: the operation itself, run on the marks. Other tensor arguments are indices."""
    data = call.plain()
    if call.name == "meshgrid" and isinstance(call.args[0], Tensor | Marked):
        call = replace(call, args=(call.args,))  # `meshgrid(x, y)` is `meshgrid((x, y))`
    if call.name == "getattr" and call.args[1] in ("real", "imag"):
        return mark(data, marks_of(call.args[0]))
    source, rest = call.args[0], (call.args[1:], dict(call.kwargs))
    if any(isinstance(x, Marked) and x.has_removed for x in pytree.tree_leaves(rest)) and call.name[-3:] != "_as":
        raise call.error("removed channels are used as an index")
    if not any(isinstance(x, Tensor) for x in pytree.tree_leaves(data)):
        return data
    if call.name == "getattr" and rest[0] in (("real",), ("imag",)):
        return mark(data, marks_of(source))
    run = partial(_on_marks, call.run, plain(rest[0]), plain(rest[1]))
    if call.name in _VIEWS:
        cheap = partial(_on_marks, torch.Tensor.reshape, *run.args[1:]) if call.name == "view" else run
        return linked(mark_all(data, cheap(small_marks(source))), source, run)
    return linked(mark_all(data, run(full_marks(source))), source, run)


def _copied(call: Call) -> Any:
    """`expand` and `repeat`: of several copies, each may go with what it meets. Rows of a batch are none."""
    moved = _move(call)
    if not isinstance(moved, Tensor | Marked):
        return moved
    before, after = plain(call.args[0]).shape, plain(moved).shape
    aligned = (1,) * (len(after) - len(before)) + tuple(before)
    longer = [d for d in range(len(after)) if after[d] > aligned[d]]
    if not longer or (longer == [0] and aligned[0] == 1 and len(after) > 1):
        return moved
    marks = marks_of(moved)
    return mark(plain(moved), torch.where(marks == KEPT, FREE, marks).to(torch.uint8))


def _on_marks(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], marks: Tensor) -> Any:
    return run(marks, *args, **kwargs)


def _create(call: Call) -> Any:
    """New constants, whatever they are like."""
    return _freely(call.plain())


def _embed(call: Call) -> Any:
    bound = call.bind("input", "weight")
    return mark(call.plain(), F.embedding(plain(bound["input"]), full_marks(bound["weight"])).to(torch.uint8))


def _elementwise(call: Call) -> Any:
    data = call.plain()
    return mark(data, meet(call, call.operands(), data.shape))


def _converted(call: Call) -> Any:
    """The first operand in another form; of a second one only the type is read."""
    data = call.plain()
    return mark(data, marks_of(call.args[0])) if isinstance(data, Tensor) else data


def _channelwise(call: Call) -> Any:
    """One operation per channel (dimension 1), each with its own parameters: batch and instance norm, PReLU."""
    data = call.plain()
    bound = call.bind(*ARGUMENTS[call.name])
    rank = data.ndim
    params = [along_channels(bound[name], rank) for name in PARAMETERS if isinstance(bound.get(name), Tensor | Marked)]
    return mark(data, meet(call, [bound["input"], *params], data.shape))


def _gated(call: Call) -> Any:
    """GLU: one half of a dimension times the sigmoid of the other."""
    data = call.plain()
    bound = call.bind("input", "dim")
    dim = -1 if bound["dim"] is None else bound["dim"]
    halves = zip(
        plain(bound["input"]).chunk(2, dim), full_marks(bound["input"]).to(torch.uint8).chunk(2, dim), strict=True
    )
    return mark(data, meet(call, [mark(x, m) for x, m in halves], data.shape))


def _assign(call: Call) -> None:
    """`x[index] = value`: the marks are written as the data are."""
    target, index, value = call.args
    if not isinstance(target, Marked):
        if any(isinstance(x, Marked) and x.has_removed for x in pytree.tree_leaves((index, value))):
            raise call.error("removed channels are written into a tensor that is kept")
        call.plain()
        return
    if not isinstance(value, Tensor | Marked):
        call.plain()  # a number is kept or removed with the channel that it is written to
        return
    marks = full_marks(target).clone()
    marks[plain(index)] = full_marks(value)
    call.plain()
    target.write(compressed(marks.to(torch.uint8)))


# --- rules: reductions and windows ----------------------------------------------------------------------------------


def _reduce(call: Call) -> Any:
    """Operations over whole dimensions (sum, max, softmax, sort): these must not hold removed channels."""
    if isinstance(call.args[1] if len(call.args) > 1 else call.kwargs.get("other"), Tensor | Marked):
        return _elementwise(call)  # max(x, y)
    value, dims = call.args[0], reduced_dims(call, *DIMENSION_AT.get(call.name, (1, None)))
    marks = collapse(call, marks_of(value), dims, "an operation reduces over removed channels")
    return pytree.tree_map(partial(_mark_reduced, marks=marks, dims=tuple(dims)), call.plain())


def _mark_reduced(data: Tensor, *, marks: Tensor, dims: tuple[int, ...]) -> Value:
    return mark(data, marks if data.ndim == marks.ndim else marks.squeeze(dims))


def _complex(call: Call) -> Any:
    """Two real numbers as one complex number, and back: the parts of one are kept or removed together."""
    marks = marks_of(call.args[0])
    if call.name == "view_as_real":
        return mark(call.plain(), marks[..., None])
    return mark(call.plain(), collapse(call, marks, [marks.ndim - 1], "half of a number is removed")[..., 0])


# --- rules: readers -------------------------------------------------------------------------------------------------


def _convolution(call: Call) -> Any:
    """Convolutions, grouped and transposed ones too: counted on channels alone."""
    transposed = "transpose" in call.name
    bound = call.bind(*ARGUMENTS["conv_transpose" if transposed else "conv"])
    x, weight = bound["input"], bound["weight"]
    rank, problem = plain(x).ndim, "the removed elements are no whole channels"
    channel = rank + 1 - plain(weight).ndim  # 0 for an image without a batch
    shape = [-1 if dim == channel else 1 for dim in range(rank)]
    mixed = [dim for dim in range(channel + 1, rank) if not _is_still(bound, dim - channel - 1)]
    gone, rows = _lost_rows(collapse(call, marks_of(x), mixed, problem), channel)
    arriving = collapse(call, rows, [dim for dim in range(rank) if dim != channel], problem).reshape(1, -1, 1)
    arriving = arriving.expand(1, plain(x).shape[channel], 1)
    own = collapse(call, marks_of(weight), range(2, plain(weight).ndim), problem).flatten(2)[:, :, :1]
    own = own.expand(*plain(weight).shape[:2], 1)
    count = partial(F.conv_transpose1d if transposed else F.conv1d, groups=bound["groups"] or 1)
    marks = contract(call, count, x, weight, marks=(arriving, own))
    channels = Marked(plain(x), arriving.reshape(shape))  # with the free rim of a removed channel
    data = run_zeroed(replace(call, args=(channels, *call.args[1:])))
    return with_bias(call, data, torch.maximum(marks.reshape(shape), gone), bound["bias"], channel=channel)


def _is_still(bound: Mapping[str, Any], place: int) -> bool:
    """Whether a convolution passes a dimension on: a kernel of size 1 goes over it in steps of 1, unpadded."""

    def at(name: str, default: int) -> int:
        given = default if bound[name] is None or isinstance(bound[name], str) else bound[name]
        return given if isinstance(given, int) else given[place if len(given) > 1 else 0]

    return plain(bound["weight"]).shape[2 + place] == 1 and at("stride", 1) == 1 and at("padding", 0) == 0


def _lost_rows(marks: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Where all channels of a row are removed (others were folded into the batch, or lie beside), as marks that are
    FREE elsewhere, and the marks with these rows FREE, since the others alone say which channels arrive."""
    gone = (marks == REMOVED).all(channel, keepdim=True)
    gone &= gone.numel() > 1 and not bool(gone.all())
    return gone.to(marks.dtype) * REMOVED, torch.where(gone, FREE, marks).to(marks.dtype)


def _deformed(call: Call) -> Any:
    """Deformable convolution in one group: like another, at places that must be whole."""
    x, weight, bias = call.args[0], call.args[1], call.args[4]
    if any(isinstance(places, Marked) and places.has_removed for places in call.args[2:4]):
        raise call.error("removed channels are used as places")
    problem = "the removed elements are no whole channels"
    arriving = collapse(call, marks_of(x), (0, 2, 3), problem).reshape(1, -1, 1).expand(1, plain(x).shape[1], 1)
    own = collapse(call, marks_of(weight), (2, 3), problem).flatten(2).expand(*plain(weight).shape[:2], 1)
    if tuple(call.args[11:13]) != (1, 1) and bool((arriving == REMOVED).any() | (own == REMOVED).any()):
        raise call.error("several groups lose channels")
    count = partial(F.conv1d, groups=call.args[11])
    marks = contract(call, count, x, weight, marks=(arriving, own))
    return with_bias(call, run_zeroed(call), marks.reshape(1, -1, 1, 1), bias, channel=1)


# --- rules: norms over channels -------------------------------------------------------------------------------------


def _normalised(x: Tensor, kept: Tensor, eps: float, *, centre: bool) -> Tensor:
    """Each row normalised by the mean and variance (without `centre`: the mean square) of its kept elements."""
    count = kept.sum(-1, keepdim=True).clamp(min=1)
    clean = torch.where(kept, x, torch.zeros((), dtype=x.dtype))
    if centre:
        clean = torch.where(kept, x - clean.sum(-1, keepdim=True) / count, torch.zeros((), dtype=x.dtype))
    return clean / torch.sqrt((clean * clean).sum(-1, keepdim=True) / count + eps)


def _norm_over(call: Call, *, centre: bool) -> Any:
    """Layer norm and RMS norm over the last dimensions."""
    bound = call.bind(*ARGUMENTS[call.name])
    x = bound["input"]
    data, dims = plain(x), len(bound["normalized_shape"])
    kept = x.kept if isinstance(x, Marked) else torch.ones_like(data, dtype=torch.bool)
    eps = bound["eps"] if bound["eps"] is not None else (1e-5 if centre else torch.finfo(data.dtype).eps)
    out = _normalised(data.flatten(-dims), kept.flatten(-dims), eps, centre=centre).reshape(data.shape)
    return _affine(call, out, x, bound["weight"], bound.get("bias"))


def _group_norm(call: Call) -> Any:
    bound = call.bind(*ARGUMENTS["group_norm"])
    x = bound["input"]
    data, kept = plain(x), x.kept if isinstance(x, Marked) else torch.ones_like(plain(x), dtype=torch.bool)
    rows = (data.shape[0], bound["num_groups"], -1)
    eps = 1e-5 if bound["eps"] is None else bound["eps"]
    out = _normalised(data.reshape(rows), kept.reshape(rows), eps, centre=True).reshape(data.shape)
    scale, shift = (None if p is None else along_channels(p, data.ndim) for p in (bound["weight"], bound["bias"]))
    return _affine(call, out, x, scale, shift)


def _affine(call: Call, out: Tensor, x: Value, scale: Value | None, shift: Value | None) -> Value:
    """Scale and shift, where given; the parameters must be removed where the channels are."""
    marks = meet(call, [value for value in (x, scale, shift) if value is not None], out.shape)
    out = out if scale is None else out * plain(scale)
    out = out if shift is None else out + plain(shift)
    return mark(out, marks)


# --- tables ---------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "prelu": ("input", "weight"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
}
PARAMETERS: Final = ("running_mean", "running_var", "weight", "bias")

DIMENSION_AT: Final[Mapping[str, tuple[int, int | None]]] = {
    "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "msort": (9, 0), "kthvalue": (2, -1), "mode": (1, -1),
}  # fmt: skip

_MOVES: Final = _words("""
    reshape view flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t adjoint cat concat concatenate
    stack hstack vstack dstack row_stack chunk split tensor_split split_with_sizes unsafe_chunk unsafe_split unbind
    getitem select narrow index_select gather take_along_dim
    roll flip expand view_as reshape_as broadcast_to repeat tile repeat_interleave squeeze unsqueeze
    pixel_shuffle pixel_unshuffle channel_shuffle unfold getattr size dim ndimension numel stride ravel rot90 meshgrid
    diagonal is_floating_point
""")
_VIEWS: Final = frozenset(
    _words("""
        reshape view flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t cat stack chunk split
        tensor_split unbind getitem select narrow roll flip expand squeeze unsqueeze
    """)
)
"""Moves that any tensor can be given to, whatever its type and its strides."""
_ELEMENTWISE: Final = _words("""
    add iadd radd sub isub rsub subtract mul imul multiply div truediv itruediv divide floordiv floor_divide pow neg
    negative abs exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos tan tanh erf sigmoid round floor ceil
    trunc sign where masked_fill clamp clip clamp_min clamp_max minimum maximum eq ne lt le gt ge and_ or_ xor invert
    not_ logical_and logical_or logical_not isnan isinf nan_to_num lerp addcmul addcdiv atan2 fmod remainder mod pos
    relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish hardshrink
    softshrink tanhshrink threshold logsigmoid rrelu sigmoid tanh type float half bfloat16 double int long
    bool contiguous clone detach dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout identity copy
    requires_grad expand_as absolute acos asin atan cosh sinh erfc exp2 bitwise_and bitwise_or bitwise_not copysign
    fmax fmin frac heaviside hypot isfinite log10 logical_xor positive xlogy true_divide alias cpu feature_alpha_dropout
    fill zero as_tensor asarray by_mode complex polar conj conj_physical resolve_conj resolve_neg angle real imag
""")
_REDUCTIONS: Final = _words("""
    prod max min amax amin var_mean std_mean median argmax argmin all any logsumexp mode cummax cummin
    softmax log_softmax softmin cumsum cumprod sort argsort topk msort kthvalue aminmax logcumsumexp nanmean
""")
_CREATORS: Final = _words("""
    zeros ones full empty arange linspace eye tensor zeros_like ones_like full_like empty_like new_zeros new_ones
    new_full new_empty new_tensor new rand_like randn_like
""")
_COPIES: Final = _words("expand broadcast_to repeat tile repeat_interleave")

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_COPIES, _copied),
    **ADDRESSED,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(["to", "type_as"], _converted),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_CREATORS, _create),
    **WINDOWS,
    **dict.fromkeys([f"conv{t}{rank}d" for t, rank in itertools.product(("", "_transpose"), (1, 2, 3))], _convolution),
    **dict.fromkeys(["batch_norm", "instance_norm", "prelu"], _channelwise),
    **ROWS,
    **dict.fromkeys(["amax", "amin", "max", "min"], partial(extreme, otherwise=_reduce)),
    "layer_norm": partial(_norm_over, centre=True),
    "rms_norm": partial(_norm_over, centre=False),
    "group_norm": _group_norm,
    **PRODUCTS,
    **dict.fromkeys(["view_as_complex", "view_as_real"], _complex),
    "embedding": _embed,
    "deform_conv2d": _deformed,
    "glu": _gated,
    "setitem": _assign,
}
MARKING: Final = frozenset(["pad", *_CREATORS, *_COPIES])
"""Operations whose result has marks though no argument has."""
