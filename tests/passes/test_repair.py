"""`repair`: lossless where it can be, never worse where it can't, the same however the data are cut; its refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from digits_plan import DIGITS
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import Plan, compile, trace
from prunec.compiler.data import Data
from prunec.compiler.errors import DataError, PassError, VerifyError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, PassResult
from prunec.compiler.verify.verify import verify
from prunec.passes.repair import Repair
from prunec.passes.repairing.moments import Moments
from prunec.passes.repairing.refit import Bias, LeastSquares
from prunec.passes.shrink import Shrink
from tests.support.nets import Made

GONE = (1, 4)
Batches = Sequence[Tensor]


def _images(count: int = 40, seed: int = 1, step: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).split(step))


def _net(reader: nn.Module, run: Any = None, **more: nn.Module) -> Made:
    """A convolution `a` with eight channels, of which two are others' doubles, and its reader `b`."""
    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": reader, **more}
    net = Made(parts, run or (lambda m, x: m.b(m.a(x).relu()))).double().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    with torch.no_grad():
        for gone, kept in zip(GONE, (0, 5), strict=True):
            net.a.weight[gone], net.a.bias[gone] = 2 * net.a.weight[kept], 2 * net.a.bias[kept]
    return net


def _slim(net: nn.Module, selection: dict[str, Sequence[int]] | None = None) -> tuple[Program, Program]:
    """The traced program, and it without the units of the selection."""
    traced = trace(net, (_images()[0][:2],))
    return traced, Shrink().run(traced.with_facts(selection=selection or {"a": GONE}), Context()).program


def _repaired(slim: Program, traced: Program, data: Any, **options: Any) -> PassResult:
    return Repair.model_validate(options).run(slim, Context(data=Data.of(data), traced=traced))


def _by_parts(x: Tensor, y: Tensor, packed: nn.Linear) -> Tensor:
    """Products of two values with parts of one weight."""
    (q, k), (b, c) = packed.weight.split([4, 8]), packed.bias.split([4, 8])
    return torch.cat([F.linear(y, q, b), F.linear(y + 1, k, c) * x.mean()], -1)


LOSSLESS = {
    "padded": (nn.Conv2d(8, 4, 3, padding=1), None, {}),
    "strided and dilated": (nn.Conv2d(8, 4, 3, stride=2, padding=2, dilation=2), None, {}),
    "padded by reflection": (nn.Conv2d(8, 4, (3, 1), padding=(1, 0), padding_mode="reflect"), None, {}),
    "same": (nn.Conv2d(8, 4, (3, 5), padding="same"), None, {}),
    "without a bias": (nn.Conv2d(8, 4, 3, bias=False), None, {}),
    "with a batch norm": (
        nn.Conv2d(8, 4, 3, bias=False),
        lambda m, x: m.n(m.b(m.a(x).relu())).relu(),
        {"n": nn.BatchNorm2d(4)},
    ),
    "pooled and flattened": (
        nn.Linear(8 * 4, 5),
        lambda m, x: m.b(m.p(m.a(x).relu()).flatten(1)),
        {"p": nn.AvgPool2d(4)},
    ),
    "tokens": (nn.Linear(8, 5), lambda m, x: m.b(m.a(x).relu().flatten(2).transpose(1, 2)), {}),
    "beside others": (nn.Conv2d(11, 4, 3), lambda m, x: m.b(torch.cat([x, m.a(x).relu()], 1)), {}),
    "a sum": (
        nn.Conv2d(8, 3, 3, padding=1),
        lambda m, x: m.c((x + m.b(m.a(x).relu())).relu()),
        {"c": nn.Conv2d(3, 2, 1)},
    ),
    "a sum with a projection that comes later": (
        nn.Conv2d(8, 4, 3, padding=1, bias=False),
        lambda m, x: m.c((m.n(m.b(m.a(x).relu())) + m.short(x)).relu()),
        {"n": nn.BatchNorm2d(4), "short": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(4, 2, 1)},
    ),
    "transposed": (nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1), None, {}),
    "transposed and dilated": (nn.ConvTranspose2d(8, 4, (2, 3), dilation=(3, 2), padding=(2, 0)), None, {}),
    "transposed, with a batch norm": (
        nn.ConvTranspose2d(8, 4, 2, stride=3, bias=False),
        lambda m, x: m.n(m.b(m.a(x).relu())).relu(),
        {"n": nn.BatchNorm2d(4)},
    ),
    "a transposed one in a sum": (
        nn.ConvTranspose2d(8, 3, 3, padding=1),
        lambda m, x: m.c((x + m.b(m.a(x).relu())).relu()),
        {"c": nn.Conv2d(3, 2, 1)},
    ),
    "a function": (
        nn.Conv2d(8, 4, 3),
        lambda m, x: F.conv2d(m.a(x).relu(), m.b.weight, m.b.bias, stride=2, padding="valid", dilation=2),
        {},
    ),
    "a function with its options by name": (
        nn.ConvTranspose2d(8, 4, 3),
        lambda m, x: F.conv_transpose2d(m.a(x).relu(), weight=m.b.weight, bias=m.b.bias, stride=(2, 1), padding=1),
        {},
    ),
    "a function that multiplies": (
        nn.Linear(8, 5),
        lambda m, x: F.linear(m.a(x).relu().mean((2, 3)), m.b.weight, m.b.bias),
        {},
    ),
    "a product": (nn.Linear(5, 8), lambda m, x: m.a(x).relu().movedim(1, -1) @ m.b.weight, {}),
    "a sum of a product": (
        nn.Linear(5, 8),
        lambda m, x: torch.addmm(m.c.weight, m.a(x).relu().mean((2, 3)), m.b.weight),
        {"c": nn.PReLU(5)},
    ),
    "an einsum": (
        nn.Linear(5, 8),
        lambda m, x: torch.einsum("bchw,cd->bhwd", m.a(x).relu(), m.b.weight),
        {},
    ),
    "an einsum of several dimensions": (
        nn.Linear(12, 8),
        lambda m, x: torch.einsum("bc...,chd->bh...d", m.a(x).relu().flatten(2), m.b.weight.view(8, 3, 4)),
        {},
    ),
    "parts of a weight": (
        nn.Linear(8, 12),
        lambda m, x: _by_parts(x.mean((2, 3)), m.a(x).relu().mean(3).transpose(1, 2), m.b),
        {},
    ),
    "a part of a weight, turned": (
        nn.Linear(12, 16),
        lambda m, x: m.a(x).relu().movedim(1, -1) @ m.b.weight.unflatten(0, (2, 8))[1],
        {},
    ),
    "one reader of two": (
        nn.Conv2d(8, 4, 1),
        lambda m, x: torch.cat([m.b(y := m.a(x).relu()).flatten(1), m.b(F.max_pool2d(y, 2)).flatten(1)], 1),
        {},
    ),
    "two readers": (
        nn.Conv2d(8, 4, 3, padding=1),
        lambda m, x: torch.cat([m.b(y := m.a(x).relu()), m.c(y)], 1),
        {"c": nn.Conv2d(8, 2, 1)},
    ),
}


@pytest.mark.parametrize(("reader", "run", "more"), LOSSLESS.values(), ids=LOSSLESS)
def test_what_is_a_combination_of_others_is_made_up_for(reader, run, more):
    net = _net(reader, run, **more)
    traced, slim = _slim(net)
    x = torch.cat(list(_images(16, seed=2)))
    wanted, cut = net(x), slim.module(x)
    found = _repaired(slim, traced, _images(), layers="readers").program.module(x)
    assert (cut - wanted).abs().max() > 1e-2
    assert (found - wanted).abs().max() < 1e-9


def test_a_wide_reader_is_refit_from_its_rows(monkeypatch):
    torch.manual_seed(5)
    net = _net(nn.Linear(8 * 64, 5), lambda m, x: m.b(m.a(x).relu().flatten(1)))
    traced, slim = _slim(net, {"a": (2, 3)})
    x = torch.cat(list(_images(16, seed=2)))
    data = _images(120)
    wanted = _repaired(slim, traced, data, layers="readers")
    assert list(wanted.details["repaired"]) == ["b"]
    assert _apart(wanted.program.module, net, x) < 0.9 * _apart(slim.module, net, x)
    sums = Moments.none(1, 6 * 64, 5)
    monkeypatch.setattr(LeastSquares, "_nothing", lambda self, rows: sums + sums)
    found = _repaired(slim, traced, data, layers="readers")
    assert found.details["repaired"]["b"]["ridge"] == wanted.details["repaired"]["b"]["ridge"]
    for name, tensor in wanted.program.tensors.items():
        assert torch.allclose(found.program.tensors[name], tensor, rtol=0, atol=1e-8), name


def test_groups_are_fitted_each_for_itself():
    torch.manual_seed(0)
    net = _net(nn.Conv2d(8, 4, 3, padding=1, groups=2))
    with torch.no_grad():  # a unit is a channel of each group
        for gone, kept in ((1, 0), (5, 4)):
            net.a.weight[gone], net.a.bias[gone] = 3 * net.a.weight[kept], 3 * net.a.bias[kept]
    traced, slim = _slim(net, {"a": (1,)})
    x = torch.cat(list(_images(16, seed=2)))
    assert slim.tensors["b.weight"].shape == (4, 3, 3, 3)
    assert (_repaired(slim, traced, _images()).program.module(x) - net(x)).abs().max() < 1e-9


def test_a_depthwise_layer_has_lost_nothing_by_itself():
    net = _net(nn.Conv2d(8, 4, 1), lambda m, x: m.b(m.d(m.a(x).relu())), d=nn.Conv2d(8, 8, 3, padding=1, groups=8))
    traced, slim = _slim(net, {"a": (2, 3)})
    found = _repaired(slim, traced, _images())
    assert list(found.details["repaired"]) == ["b"]
    x = torch.cat(list(_images(16, seed=2)))
    assert _apart(found.program.module, net, x) < 0.8 * _apart(slim.module, net, x)


class Sequences(nn.Module):
    """Layers along one and along three dimensions, transposed ones in groups among them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3, padding=1), nn.ConvTranspose1d(8, 4, 4, stride=2, groups=2)
        self.c, self.d = nn.Conv3d(3, 8, 3, padding=1), nn.ConvTranspose3d(8, 4, 2, dilation=2)
        self.e = nn.Conv3d(8, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        flat, deep = self.a(x.flatten(2)).relu(), self.c(x.unflatten(2, (2, 4))).relu()
        return self.b(flat), self.d(deep), self.e(deep)


def test_layers_of_one_and_three_dimensions():
    torch.manual_seed(0)
    net = Sequences().double().eval()
    with torch.no_grad():
        for layer in (net.a, net.c):
            for gone, kept in ((1, 0), (5, 4)):
                layer.weight[gone], layer.bias[gone] = 2 * layer.weight[kept], 2 * layer.bias[kept]
    traced, slim = _slim(net, {"a": (1,), "c": (1, 5)})
    x = torch.cat(list(_images(16, seed=2)))
    repaired = _repaired(slim, traced, _images())
    assert set(repaired.details["repaired"]) == {"b", "d", "e"}
    for found, wanted in zip(repaired.program.module(x), net(x), strict=True):
        assert (found - wanted).abs().max() < 1e-9


class Attending(nn.Module):
    """Self-attention on a stream that loses channels: its projections read them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 12), nn.Linear(12, 4)
        self.mix = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2)).relu()
        return self.head(self.mix(x, x, x, need_weights=False)[0])


def test_projections_of_attention():
    torch.manual_seed(0)
    net = Attending().double().eval()
    with torch.no_grad():
        net.embed.weight[3], net.embed.bias[3] = 2 * net.embed.weight[7], 2 * net.embed.bias[7]
    traced, slim = _slim(net, {"embed": (3,)})
    repaired = _repaired(slim, traced, _images())
    assert "linear" in repaired.details["repaired"]
    x = torch.cat(list(_images(16, seed=2)))
    assert (repaired.program.module(x) - net(x)).abs().max() < 1e-9


class Crossing(nn.Module):
    """An attention of one stream to another, both of which lose channels: one packed weight reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 12), nn.Linear(3, 12), nn.Linear(12, 4)
        self.mix = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.a(x.mean(1)).relu(), self.b(x.flatten(2).transpose(1, 2)).relu()
        return self.head(self.mix(x, y, y, need_weights=False)[0])


def test_projections_of_two_streams_that_lie_in_one_weight():
    torch.manual_seed(0)
    net = Crossing().double().eval()
    with torch.no_grad():  # the streams are read by one weight, so that the same channels go from both
        for layer in (net.a, net.b):
            layer.weight[3], layer.bias[3] = 2 * layer.weight[7], 2 * layer.bias[7]
    traced, slim = _slim(net, {"a": (3,)})
    assert slim.tensors["mix.in_proj_weight"].shape == (36, 11)
    repaired = _repaired(slim, traced, _images())
    assert {"linear", "linear_1", "linear_2"} <= repaired.details["repaired"].keys()
    assert not repaired.notes
    x = torch.cat(list(_images(16, seed=2)))
    assert (repaired.program.module(x) - net(x)).abs().max() < 1e-9


class Reading(nn.Module):
    """What no repair can refit reads channels that go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Bilinear(8, 3, 4), nn.GRU(8, 5, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x.flatten(2)).relu()
        return self.b(y, x.mean(3)[..., :3]), self.c(y)[0]


def test_what_reads_less_and_cannot_be_refit_is_told():
    torch.manual_seed(0)
    net = Reading().double().eval()
    traced, slim = _slim(net)
    found = _repaired(slim, traced, _images())
    assert [str(note) for note in found.notes] == ["b: a Bilinear isn't refit", "c: a GRU isn't refit"]
    assert found.warnings == ("repair: none of the 2 layers that have lost inputs can be repaired",)


def _deep() -> nn.Module:
    torch.manual_seed(3)
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)]
    parts += [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)]
    return nn.Sequential(*parts).double().eval()


_CUT = {"0": (1, 2, 6), "3": (0, 7), "6": (3,)}


def _apart(found: nn.Module, wanted: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((found(x) - wanted(x)).square().mean())


@pytest.mark.parametrize("method", ["least_squares", "bias", "batch_norm"])
@pytest.mark.parametrize("options", [{}, {"rows": 100}, {"memory": 1}, {"layers": "readers"}])
def test_neither_order_nor_batches_nor_memory_matter(method, options):
    traced, slim = _slim(_deep(), _CUT)
    whole = torch.cat(list(_images()))
    shuffled = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))]
    first = _repaired(slim, traced, _images(), method=method, **{k: v for k, v in options.items() if k != "memory"})
    for data in (list(whole.split(40)), list(shuffled.split(3))):
        again = _repaired(slim, traced, data, method=method, **options)
        for name, tensor in first.program.tensors.items():
            assert torch.allclose(again.program.tensors[name], tensor, rtol=0, atol=1e-8), name


def test_it_is_nearer_to_the_dense_network():
    net = _deep()
    traced, slim = _slim(net, _CUT)
    before = {name: tensor.clone() for name, tensor in slim.tensors.items()}
    x, data = torch.cat(list(_images(64, seed=2))), _images(200)
    cut = _apart(slim.module, net, x)
    found = {
        m: _apart(_repaired(slim, traced, data, method=m).program.module, net, x) for m in ("bias", "least_squares")
    }
    assert found["least_squares"] < 0.8 * found["bias"] < 0.8 * cut
    assert all(torch.equal(tensor, before[name]) for name, tensor in slim.tensors.items())


def test_a_mean_that_is_gone_is_in_the_bias():
    net = _net(nn.Conv2d(8, 4, 1))
    traced, slim = _slim(net, {"a": (2, 3)})
    data = _images()
    x = torch.cat(list(data))
    found = _repaired(slim, traced, data, method="bias").program
    assert torch.allclose(found.module(x).mean((0, 2, 3)), net(x).mean((0, 2, 3)), atol=1e-9)
    assert torch.equal(found.tensors["b.weight"], slim.tensors["b.weight"])


def test_statistics_are_those_of_the_slim_network():
    net = _deep()
    traced, slim = _slim(net, {"0": (1, 2)})
    data = _images()
    found = _repaired(slim, traced, data, method="batch_norm").program
    parts = dict(slim.module.named_modules())
    y = parts["3"](parts["1"](parts["0"](torch.cat(list(data)))).relu())
    assert torch.allclose(found.tensors["4.running_mean"], y.mean((0, 2, 3)))
    assert torch.allclose(found.tensors["4.running_var"], y.var((0, 2, 3)))
    assert torch.equal(found.tensors["1.running_mean"], slim.tensors["1.running_mean"]), "nothing is lost before it"


@pytest.mark.parametrize("method", ["least_squares", "bias", "batch_norm"])
def test_one_sample_is_enough_to_stay_finite(method):
    traced, slim = _slim(_deep(), _CUT)
    found = _repaired(slim, traced, _images(1), method=method)
    assert all(tensor.isfinite().all() for tensor in found.program.tensors.values())
    if method == "least_squares":
        assert [note.subject for note in found.notes] == ["9"], "one row says nothing of the classifier"


def test_a_dead_layer_is_refit_by_its_reader_s_bias():
    net = _net(nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net.a.weight.zero_()
        net.a.bias.copy_(torch.arange(8))
    traced, slim = _slim(net)
    x = torch.cat(list(_images(8, seed=2)))
    assert (_repaired(slim, traced, _images()).program.module(x) - net(x)).abs().max() < 1e-9


@pytest.mark.parametrize(("method", "left"), [("least_squares", 0.5), ("bias", 0.7)])
@pytest.mark.parametrize("memory", [1, 2**30])
def test_a_layer_that_is_called_twice_is_refit_for_both_calls(method, left, memory):
    net = _net(nn.Conv2d(8, 8, 3, padding=1), lambda m, x: m.c(m.b(m.b(m.a(x).relu()).relu())), c=nn.Conv2d(8, 2, 1))
    traced = trace(net, (_images()[0][:2],))
    group = next(iter(_groups(traced)))
    traced, slim = _slim(net, {group: (1, 4)})
    found = _repaired(slim, traced, _images(), method=method, memory=memory)
    assert list(found.details["repaired"]) == ["b", "c"]
    assert not torch.equal(found.program.tensors["b.bias"], slim.tensors["b.bias"])
    x = torch.cat(list(_images(64, seed=2)))
    assert _apart(found.program.module, net, x) < left * _apart(slim.module, net, x)


def test_a_weight_with_two_biases_is_left_alone():
    net = _net(nn.Conv2d(8, 4, 1), lambda m, x: m.b(m.a(x).relu()) + m.c(m.a(x).tanh()), c=nn.Conv2d(8, 4, 1))
    net.c.weight = net.b.weight
    traced, slim = _slim(net)
    found = _repaired(slim, traced, _images())
    assert [str(note) for note in found.notes] == [f"{n}: its weights are shared with another call" for n in "bc"]
    assert found.program is slim


def _groups(program: Program) -> Sequence[str]:
    return [group.name for group in analyse(program).groups.values() if group.free.any()]


def test_a_folded_batch_norm_is_the_target():
    net = _deep().float()
    images = [x.float() for x in _images(200)]
    cut = {"score": "l1"}, {"select": 0.25}, "shrink", {"repair": "least_squares"}
    x = torch.cat([x.float() for x in _images(64, seed=2)])
    plain, folded = (
        compile(net, {"plan": 1, "passes": [*first, *cut]}, example_inputs=(images[0][:2],), data=images)
        for first in ([], ["fold_bn"])
    )
    assert _apart(folded.module, net, x) < 1.5 * _apart(plain.module, net, x)
    (record,) = (r for r in folded.report["passes"] if r["pass"] == "repair")
    assert record["verification"]["difference"] < 1e-5
    assert record["attachments"] == ["repair.csv"]


def test_what_it_gives_is_the_old_program_with_its_tensors():
    traced, slim = _slim(_deep(), _CUT)
    found = _repaired(slim, traced, _images())
    reference = Repair().reference(slim, found.program)
    assert verify(found.program, reference, pass_name="repair", exact=True).difference == 0
    lost = found.program.derive(state={**found.program.state, "9": slim.state["9"]})
    with pytest.raises(VerifyError, match="changed what the program computes"):
        verify(lost, reference, pass_name="repair")


def test_a_network_that_lost_nothing_is_left_as_it_is():
    traced = trace(_deep(), (_images()[0][:2],))
    found = _repaired(traced, traced, _images())
    assert found.program is traced
    assert found.warnings == ("repair: nothing to repair: no layer reads fewer channels than in the traced model",)


@pytest.mark.parametrize(
    ("count", "factor", "why"),
    [
        (1, 1.0, "too few samples"),
        (9, float("inf"), "too few samples make finite values"),
        (9, 1e200, "some samples make its values infinite or NaN"),
    ],
)
def test_what_cannot_be_fitted_is_told_with_its_reason(count, factor, why):
    net = _net(nn.Linear(8, 4), lambda m, x: m.b(m.a(x).relu().mean((2, 3))))
    traced, slim = _slim(net)
    found = _repaired(slim, traced, [factor * torch.cat(list(_images(count)))])
    assert [str(note) for note in found.notes] == [f"b: isn't repaired: {why}"]
    assert found.warnings[-1] == f"repair: nothing was repaired; the first reason: b: isn't repaired: {why}"
    assert all(torch.equal(tensor, slim.tensors[name]) for name, tensor in found.program.tensors.items())


@pytest.mark.parametrize("method", ["least_squares", "bias", "batch_norm"])
@pytest.mark.parametrize("reader", ["all of an image", "a wide one", "places of an image"])
def test_samples_that_make_no_numbers_are_left_out_and_counted(method, reader, monkeypatch):
    if reader == "a wide one":
        monkeypatch.setattr(Moments, "none", None)
    run = {
        "all of an image": lambda m, x: m.n(m.b(m.a(x).relu().mean((2, 3)))),
        "a wide one": lambda m, x: m.n(m.b(m.a(x).relu().flatten(1))),
        "places of an image": lambda m, x: m.n(m.b(m.a(x).relu().flatten(2).transpose(1, 2)).transpose(1, 2)),
    }[reader]
    inputs = 8 * 64 if reader == "a wide one" else 8
    torch.manual_seed(0)
    traced, slim = _slim(_net(nn.Linear(inputs, 4), run, n=nn.BatchNorm1d(4)), {"a": (2, 3)})
    images = torch.cat(list(_images()))
    bad = images.clone()
    bad[3, 0, 2, 2], bad[17] = float("inf"), -float("inf")
    good = [*range(3), *range(4, 17), *range(18, 40)]
    options = {"method": method, "rows": 40 * 64}
    found = _repaired(slim, traced, list(bad.split(8)), **options)
    place = "n" if method == "batch_norm" else "b"
    told = f"repair: 2 of 40 samples make values infinite or NaN, first at {place}; these values are left out"
    assert found.warnings[0] == told
    audit = Repair.model_validate(options)
    audit.audit(slim, found, Context(data=Data.of(list(bad.split(8))), traced=traced))
    assert all(tensor.isfinite().all() for tensor in found.program.tensors.values())
    if reader == "places of an image" or method == "least_squares":  # other places are seen, or others held out
        figures = found.details["outputs"]
        assert method == "batch_norm" or figures["error_after"] < 0.9 * figures["error_before"]
        return
    alone = _repaired(slim, traced, [images[good]], **options)
    for name, tensor in alone.program.tensors.items():
        assert torch.allclose(found.program.tensors[name], tensor, rtol=0, atol=1e-8), name


@pytest.mark.parametrize(("typical", "share"), [(10.0, 1.0), (3.0, 0.5), (2.0, 0.25), (0.5, 0.0)])
def test_a_bias_that_takes_the_outputs_farther_away_is_shortened(typical, share):
    """The unit that goes closes `b` on every tenth sample: on average it takes 1 from it, which others lose now."""
    net = Made({"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)}, lambda m, x: m.b(m.a(x).relu()).relu()).double().eval()
    with torch.no_grad():
        net.a.weight.copy_(torch.eye(2))
        net.a.bias.zero_()
        net.b.weight.copy_(torch.tensor([[1.0, -1.0]]))
        net.b.bias.zero_()
    x = torch.tensor([[typical, 0.0]] * 9 + [[typical, 10.0]], dtype=torch.float64)
    traced = trace(net, (x[:2],))
    slim = Shrink().run(traced.with_facts(selection={"a": (1,)}), Context()).program
    found = _repaired(slim, traced, [x], method="bias")
    assert found.details["outputs"]["step"] == share
    assert found.program.tensors["b.bias"].item() == pytest.approx(-share)
    assert _apart(found.program.module, net, x) <= _apart(slim.module, net, x) + 1e-12
    assert list(found.details["repaired"]) == (["b"] if share else [])
    warned = "farther from the dense model's on these samples (error"
    assert [warned in warning for warning in found.warnings] == [True] * (share < 1)
    Repair(method="bias").audit(slim, found, Context(data=Data.of([x]), traced=traced))


def test_statistics_that_take_the_outputs_farther_away_are_told():
    traced, slim = _slim(_deep(), {"0": (1, 2)})
    found = _repaired(slim, traced, _images(), method="batch_norm")
    figures = found.details["outputs"]
    assert figures["error_after"] > figures["error_before"]
    told = f"error {figures['error_before']:.3g} -> {figures['error_after']:.3g}"
    (warning,) = found.warnings
    assert f"repair: batch_norm takes the outputs farther from the dense model's on these samples ({told})" in warning


def test_without_data_it_says_so():
    traced, slim = _slim(_deep(), _CUT)
    with pytest.raises(PassError, match="repair needs some samples, and the plan has no data"):
        Repair().ready(slim, Context(traced=traced))


def test_data_that_do_not_fit_are_told():
    traced, slim = _slim(_deep(), _CUT)
    with pytest.raises(DataError, match="the model can't take the data's batches"):
        _repaired(slim, traced, [torch.zeros(2, 4, 8, 8)])


# -- in plans --------------------------------------------------------------------------------------------------------

SMALL = {"method": "least_squares", "samples": 128, "rows": 2000}
HALF = ({"score": "l1"}, {"select": {"budget": {"macs": 0.5}}}, "shrink")


@pytest.mark.parametrize("classes", [None, [1, 4, 7]])
@pytest.mark.parametrize(
    "passes",
    [
        [
            {
                "repeat": {
                    "steps": 2,
                    "to": {"macs": 0.5},
                    "passes": [{"score": "l1"}, "select", "shrink", {"repair": SMALL}],
                }
            }
        ],
        [*HALF, {"repair": SMALL}, {"repair": {"method": "bias", "samples": 128}}, "fold_bn"],
        ["fold_bn", *HALF, {"repair": SMALL}],
    ],
    ids=["rounds", "one behind the other", "folded before"],
)
def test_repairs_stand_anywhere_and_a_lock_gives_the_same(passes, classes, tmp_path):
    plan = {**DIGITS, "passes": passes, **({"classes": classes} if classes else {})}
    cut = compile(None, {**DIGITS, "passes": [*HALF], **({"classes": classes} if classes else {})}, quick=True)
    result = compile(None, plan, quick=True)
    assert result.report["accuracy"]["after"] >= max(0.96, cut.report["accuracy"]["after"])
    assert compile(None, result.lock, quick=True).lock["hashes"] == result.lock["hashes"]
    result.save(tmp_path / "out")
    locked = Plan.load(tmp_path / "out" / "plan.lock.json")
    again = compile(None, locked, quick=True, trained=True)
    assert again.lock["hashes"] == result.lock["hashes"]


def test_weights_stay_such_that_a_batch_norm_can_be_folded_behind_a_repair():
    passes = [{"score": "l1"}, {"select": {"budget": {"macs": 0.3}}}, "shrink", {"repair": "least_squares"}]
    plain = compile(None, {**DIGITS, "passes": passes}, quick=True)
    assert plain.report["accuracy"]["after"] >= 0.98
    folded = compile(None, {**DIGITS, "passes": [*passes, {"repair": "batch_norm"}, "fold_bn"]}, quick=True)
    assert folded.report["accuracy"]["after"] >= 0.98


class Optional(nn.Module):
    """A second input that may be left out, and a head for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.head, self.aside = nn.Linear(9, 4), nn.Linear(8, 4)

    def forward(self, image: Tensor, beside: Tensor | None = None) -> Any:
        x = self.n(self.a(image)).relu()
        y = self.b(x).relu().mean((2, 3))
        found = self.head(torch.cat([y, image.mean((2, 3)) if beside is None else beside], 1))
        return (found, self.aside(x.mean((2, 3)))) if self.training else found


@pytest.mark.parametrize("kind", ["a mapping", "several", "some left out", "both modes"])
def test_however_the_inputs_come(kind):
    torch.manual_seed(0)
    net = Optional().eval()
    images = [x.float() for x in _images(64)]
    beside = [x.mean((2, 3)) + 1 for x in images]
    pairs = list(zip(images, beside, strict=True))
    alone = kind in ("some left out", "both modes")
    data = {
        "a mapping": [{"beside": e, "image": x} for x, e in pairs],
        "several": [((x, e), torch.zeros(len(x))) for x, e in pairs],
    }.get(kind, images)
    inputs = (images[0][:2],) if alone else pairs[0]
    passes = [{"score": "l1"}, {"select": 0.25}, "shrink"]
    mode = {"mode": "train"} if kind == "both modes" else {}
    cut = compile(net, {"plan": 1, "passes": passes, **mode}, inputs, data, quick=True)
    found = compile(net, {"plan": 1, "passes": [*passes, {"repair": SMALL}], **mode}, inputs, data, quick=True)
    asked = (images[0],) if alone else pairs[0]
    with torch.no_grad():
        before, after = ((r.module.eval()(*asked) - net(*asked)).square().mean() for r in (cut, found))
    assert after < 0.3 * before
    if kind == "both modes":
        assert len(found.module.train()(images[0])) == 2


def test_a_repair_that_was_killed_goes_on_from_the_pass_before(tmp_path, monkeypatch):
    plan = {**DIGITS, "passes": [*HALF, {"repair": SMALL}, {"repair": {"method": "bias", "samples": 128}}]}
    whole = compile(None, plan, quick=True)
    finish, runs = LeastSquares.finish, []

    def counted(self: LeastSquares) -> Any:
        runs.append(self.layer.node.name)
        return finish(self)

    def killed(self: Bias) -> bool:
        raise RuntimeError("the machine is gone")

    monkeypatch.setattr(LeastSquares, "finish", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Bias, "finish", killed)
        with pytest.raises(PassError, match="the machine is gone"):
            compile(None, plan, quick=True, checkpoints=tmp_path / "kept")
    first = len(runs)
    rest = compile(None, plan, quick=True, checkpoints=tmp_path / "kept")
    assert len(runs) == first > 0
    assert rest.lock["hashes"] == whole.lock["hashes"]


def _halved_in_place(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.bn(m.conv(x.mul_(0.5))).relu().mean((2, 3)))


@pytest.mark.parametrize("method", ["least_squares", "bias"])
def test_the_data_stay_as_they_are_where_the_model_writes_into_its_input(method):
    net = Made({"conv": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(8), "fc": nn.Linear(8, 4)}, _halved_in_place).eval()
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    passes = [{"score": "l1"}, {"select": "50%"}, "shrink", {"repair": method}]
    found = compile(net, {"plan": 1, "passes": passes}, (x[:1].clone(),), [x[:8], x[8:]])
    assert found.report["passes"][-1]["details"]["repaired"]
    assert torch.equal(x, before)


@pytest.mark.parametrize("method", ["least_squares", "bias"])
@pytest.mark.parametrize("size", [3, 2], ids=["before what is repaired", "there"])
def test_a_later_batch_that_the_model_can_not_take_is_the_datas(method, size):
    parts = {"a": nn.Conv2d(1, 8, 3), "b": nn.Linear(8 * 4, 4)}
    net = Made(parts, lambda m, x: m.b(m.a(x).relu().flatten(1))).eval()
    data = [torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4), torch.randn(8, 1, size, size)]
    passes = [{"score": "l1"}, {"select": "50%"}, "shrink", {"repair": method}]
    with pytest.raises(DataError, match=rf"the model can't take the data's batches, of shape \[8, 1, {size}, {size}\]"):
        compile(net, {"plan": 1, "passes": passes}, (data[0][:1],), data)
