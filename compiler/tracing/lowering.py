"""Layers that can't express their own slim shape, written out in the operations that they consist of.

`nn.MultiheadAttention` ties its inner width to the embedding, so that it can't have fewer heads. The tracer runs this
instead of the layer's own forward (in_proj [3E, E], h heads of d = E / h):

    x [N, L, E]  linear(x, in_proj)  [N, L, 3E]  chunk  three of [N, L, E]  unflatten, transpose  [N, h, L, d]
    attention    [N, h, L, d]        transpose, flatten  [N, L, E]          out_proj              [N, L, E]

The parameters keep their names, since they are read where the layer holds them. What the layer decides by its options
(packed or separate projections, learned and zero keys, masks, weights wanted or not) is decided here by the same ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Three = tuple[Tensor, Tensor, Tensor]
Result = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of an attention layer with an embedding of width E."""

    heads: int
    width: int
    packed: Tensor | None
    """[3E, E]: queries, keys and values in one; None where each has its own."""
    separate: tuple[Tensor | None, ...]
    bias: Tensor | None
    """[3E]."""
    extra: tuple[Tensor | None, Tensor | None]
    """A learned key and a learned value that every sequence gets, [1, 1, E]."""
    zero_key: bool
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Options:
    """What one call asks for. `training` may be a traced flag."""

    padding: Tensor | None
    """[N, S]: keys that don't count (bool), or what is added to their scores."""
    mask: Tensor | None
    """[L, S] or [N * h, L, S], of the same two kinds."""
    weights: bool
    average: bool
    causal: bool
    dropout: float
    training: Any


def multihead_attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Result:
    """What the tracer runs in place of `nn.MultiheadAttention.forward`."""
    weights = Weights(
        heads=module.num_heads,
        width=module.embed_dim,
        packed=module.in_proj_weight,
        separate=(module.q_proj_weight, module.k_proj_weight, module.v_proj_weight),
        bias=module.in_proj_bias,
        extra=(module.bias_k, module.bias_v),
        zero_key=module.add_zero_attn,
        project=_out_projection(module.out_proj),
    )
    options = Options(
        padding=key_padding_mask,
        mask=attn_mask,
        weights=need_weights,
        average=average_attn_weights,
        causal=is_causal,
        dropout=module.dropout,
        training=module.training,
    )
    return _call((query, key, value), module.batch_first, weights, options)


def multihead_attention_function(*args: Any, **kwargs: Any) -> Result:
    """What the tracer runs in place of `F.multi_head_attention_forward` where `lowers` says so."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    own = tuple(given[f"{name}_proj_weight"] for name in "qkv")
    weights = Weights(
        heads=given["num_heads"],
        width=given["embed_dim_to_check"],
        packed=None if given["use_separate_proj_weight"] else given["in_proj_weight"],
        separate=own,
        bias=given["in_proj_bias"],
        extra=(given["bias_k"], given["bias_v"]),
        zero_key=given["add_zero_attn"],
        project=lambda x: F.linear(x, given["out_proj_weight"], given["out_proj_bias"]),
    )
    options = Options(
        padding=given["key_padding_mask"],
        mask=given["attn_mask"],
        weights=given["need_weights"],
        average=given["average_attn_weights"],
        causal=given["is_causal"],
        dropout=given["dropout_p"],
        training=given["training"],
    )
    return _call((given["query"], given["key"], given["value"]), False, weights, options)


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def lowers(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call is written out: `F.multi_head_attention_forward` without static keys or values."""
    static = any(kwargs.get(name) is not None for name in ("static_k", "static_v"))
    return function is F.multi_head_attention_forward and not static


MODULES: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multihead_attention,
    nn.PairwiseDistance: nn.PairwiseDistance.forward,
}
"""Layer -> what is run in place of its forward; of a distance, its own: the layer has no place for the `eps` of removed
channels, which the function's slim form adds."""


def plain_linear(module: nn.Module) -> nn.Module:
    """An attention layer's output projection as an `nn.Linear` with the same tensors; other modules unchanged."""
    if type(module) is not NonDynamicallyQuantizableLinear:
        return module
    made = nn.Linear.__new__(nn.Linear)
    made.__dict__.update(module.__dict__)
    return made


def _out_projection(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The output projection as a function. The layer reads its projection's tensors, so that hooks on it never run."""
    if type(module) in (nn.Linear, NonDynamicallyQuantizableLinear) and not _is_hooked(module):
        return module
    return lambda x: F.linear(x, module.weight, module.bias)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


# -- the computation -----------------------------------------------------------------------------------------------


def _call(tensors: Three, batch_first: bool, weights: Weights, options: Options) -> Result:
    """Attention of [L, N, E], of [N, L, E] if `batch_first`, or of a single sequence [L, E]."""
    batched = tensors[0].dim() == 3
    if not batched:
        tensors = _each(tensors, lambda x: x.unsqueeze(0))
    elif not batch_first:
        tensors = _each(tensors, lambda x: x.transpose(0, 1))
    out, found = _attend(tensors, weights, options, batched)
    if not batched:
        return out.squeeze(0), None if found is None else found.squeeze(0)
    return (out if batch_first else out.transpose(0, 1)), found


def _each(tensors: Three, function: Callable[[Tensor], Tensor]) -> Three:
    """The function of each tensor; what was one tensor thrice (self-attention) stays one."""
    made: dict[int, Tensor] = {}
    for tensor in tensors:
        if id(tensor) not in made:
            made[id(tensor)] = function(tensor)
    query, key, value = (made[id(tensor)] for tensor in tensors)
    return query, key, value


def _attend(tensors: Three, weights: Weights, options: Options, batched: bool) -> Result:
    """Attention of [N, L, E]; also the weights, [N, L, S] or of each head, where they are asked for."""
    query, key, value = _projected(tensors, weights)
    key, value = (_extended(x, added) for x, added in zip((key, value), weights.extra, strict=True))
    query, key, value = (_heads(x, weights) for x in (query, key, value))
    if weights.zero_key:
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    masks = _masks(weights, options, batched)
    mixed, found = (_weighted if options.weights else _fused)((query, key, value), weights, options, masks)
    out = weights.project(mixed.transpose(1, 2).flatten(2))
    return out, found.mean(1) if found is not None and options.average else found


def _projected(tensors: Three, weights: Weights) -> Three:
    """Queries, keys and values, [N, L, E]."""
    query, key, value = tensors
    if weights.packed is not None and query is key and key is value:
        parts = F.linear(query, weights.packed, weights.bias).chunk(3, -1)
        return parts[0], parts[1], parts[2]
    matrices: Sequence[Any] = weights.separate if weights.packed is None else weights.packed.chunk(3)
    shifts: Sequence[Any] = (None, None, None) if weights.bias is None else weights.bias.chunk(3)
    query, key, value = (F.linear(x, w, b) for x, w, b in zip(tensors, matrices, shifts, strict=True))
    return query, key, value


def _extended(x: Tensor, added: Tensor | None) -> Tensor:
    """Keys or values with the learned one behind them, [N, S + 1, E]."""
    return x if added is None else torch.cat([x, added.expand(x.shape[0], -1, -1)], 1)


def _heads(x: Tensor, weights: Weights) -> Tensor:
    """[N, L, E] as [N, heads, L, E / heads]."""
    return torch.unflatten(x, -1, (weights.heads, weights.width // weights.heads)).transpose(1, 2)


def _fused(tensors: Three, weights: Weights, options: Options, masks: list[Tensor]) -> Result:
    """Without the weights: one fused operation, whose one mask says what counts, or what is added."""
    # A float on the left would multiply the flag as a plain number. What drops nothing needs no flag in the graph.
    dropout = options.training * options.dropout if options.dropout else 0.0
    mask = _one_mask(masks)
    # The hint replaces the mask, which the layer wants all the same.
    causal = options.causal and options.padding is None
    return F.scaled_dot_product_attention(*tensors, attn_mask=mask, dropout_p=dropout, is_causal=causal), None


def _weighted(tensors: Three, weights: Weights, options: Options, masks: list[Tensor]) -> Result:
    """With the attention weights [N, heads, L, S]: scores, softmax and product are nodes of their own."""
    query, key, value = tensors
    scores = query * math.sqrt(weights.heads / weights.width) @ key.transpose(-2, -1)
    for mask in masks:
        scores = scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    found = scores.softmax(-1)
    if options.dropout:
        found = F.dropout(found, options.dropout, options.training)
    return found @ value, found


# -- masks ---------------------------------------------------------------------------------------------------------


def _masks(weights: Weights, options: Options, batched: bool) -> list[Tensor]:
    """The masks of a call, each to be broadcast to the scores [N, h, L, S]."""
    if options.causal and options.mask is None:
        raise ValueError("is_causal is a hint about attn_mask, which isn't given")
    masks: list[Tensor] = []
    implied = options.causal and options.padding is None and not options.weights
    if options.mask is not None and not implied:
        grouped = options.mask.dim() == 3
        masks.append(torch.unflatten(options.mask, 0, (-1, weights.heads)) if grouped else options.mask)
    if options.padding is not None:
        masks.append((options.padding if batched else options.padding.unsqueeze(0)).unsqueeze(1).unsqueeze(2))
    added = weights.zero_key + (weights.extra[0] is not None)
    return [F.pad(mask, (0, added)) for mask in masks] if added else masks


def _one_mask(masks: list[Tensor]) -> Tensor | None:
    """One mask for all: True where a key counts, or what is added to the scores."""
    barred = [mask for mask in masks if mask.dtype == torch.bool]
    shifts = [mask for mask in masks if mask.dtype != torch.bool]
    shift = None if not shifts else shifts[0] if len(shifts) == 1 else shifts[0] + shifts[1]
    bar = None if not barred else barred[0] if len(barred) == 1 else torch.logical_or(*barred)
    if bar is None or shift is None:
        return shift if bar is None else torch.logical_not(bar)
    return torch.where(bar, float("-inf"), shift)
