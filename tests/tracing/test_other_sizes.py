"""Forwards that decide by the size of their images are told of, and no others."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import compile
from prunec.compiler.tracing.both_modes import trace_modes


class Net(nn.Module):
    """Layers for images of 16 x 16; a case is its forward."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.fixed, self.word = nn.Linear(8, 4), nn.Linear(8 * 16 * 16, 4), nn.Embedding(50, 8)
        self.pos, self.rows = nn.Parameter(torch.rand(1, 8, 16, 16)), nn.Parameter(torch.rand(1, 256, 8))
        self.size, self.case = 16, forward

    def forward(self, *args):
        return self.case(self, *args)


def interpolated(s, x):
    pos = s.pos
    if x.shape[-1] != s.size:
        pos = F.interpolate(pos, size=x.shape[2:])
    return s.fc((s.a(x) + pos).mean((2, 3)))


def by_tuple(s, x):
    pos = s.pos if tuple(x.shape[2:]) == (16, 16) else F.interpolate(s.pos, size=x.shape[2:])
    return s.b(s.a(x) + pos)


def by_tokens(s, x):
    y = s.a(x).flatten(2).transpose(1, 2)
    rows = s.rows
    if y.shape[1] != rows.shape[1]:
        rows = F.interpolate(rows.transpose(1, 2), size=y.shape[1]).transpose(1, 2)
    return s.fc((y + rows).mean(1))


def padded_if_odd(s, x):
    y = s.a(x)
    if y.shape[-1] % 2 or y.shape[-2] % 2:
        y = F.pad(y, (0, y.shape[-1] % 2, 0, y.shape[-2] % 2))
    return s.b(y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)))


def if_small(s, x):
    return s.b(s.a(F.interpolate(x, scale_factor=2.0) if x.size(2) < 12 else x))


def if_not_square(s, x):
    h, w = x.shape[2:]
    return s.b(s.a(F.interpolate(x, size=(max(h, w), max(h, w))) if h != w else x))


def plain_numbers(s, x):
    return F.interpolate(s.b(F.avg_pool2d(s.a(x), 2)), size=(int(x.shape[2]), int(x.shape[3])))


def plain_kernel(s, x):
    return s.fc(F.avg_pool2d(s.a(x), int(x.shape[2])).flatten(1)[:, :8])


def loop(s, x):
    return sum(s.a(x)[:, :, i] for i in range(x.shape[2]))


def constant(s, x):
    return s.b(s.a(x) + torch.arange(int(x.shape[3])))


def channels_last(s, x):
    pos = s.pos if x.shape[1] == 16 else F.interpolate(s.pos, size=x.shape[1:3])
    return s.b(s.a(x.permute(0, 3, 1, 2)) + pos)


def sequence(s, x):
    return s.fc(x + s.rows[:, :16] if x.shape[1] == 16 else x)


def words(s, ids):
    return s.fc(s.word(ids) + (s.rows[:, :16] if ids.shape[1] >= 16 else 0))


IMAGE, LAST, SEQUENCE, WORDS = (2, 3, 16, 16), (2, 16, 16, 3), (2, 16, 8), (2, 16)
TOLD = {
    **dict.fromkeys((interpolated, by_tuple, by_tokens, padded_if_odd, if_small, if_not_square), IMAGE),
    **dict.fromkeys((plain_numbers, plain_kernel, loop, constant), IMAGE),
    **{channels_last: LAST, sequence: SEQUENCE, words: WORDS},
}


def example(shape):
    return torch.randint(0, 50, shape) if len(shape) == 2 else torch.rand(shape)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("forward", TOLD)
def test_it_is_told(forward, mode):
    torch.manual_seed(0)
    model, x = Net(forward).eval(), example(TOLD[forward])
    program, [warning] = trace_modes(model, (x,), mode)
    assert f"decides by the size of its input, here {list(x.shape)}" in warning
    assert torch.allclose(program.module.eval()(x), model(x), atol=1e-6)


def test_what_is_told_is_so():
    model, x = Net(interpolated).eval(), torch.rand(IMAGE)
    program, [warning] = trace_modes(model, (x,), "eval")
    assert "the slim module fails on [2, 3, 17, 17], which the model takes (" in warning
    assert f"{__file__}:" in warning
    other = torch.rand(2, 3, 17, 17)
    assert model(other).shape == (2, 4)
    with pytest.raises(RuntimeError):
        program.module(other)


def pooled(s, x):
    return s.fc(F.adaptive_avg_pool2d(s.b(torch.relu(s.a(x))), 1).flatten(1))


def flattened(s, x):
    return s.fixed(s.a(x).flatten(1))


def asserts(s, x):
    assert x.shape[-1] == s.size
    assert x.shape[-2] == s.size
    return s.b(s.a(x) + s.pos)


def raises(s, x):
    if x.shape[-2:] != (16, 16):
        raise ValueError(f"the image has {x.shape}")
    return s.b(s.a(x) + s.pos)


def ends(s, x):
    if x.shape[-1] != 16:
        raise SystemExit("give images of 16 x 16")
    return s.b(s.a(x) + s.pos)


def always_padded(s, x):
    return s.b(s.a(F.pad(x, (0, (4 - x.shape[3] % 4) % 4, 0, (4 - x.shape[2] % 4) % 4))))


def followed(s, x):
    return F.interpolate(s.b(F.avg_pool2d(s.a(x), 2)), size=x.shape[2:])


def harmless(s, x):
    return s.b(s.a(x.contiguous() if x.shape[2] > 16 else x))


def grid(s, x):
    n = int(math.sqrt(x.shape[2] * x.shape[3]))
    return s.fc(s.a(x).view(-1, 8, n, n).mean((2, 3)) + s.pos.view(1, 8, 16, n)[:, :, 0].mean(2))


def cropped(s, x):
    y = s.a(x)
    return s.b(y + s.pos[:, :, : y.shape[2], : y.shape[3]])


def remembered(s, x, found={}):  # noqa: B006  (forwards do it)
    if x.shape[2:] not in found:
        found[x.shape[2:]] = torch.ones(*x.shape[2:]).cumsum(0)
    return s.b(s.a(x) + found[x.shape[2:]])


def features(s, x):
    return s.fc(x)


QUIET = {
    **dict.fromkeys((pooled, flattened, asserts, raises, ends, always_padded, followed), IMAGE),
    **dict.fromkeys((harmless, grid, cropped, remembered), IMAGE),
    **{features: SEQUENCE},
}


@pytest.mark.parametrize("forward", QUIET)
def test_nothing_is_told(forward):
    assert trace_modes(Net(forward).eval(), (example(QUIET[forward]),), "eval")[1] == ()


def test_inputs_beside_the_image_follow_its_size():
    def forward(s, x, mask, time):
        y = s.a(x) * mask + time[:, None, None, None]
        return s.b(y + (s.pos if x.shape[2] == 16 else F.interpolate(s.pos, size=x.shape[2:])))

    inputs = torch.rand(IMAGE), torch.rand(2, 1, 16, 16), torch.rand(2)
    assert len(trace_modes(Net(forward).eval(), inputs, "eval")[1]) == 1


def test_it_reaches_the_report():
    plan = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
    result = compile(Net(interpolated).eval(), plan, (torch.rand(IMAGE),))
    [warning] = result.report["warnings"]  # the console and the page show them all
    assert "decides by the size" in warning
