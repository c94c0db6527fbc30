"""Attention whose forward counts heads in its arithmetic on sizes: [n, 6, 12] tokens, four heads of eight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from nets import free
from rotary_nets import HEAD, HEADS, TOKENS, Rotary, closed, split
from torch import Tensor, nn
from torch.nn import functional as F

COUNTS: dict[str, Rotary] = {}
T = TOKENS


def counts(name: str, run: Callable[..., Tensor], heads: int = HEADS, **parts: Callable[[], Any]) -> None:
    """Enter a net of which so many units of heads may go: 0 where a constant is made for all heads, or heads are tied
    to samples."""
    COUNTS[name] = Rotary(lambda: {key: make() for key, make in parts.items()}, run, heads)


def folded(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [n h, t, d]."""
    x = m.i(x)
    return tuple(split(f(x)).reshape(x.shape[0] * HEADS, x.shape[1], HEAD) for f in (m.q, m.k, m.v))  # type: ignore


def unfolded(y: Tensor, n: Any) -> Tensor:
    """[n h, t, d] as [n, h, t, d]."""
    return y.view(n, -1, y.shape[1], y.shape[2])


def biased(m: Any, x: Tensor, bias: Callable[[Tensor], Tensor], n: Callable[[Tensor], Any] | None = None) -> Tensor:
    """Attention over folded heads, with a bias made of the queries; `n` says how many samples the heads are of."""
    q, k, v = folded(m, x)
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(HEAD) + bias(q)
    y = torch.bmm(scores.softmax(-1), v)
    return closed(m, unfolded(y, n(y) if n else x.shape[0]))


def heads_table() -> nn.Parameter:
    return free(HEADS, T, T)


def square() -> nn.Parameter:
    return free(T, T)


def zero(q: Tensor) -> Tensor:
    return q.new_zeros(())


# -- division --------------------------------------------------------------------------------------------------------

counts(
    "repeat of a table by a quotient",
    lambda m, x: biased(m, x, lambda q: m.t.repeat(q.size(0) // 4, 1, 1)),
    t=heads_table,
)
counts(
    "repeat of a buffer by a quotient",
    lambda m, x: biased(m, x, lambda q: m.t.repeat(q.size(0) // 4, 1, 1)),
    t=lambda: torch.rand(4, T, T),
)
counts("repeat by a list", lambda m, x: biased(m, x, lambda q: m.t.repeat([q.shape[0] // HEADS, 1, 1])), t=heads_table)
counts(
    "repeat by a true quotient",
    lambda m, x: biased(m, x, lambda q: m.t.repeat(int(q.size(0) / 4), 1, 1)),
    t=heads_table,
)
counts("tile by a quotient", lambda m, x: biased(m, x, lambda q: m.t.tile(q.size(0) // 4, 1, 1)), t=heads_table)
counts("repeat of all heads", lambda m, x: biased(m, x, lambda q: m.t.repeat(q.size(0), 1, 1)), t=lambda: free(1, T, T))
counts("expand to all heads", lambda m, x: biased(m, x, lambda q: m.t.expand(q.size(0), -1, -1)), t=square, heads=0)
counts("expand by a product", lambda m, x: biased(m, x, lambda q: m.t.expand(x.size(0) * 4, T, T)), t=square, heads=0)
counts(
    "expand then fold",
    lambda m, x: biased(m, x, lambda q: m.t.expand(q.size(0) // 4, 4, T, T).reshape(-1, T, T)),
    t=heads_table,
)
counts(
    "expand then fold by numbers",
    lambda m, x: biased(m, x, lambda q: m.t[None].expand(q.size(0) // 4, -1, -1, -1).reshape(q.size(0), T, T)),
    t=heads_table,
)
counts("view by a quotient", lambda m, x: biased(m, x, zero, lambda y: y.size(0) // 4))
counts(
    "view by a quotient and a literal",
    lambda m, x: (
        lambda q, k, v: closed(m, (torch.bmm((q @ k.transpose(1, 2)).softmax(-1), v)).view(q.size(0) // 4, 4, T, HEAD))
    )(*folded(m, x)),
)
counts("view of scores", lambda m, x: _scores_by_heads(m, x), t=heads_table)
counts(
    "repeat each",
    lambda m, x: biased(m, x, lambda q: m.t[: x.size(0)].repeat_interleave(q.size(0) // x.size(0), 0)),
    t=lambda: torch.rand(9, T, T),
    heads=0,
)
counts(
    "repeat each by a literal", lambda m, x: biased(m, x, lambda q: x.mean(-1, keepdim=True).repeat_interleave(4, 0))
)
counts("samples repeated", lambda m, x: biased(m, x, lambda q: _mask(x).repeat(1, 4, 1).view(-1, 1, T)))
counts(
    "stacked mask",
    lambda m, x: biased(
        m, x, lambda q: _mask(x).unsqueeze(1).expand(-1, q.size(0) // x.size(0), -1, -1).reshape(q.size(0), 1, T)
    ),
)
counts("two steps", lambda m, x: biased(m, x, lambda q: _two_steps(m.t, q)), t=heads_table)
counts("divmod", lambda m, x: biased(m, x, lambda q: m.t.repeat(divmod(q.size(0), 4)[0], 1, 1)), t=heads_table)
counts("ceiling", lambda m, x: biased(m, x, lambda q: m.t.repeat(-(-q.size(0) // 4), 1, 1)), t=heads_table)
counts(
    "half of the heads",
    lambda m, x: biased(
        m, x, lambda q: torch.cat([m.t, m.t], 0).view(2, 2, T, T).repeat(q.size(0) // 4, 1, 1, 1).view(-1, T, T)
    ),
    t=lambda: torch.rand(2, T, T),
    heads=2,
)

counts(
    "ceiling of math", lambda m, x: biased(m, x, lambda q: m.t.repeat(math.ceil(q.size(0) / 4), 1, 1)), t=heads_table
)
counts("shift", lambda m, x: biased(m, x, lambda q: m.t.repeat(q.size(0) >> 2, 1, 1)), t=heads_table)
counts("at least one", lambda m, x: biased(m, x, lambda q: m.t.repeat(max(1, q.size(0) // 4), 1, 1)), t=heads_table)
counts(
    "sum of sizes",
    lambda m, x: biased(m, x, lambda q: m.t.repeat(q.size(0) // 4, 1, 1).view(q.shape[:1] + (T, T))),  # noqa: RUF005
    t=heads_table,
)
counts(
    "number of elements",
    lambda m, x: biased(m, x, lambda q: m.t.repeat(q.numel() // (T * HEAD * 4), 1, 1)),
    t=heads_table,
)
counts(
    "by another width",
    lambda m, x: biased(m, x, lambda q: m.t.repeat(q.shape[0] // (m.i(x).shape[-1] // 3), 1, 1)),
    t=heads_table,
)
counts("by lengths", lambda m, x: biased(m, x, lambda q: m.t.repeat(len(q) // len(m.t), 1, 1)), t=heads_table)
counts(
    "slopes",
    lambda m, x: biased(m, x, lambda q: (2.0 ** -torch.arange(1, 5).to(q)).repeat(q.size(0) // 4)[:, None, None]),
)
counts("mean over heads", lambda m, x: _summed(m, x, lambda s: s.sum(1) / 4))
counts("mean over what is left", lambda m, x: _summed(m, x, lambda s: s.sum(1) / s.size(1)))
counts("every fourth", lambda m, x: biased(m, x, lambda q: q[::4].mean()), heads=0)
counts("all but the first sample", lambda m, x: biased(m, x, lambda q: q[4:].sum()), heads=0)
counts("the last sample", lambda m, x: biased(m, x, lambda q: q[-4:].mean()), heads=0)
counts("the first sample", lambda m, x: biased(m, x, lambda q: q[:4].sum()))
counts("ones for all heads", lambda m, x: biased(m, x, lambda q: q.new_ones(q.size(0), 1, 1)), heads=0)
counts(
    "numbers for all heads",
    lambda m, x: biased(m, x, lambda q: torch.linspace(0, 1, q.size(0)).to(q)[:, None, None]),
    heads=0,
)

# -- modulo, ranges --------------------------------------------------------------------------------------------------

counts(
    "looked up by remainders",
    lambda m, x: biased(m, x, lambda q: m.t[torch.arange(q.size(0), device=q.device) % 4]),
    t=heads_table,
    heads=0,
)
counts(
    "looked up by an arange of heads",
    lambda m, x: biased(m, x, lambda q: m.t[torch.arange(4)].repeat(q.size(0) // 4, 1, 1)),
    t=heads_table,
)
counts("range over heads", lambda m, x: _by_loop(m, x, 4), heads=8)
counts("range over a size", lambda m, x: _by_loop(m, x, None), heads=8)
counts("slice of heads", lambda m, x: _half_turned(m, x))
counts(
    "remainder in a slice",
    lambda m, x: biased(m, x, lambda q: m.t[q.size(0) % 4 :].repeat(q.size(0) // 4, 1, 1)),
    t=heads_table,
)
counts(
    "zeros by a product",
    lambda m, x: biased(m, x, lambda q: torch.zeros(x.size(0) * 4, T, T, dtype=q.dtype) + m.t),
    t=square,
    heads=0,
)
counts(
    "zeros by a quotient",
    lambda m, x: biased(m, x, lambda q: (torch.zeros(q.size(0) // 4, 4, T, T, dtype=q.dtype) + m.t).view(-1, T, T)),
    t=heads_table,
)
counts("added to zeros by a product", lambda m, x: _onto(m, x, lambda q: q.new_zeros(x.size(0) * 4, T, T)))
counts("added to zeros by a size", lambda m, x: _onto(m, x, lambda q: torch.zeros(q.size(0), T, T, dtype=q.dtype)))
counts("written over what is empty", lambda m, x: _onto(m, x, lambda q: q.new_empty(q.shape[0], T, T), beta=0))
counts("zeros plus scores", lambda m, x: biased(m, x, lambda q: torch.zeros(q.shape[0], T, T).to(q) + _mean(q)))
counts("zeros read twice", lambda m, x: _onto(m, x, lambda q: _read(q.new_zeros(q.shape[0], T, T))), heads=0)
counts("written into zeros", lambda m, x: biased(m, x, lambda q: _written(q, m.t)), t=heads_table, heads=0)

# -- numbers that are no counts --------------------------------------------------------------------------------------

counts("root of the width", lambda m, x: _scaled(m, x, lambda q: math.sqrt(q.size(-1))))
counts("power of the width", lambda m, x: _scaled(m, x, lambda q: q.shape[-1] ** 0.5))
counts("scale by heads", lambda m, x: _scaled(m, x, lambda q: q.shape[1]))
counts("scale by heads times width", lambda m, x: _scaled(m, x, lambda q: math.sqrt(q.shape[1] * q.shape[-1])))
counts("literal root", lambda m, x: _scaled(m, x, lambda q: math.sqrt(64)))

# -- widths ----------------------------------------------------------------------------------------------------------

counts("width by division", lambda m, x: _by_numbers(m, x, lambda y: (4, y.size(-1) // 4)))
counts("heads by division", lambda m, x: _by_numbers(m, x, lambda y: (y.size(-1) // 8, 8)))
counts("both by division", lambda m, x: _by_numbers(m, x, lambda y: (y.size(-1) // 8, y.size(-1) // 4)))
counts("split by division", lambda m, x: _packed(m, x), qkv=lambda: nn.Linear(12, 3 * HEADS * HEAD))
counts("fairseq", lambda m, x: _fairseq(m, x), t=heads_table)


def _scores_by_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = folded(m, x)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores = scores.view(scores.size(0) // 4, 4, T, T) + m.t
    return closed(m, unfolded(torch.bmm(scores.view(-1, T, T).softmax(-1), v), x.shape[0]))


def _summed(m: Any, x: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """A block beside a number that all heads' scores give."""
    q, k, v = folded(m, x)
    scores = torch.bmm(q, k.transpose(1, 2))
    y = unfolded(torch.bmm(scores.softmax(-1), v), x.shape[0])
    return closed(m, y) + total(scores.view(q.size(0) // 4, 4, T, T)).sum((1, 2))[:, None, None]


def _mask(x: Tensor) -> Tensor:
    return x.mean(-1)[:, None]


def _two_steps(t: Tensor, q: Tensor) -> Tensor:
    whole = q.size(0)
    samples = whole // t.size(0)
    return t.unsqueeze(0).repeat(samples, 1, 1, 1).view(samples * t.size(0), T, T)


def _by_loop(m: Any, x: Tensor, heads: int | None) -> Tensor:
    x = m.i(x)
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    each = range(heads or q.size(1))
    out = [F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h]) for h in each]
    return closed(m, torch.stack(out, 1))


def _half_turned(m: Any, x: Tensor) -> Tensor:
    x = m.i(x)
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    middle = q.size(1) // 2
    q = torch.cat((-q[:, :middle], q[:, middle:]), 1)
    return closed(m, F.scaled_dot_product_attention(q, k, v))


def _written(q: Tensor, t: Tensor) -> Tensor:
    bias = q.new_zeros(q.size(0), T, T)
    bias[:] = t.repeat(q.size(0) // 4, 1, 1)
    return bias


def _onto(m: Any, x: Tensor, made: Callable[[Tensor], Tensor], beta: int = 1) -> Tensor:
    """Scores that `baddbmm` adds to a tensor made for all heads."""
    q, k, v = folded(m, x)
    scores = torch.baddbmm(made(q), q, k.transpose(1, 2), beta=beta, alpha=0.5)
    return closed(m, unfolded(torch.bmm(scores.softmax(-1), v), x.shape[0]))


def _mean(q: Tensor) -> Tensor:
    return q.mean(-1, keepdim=True)


def _read(zeros: Tensor) -> Tensor:
    """The zeros, after something has read them beside fixed numbers."""
    return zeros * zeros.exp().mean()


def _scaled(m: Any, x: Tensor, scale: Callable[[Tensor], Any]) -> Tensor:
    x = m.i(x)
    q, k, v = (split(f(x)) for f in (m.q, m.k, m.v))
    return closed(m, (q @ k.transpose(-2, -1) / scale(q)).softmax(-1) @ v)


def _by_numbers(m: Any, x: Tensor, sizes: Callable[[Tensor], tuple[int, int]]) -> Tensor:
    x = m.i(x)
    q, k, v = (y.view(x.size(0), x.size(1), *sizes(y)).transpose(1, 2) for y in (f(x) for f in (m.q, m.k, m.v)))
    return closed(m, F.scaled_dot_product_attention(q, k, v))


def _packed(m: Any, x: Tensor) -> Tensor:
    y = m.qkv(m.i(x))
    q, k, v = (split(part) for part in y.split(y.size(-1) // 3, -1))
    return closed(m, F.scaled_dot_product_attention(q, k, v))


def _fairseq(m: Any, x: Tensor) -> Tensor:
    """Tokens first; heads are folded into the second dimension."""
    x = m.i(x).transpose(0, 1)
    length, n, _ = x.shape
    q, k, v = (f(x).contiguous().view(length, n * 4, HEAD).transpose(0, 1) for f in (m.q, m.k, m.v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(n, 4, length, length) + m.t
    y = torch.bmm(scores.view(n * 4, length, length).softmax(-1), v)
    return m.fc(m.o(y.transpose(0, 1).contiguous().view(length, n, 4 * HEAD))).transpose(0, 1)
