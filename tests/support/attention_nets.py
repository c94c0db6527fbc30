"""Small networks, one for each way in which attention is written, with the units that the analysis has to find.

Tokens are [2, 5, 6] unless a net says otherwise; the inner width is 4 heads of 2. Each net is a function of a module of
named parts (see `nets.Made`) and the tokens, and gives [2, 5, 4] or so by its classifier `fc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from nets import TOKENS, Made, Net, free
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4
FORMS: dict[str, Net] = {}

Groups = Mapping[str, tuple[int, int]]
Shapes = tuple[tuple[int, ...], ...]


def form(
    name: str, parts: Callable[[], Any], run: Callable[..., Any], groups: Groups, shapes: Shapes = (TOKENS,)
) -> None:
    """Enter a net into the table."""
    FORMS[name] = Net(parts, run, shapes, {"fc": (4, 0), **groups}, {})


def packed(**parts: Any) -> Callable[[], Any]:
    """One projection for all three, the output projection, and further parts that are made anew each time."""
    return lambda: {
        "qkv": nn.Linear(6, 24),
        "o": nn.Linear(8, 6),
        "fc": nn.Linear(6, 4),
        **{name: make() for name, make in parts.items()},
    }


def separate(**parts: Any) -> Callable[[], Any]:
    """Three projections, the output projection, and further parts."""
    return lambda: {
        **{name: nn.Linear(6, 8) for name in "qkv"},
        "o": nn.Linear(8, 6),
        "fc": nn.Linear(6, 4),
        **{name: make() for name, make in parts.items()},
    }


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    """[N, L, h d] -> [N, h, L, d]."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def unheads(x: Tensor) -> Tensor:
    """[N, h, L, d] -> [N, L, h d]."""
    return x.transpose(1, 2).flatten(2)


def parted(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by heads, of one projection."""
    return tuple(heads(part) for part in m.qkv(x).chunk(3, -1))


def mixed(q: Tensor, k: Tensor, v: Tensor, bias: Any = 0.0) -> Tensor:
    """Attention in plain operations."""
    return ((q * 2**-0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def closed(m: Any, x: Tensor, out: Tensor) -> Tensor:
    """The residual block's end and the classifier."""
    return m.fc(m.o(unheads(out)) + 0 * x.sum())


WHOLE = {"qkv": (4, 4), "o": (6, 6)}
OWN = {"q": (4, 4), "o": (6, 6)}


# -- nn.MultiheadAttention ---------------------------------------------------------------------------------------------


def layer(**options: Any) -> Callable[[], Any]:
    """A stem that writes the embedding, attention over it, and a classifier."""
    return lambda: {
        "stem": nn.Linear(6, 8),
        "a": nn.MultiheadAttention(8, HEADS, **{"batch_first": True, **options}),
        "fc": nn.Linear(8, 4),
    }


LAYER = {"stem": (8, 8), "a.in_proj_weight": (4, 4)}


def attended(m: Any, x: Tensor, **options: Any) -> Tensor:
    y = m.stem(x)
    return m.fc(y + m.a(y, y, y, **options)[0])


def tokens_mask(*shape: int) -> Tensor:
    """A mask that leaves every row something."""
    return torch.arange(math.prod(shape)).reshape(shape) % 5 == 3


form("layer", layer(), attended, LAYER)
form("layer_without_weights", layer(), lambda m, x: attended(m, x, need_weights=False), LAYER)
form("layer_without_bias", layer(bias=False), attended, LAYER)
form("layer_with_dropout", layer(dropout=0.2), lambda m, x: attended(m, x, need_weights=False), LAYER)
form("layer_with_dropout_and_weights", layer(dropout=0.2), attended, LAYER)
form("layer_with_added_keys", layer(add_bias_kv=True, add_zero_attn=True), attended, LAYER)
form(
    "layer_with_added_keys_and_masks",
    lambda: {**layer(add_bias_kv=True, add_zero_attn=True)(), "m": tokens_mask(5, 5)},
    lambda m, x: attended(m, x, attn_mask=m.m, key_padding_mask=tokens_mask(2, 5)[: x.shape[0]], need_weights=False),
    LAYER,
)
form(
    "layer_by_sequence",
    layer(batch_first=False),
    lambda m, x: (lambda y: m.fc((y + m.a(y, y, y)[0]).transpose(0, 1)))(m.stem(x).transpose(0, 1)),
    LAYER,
)
form(
    "layer_of_single_sequences",
    layer(batch_first=False),
    lambda m, x: m.fc(torch.stack([m.a(y, y, y)[0] for y in m.stem(x).unbind(1)], 1)),
    {**LAYER, "a.out_proj": (8, 8)},
)
form(
    "layer_across",
    lambda: {**layer()(), "other": nn.Linear(3, 8)},
    lambda m, x, z: (lambda y, c: m.fc(y + m.a(y, c, c)[0]))(m.stem(x), m.other(z)),
    LAYER,
    (TOKENS, (2, 7, 3)),
)
form(
    "layer_across_three",
    lambda: {**layer()(), "other": nn.Linear(3, 8)},
    lambda m, x, z: (lambda y, c: m.fc(y + m.a(y, c, c.relu())[0]))(m.stem(x), m.other(z)),
    LAYER,
    (TOKENS, (2, 7, 3)),
)
form(
    "layer_of_other_widths",
    lambda: {**layer(kdim=3, vdim=5)(), "key": nn.Linear(3, 3), "value": nn.Linear(3, 5)},
    lambda m, x, z: (lambda y: m.fc(y + m.a(y, m.key(z), m.value(z))[0]))(m.stem(x)),
    {"stem": (8, 8), "key": (3, 3), "value": (5, 5), "a.in_proj_bias": (4, 4)},
    (TOKENS, (2, 7, 3)),
)
form(
    "layer_with_a_causal_mask",
    lambda: {**layer()(), "m": torch.full((5, 5), float("-inf")).triu(1)},
    lambda m, x: attended(m, x, attn_mask=m.m, need_weights=False, is_causal=True),
    LAYER,
)
form(
    "layer_with_float_masks",
    lambda: {**layer()(), "m": torch.randn(5, 5)},
    lambda m, x: attended(m, x, attn_mask=m.m, key_padding_mask=x[:, :, 0], need_weights=False),
    LAYER,
)
form(
    "layer_with_masks_of_two_kinds",
    lambda: {**layer()(), "m": torch.randn(5, 5)},
    lambda m, x: attended(m, x, attn_mask=m.m, key_padding_mask=x[:, :, 0] > 2, need_weights=False),
    LAYER,
)
form(
    "layer_with_masks_and_weights",
    lambda: {**layer()(), "m": tokens_mask(5, 5)},
    lambda m, x: attended(m, x, attn_mask=m.m, key_padding_mask=x[:, :, 0] > 2),
    LAYER,
)
form(
    "layer_with_a_mask_for_each_head",
    layer(),
    lambda m, x: attended(m, x, attn_mask=(x @ x.mT).repeat_interleave(HEADS, 0) > 1e3),
    {"stem": (8, 8), "a.in_proj_weight": (4, 4)},
)
form(
    "layer_whose_weights_count",
    layer(),
    lambda m, x: (lambda y: (lambda out, w: m.fc(y + out) + w.sum((1, 2))[:, None, None])(*m.a(y, y, y)))(m.stem(x)),
    {"stem": (8, 8), "a.in_proj_weight": (4, 4)},
)
form(
    "functional_layer",
    lambda: {
        "stem": nn.Linear(6, 8), "w": free(24, 8), "b": free(24), "ow": free(8, 8), "ob": free(8), "fc": nn.Linear(8, 4)
    },
    lambda m, x: (lambda y: m.fc(F.multi_head_attention_forward(
        y, y, y, 8, HEADS, m.w, m.b, None, None, False, 0.0, m.ow, m.ob, training=m.training, need_weights=False
    )[0].transpose(0, 1)))(m.stem(x).transpose(0, 1)),
    {"stem": (8, 8), "w": (4, 4), "ow": (8, 8)},
)  # fmt: skip


class OwnLayer(nn.MultiheadAttention):
    """A subclass that asks for other things than its base does."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


form(
    "layer_of_a_subclass",
    lambda: {"stem": nn.Linear(6, 8), "a": OwnLayer(8, HEADS, batch_first=True), "fc": nn.Linear(8, 4)},
    lambda m, x: (lambda y: m.fc(y + m.a(y)))(m.stem(x)),
    LAYER,
)


def transformer(make: Callable[[], nn.Module]) -> Callable[[], Any]:
    """A stem, something of torch's transformers, and a classifier."""
    return lambda: {"stem": nn.Linear(6, 8), "t": make(), "fc": nn.Linear(8, 4)}


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, HEADS, 10, **{"batch_first": True, **options})


def decoder_layer(**options: Any) -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(8, HEADS, 10, batch_first=True, **options)


ENCODER = {"stem": (8, 8), "t.self_attn.in_proj_weight": (4, 4), "t.linear1": (10, 10)}
ENCODER_OF_TWO = {"stem": (8, 8)} | {
    f"t.layers.{i}.{name}": sizes
    for i in range(2)
    for name, sizes in (("self_attn.in_proj_weight", (4, 4)), ("linear1", (10, 10)))
}
form("encoder_layer", transformer(encoder_layer), lambda m, x: m.fc(m.t(m.stem(x))), ENCODER)
form(
    "encoder_layer_with_norms_first",
    transformer(lambda: encoder_layer(norm_first=True, activation="gelu")),
    lambda m, x: m.fc(m.t(m.stem(x), src_key_padding_mask=x[:, :, 0] > 2)),
    ENCODER,
)
form(
    "encoder",
    transformer(lambda: nn.TransformerEncoder(encoder_layer(), 2, nn.LayerNorm(8))),
    lambda m, x: m.fc(m.t(m.stem(x))),
    ENCODER_OF_TWO,
)
form(
    "encoder_with_padding",
    transformer(lambda: nn.TransformerEncoder(encoder_layer(), 2)),
    lambda m, x: m.fc(m.t(m.stem(x), src_key_padding_mask=x[:, :, 0] > 2)),
    ENCODER_OF_TWO,
)
form(
    "encoder_with_a_causal_mask",
    lambda: {
        **transformer(lambda: nn.TransformerEncoder(encoder_layer(), 2))(),
        "m": nn.Transformer.generate_square_subsequent_mask(5),
    },
    lambda m, x: m.fc(m.t(m.stem(x), m.m)),
    ENCODER_OF_TWO,
)
form(
    "encoder_with_a_computed_mask",
    transformer(lambda: nn.TransformerEncoder(encoder_layer(), 2)),
    lambda m, x: m.fc(m.t(m.stem(x), (x @ x.mT).mean(0))),
    ENCODER_OF_TWO,
)
form(
    "decoder_layer",
    lambda: {**transformer(decoder_layer)(), "memory": nn.Linear(3, 8)},
    lambda m, x, z: m.fc(m.t(m.stem(x), m.memory(z))),
    {
        "stem": (8, 8),
        "t.self_attn.in_proj_weight": (4, 4),
        "t.multihead_attn.in_proj_weight": (4, 4),
        "t.linear1": (10, 10),
    },
    (TOKENS, (2, 7, 3)),
)
form(
    "encoder_and_decoder",
    lambda: {**transformer(lambda: nn.Transformer(8, HEADS, 1, 1, 10, batch_first=True))(), "memory": nn.Linear(3, 8)},
    lambda m, x, z: m.fc(m.t(m.memory(z), m.stem(x))),
    {
        "memory": (8, 8),
        "t.encoder.layers.0.self_attn.in_proj_weight": (4, 4),
        "t.encoder.layers.0.linear1": (10, 10),
        "t.decoder.layers.0.self_attn.in_proj_weight": (4, 4),
        "t.decoder.layers.0.multihead_attn.in_proj_weight": (4, 4),
        "t.decoder.layers.0.linear1": (10, 10),
    },
    (TOKENS, (2, 7, 3)),
)


# -- heads written out -------------------------------------------------------------------------------------------------


def unbound(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return closed(m, x, mixed(q, k, v))


def picked(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    qkv = m.qkv(x).reshape(n, t, 3, HEADS, 2).permute(2, 0, 3, 1, 4)
    return closed(m, x, F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]))


def by_einsum(m: Any, x: Tensor, scores: str, sums: str) -> Tensor:
    q, k, v = parted(m, x)
    weights = torch.einsum(scores, q, k).softmax(-1)
    return closed(m, x, torch.einsum(sums, weights, v))


form("unbound", packed(), unbound, WHOLE)
form("picked_from_a_stack", packed(), picked, WHOLE)
form("chunked", packed(), lambda m, x: closed(m, x, mixed(*parted(m, x))), WHOLE)
form("separate", separate(), lambda m, x: closed(m, x, mixed(*(heads(f(x)) for f in (m.q, m.k, m.v)))), OWN)
form(
    "keys_and_values_in_one",
    lambda: {"q": nn.Linear(6, 8), "kv": nn.Linear(6, 16), "o": nn.Linear(8, 6), "fc": nn.Linear(6, 4)},
    lambda m, x: (lambda kv: closed(m, x, mixed(heads(m.q(x)), *kv)))([heads(p) for p in m.kv(x).chunk(2, -1)]),
    {"kv": (4, 4), "o": (6, 6)},
)
form("einsum", packed(), lambda m, x: by_einsum(m, x, "bhid,bhjd->bhij", "bhij,bhjd->bhid"), WHOLE)
form(
    "einsum_with_spaces",
    packed(),
    lambda m, x: by_einsum(m, x, "b h i d, b h j d -> b h i j", "b h i j, b h j d -> b h i d"),
    WHOLE,
)
form(
    "einsum_with_an_ellipsis", packed(), lambda m, x: by_einsum(m, x, "...id,...jd->...ij", "...ij,...jd->...id"), WHOLE
)
form(
    "einsum_without_an_arrow",
    packed(),
    lambda m, x: by_einsum(m, x, "... i d, ... j d -> ... i j", "...ab,...bc"),
    WHOLE,
)
form(
    "einsum_of_one_operand_short",
    packed(g=lambda: free(HEADS, 2)),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(q, k, torch.einsum("bhld,hd->bhld", v, m.g))))(*parted(m, x)),
    {**WHOLE, "g": (2, 0)},
)
form(
    "biases_of_queries",
    packed(u=lambda: free(HEADS, 2), w=lambda: free(HEADS, 1, 2)),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed((q.transpose(1, 2) + m.u).transpose(1, 2), k + m.w, v)))(
        *parted(m, x)
    ),
    {**WHOLE, "u": (2, 0), "w": (2, 0)},
)
form(
    "root_mean_squares_of_queries_and_keys",
    packed(g=lambda: free(2)),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(_rms(q) * m.g, _rms(k), v)))(*parted(m, x)),
    {**WHOLE, "g": (2, 0)},
)


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


form(
    "functional_norms_of_queries_and_keys",
    packed(g=lambda: free(2), b=lambda: free(2)),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(F.layer_norm(q, (2,), m.g, m.b), F.rms_norm(k, (2,)), v)))(
        *parted(m, x)
    ),
    {**WHOLE, "g": (2, 0)},
)
form(
    "products_of_batched_matrices",
    packed(),
    lambda m, x: closed(m, x, _by_bmm(m, x)),
    WHOLE,
)
form(
    "products_that_are_added",
    packed(bias=lambda: torch.randn(5, 5)),
    lambda m, x: closed(m, x, _by_bmm(m, x, m.bias)),
    WHOLE,
)


def _by_bmm(m: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Heads folded into the batch."""
    n, t, _ = x.shape
    q, k, v = (part.reshape(n * HEADS, t, -1) for part in parted(m, x))
    scores = torch.bmm(q, k.transpose(1, 2)) if bias is None else torch.baddbmm(bias, q, k.transpose(1, 2), alpha=0.5)
    return torch.bmm(scores.softmax(-1), v).view(n, HEADS, t, -1)


form(
    "one_query_for_all",
    lambda: {"stem": nn.Linear(6, 8), "query": free(8), "fc": nn.Linear(8, 4)},
    lambda m, x: (lambda y: m.fc((y * (y @ m.query).softmax(-1)[..., None]).sum(1)))(m.stem(x)),
    {"stem": (8, 8)},
)
form(
    "linear_attention",
    packed(),
    lambda m, x: (lambda q, k, v: closed(m, x, q.relu() @ (k.relu().transpose(-2, -1) @ v)))(*parted(m, x)),
    WHOLE,
)


# -- fewer keys than queries -------------------------------------------------------------------------------------------


def shared_keys(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return heads(m.q(x)), heads(m.k(x), 2), heads(m.v(x), 2)


def grouped(**parts: Any) -> Callable[[], Any]:
    """Four heads of queries, two of keys and values."""
    return lambda: {**separate(**parts)(), "k": nn.Linear(6, 4), "v": nn.Linear(6, 4)}


def widened(x: Tensor) -> Tensor:
    """Each head twice, as language models write it."""
    n, h, t, d = x.shape
    return x[:, :, None].expand(n, h, 2, t, d).reshape(n, h * 2, t, d)


GROUPED = {"q": (2, 2), "o": (6, 6)}
form(
    "grouped_queries",
    grouped(),
    lambda m, x: closed(m, x, F.scaled_dot_product_attention(*shared_keys(m, x), enable_gqa=True)),
    GROUPED,
)
form(
    "grouped_queries_by_repeating",
    grouped(),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))))(
        *shared_keys(m, x)
    ),
    GROUPED,
)
form(
    "grouped_queries_by_expanding",
    grouped(),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(q, widened(k), widened(v))))(*shared_keys(m, x)),
    GROUPED,
)
form(
    "one_head_of_keys",
    lambda: {**separate()(), "k": nn.Linear(6, 2), "v": nn.Linear(6, 2)},
    lambda m, x: closed(m, x, mixed(heads(m.q(x)), heads(m.k(x), 1), heads(m.v(x), 1))),
    {"q": (2, 2), "v": (2, 2), "o": (6, 6)},
)


# -- biases, masks, scales ---------------------------------------------------------------------------------------------


def positions() -> Tensor:
    """[5, 5]: a row of the table for each pair of tokens."""
    return torch.arange(5)[:, None] - torch.arange(5)[None] + 4


def relative(m: Any) -> Tensor:
    """[heads, 5, 5] of a table of [9, heads]."""
    return m.table[m.index.view(-1)].view(5, 5, -1).permute(2, 0, 1).unsqueeze(0)


form(
    "relative_bias",
    packed(table=lambda: free(9, HEADS), index=positions),
    lambda m, x: closed(m, x, mixed(*parted(m, x), relative(m))),
    {**WHOLE, "table": (9, 0)},
)
form(
    "relative_bias_as_a_mask",
    packed(table=lambda: free(9, HEADS), index=positions),
    lambda m, x: closed(m, x, F.scaled_dot_product_attention(*parted(m, x), attn_mask=relative(m))),
    {**WHOLE, "table": (9, 0)},
)
form(
    "relative_bias_of_an_embedding",
    packed(table=lambda: nn.Embedding(9, HEADS), index=positions),
    lambda m, x: closed(m, x, mixed(*parted(m, x), m.table(m.index).permute(2, 0, 1))),
    WHOLE,
)
form(
    "relative_bias_by_selection",
    packed(table=lambda: free(HEADS, 9), index=positions),
    lambda m, x: closed(m, x, mixed(*parted(m, x), m.table.index_select(1, m.index.flatten()).view(-1, 5, 5))),
    {**WHOLE, "table": (9, 0)},
)
form(
    "relative_bias_behind_a_slice",
    packed(table=lambda: free(HEADS, 9), index=positions),
    lambda m, x: closed(m, x, mixed(*parted(m, x), m.table[:, m.index][None])),
    {**WHOLE, "table": (9, 0)},
)
form(
    "relative_bias_by_pairs",
    packed(table=lambda: free(5, 5, HEADS), rows=lambda: torch.arange(5).flip(0), columns=lambda: torch.arange(5)),
    lambda m, x: closed(m, x, mixed(*parted(m, x), m.table[m.rows[:, None], m.columns].permute(2, 0, 1))),
    {**WHOLE, "table[0]": (5, 0), "table[1]": (5, 0)},
)
form(
    "functional_lookup",
    packed(table=lambda: free(9, HEADS), index=positions),
    lambda m, x: closed(m, x, mixed(*parted(m, x), F.embedding(m.index, m.table).permute(2, 0, 1))),
    {**WHOLE, "table": (9, 0)},
)
form(
    "continuous_bias",
    packed(
        grid=lambda: torch.randn(9, 2),
        mlp=lambda: nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, HEADS, bias=False)),
        scale=lambda: free(HEADS, 1, 1),
        index=positions,
    ),
    lambda m, x: closed(m, x, _cosine(m, x)),
    {**WHOLE, "mlp.0": (7, 7)},
)


def _cosine(m: Any, x: Tensor) -> Tensor:
    """Cosines times a scale of each head, and a bias that a network computes from distances."""
    q, k, v = parted(m, x)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    scores = scores * m.scale.clamp(max=math.log(100.0)).exp()
    bias = 16 * torch.sigmoid(m.mlp(m.grid)[m.index.view(-1)].view(5, 5, -1).permute(2, 0, 1))
    return (scores + bias.unsqueeze(0)).softmax(-1) @ v


form(
    "bias_with_a_silent_part",
    lambda: {"w": free(24, 6), "b": free(24), "o": nn.Linear(8, 6), "fc": nn.Linear(6, 4)},
    lambda m, x: closed(m, x, mixed(*(heads(p) for p in F.linear(x, m.w, _silenced(m.b)).chunk(3, -1)))),
    {"b": (4, 4), "w": (6, 0), "o": (6, 6)},
)


def _silenced(bias: Tensor) -> Tensor:
    """Keys get no bias."""
    bias = bias.clone()
    length = bias.numel() // 3
    bias[length : 2 * length].zero_()
    return bias


form(
    "slopes_of_heads",
    packed(slopes=lambda: torch.rand(HEADS), far=lambda: positions().double()),
    lambda m, x: closed(m, x, mixed(*parted(m, x), -m.slopes[:, None, None] * m.far)),
    WHOLE,
)
form(
    "talking_heads",
    packed(talk=lambda: nn.Conv2d(HEADS, HEADS, 1)),
    lambda m, x: (lambda q, k, v: closed(m, x, m.talk(q @ k.transpose(-2, -1)).softmax(-1) @ v))(*parted(m, x)),
    {"qkv": (8, 8), "o": (6, 6)},
)
form(
    "norms_of_queries_and_keys",
    packed(qn=lambda: nn.LayerNorm(2), kn=lambda: nn.RMSNorm(2)),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(m.qn(q), m.kn(k), v)))(*parted(m, x)),
    WHOLE,
)
form(
    "lower_triangle",
    packed(),
    lambda m, x: (lambda q, k, v: closed(m, x, (q @ k.transpose(-2, -1)).tril().softmax(-1) @ v))(*parted(m, x)),
    WHOLE,
)


# -- rotary positions --------------------------------------------------------------------------------------------------


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def wide(**parts: Any) -> Callable[[], Any]:
    """Two heads of four, so that positions pair up inside a head."""
    return packed(**parts)


def rotary(m: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k, v = (heads(part, 2) for part in m.qkv(x).chunk(3, -1))
    return closed(m, x, mixed(rotated(q, cos, sin), rotated(k, cos, sin), v))


def angles(frequencies: Tensor) -> Tensor:
    turns = torch.outer(torch.arange(5).to(frequencies), frequencies)
    return torch.cat((turns, turns), -1)


form(
    "rotary",
    wide(cos=lambda: torch.randn(5, 4), sin=lambda: torch.randn(5, 4)),
    lambda m, x: rotary(m, x, m.cos, m.sin),
    {"qkv": (2, 2), "o": (6, 6)},
)
form(
    "rotary_of_one_head",
    lambda: {**separate()(), "cos": torch.randn(5, 8), "sin": torch.randn(5, 8)},
    lambda m, x: m.fc(m.o(mixed(rotated(m.q(x), m.cos, m.sin), rotated(m.k(x), m.cos, m.sin), m.v(x)))),
    {"q": (4, 4), "v": (8, 8), "o": (6, 6)},
)
form(
    "rotary_by_frequencies",
    wide(frequencies=lambda: torch.rand(2)),
    lambda m, x: (lambda a: rotary(m, x, a.cos(), a.sin()))(angles(m.frequencies)),
    {"qkv": (2, 2), "o": (6, 6)},
)
form(
    "rotary_by_complex_numbers",
    wide(turns=lambda: torch.polar(torch.ones(5, 2), torch.rand(5, 2))),
    lambda m, x: (lambda q, k, v: closed(m, x, mixed(_turned(q, m.turns), _turned(k, m.turns), v)))(
        *(heads(part, 2) for part in m.qkv(x).chunk(3, -1))
    ),
    {"qkv": (2, 2), "o": (6, 6)},
)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3)


# -- what stands around it ---------------------------------------------------------------------------------------------

IMAGES = ((2, 3, 7, 7),)


def windows(m: Any, x: Tensor) -> Tensor:
    """Shifted windows of 4 x 4 over an image of 7 x 7 that is padded to 8 x 8, with the mask that a shift needs."""
    x = F.pad(m.stem(x.permute(0, 2, 3, 1)), (0, 0, 0, 1, 0, 1)).roll((-2, -2), (1, 2))
    n, h, w, c = x.shape
    x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 16, c)
    scores_mask = x.new_zeros((h, w))
    for number, (rows, columns) in enumerate((r, s) for r in _bands() for s in _bands()):
        scores_mask[rows, columns] = number
    groups = scores_mask.view(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)
    mask = (groups.unsqueeze(1) - groups.unsqueeze(2)).ne(0).to(x) * -100
    q, k, v = m.qkv(x).reshape(n * 4, 16, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * (c // HEADS) ** -0.5) @ k.transpose(-2, -1)
    scores = (scores.view(n, 4, HEADS, 16, 16) + mask.unsqueeze(1).unsqueeze(0)).view(-1, HEADS, 16, 16)
    y = m.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n * 4, 16, c))
    y = y.view(n, 2, 2, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1).roll((2, 2), (1, 2))[:, :7, :7]
    return m.fc(merged(m, y.contiguous()).mean((1, 2)))


def _bands() -> tuple[slice, ...]:
    return slice(0, -4), slice(-4, -2), slice(-2, None)


def merged(m: Any, x: Tensor) -> Tensor:
    """Four neighbours side by side, normalised and narrowed; the image is padded to an even size."""
    x = F.pad(x, (0, 0, 0, 1, 0, 1))
    parts = [x[..., i::2, j::2, :] for j in range(2) for i in range(2)]
    return m.narrow(m.norm(torch.cat(parts, -1)))


form(
    "shifted_windows",
    lambda: {
        "stem": nn.Linear(3, 8), "qkv": nn.Linear(8, 24), "o": nn.Linear(8, 6), "norm": nn.LayerNorm(24),
        "narrow": nn.Linear(24, 5, bias=False), "fc": nn.Linear(5, 4),
    },
    windows,
    {"stem": (8, 8), "qkv": (4, 4), "o": (6, 6), "narrow": (5, 5)},
    IMAGES,
)  # fmt: skip


def patches(m: Any, x: Tensor) -> Tensor:
    """A class token, positions that are resized to the image, a scaled residual, a gated network."""
    y = m.stem(x)
    grid = F.interpolate(m.grid, size=y.shape[-2:], mode="bilinear", align_corners=False)
    y = (y + grid).flatten(2).transpose(1, 2)
    y = torch.cat([m.cls.expand(y.shape[0], -1, -1), y], 1) + m.shift
    z = m.norm(y)
    y = y + m.scale * m.a(z, z, z, need_weights=False)[0]
    gate, value = m.up(y).chunk(2, -1)
    return m.fc((y + m.down(F.silu(gate) * value))[:, 0])


form(
    "class_token",
    lambda: {
        "stem": nn.Conv2d(3, 8, 2, 2), "grid": free(1, 8, 2, 2), "cls": free(1, 1, 8), "shift": free(1, 10, 8),
        "norm": nn.RMSNorm(8), "a": nn.MultiheadAttention(8, HEADS, batch_first=True), "scale": free(8),
        "up": nn.Linear(8, 14), "down": nn.Linear(7, 8), "fc": nn.Linear(8, 4),
    },
    patches,
    {"stem": (8, 8), "grid[2]": (2, 0), "grid[3]": (2, 0), "shift": (10, 0), "a.in_proj_weight": (4, 4), "up": (7, 7)},
    IMAGES,
)  # fmt: skip


def pooled_heads(m: Any, x: Tensor) -> Tensor:
    """Queries and keys pooled over the image by a convolution that all heads share, beside a class token; the pooled
    queries are added to what comes out."""
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, HEADS, -1).transpose(1, 3).unbind(2)
    q, k = (_pool(f, y) for f, y in ((m.pq, q), (m.pk, k)))
    v = _pool(m.pk, v) if m.values else v
    out = mixed(q, k, v) + q
    return m.fc(m.o(out.transpose(1, 2).reshape(n, out.shape[2], -1)))


def _pool(conv: nn.Module, x: Tensor) -> Tensor:
    token, rest = torch.tensor_split(x, indices=(1,), dim=2)
    n, h, _, d = rest.shape
    image = rest.reshape(n * h, 2, 2, d).permute(0, 3, 1, 2).contiguous()
    image = conv(image)
    return torch.cat((token, image.reshape(n, h, d, -1).transpose(2, 3)), 2)


form(
    "pooled_heads",
    lambda: {
        "qkv": nn.Linear(6, 24), "pq": nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False),
        "pk": nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False), "o": nn.Linear(8, 6), "fc": nn.Linear(6, 4),
        "values": nn.Identity(),
    },
    pooled_heads,
    {"qkv": (2, 2), "o": (6, 6)},
)  # fmt: skip


def build(name: str) -> Made:
    """The net in float64 and evaluation mode."""
    return FORMS[name].build()
