"""What each operation does to the marks of its arguments: the verifier's own table of operations; see `masks`.

    moves           the operation itself is run on the marks                      reshape, cat, pixel_shuffle, pad, ...
    elementwise     removed where any operand is; nothing kept may be lost        add, relu, where, batch_norm, ...
    reductions      the dimensions that it runs over must not hold removed ones   mean, softmax, argmax, ...
    windows         marks don't vary over space                                   max_pool2d, interpolate, ...
    readers         data are zeroed; the weight's removed positions must fit      conv2d, linear, matmul, einsum, ...
    norms           statistics of the kept elements alone                         layer_norm, group_norm, rms_norm

An operation without a row is fine as long as no removed channel reaches it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.compiler.masks import (
    FREE,
    Call,
    Marked,
    Value,
    collapse,
    contract,
    full_marks,
    mark,
    mark_all,
    marks_of,
    meet,
    plain,
    zeroed,
)

Rule = Callable[[Call], Any]


def apply(call: Call) -> Any:
    """The operation's value: tensors that are kept everywhere, and `Marked` ones.

    Raises `VerifyError` where something kept would be lost, and where it isn't known what a removed channel does.
    """
    operands = call.operands()
    marked = [x for x in operands if isinstance(x, Marked)]
    if not marked and call.name not in MARKING:
        return call.plain()
    rule = RULES.get(call.name)
    if rule is not None:
        return _written_in_place(call, rule(call))
    if any(x.has_removed for x in marked):
        raise call.error("removed channels reach an operation that the reference doesn't know")
    return call.plain()


def _written_in_place(call: Call, value: Any) -> Any:
    first = call.args[0] if call.args else None
    if call.in_place and isinstance(first, Marked) and isinstance(value, Tensor | Marked):
        first.marks = marks_of(value)
    return value


# --- rules: movement and elementwise --------------------------------------------------------------------------------


def _move(call: Call) -> Any:
    """Operations that move data: the operation itself, run on the marks. Other tensor arguments are indices."""
    data = call.plain()
    if call.name == "meshgrid" and isinstance(call.args[0], Tensor | Marked):
        call = replace(call, args=(call.args,))  # `meshgrid(x, y)` is `meshgrid((x, y))`
    source, rest = call.args[0], (call.args[1:], dict(call.kwargs))
    if any(isinstance(x, Marked) and x.has_removed for x in pytree.tree_leaves(rest)) and call.name[-3:] != "_as":
        raise call.error("removed channels are used as an index")
    if not any(isinstance(x, Tensor) for x in pytree.tree_leaves(data)):
        return data
    return mark_all(data, call.run(full_marks(source), *plain(rest[0]), **plain(rest[1])))


def _pad(call: Call) -> Any:
    """Padding: constants are free; reflected and repeated elements are what they are copied from."""
    data = call.plain()
    bound = call.bind("input", "padding" if call.module is not None else "pad", "mode")
    source = full_marks(bound["input"])
    if call.module is not None:
        constant = isinstance(call.module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d)
        marks = F.pad(source, bound["padding"]) if constant else call.run(source)
        return mark(data, marks.to(torch.uint8))
    return mark(data, F.pad(source, plain(bound["pad"]), mode=bound["mode"] or "constant").to(torch.uint8))


def _create(call: Call) -> Any:
    """New constants."""
    data = call.plain()
    return Marked(data, torch.full([1] * data.ndim, FREE, dtype=torch.uint8)) if isinstance(data, Tensor) else data


def _embed(call: Call) -> Any:
    bound = call.bind("input", "weight")
    return mark(call.plain(), F.embedding(plain(bound["input"]), full_marks(bound["weight"])).to(torch.uint8))


def _elementwise(call: Call) -> Any:
    data = call.plain()
    return mark(data, meet(call, call.operands(), data.shape))


def _channelwise(call: Call) -> Any:
    """One operation per channel (dimension 1), each with its own parameters: batch and instance norm, PReLU."""
    data = call.plain()
    bound = call.bind(*ARGUMENTS[call.name])
    rank = data.ndim
    params = [_along_channels(bound[name], rank) for name in PARAMETERS if isinstance(bound.get(name), Tensor | Marked)]
    return mark(data, meet(call, [bound["input"], *params], data.shape))


def _along_channels(value: Value, rank: int, channel: int = 1) -> Value:
    """A vector as a value of `rank` dimensions that lies along one of them."""
    shape = [-1 if dim == channel % rank else 1 for dim in range(rank)]
    if isinstance(value, Marked):
        return Marked(value.data.reshape(shape), value.marks.reshape(shape))
    return value.reshape(shape)


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
        raise call.error("removed channels are written into a tensor that is kept")
    marks = full_marks(target).clone()
    marks[plain(index)] = full_marks(value) if isinstance(value, Tensor | Marked) else float(FREE)
    call.plain()
    written = mark(target.data, marks.to(torch.uint8))
    target.marks = marks_of(written)


# --- rules: reductions and windows ----------------------------------------------------------------------------------


def _reduce(call: Call) -> Any:
    """Operations over whole dimensions (sum, max, softmax, sort): these must not hold removed channels."""
    if len(call.args) > 1 and isinstance(call.args[1], Tensor | Marked):
        return _elementwise(call)  # max(x, y)
    position, default = DIMENSION_AT.get(call.name, (1, None))
    bound = call.bind("input", *["_"] * (position - 1), "dim")
    value, dim = bound["input"], call.kwargs.get("axis", bound["dim"])
    dim = default if dim is None else dim
    rank = plain(value).ndim
    dims = range(rank) if dim is None else [d % rank for d in ([dim] if isinstance(dim, int) else dim)]
    marks = collapse(call, marks_of(value), dims, "an operation reduces over removed channels")
    return pytree.tree_map(partial(_mark_reduced, marks=marks, dims=tuple(dims)), call.plain())


def _mark_reduced(data: Tensor, *, marks: Tensor, dims: tuple[int, ...]) -> Value:
    return mark(data, marks if data.ndim == marks.ndim else marks.squeeze(dims))


def _windows(call: Call) -> Any:
    """Pooling and interpolation: the last dimensions are space, where marks don't vary."""
    value = call.args[0] if call.args else call.kwargs["input"]
    digits = re.search(r"(\d)d$", call.name)
    rank = plain(value).ndim
    space = int(digits.group(1)) if digits else rank - 2
    marks = collapse(call, marks_of(value), range(rank - space, rank), "the removed elements are no whole channels")
    return pytree.tree_map(partial(mark, marks=marks), call.plain())


# --- rules: readers -------------------------------------------------------------------------------------------------


def _with_bias(call: Call, data: Tensor, marks: Tensor, bias: Value | None, *, channel: int) -> Value:
    if bias is None:
        return mark(data, marks)
    return mark(data, meet(call, [Marked(data, marks), _along_channels(bias, data.ndim, channel)], data.shape))


def _convolution(call: Call) -> Any:
    """Convolutions, grouped and transposed ones too: counted on channels alone."""
    transposed = "transpose" in call.name
    bound = call.bind(*ARGUMENTS["conv_transpose" if transposed else "conv"])
    x, weight = bound["input"], bound["weight"]
    rank, problem = plain(x).ndim, "the removed elements are no whole channels"
    channel = rank + 1 - plain(weight).ndim  # 0 for an image without a batch
    shape = [-1 if dim == channel else 1 for dim in range(rank)]
    arriving = collapse(call, marks_of(x), [d for d in range(rank) if d != channel], problem).reshape(1, -1, 1)
    arriving = arriving.expand(1, plain(x).shape[channel], 1)
    own = collapse(call, marks_of(weight), range(2, plain(weight).ndim), problem).flatten(2)[:, :, :1]
    own = own.expand(*plain(weight).shape[:2], 1)
    count = partial(F.conv_transpose1d if transposed else F.conv1d, groups=bound["groups"] or 1)
    marks = contract(call, count, x, weight, marks=(arriving, own))
    channels = Marked(plain(x), arriving.reshape(shape))  # with the free rim of a removed channel
    data = _run_zeroed(replace(call, args=(channels, *call.args[1:])))
    return _with_bias(call, data, marks.reshape(shape), bound["bias"], channel=channel)


def _run_zeroed(call: Call) -> Any:
    """The operation on data that are zero where they are removed."""
    clean = pytree.tree_map(
        lambda x: zeroed(x) if isinstance(x, Tensor | Marked) else x, (call.args, dict(call.kwargs))
    )
    return call.run(*clean[0], **clean[1])


def _linear(call: Call) -> Any:
    bound = call.bind("input", "weight", "bias")
    x, weight = bound["input"], bound["weight"]
    marks = contract(call, F.linear, x, weight, marks=(_expanded(x, *range(plain(x).ndim - 1)), _expanded(weight, 0)))
    return _with_bias(call, _run_zeroed(call), marks, bound["bias"], channel=-1)


def _expanded(value: Value, *small: int) -> Tensor:
    """The value's marks at the data's size, except along the `small` dimensions.

    Dimensions that two factors share must be of full size in both, or a factor that is kept along all of it would pass
    for one that is used as long as any of it is.
    """
    sizes = list(plain(value).shape)
    for dim in small:
        sizes[dim] = marks_of(value).shape[dim]
    return marks_of(value).expand(sizes)


def _matmul_marks(call: Call, left: Value, right: Value) -> Tensor:
    rows = [-2] if plain(left).ndim > 1 else []
    columns = [-1] if plain(right).ndim > 1 else []
    return contract(call, torch.matmul, left, right, marks=(_expanded(left, *rows), _expanded(right, *columns)))


def _matmul(call: Call) -> Any:
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))
    return mark(_run_zeroed(call), _matmul_marks(call, left, right))


def _einsum(call: Call) -> Any:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    own = [_einsum_marks(x, term, "".join(terms)) for x, term in zip(operands, terms, strict=True)]
    marks = contract(call, partial(torch.einsum, equation), *operands, marks=own)
    return mark(_run_zeroed(call), marks)


def _einsum_marks(value: Value, term: str, letters: str) -> Tensor:
    """The operand's marks, compressed along the letters that stand in no other operand."""
    own = [] if "." in letters else [dim for dim, letter in enumerate(term) if letters.count(letter) == 1]
    return _expanded(value, *own)


def _attention(call: Call) -> Any:
    """Scaled dot-product attention: two matrix products around a softmax over the keys."""
    bound = call.bind("query", "key", "value", "attn_mask")
    if call.kwargs.get("enable_gqa"):
        raise call.error("removed channels reach grouped-query attention, which the reference doesn't know")
    query, key, value, bias = (bound[name] for name in ("query", "key", "value", "attn_mask"))
    flipped = mark(plain(key).mT, marks_of(key).mT)
    marks = _matmul_marks(call, query, flipped)
    shape = [*plain(query).shape[:-1], plain(key).shape[-2]]
    scores = mark(torch.empty(1).expand(shape), marks)
    if isinstance(bias, Tensor | Marked):
        marks = meet(call, [scores, bias], shape)
    marks = collapse(call, marks, [marks.ndim - 1], "softmax over removed positions")
    return mark(_run_zeroed(call), _matmul_marks(call, mark(plain(scores), marks), value))


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
    scale, shift = (None if p is None else _along_channels(p, data.ndim) for p in (bound["weight"], bound["bias"]))
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
    "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "normalize": (2, 1), "norm": (2, None),
}  # fmt: skip

_MOVES: Final = _words("""
    reshape view flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t adjoint cat concat concatenate
    stack hstack vstack dstack chunk split tensor_split split_with_sizes unsafe_chunk unsafe_split unbind
    getitem select narrow index_select gather take_along_dim
    roll flip expand view_as reshape_as broadcast_to repeat tile repeat_interleave squeeze unsqueeze
    pixel_shuffle pixel_unshuffle channel_shuffle unfold getattr size dim ndimension numel stride ravel rot90 meshgrid
    diagonal is_floating_point
""")
_ELEMENTWISE: Final = _words("""
    add iadd radd sub isub rsub subtract mul imul multiply div truediv itruediv divide floordiv floor_divide pow neg
    negative abs exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos tan tanh erf sigmoid round floor ceil
    trunc sign where masked_fill clamp clip clamp_min clamp_max minimum maximum eq ne lt le gt ge and_ or_ xor invert
    not_ logical_and logical_or logical_not isnan isinf nan_to_num lerp addcmul addcdiv atan2 fmod remainder mod pos
    relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish hardshrink
    softshrink tanhshrink threshold logsigmoid rrelu sigmoid tanh to type type_as float half bfloat16 double int long
    bool contiguous clone detach dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout identity copy
    requires_grad expand_as absolute acos asin atan cosh sinh erfc exp2 bitwise_and bitwise_or bitwise_not copysign
    fmax fmin frac heaviside hypot isfinite log10 logical_xor positive xlogy true_divide alias cpu feature_alpha_dropout
""")
_REDUCTIONS: Final = _words("""
    sum mean prod max min amax amin var std var_mean std_mean median argmax argmin all any norm logsumexp nansum
    softmax log_softmax softmin normalize cumsum cumprod sort argsort topk aminmax logcumsumexp nanmean
""")
_CREATORS: Final = _words("""
    zeros ones full empty arange linspace eye tensor zeros_like ones_like full_like empty_like new_zeros new_ones
    new_full new_empty new_tensor rand_like randn_like
""")
_POOLS: Final = [
    f"{adapt}{kind}_pool{rank}d" for adapt in ("", "adaptive_") for kind in ("avg", "max", "lp") for rank in (1, 2, 3)
]

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_CREATORS, _create),
    **dict.fromkeys([*_POOLS, "interpolate", "upsample"], _windows),
    **dict.fromkeys([f"conv{t}{rank}d" for t, rank in itertools.product(("", "_transpose"), (1, 2, 3))], _convolution),
    **dict.fromkeys(["matmul", "bmm", "mm", "mv"], _matmul),
    **dict.fromkeys(["batch_norm", "instance_norm", "prelu"], _channelwise),
    "layer_norm": partial(_norm_over, centre=True),
    "rms_norm": partial(_norm_over, centre=False),
    "group_norm": _group_norm,
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "embedding": _embed,
    "glu": _gated,
    "pad": _pad,
    "setitem": _assign,
}
MARKING: Final = frozenset(["pad", *_CREATORS])
"""Operations whose result has marks though no argument has."""
