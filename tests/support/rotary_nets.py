"""Attention with rotary positions in every way that models of language and vision write them, and layers that all heads
share. Each net gives an attention block of two or four heads behind a linear layer `i`, and takes tokens [n, 6, 12].

Whole heads may go from each of them: the table of rotations has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nets import Made, free, lively
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS, HEAD = 6, 12, 4, 8
"""Sizes: the heads' widths together are 32."""


@dataclass(frozen=True)
class Rotary:
    """A net, and how many units each granularity has to free in `group`, that of the queries."""

    parts: Callable[[], dict[str, Any]]
    run: Callable[..., Tensor]
    heads: int = HEADS
    widths: int = HEAD // 2
    group: str = "q"
    more: Callable[[int], tuple[Tensor, ...]] = lambda batch: ()
    """Further inputs of a batch."""

    def build(self) -> Made:
        """The net in float64 and evaluation mode."""
        torch.manual_seed(0)
        return lively(Made({**_projections(), **self.parts()}, self.run))

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random tokens."""
        made = torch.Generator().manual_seed(seed)
        return torch.randn(batch, TOKENS, WIDTH, dtype=torch.float64, generator=made), *self.more(batch)


ROTARY: dict[str, Rotary] = {}


def _projections() -> dict[str, nn.Module]:
    inner = HEADS * HEAD
    return {
        "i": nn.Linear(WIDTH, WIDTH), "q": nn.Linear(WIDTH, inner), "k": nn.Linear(WIDTH, inner),
        "v": nn.Linear(WIDTH, inner), "o": nn.Linear(inner, WIDTH), "fc": nn.Linear(WIDTH, 3),
    }  # fmt: skip


def rotary(
    name: str,
    run: Callable[..., Tensor],
    heads: int = HEADS,
    widths: int = HEAD // 2,
    group: str = "q",
    more: Callable[[int], tuple[Tensor, ...]] = lambda batch: (),
    **parts: Callable[[], Any],
) -> None:
    """Enter a net; `parts` are made anew each time, by calling them."""
    ROTARY[name] = Rotary(lambda: {key: make() for key, make in parts.items()}, run, heads, widths, group, more)


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """[n, t, h d] -> [n, h, t, d]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def closed(m: Any, y: Tensor) -> Tensor:
    """The end of the block, of what attention gives: [n, h, t, d]."""
    return m.fc(m.o(y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)))


def attention(m: Any, x: Tensor, turn: Callable[[Tensor], Tensor], heads: int = HEADS) -> Tensor:
    """A block whose queries and keys [n, h, t, d] are turned."""
    x = m.i(x)
    q, k, v = (split(f(x), heads) for f in (m.q, m.k, m.v))
    return closed(m, F.scaled_dot_product_attention(turn(q), turn(k), v))


def by_tokens(m: Any, x: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """The same with queries and keys [n, t, h, d]."""
    x = m.i(x)
    q, k, v = (f(x).view(*x.shape[:2], HEADS, HEAD) for f in (m.q, m.k, m.v))
    q, k, v = (y.transpose(1, 2) for y in (turn(q), turn(k), v))
    scores = (q @ k.transpose(-2, -1)) * HEAD**-0.5
    return closed(m, scores.softmax(-1) @ v)


# -- tables ----------------------------------------------------------------------------------------------------------


def frequencies(width: int = HEAD) -> Tensor:
    """One a pair of positions: [width / 2]."""
    return 100.0 ** (-torch.arange(0, width, 2).double() / width)


def places(batch: int) -> Tensor:
    """Positions of tokens, other ones for each sample."""
    return (torch.arange(TOKENS)[None] + torch.arange(batch)[:, None]) % 9


def angles_at(ids: Tensor) -> Tensor:
    """Angles [n, tokens, width / 2] at positions [n, tokens]."""
    return ids[..., None].double() * frequencies()


def turns(tokens: int = TOKENS, width: int = HEAD) -> Tensor:
    """Angles [tokens, width / 2]."""
    return torch.outer(torch.arange(tokens).double(), frequencies(width))


def doubled(angles: Tensor) -> Tensor:
    """Each angle for both halves of a width."""
    return torch.cat((angles, angles), -1)


def table() -> Tensor:
    """Any numbers [tokens, width], for more tokens than there are."""
    return torch.rand(TOKENS + 3, HEAD)


def half(x: Tensor) -> Tensor:
    """The halves of a width change places, one negated."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def half_by_slices(x: Tensor) -> Tensor:
    middle = x.shape[-1] // 2
    return torch.cat((-x[..., middle:], x[..., :middle]), dim=-1)


def pairs_by_stack(x: Tensor) -> Tensor:
    """Neighbours change places, one negated."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def pairs_by_view(x: Tensor) -> Tensor:
    left, right = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-right, left), dim=-1).reshape(x.shape)


def turned(x: Tensor, cos: Tensor, sin: Tensor, swap: Callable[[Tensor], Tensor] = half) -> Tensor:
    return x * cos + swap(x) * sin


def as_complex(x: Tensor, table: Tensor) -> Tensor:
    """Pairs of neighbours as complex numbers."""
    y = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(y * table).flatten(-2)


# -- a table alone ---------------------------------------------------------------------------------------------------

rotary("buffer", lambda m, x: attention(m, x, lambda y: y * m.t[: y.shape[2]]), widths=HEAD, t=table)
rotary("parameter", lambda m, x: attention(m, x, lambda y: y * m.t), widths=HEAD, t=lambda: free(TOKENS, HEAD))
rotary("broadcast parameter", lambda m, x: attention(m, x, lambda y: y * m.t), widths=HEAD,
       t=lambda: free(1, 1, TOKENS, HEAD))  # fmt: skip
rotary("by tokens", lambda m, x: by_tokens(m, x, lambda y: y * m.t[: y.shape[1], None]), widths=HEAD, t=table)
rotary("added", lambda m, x: attention(m, x, lambda y: y + m.t[: y.shape[2]]), widths=HEAD, t=table)
rotary("own table of each head", lambda m, x: attention(m, x, lambda y: y * m.t), widths=HEAD,
       t=lambda: free(HEADS, 1, HEAD))  # fmt: skip
rotary("computed", lambda m, x: attention(m, x, lambda y: y * turns().cos().repeat(1, 2)), widths=HEAD)
rotary("gathered", lambda m, x: attention(m, x, lambda y: y * m.t[m.p]), widths=HEAD, t=table,
       p=lambda: torch.arange(TOKENS).flip(0))  # fmt: skip
rotary("embedded", lambda m, x: attention(m, x, lambda y: y * m.t(m.p)), widths=HEAD,
       t=lambda: nn.Embedding(TOKENS, HEAD), p=lambda: torch.arange(TOKENS))  # fmt: skip
rotary("scale of each head", lambda m, x: attention(m, x, lambda y: y * m.s.exp() * m.t[:TOKENS]), widths=HEAD,
       t=table, s=lambda: free(HEADS, 1, 1))  # fmt: skip
rotary("norm before", lambda m, x: attention(m, x, lambda y: m.n(y) * m.t[:TOKENS]), widths=HEAD, t=table,
       n=lambda: nn.LayerNorm(HEAD))  # fmt: skip
rotary("unit length", lambda m, x: attention(m, x, lambda y: F.normalize(y, dim=-1) * m.t[:TOKENS]), widths=HEAD,
       t=table)  # fmt: skip

rotary(
    "folded heads",
    lambda m, x: attention(m, x, lambda y: (y.flatten(0, 1) * m.t[:TOKENS]).view(y.shape)),
    widths=HEAD,
    t=table,
)
rotary(
    "looked up by an input",
    lambda m, x, ids: attention(m, x, lambda y: turned(y, m.t[ids].cos().unsqueeze(1), m.t[ids].sin().unsqueeze(1))),
    t=lambda: doubled(turns(9)),
    more=lambda n: (places(n),),
)
rotary(
    "function of an input",
    lambda m, x, ids: attention(
        m, x, lambda y: turned(y, F.embedding(ids, m.t).unsqueeze(1), F.embedding(ids, m.t + 1).unsqueeze(1))
    ),
    t=table,
    more=lambda n: (places(n),),
)
rotary(
    "given from outside",
    lambda m, x, cos, sin: attention(m, x, lambda y: turned(y, cos, sin)),
    widths=0,
    more=lambda n: (doubled(turns()).cos(), doubled(turns()).sin()),
)
rotary(
    "computed of places given",
    lambda m, x, ids: attention(
        m, x, lambda y: turned(y, doubled(angles_at(ids)).cos()[:, None], doubled(angles_at(ids)).sin()[:, None])
    ),
    more=lambda n: (places(n),),
)
rotary(
    "einsum of frequencies",
    lambda m, x: attention(
        m, x, lambda y: turned(y, doubled(torch.einsum("i,j->ij", torch.arange(y.shape[2]).to(m.f), m.f)).cos(), m.s)
    ),
    f=frequencies,
    s=lambda: doubled(turns()),
)
rotary(
    "complex numbers of a stack",
    lambda m, x: attention(
        m, x, lambda y: as_complex(y, torch.view_as_complex(torch.stack([m.a.cos(), m.a.sin()], -1)))
    ),
    a=turns,
)

# -- language models -------------------------------------------------------------------------------------------------


def neox(m: Any, x: Tensor) -> Tensor:
    """A fused projection whose heads each hold query, key and value; a part of the width is turned."""
    x = m.i(x)
    qkv = m.qkv(x).view(*x.shape[:2], HEADS, 3 * HEAD)
    q, k, v = (qkv[..., HEAD * i : HEAD * (i + 1)].permute(0, 2, 1, 3) for i in range(3))
    part = HEAD // 2
    cos, sin = m.cos[None, None, : x.shape[1]], m.sin[None, None, : x.shape[1]]
    turn = lambda y: torch.cat((turned(y[..., :part], cos, sin), y[..., part:]), dim=-1)  # noqa: E731
    scores = torch.matmul(turn(q), turn(k).transpose(-1, -2)) * HEAD**-0.5
    return closed(m, scores.softmax(-1) @ v)


def gptj(m: Any, x: Tensor) -> Tensor:
    """Neighbours are turned; of [n, t, h, d], a part of the width."""
    part = HEAD // 2
    sin, cos = (y.repeat_interleave(2, -1)[None, : x.shape[1], None] for y in m.t.chunk(2, -1))
    turn = lambda y: torch.cat((turned(y[..., :part], cos, sin, pairs_by_stack), y[..., part:]), -1)  # noqa: E731
    return by_tokens(m, x, turn)


def hugging_llama(m: Any, x: Tensor) -> Tensor:
    """Angles by frequencies and position ids, in the forward; groups of queries share keys."""
    x = m.i(x)
    n, t, _ = x.shape
    ids = torch.arange(t, device=x.device)[None]
    angles = (m.inv[None, :, None].expand(ids.shape[0], -1, 1) @ ids[:, None, :].to(m.inv)).transpose(1, 2)
    cos, sin = (f(doubled(angles)).to(x.dtype).unsqueeze(1) for f in (torch.cos, torch.sin))
    q, k, v = m.q(x).view(n, t, -1, HEAD), m.k2(x).view(n, t, -1, HEAD), m.v2(x).view(n, t, -1, HEAD)
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    q, k = (turned(y, cos, sin, half_by_slices) for y in (q, k))
    k, v = (y[:, :, None].expand(n, 2, 2, t, HEAD).reshape(n, 4, t, HEAD) for y in (k, v))
    return closed(m, F.scaled_dot_product_attention(q, k, v))


def meta_llama(m: Any, x: Tensor) -> Tensor:
    """Complex numbers of [n, t, h, d]; the table is broadcast by a view."""
    x = m.i(x)
    n, t, _ = x.shape
    q, k, v = (f(x).view(n, t, HEADS, HEAD) for f in (m.q, m.k, m.v))
    q, k = (torch.view_as_complex(y.reshape(*y.shape[:-1], -1, 2)) for y in (q, k))
    table = torch.polar(torch.ones_like(m.angles[:t]), m.angles[:t]).view(1, t, 1, HEAD // 2)
    q, k = (torch.view_as_real(y * table).flatten(3).type_as(x) for y in (q, k))
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    return closed(m, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def latent(m: Any, x: Tensor) -> Tensor:
    """Keys of two parts: each head's own, and a turned one that all heads share."""
    x = m.i(x)
    n, t, _ = x.shape
    own = HEAD // 2
    cos, sin = turns(t, own).cos().repeat(1, 2), turns(t, own).sin().repeat(1, 2)
    q = split(m.q(x))
    q = torch.cat((q[..., :own], turned(q[..., own:], cos, sin)), -1)
    shared = turned(m.ks(x).view(n, 1, t, own), cos, sin).expand(-1, HEADS, -1, -1)
    k = torch.cat((split(m.kn(x)), shared), -1)
    return closed(m, F.scaled_dot_product_attention(q, k, split(m.v(x))))


rotary("neox", neox, widths=2 + 4 + HEAD, group="qkv", qkv=lambda: nn.Linear(WIDTH, 3 * HEADS * HEAD),
       cos=lambda: doubled(turns(9, HEAD // 2)).cos(), sin=lambda: doubled(turns(9, HEAD // 2)).sin())  # fmt: skip
rotary("gptj", gptj, widths=2 + 4, t=lambda: torch.cat((turns(9, HEAD // 2).sin(), turns(9, HEAD // 2).cos()), -1))
rotary("llama of transformers", hugging_llama, heads=2, inv=frequencies, k2=lambda: nn.Linear(WIDTH, 2 * HEAD),
       v2=lambda: nn.Linear(WIDTH, 2 * HEAD))  # fmt: skip
rotary("llama by complex numbers", meta_llama, angles=lambda: turns(9))
rotary("latent attention", latent, widths=2 + 4, kn=lambda: nn.Linear(WIDTH, HEADS * HEAD // 2),
       ks=lambda: nn.Linear(WIDTH, HEAD // 2))  # fmt: skip
rotary("halves by chunk", lambda m, x: attention(m, x, lambda y: turned(y, m.c, m.s)),
       c=lambda: doubled(turns()).cos(), s=lambda: doubled(turns()).sin())  # fmt: skip
rotary("halves computed", lambda m, x: attention(
    m, x, lambda y: turned(y, doubled(turns(y.shape[2])).cos(), doubled(turns(y.shape[2])).sin())))  # fmt: skip
rotary("halves of one parameter", lambda m, x: attention(
    m, x, lambda y: turned(y, doubled(m.a).cos(), doubled(m.a).sin())), a=lambda: free(TOKENS, HEAD // 2))  # fmt: skip
rotary("pairs by view", lambda m, x: attention(
    m, x, lambda y: turned(y, m.a.repeat_interleave(2, -1).cos(), m.a.repeat_interleave(2, -1).sin(), pairs_by_view)),
    a=turns)  # fmt: skip
rotary("complex buffer", lambda m, x: attention(m, x, lambda y: as_complex(y, m.a[None, None])),
       a=lambda: torch.polar(torch.ones_like(turns()), turns()))  # fmt: skip


def two_products(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves by themselves, as flash attention writes it."""
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours by themselves."""
    left, right = x[..., 0::2], x[..., 1::2]
    return torch.stack((left * cos - right * sin, left * sin + right * cos), -1).reshape(x.shape)


def written(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours, written into an empty tensor."""
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


rotary("two products", lambda m, x: attention(m, x, lambda y: two_products(y, m.a.cos(), m.a.sin())), a=turns)
rotary("interleaved", lambda m, x: attention(m, x, lambda y: interleaved(y, m.a.cos(), m.a.sin())), a=turns)
rotary("written in place", lambda m, x: attention(m, x, lambda y: written(y, m.a.cos(), m.a.sin())), a=turns)
rotary("two tables for two layers", lambda m, x: attention(
    m, attention(m, x, lambda y: turned(y, m.c[0], m.c[1])) @ m.w, lambda y: turned(y, m.d[0], m.d[1])),
    c=lambda: torch.rand(2, TOKENS, HEAD), d=lambda: torch.rand(2, TOKENS, HEAD), w=lambda: free(3, WIDTH))  # fmt: skip


def in_five_dims(x: Tensor, cache: Tensor) -> Tensor:
    """Pairs as a dimension of their own: [n, t, h, d / 2, 2] with a cache [t, d / 2, 2]."""
    y = x.reshape(*x.shape[:-1], -1, 2)
    cache = cache.view(1, y.size(1), 1, y.size(3), 2)
    cos, sin = cache[..., 0], cache[..., 1]
    return torch.stack([y[..., 0] * cos - y[..., 1] * sin, y[..., 1] * cos + y[..., 0] * sin], -1).flatten(3)


def in_sections(table: Tensor) -> Tensor:
    """A width whose sections turn by height and by width: [2, t, d] to [t, d]."""
    return torch.cat([part[place % 2] for place, part in enumerate(table.split([2, 2, 2, 2], -1))], -1)


def one_key(m: Any, x: Tensor) -> Tensor:
    """All queries share one head of keys, which is turned, too."""
    x = m.i(x)
    q, k, v = split(m.q(x)), split(m.k1(x), 1), split(m.v(x))
    q, k = (turned(y, m.c, m.s) for y in (q, k))
    return closed(m, (q @ k.transpose(-2, -1)).softmax(-1) @ v)


rotary(
    "pairs in a dimension",
    lambda m, x: by_tokens(m, x, lambda y: in_five_dims(y, m.c)),
    c=lambda: torch.stack([turns().cos(), turns().sin()], -1),
)
rotary(
    "sections",
    lambda m, x: attention(m, x, lambda y: turned(y, in_sections(m.c), in_sections(m.s))),
    c=lambda: torch.rand(2, TOKENS, HEAD),
    s=lambda: torch.rand(2, TOKENS, HEAD),
)
rotary(
    "one head of keys",
    one_key,
    k1=lambda: nn.Linear(WIDTH, HEAD),
    c=lambda: doubled(turns()).cos(),
    s=lambda: doubled(turns()).sin(),
)

# -- vision models ---------------------------------------------------------------------------------------------------


def eva(m: Any, x: Tensor) -> Tensor:
    """A class token is left alone; sine and cosine lie in one table."""
    x = m.i(x)
    n, t, _ = x.shape
    qkv = F.linear(x, m.qkv.weight, torch.cat((m.qb, torch.zeros_like(m.qb), m.vb)))
    q, k, v = qkv.reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
    sin, cos = m.table.tensor_split(2, -1)
    turn = lambda y: torch.cat((y[:, :, :1], turned(y[:, :, 1:], cos, sin, pairs_by_stack)), dim=2)  # noqa: E731
    return closed(m, F.scaled_dot_product_attention(turn(q).type_as(v), turn(k).type_as(v), v))


def axial(m: Any, x: Tensor) -> Tensor:
    """Rows turn the first half of a width, columns the second; an image of 2 x 3."""
    rows, columns = (turns(9, HEAD // 2)[:size] for size in (2, 3))
    angles = torch.cat((rows[:, None].expand(2, 3, -1), columns[None].expand(2, 3, -1)), -1).flatten(0, 1)
    return attention(m, x, lambda y: turned(y, angles.repeat_interleave(2, -1).cos(),
                                            angles.repeat_interleave(2, -1).sin(), pairs_by_stack))  # fmt: skip


def axial_halves(m: Any, x: Tensor) -> Tensor:
    """The halves of a width apart, each with its table."""

    def turn(y: Tensor) -> Tensor:
        one, other = y.chunk(2, -1)
        return torch.cat((turned(one, m.r.cos(), m.r.sin()), turned(other, m.c.cos(), m.c.sin())), -1)

    return attention(m, x, turn)


rotary("eva", eva, widths=4, group="qb", qkv=lambda: nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=False),
       qb=lambda: free(HEADS * HEAD), vb=lambda: free(HEADS * HEAD),
       table=lambda: torch.cat([f(turns(5)).repeat_interleave(2, -1) for f in (torch.sin, torch.cos)], -1))  # fmt: skip
rotary("axial", axial)
rotary("axial by halves", axial_halves, r=lambda: doubled(turns(6, 4)), c=lambda: doubled(turns(6, 4)))

# -- a layer over each head ------------------------------------------------------------------------------------------


def folded(m: Any, x: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
    """Heads are folded into the batch; a layer runs over queries [n h, d, t]."""
    x = m.i(x)
    n, t, _ = x.shape
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    q = over(q.reshape(n * HEADS, t, HEAD).transpose(1, 2)).transpose(1, 2).reshape(n, HEADS, t, -1)
    return closed(m, F.scaled_dot_product_attention(q, k, v))


rotary("convolution over heads", lambda m, x: folded(m, x, m.c), widths=HEAD,
       c=lambda: nn.Conv1d(HEAD, HEAD, 3, padding=1))  # fmt: skip
rotary("depthwise convolution over heads", lambda m, x: folded(m, x, m.c), widths=HEAD,
       c=lambda: nn.Conv1d(HEAD, HEAD, 3, padding=1, groups=HEAD))  # fmt: skip
rotary("batch norm over heads", lambda m, x: folded(m, x, m.c), widths=HEAD, c=lambda: nn.BatchNorm1d(HEAD))
rotary("linear over heads", lambda m, x: attention(m, x, m.c), widths=HEAD, c=lambda: nn.Linear(HEAD, HEAD))
rotary("matrix over heads", lambda m, x: attention(m, x, lambda y: y @ m.c), widths=HEAD, c=lambda: free(HEAD, HEAD))
