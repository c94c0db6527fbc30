"""Every runtime that is installed tells the times of layers alone, and of a network node by node."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timing import CONV
from torch import nn

from prunec.compiler.cost.latency.attribution import PRODUCTS
from prunec.compiler.cost.latency.layers import PART, parts_of
from prunec.compiler.cost.latency.table import Measured
from prunec.compiler.errors import PrunecError, TargetError
from prunec.compiler.targets import metering, timing
from prunec.compiler.targets.base import BETWEEN, TARGETS, Target
from prunec.compiler.targets.exporting import missing
from prunec.compiler.targets.metering import Origins, Times, seconds_of, turns
from prunec.compiler.targets.timing import meter_of, runs_in_turns, timed
from prunec.compiler.tracing.trace import trace

DEPTHWISE = replace(CONV, inner=16, outer=16, groups=16, whole=True)


def _meters(name):
    try:
        return TARGETS.named(name).meter is not Target.meter
    except PrunecError:
        return True


NAMES = [name for name in TARGETS.names() if _meters(name)]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("prunec.compiler.cost.latency.table.LAYER_SECONDS", 0.02)
    monkeypatch.setattr("prunec.compiler.cost.latency.table.NETWORK_SECONDS", 0.02)
    monkeypatch.setattr("prunec.compiler.cost.latency.table.NETWORK_SWEEPS", 1)


def _meter(name):
    if (lacking := missing(TARGETS.named(name)())) is not None:
        pytest.skip(lacking.message)
    return meter_of(name)


class Net(nn.Module):
    """Convolutions of three kinds, a norm, an activation, a sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.point = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.deep(self.norm(self.stem(x))))
        return self.head((x + self.point(x)).mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_has_a_time_at_each_of_its_widths(name):
    meter = _meter(name)
    assert "1 thread" in meter.name
    assert any(character.isdigit() for character in meter.name.split(",")[0]), "its version"
    small, large = Measured(meter).layer(replace(CONV, inner=32, outer=32, sizes=(16, 16)), [(4, 4), (32, 32)])
    assert 0 < small < large < 1
    assert len(Measured(meter).layer(DEPTHWISE, [(8, 8), (16, 16)])) == 2
    assert len(Measured(meter).layer(replace(CONV, kind="linear", sizes=()), [(8, 8), (8, 16)])) == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_nodes_of_a_network_have_times_and_sizes(name):
    meter = _meter(name)
    program = trace(Net().eval(), (torch.randn(1, 3, 12, 12),))
    found = Measured(meter).network(program)
    assert 0 < found.seconds < 1
    assert all(node.seconds >= 0 for node in found.nodes)
    products = [node for node in found.nodes if node.op in PRODUCTS]
    assert sorted(node.elements for node in products) == [5, 16 * 8 * 8, 16 * 8 * 8, 16 * 10 * 10]
    others = {node.elements for node in found.nodes if node.op not in PRODUCTS}
    assert 16 in others, "the mean"
    assert all(node.seconds > 0 for node in products), "even those that take less than a microsecond"


def test_openvino_tells_what_goes_by_between_its_nodes():
    *nodes, between = _meter("openvino").profile(trace(Net().eval(), (torch.randn(1, 3, 12, 12),)), 0.05)
    assert (between.op, between.elements) == (BETWEEN, 0)
    assert 0 < between.seconds < 1e-3
    assert BETWEEN not in {node.op for node in nodes}


def test_what_a_runtime_does_not_tell_is_no_time():
    class Silent:
        name, layout = "silent 1, 1 thread", frozenset()

        def profile(self, program, seconds):
            return ()

    with pytest.raises(TargetError, match="silent 1, 1 thread tells no time of the layer conv 3x3, 6x6"):
        Measured(Silent()).layer(CONV, [(4, 4)])


def test_parts_are_told_apart_by_their_names():
    names = [node.name for node in parts_of(CONV, [(4, 4), (8, 8)]).graph.nodes if node.op != "output"]
    assert [PART.search(name)[1] for name in names] == ["0000", "0001"] * 2


def test_programs_take_turns():
    programs = [trace(nn.Conv2d(3, width, 3).eval(), (torch.randn(1, 3, 40, 40),)) for width in (1, 64)]
    small, large = runs_in_turns("torch", programs)
    assert 0 < small < large


def test_a_runtime_of_single_samples_sees_one():
    program = trace(Net().eval(), (torch.randn(2, 3, 12, 12),))
    assert timed("ncnn", program).inputs[0].shape[0] == 1
    assert timed("onnx", program) is program


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mnn", {"needs": ("no-such-package>=1",)}, "mnn needs no-such-package, which isn't installed"),
        ("mnn", {"unrunnable": lambda self: "it is too hot"}, "times can't be taken in mnn: it is too hot"),
        ("mnn", {"meter": Target.meter, "needs": ()}, "times can't be taken in mnn"),
    ],
    ids=["not installed", "can't run", "no meter"],
)
def test_why_a_runtime_is_not_timed(name, change, message, monkeypatch):
    for key, value in change.items():
        monkeypatch.setattr(TARGETS.named(name), key, value)
    if "unrunnable" in change:
        monkeypatch.setattr(timing, "missing", lambda target: None)
    with pytest.raises(PrunecError) as caught:
        meter_of(name)
    assert caught.value.message == message
    assert caught.value.hint


def test_low_times_count_and_the_first_does_not():
    times = Times()
    for seconds in (9.0, *range(1, 12)):
        times.add("a", float(seconds))
    times.add("b", 3.0)
    assert times.low() == {"a": pytest.approx(2.0), "b": 3.0}
    assert times.least() == {"a": 1.0, "b": 3.0}


def test_what_was_made_last_is_made_once():
    first, second = (trace(nn.Linear(2, 2).eval(), (torch.randn(1, 2),)) for _ in range(2))
    last, made = metering.Last(), iter("abc")
    found = [last.of(program, lambda: next(made)) for program in (first, first, second, first)]
    assert found == ["a", "a", "b", "c"]


def test_turns_end():
    assert len(list(turns(0.0))) == metering.FEWEST
    assert len(list(turns(60.0))) == metering.MOST


def test_calls_are_timed_in_processor_time():
    (idle, busy) = seconds_of([lambda: None, lambda: sum(range(20000))], 0.05)
    assert 0 < idle < busy


def test_a_node_is_called_by_the_one_input_that_it_hangs_on():
    origins = Origins()
    origins.starts(0, "image")
    origins.starts(1, "mask")
    told = [("conv", [0, 7], [2]), ("relu", [2], [3, 4]), ("mul", [4, 1], [5]), ("add", [7], [6]), ("last", [5], [8])]
    assert [origins.name(*node) for node in told] == ["image", "image", "mul", "add", "last"]
