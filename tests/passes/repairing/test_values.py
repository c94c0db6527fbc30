"""Values of attention heads: which layers give them, and what a refit with their projection reaches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile, trace
from prunec.compiler.data import Data
from prunec.compiler.errors import DataError, VerifyError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, PassResult
from prunec.passes import repair
from prunec.passes.repair import Repair
from prunec.passes.repairing.values import RefitValues
from prunec.passes.shrink import Shrink
from tests.support.nets import Made

WIDTH, HEADS, EACH = 12, 4, 3


def _separate(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
    return x + m.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _packed(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-2, -1) / EACH**0.5).softmax(-1)
    return x + m.project((weights @ v).transpose(1, 2).reshape(n, t, -1))


def _chunked(m: Any, x: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
    return m.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) + x


def _across(m: Any, x: Tensor) -> Tensor:
    q = m.query(x[:, :2]).unflatten(-1, (HEADS, -1))
    k, v = (layer(x).unflatten(-1, (HEADS, -1)) for layer in (m.key, m.value))
    weights = torch.einsum("bthe,bshe->bhts", q, k).softmax(-1)
    return m.project(torch.einsum("bhts,bshe->bthe", weights, v).flatten(2))


def _linear(count: int = 1) -> nn.Linear:
    return nn.Linear(WIDTH, count * WIDTH)


NETS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, nn.Module]]]] = {
    "three layers": (_separate, lambda: {name: _linear() for name in ("query", "key", "value", "project")}),
    "one layer, unbound": (_packed, lambda: {"qkv": _linear(3), "project": _linear()}),
    "one layer in chunks": (_chunked, lambda: {"qkv": _linear(3), "project": _linear()}),
    "across, without biases": (
        _across,
        lambda: {
            **{name: nn.Linear(WIDTH, WIDTH, bias=False) for name in ("query", "key", "value")},
            "project": _linear(),
        },
    ),
    "torch's module": (
        lambda m, x: x + m.mix(x, x, x, need_weights=False)[0],
        lambda: {"mix": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)},
    ),
}


def _net(name: str) -> nn.Module:
    torch.manual_seed(0)
    run, parts = NETS[name]
    net = Made(parts(), run).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net


def _thirds(net: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weights and biases of query, key and value."""
    if hasattr(net, "mix"):
        return list(zip(net.mix.in_proj_weight.chunk(3), net.mix.in_proj_bias.chunk(3), strict=True))
    if hasattr(net, "qkv"):
        return list(zip(net.qkv.weight.chunk(3), net.qkv.bias.chunk(3), strict=True))
    return [(layer.weight, layer.bias) for layer in (net.query, net.key, net.value)]


def _tokens(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 5, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _without(net: nn.Module, *heads: int) -> tuple[Program, Program]:
    """The traced program, and it without some heads."""
    traced = trace(net, (_tokens()[:2],))
    (name,) = (name for name, group in analyse(traced).groups.items() if group.size == HEADS)
    return traced, Shrink().run(traced.with_facts(selection={name: heads}), Context()).program


def _repaired(slim: Program, traced: Program, data: list[Tensor], **options: Any) -> PassResult:
    context, made = Context(data=Data.of(data), traced=traced), Repair.model_validate(options)
    found = made.run(slim, context)
    made.audit(slim, found, context)
    return found


def _error(found: Program, net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((found.module(x) - net(x)).square().mean())


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PassResult]:
    """The same repair without the values."""

    def run(*args: Any, **options: Any) -> PassResult:
        with monkeypatch.context() as patch:
            patch.setattr(repair, "values_of", lambda *_: [])
            return _repaired(*args, **options)

    return run


@pytest.mark.parametrize("name", NETS)
def test_values_of_a_head_that_looks_at_the_same_are_made_up_for(name, alone):
    net = _net(name)
    query, key, value = _thirds(net)
    with torch.no_grad():
        for weight, bias in (query, key):
            weight[6:9] = weight[:3]
            if bias is not None:
                bias[6:9] = bias[:3]
        for weight, bias in (value,):  # of three channels, two in one head and one in the other say something
            weight[[2, 7, 8]] = 0.0
            if bias is not None:
                bias[[2, 7, 8]] = 0.0
    traced, slim = _without(net, 2)
    data, x = list(_tokens().split(16)), _tokens(16, seed=2)
    found = _repaired(slim, traced, data)
    assert _error(found.program, net, x) < 1e-9
    assert _error(alone(slim, traced, data).program, net, x) > 1e-3
    assert len(found.details["values"]) == 1


@pytest.mark.parametrize("name", NETS)
def test_both_together_are_never_worse(name, alone):
    net = _net(name)
    traced, slim = _without(net, 0, 3)
    data, x = list(_tokens(256).split(32)), _tokens(256)
    found, plain = _repaired(slim, traced, data), alone(slim, traced, data)
    assert _error(found.program, net, x) < 0.99 * _error(plain.program, net, x)
    (row,) = (row for name, row in found.details["repaired"].items() if " with " in name)
    assert row["error_left"] < 1
    assert set(found.program.tensors) == set(slim.tensors)


def test_neither_order_nor_batches_nor_memory_matter():
    net = _net("three layers")
    traced, slim = _without(net, 0, 3)
    x = _tokens()
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    first = _repaired(slim, traced, [x])
    for data, options in (([x], {"memory": 1}), (list(shuffled.split(7)), {})):
        again = _repaired(slim, traced, data, **options)
        for name, tensor in first.program.tensors.items():
            assert torch.allclose(again.program.tensors[name], tensor, rtol=0, atol=1e-7), name


def _attended(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
    return m.head(m.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


def _four_in_a_row(m: Any, x: Tensor) -> Tensor:
    return m.head(m.project(m.value(m.query(x).cumsum(1)).cumsum(1)).mean(1))


def _convolved(m: Any, x: Tensor) -> Tensor:
    x = m.query(x.unsqueeze(3).transpose(1, 2)).relu()
    return m.head(F.avg_pool2d(m.project(m.value(x).cumsum(2)), (5, 1)).flatten(1))


def _pointwise() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 1)


@pytest.mark.parametrize(
    ("run", "layer", "chain", "seed"),
    [
        (_attended, _linear, {"value": "project", "project": "head"}, 0),
        (_attended, _linear, {"value": "project", "project": "head"}, 3),
        (_four_in_a_row, _linear, {"query": "value", "value": "project", "project": "head"}, 0),
        (_convolved, _pointwise, {"value": "project", "project": "head"}, 2),
    ],
)
def test_a_reader_that_gives_values_itself_is_refit_twice(run, layer, chain, seed):
    torch.manual_seed(seed)
    names = ("query", "key", "value", "project") if run is _attended else ("query", "value", "project")
    net = Made({**{name: layer() for name in names}, "head": nn.Linear(WIDTH, 4)}, run).double().eval()
    data = list(_tokens(192).split(32))
    traced = trace(net, (_tokens()[:2],))
    slim = Shrink().run(traced.with_facts(selection=_halves(traced)), Context()).program
    found, x = _repaired(slim, traced, data), _tokens(192)
    assert found.details["values"] == chain
    assert _error(found.program, net, x) < 0.2 * _error(slim, net, x)


def _halves(traced: Program) -> dict[str, list[int]]:
    """Half of each group's units."""
    groups = analyse(traced).groups
    return {name: list(range(group.size // 2)) for name, group in groups.items() if group.free.all()}


def _through_relu(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
    return x + m.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).relu())


def _read_twice(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
    return x + m.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) + v.mean((1, 3))[..., None]


def _keys_are_values(m: Any, x: Tensor) -> Tensor:
    q, k = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (m.query, m.value))
    return x + m.project(F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("run", [_through_relu, _read_twice, _keys_are_values])
def test_what_isn_t_linear_in_a_layer_is_no_value_of_it(run):
    torch.manual_seed(0)
    net = Made({name: _linear() for name in ("query", "key", "value", "project")}, run).double().eval()
    traced, slim = _without(net, 1)
    assert "values" not in _repaired(slim, traced, [_tokens()]).details


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("nested", "first"),
    [(lambda x: ([x, x],), lambda given: given[1]), (lambda x: ({"u": x},), lambda given: given["u"])],
    ids=["list", "dict"],
)
def test_inputs_may_be_nested(nested, first, dtype):
    torch.manual_seed(0)
    layers = {name: _linear() for name in ("query", "key", "value", "project")}
    net = Made(layers, lambda m, given: _separate(m, first(given))).to(dtype).eval()
    traced = trace(net, nested(_tokens()[:2].to(dtype)))
    slim = Shrink().run(traced.with_facts(selection=_halves(traced)), Context()).program
    found = _repaired(slim, traced, [(nested(x), None) for x in _tokens().to(dtype).split(16)])
    assert found.details["values"] == {"value": "project"}


def _scaled_heads() -> tuple[Program, Program]:
    """Attention whose heads are multiplied by a number for each sample, and it with half of each."""

    def scaled(m: Any, x: Tensor, by: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
        heads = F.scaled_dot_product_attention(q, k, v) * by.log().exp()[:, None, None, None]
        return x + m.project(heads.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net = Made({name: _linear() for name in ("query", "key", "value", "project")}, scaled).double().eval()
    traced = trace(net, (_tokens()[-2:], torch.ones(2, dtype=torch.float64)))
    return traced, Shrink().run(traced.with_facts(selection=_halves(traced)), Context()).program


@pytest.mark.parametrize("nothing", [math.nan, 0.0], ids=["not finite", "zero"])
def test_samples_that_can_t_tell_leave_it_to_the_next_ones(nothing):
    x, by = _tokens(), torch.ones(96, dtype=torch.float64)
    by[:9] = -1.0 if math.isnan(nothing) else 0.0  # which has no logarithm, or -inf
    traced, slim = _scaled_heads()
    for order in (1, -1):
        data = [((a, b), None) for a, b in list(zip(x.split(8), by.split(8), strict=True))[::order]]
        assert _repaired(slim, traced, data).details["values"] == {"value": "project"}


def test_a_batch_that_the_model_can_not_take_is_the_datas_also_before_any_is_repaired():
    x, none = _tokens()[:8], torch.zeros(8, dtype=torch.float64)
    traced, slim = _scaled_heads()
    data = [((x, none), None), ((x[..., :-1], none), None)]  # the first ones can't tell
    with pytest.raises(DataError, match="the model can't take the data's batches"):
        _repaired(slim, traced, data)


def test_only_readers_are_refit_where_the_plan_says_so():
    traced, slim = _without(_net("three layers"), 1)
    found = _repaired(slim, traced, [_tokens()], layers="readers")
    assert list(found.details["repaired"]) == ["project"]


def test_heads_that_read_too_much_are_told(monkeypatch):
    monkeypatch.setattr(repair, "WIDEST", 3 * (WIDTH + 1) - 1)
    traced, slim = _without(_net("three layers"), 1)
    found = _repaired(slim, traced, [_tokens()])
    assert [str(note) for note in found.notes] == [
        "value: its values stay: heads that read more than 38 numbers together aren't refit"
    ]


@pytest.mark.parametrize(
    "fault",
    [lambda values: values.flip(1), lambda values: -values],
    ids=["other outputs", "another sign"],
)
def test_a_fault_is_found(fault, monkeypatch):
    write = RefitValues._write_both

    def wrong(self: RefitValues, *args: Any) -> None:
        write(self, *args)
        self.giver.copy_(fault(self.giver[0])[None])

    monkeypatch.setattr(RefitValues, "_write_both", wrong)
    monkeypatch.setattr(repair._Work, "places", _pairs_last(repair._Work.places))
    x = _tokens(128).float()
    net = _net("three layers").float()
    passes = [{"score": "l1"}, {"select": {"ratio": "50%"}}, "shrink", "repair"]
    with pytest.raises(VerifyError, match="wrote wrong weights"):
        compile(net, {"plan": 1, "passes": passes}, (x[:1],), [x])


def _pairs_last(places: Callable[..., Any]) -> Callable[..., Any]:
    """Nothing is repaired behind the values: the projection would make up for some of a fault."""

    def found(self: Any) -> Any:
        every = places(self)
        last = max(number for number, (_, what) in enumerate(every) if isinstance(what, repair.Values))
        return every[: last + 1]

    return found
