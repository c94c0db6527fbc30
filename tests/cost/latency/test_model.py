"""Latency: what a layer is, where it is measured, how its times are kept and shared out, and what is predicted.

Nothing here depends on how fast the machine is: times come from a meter whose clock is a formula. One test takes the
real runtime, and asks only for numbers that make sense.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import NETS, Made, conv
from oracle import selection
from torch import nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.cli import main as cli
from prunec.compiler.cost.latency import model as latency_model_module
from prunec.compiler.cost.latency import table as latency_table
from prunec.compiler.cost.latency.attribution import DISPATCH, Part, share_out
from prunec.compiler.cost.latency.cache import Cache, cache_folder
from prunec.compiler.cost.latency.grid import Grid, Line
from prunec.compiler.cost.latency.layers import Layer, layer_at, model_of
from prunec.compiler.cost.latency.model import LatencyModel, kept_units, latency_model, latency_resource
from prunec.compiler.cost.latency.table import Measured, NetworkTime, Table
from prunec.compiler.cost.model import cost_model
from prunec.compiler.cost.resources import TAKES, resource
from prunec.compiler.errors import ModelError, OutputError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.report import figures
from prunec.compiler.report.html import report_html
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.targets.base import NodeTime
from prunec.compiler.targets.onnxruntime import OnnxRuntimeMeter
from prunec.compiler.targets.ort_session import feed, profile, session
from prunec.compiler.targets.processor import processor
from prunec.compiler.tracing.trace import trace
from prunec.models.digits import cnn


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEC_CACHE_DIR", str(tmp_path / "times"))
    return tmp_path / "times" / "latency"


class Formula:
    """A layer takes a nanosecond a multiplication, in a network two; any other value takes one a number."""

    name = "formula"

    def __init__(self) -> None:
        self.asked: list[Layer] = []

    def layer(self, layer, points):
        self.asked.append(layer)
        return [1e-9 * layer.weights(*point) * layer.batch * math.prod(layer.sizes) for point in points]

    def network(self, program):
        nodes = []
        analysis = analyse(program)
        for node in program.graph.nodes:
            numbers = node.meta["val"].numel() if isinstance(node.meta.get("val"), torch.Tensor) else 0
            layer = layer_at(program, node, f"{node.target}.weight" in {axis.tensor for axis in analysis.flow.by_group})
            if layer is not None:
                (alone,) = self.layer(layer, [(layer.inner, layer.outer)])
                nodes.append(NodeTime("Conv", numbers, 2 * alone))
            elif node.op not in ("placeholder", "get_attr", "output"):
                nodes.append(NodeTime("Other", numbers, 1e-9 * numbers))
        return NetworkTime(tuple(nodes), math.fsum(node.seconds for node in nodes))


def modelled(program, meter=None) -> LatencyModel:
    return latency_model(program, Table(meter or Formula()))


# -- layers --------------------------------------------------------------------------------------------------------

CONV = Layer("conv", 8, 16, 1, (6, 6), kernel=(3, 3), stride=(1, 1), pads=((1, 1), (1, 1)), dilation=(1, 1))
IMAGE = (2, 8, 9, 9)


def functional(call, *shapes):
    parts = {f"w{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    return Made(parts, lambda m, x: call(x, *(getattr(m, name) for name in parts)))


def single(layer):
    return Made({"a": layer}, lambda m, x: m.a(x))


LAYERS = {
    "conv": (single(nn.Conv2d(8, 6, 3, stride=2, padding=1)), IMAGE),
    "conv_without_bias": (single(nn.Conv2d(8, 6, (3, 1), padding=(1, 0), dilation=2, bias=False)), IMAGE),
    "conv_same": (single(nn.Conv2d(8, 6, 3, padding="same", dilation=(1, 3))), IMAGE),
    "conv_valid": (single(nn.Conv2d(8, 6, 4, padding="valid")), IMAGE),
    "conv1d": (single(nn.Conv1d(8, 6, 5, padding=2)), (2, 8, 9)),
    "conv3d": (single(nn.Conv3d(8, 6, 3)), (1, 8, 4, 4, 4)),
    "grouped": (single(nn.Conv2d(8, 12, 3, groups=4)), IMAGE),
    "depthwise": (single(nn.Conv2d(8, 8, 3, groups=8)), IMAGE),
    "transposed": (single(nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)), IMAGE),
    "transposed_grouped": (single(nn.ConvTranspose2d(8, 6, 2, groups=2)), IMAGE),
    "linear": (single(nn.Linear(8, 5)), (2, 8)),
    "linear_on_tokens": (single(nn.Linear(8, 5)), (2, 7, 8)),
    "linear_without_bias": (single(nn.Linear(8, 5, bias=False)), (2, 7, 8)),
    "functional_linear": (functional(F.linear, (5, 8)), (2, 8)),
    "functional_conv": (functional(lambda x, w: F.conv2d(x, w, stride=2, padding=1), (6, 8, 3, 3)), IMAGE),
    "functional_same": (functional(lambda x, w: F.conv2d(x, w, padding="same"), (6, 8, 3, 3)), IMAGE),
    "functional_grouped": (functional(lambda x, w: F.conv2d(x, w, groups=2), (6, 4, 3, 3)), IMAGE),
    "functional_transposed": (functional(lambda x, w: F.conv_transpose2d(x, w, stride=2), (8, 6, 2, 2)), IMAGE),
}


def only_layer(model, shape):
    program = trace(model.eval(), (torch.randn(shape),))
    layers = [(layer_at(program, node, False), node) for node in program.graph.nodes]
    ((layer, node),) = [(layer, node) for layer, node in layers if layer is not None]
    return layer, node


@pytest.mark.parametrize(("model", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_tiny_model_has_the_sizes_of_the_layer(model, shape):
    layer, node = only_layer(model, shape)
    found, fed = model_of(layer, layer.inner, layer.outer)
    assert fed["x"].shape == shape
    (result,) = session(found).run(None, fed)
    assert result.shape == tuple(node.meta["val"].shape)


@pytest.mark.parametrize(("model", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_tiny_model_at_half_the_widths(model, shape):
    layer, _ = only_layer(model, shape)
    full = zip((layer.inner, layer.outer), layer.steps, strict=True)
    inner, outer = (max(step, width // 2 // step * step) for width, step in full)
    found, fed = model_of(layer, inner, outer)
    (result,) = session(found).run(None, fed)
    channels = 1 if layer.kind != "linear" else -1
    assert (fed["x"].shape[channels], result.shape[channels]) == (inner, outer)
    assert np.isfinite(result).all()


def test_whole_groups_leave_with_the_width_of_a_group():
    layer = replace(CONV, outer=24, groups=4, whole=True)
    assert (layer.steps, layer.at(8, 12)) == ((2, 6), (4, 12, 2))
    (result,) = session(model_of(layer, 8, 12)[0]).run(None, model_of(layer, 8, 12)[1])
    assert result.shape == (1, 12, 6, 6)


@pytest.mark.parametrize("call", [lambda x, w: F.linear(x, w), lambda x, w: F.conv2d(x, w, padding=x.shape[1] // 8)])
def test_what_has_no_tiny_model_is_no_layer(call):
    shape = (4,) if "linear" in call.__code__.co_names else (6, 8, 3, 3)
    program = trace(functional(call, (8,) if len(shape) == 1 else shape).eval(), (torch.randn(2, 8, 8, 8),))
    node = next(n for n in program.graph.nodes if "linear" in n.name or "conv" in n.name)
    assert layer_at(program, node, False) is None or len(shape) == 4


def test_a_layer_in_words():
    assert CONV.describe() == "conv 3x3, 6x6"
    assert replace(CONV, stride=(2, 2), groups=8, batch=4).describe() == "conv 3x3 /2 8 groups, 6x6, batch 4"
    assert Layer("linear", 8, 5, 1, ()).describe() == "linear, 1"


# -- the grid ------------------------------------------------------------------------------------------------------

LINES = [(full, step) for full in (1, 3, 7, 8, 10, 24, 64, 96, 144, 512, 960, 1000, 4096) for step in (1, 2, 4)]
LINES = [(full, step) for full, step in LINES if full % step == 0]


@pytest.mark.parametrize("stairs", [True, False])
@pytest.mark.parametrize(("full", "step"), LINES)
def test_a_line_lies_in_its_range(full, step, stairs):
    line = Line(full, step, True, stairs)
    for widths in (line.coarse, line.base, line.strays):
        assert list(widths) == sorted(set(widths))
        assert all(0 < width <= full and width % step == 0 for width in widths)
    assert set(line.coarse) <= set(line.base)
    assert line.top == max(line.coarse) == max(line.base)
    assert full in (*line.base, *line.strays)
    assert len(line.base) + len(line.strays) < 64


def test_a_width_that_cannot_change_has_one_point():
    assert Grid.of(CONV, (False, False)).points == ((8, 16),)
    assert {inner for inner, _ in Grid.of(CONV, (False, True)).points} == {8}


def at_every_width(grid, formula):
    surface = grid.surface({point: formula(*point) for point in grid.points})
    inner = range(4, grid.inner.full + 1) if grid.inner.open else [grid.inner.full]
    outer = range(4, grid.outer.full + 1) if grid.outer.open else [grid.outer.full]
    return [(surface.at(i, o), formula(i, o), i, o) for i in inner for o in outer]


SMOOTH = {
    "product": lambda i, o: i * o,
    "line_by_line": lambda i, o: (3 + i) * (7 + o),
    "constant": lambda i, o: 2.0,
}


@pytest.mark.parametrize("formula", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("widths", [(48, 80), (64, 10), (30, 100)])
def test_what_grows_evenly_is_read_exactly(formula, widths):
    grid = Grid.of(replace(CONV, inner=widths[0], outer=widths[1]), (True, True))
    for got, want, *_ in at_every_width(grid, formula):
        assert got == pytest.approx(want, rel=1e-9)


def stairs(i, o):
    """Sixteen channels leave at once, and a fourth block of them costs less than the third."""
    blocks = -(-o // 16)
    return i * (blocks // 4 * 4 + (0, 1, 2, 3.6)[blocks % 4])


def test_steps_are_seen():
    grid = Grid.of(replace(CONV, inner=64, outer=128), (True, True))
    errors = [abs(got / want - 1) for got, want, _, o in at_every_width(grid, stairs) if o % 16 in (0, 4, 8, 12)]
    assert max(errors) < 1e-9


def test_slow_widths_are_seen():
    grid = Grid.of(replace(CONV, inner=64, outer=96), (True, True))

    def slow(i, o):
        return i * o * (3.0 if i % 2 else 1.5 if i % 4 else 1.0) * (2.0 if o % 4 else 1.0)

    for got, want, *_ in at_every_width(grid, slow):
        assert got == pytest.approx(want, rel=1e-9)


def test_every_point_is_read_as_it_was_measured():
    rng = np.random.default_rng(0)
    grid = Grid.of(replace(CONV, inner=60, outer=70), (True, True))
    times = {point: float(rng.uniform(1, 2)) for point in grid.points}
    surface = grid.surface(times)
    for inner, outer in grid.points:
        assert surface.at(inner, outer) == pytest.approx(times[inner, outer])


# -- sharing out ---------------------------------------------------------------------------------------------------

NODES = (NodeTime("Conv", 100, 4.0), NodeTime("Gemm", 10, 1.0), NodeTime("Add", 100, 0.5), NodeTime("Softmax", 7, 0.5))


def test_shares_add_up_to_the_network():
    shares = share_out(NetworkTime(NODES, 6.0), [Part(100, 1.0), Part(100, 1.0), Part(10, 2.0)], [100, 10, 30])
    assert shares.parts == pytest.approx((2.0, 2.0, 1.0))
    assert shares.values == pytest.approx((0.5 + 0.5 * 100 / 140, 0.5 * 10 / 140, 0.5 * 30 / 140))
    assert shares.fixed == 0.0


@pytest.mark.parametrize(
    ("parts", "values"),
    [
        ([], []),
        ([], [100]),
        ([Part(100, 1.0)], []),
        ([Part(55, 1.0)], [55]),
        ([Part(55, 1.0), Part(100, 3.0)], [55, 3]),
        ([Part(10, 1.0)], [10]),
    ],
)
@pytest.mark.parametrize("seconds", [3.0, 6.0, 6.00005, 60.0])
def test_nothing_gets_lost(parts, values, seconds):
    shares = share_out(NetworkTime(NODES, seconds), parts, values)
    assert math.fsum((*shares.parts, *shares.values, shares.fixed)) == pytest.approx(seconds)
    assert min((*shares.parts, *shares.values, shares.fixed)) >= 0


def test_going_from_node_to_node_stays():
    assert share_out(NetworkTime(NODES, 6.00005), [Part(100, 1.0)], [7]).fixed == pytest.approx(5e-5)
    assert share_out(NetworkTime(NODES, 9.0), [Part(100, 1.0)], [7]).fixed == pytest.approx(4 * DISPATCH)


# -- predicting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_program_as_it_is_takes_what_was_measured(name):
    program = trace(NETS[name].build(), NETS[name].inputs())
    meter = Formula()
    model = modelled(program, meter)
    found = model.resource()
    assert found.now == pytest.approx(meter.network(program).seconds, rel=1e-9)
    for share in (0.3, 1.0):
        keep = selection(analyse(program), 0, share)
        assert 0 <= found.of(keep) <= found.now * (1 + 1e-9)
    widths = cost_model(program).widths(keep)
    which = np.arange(0, len(model.charges), 2)
    assert found.terms.each(widths, which) == pytest.approx(found.terms.each(widths)[which])
    both = found.terms.each(np.stack([widths, cost_model(program).fixed], 1), which)
    assert both[:, 0] == pytest.approx(found.terms.each(widths, which))
    assert both[:, 1] == pytest.approx(found.terms.each(cost_model(program).fixed, which))
    assert tuple(found.units or {}) == TAKES["latency"]


EXACT = [
    "chain",
    "concat",
    "depthwise",
    "depthwise_multiplier",
    "grouped_transposed",
    "transposed",
    "functional_conv",
    "functional_depthwise",
    "flatten_linear",
    "shared_module",
]


@pytest.mark.parametrize("name", EXACT)
def test_a_slim_program_takes_what_is_predicted(name):
    """The formula is a product of widths, which tables hold exactly: so the prediction is what the slim one takes, but
    for values that have one size and different widths, which share their time."""
    program = trace(NETS[name].build(), NETS[name].inputs())
    meter = Formula()
    found = modelled(program, meter).resource()
    for seed, share in enumerate((0.3, 0.6)):
        keep = selection(analyse(program), seed, share)
        slim = remove_units(program, keep)
        assert found.of(keep) == pytest.approx(meter.network(slim).seconds, rel=0.03)
        assert (kept_units(program, slim) == keep).all()


def test_layers_of_one_shape_are_measured_once():
    made = Made({f"c{i}": conv(8, 8) for i in range(4)}, lambda m, x: m.c3(m.c2(m.c1(m.c0(x)))))
    meter = Formula()
    program = trace(made, (torch.zeros(1, 8, 6, 6),))
    meter.network = lambda program: NetworkTime(NODES, 6.0)
    model = modelled(program, meter)
    assert sum(charge.layer is not None for charge in model.charges) == 4
    # The first reads the image and the last writes the output: the widths that may change are of three kinds.
    assert len(meter.asked) == 3 * latency_table.SWEEPS


def test_the_resource_is_named_as_a_plan_names_it(monkeypatch):
    monkeypatch.setattr(latency_model_module, "Measured", lambda meter: Formula())
    program = trace(cnn().eval(), (torch.zeros(1, 1, 8, 8),))
    found = resource("latency", program, Context())
    assert (found.name, found.whole, found.units) == ("latency", False, {"s": 1.0})
    assert found.now == latency_resource(program, Context()).now


# -- kept on disk --------------------------------------------------------------------------------------------------

WANTED = [(CONV, (True, True)), (replace(CONV, inner=4), (True, False))]


def test_times_are_read_again(folder):
    meter = Formula()
    first, second = Table(meter), Table(meter)
    before = first.surfaces(WANTED)
    asked = len(meter.asked)
    after = second.surfaces(WANTED)
    assert (asked, len(meter.asked)) == (len(WANTED) * latency_table.SWEEPS, asked)
    assert (first.measured, second.measured) == (set(WANTED), set())
    assert all((before[each].values == after[each].values).all() for each in WANTED)
    assert len(list(folder.iterdir())) == len(WANTED)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"key": 1, "value": [1.0]}', "\x00\xff"],
    ids=["empty", "half", "list", "null", "other", "bytes"],
)
def test_a_broken_file_is_measured_again(folder, text):
    meter = Formula()
    Table(meter).surfaces(WANTED[:1])
    (path,) = folder.iterdir()
    good = path.read_text()
    path.write_text(text)
    table = Table(meter)
    table.surfaces(WANTED[:1])
    assert table.measured == set(WANTED[:1])
    assert path.read_text() == good


@pytest.mark.parametrize("value", [[1.0], "text", [0.0] * 99, None])
def test_times_that_do_not_fit_are_measured_again(folder, value):
    meter = Formula()
    Table(meter).surfaces(WANTED[:1])
    (path,) = folder.iterdir()
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "value": value}))
    table = Table(meter)
    table.surfaces(WANTED[:1])
    assert table.measured == set(WANTED[:1])


def test_refreshing_measures_everything_again():
    meter = Formula()
    Table(meter).surfaces(WANTED)
    table = Table(meter, refresh=True)
    table.surfaces(WANTED)
    assert table.measured == set(WANTED)


def test_a_network_is_known_whatever_was_found_out_about_it():
    program = trace(cnn().eval(), (torch.zeros(1, 1, 8, 8),))
    meter = Formula()
    first = Table(meter).network(program)
    meter.network = lambda program: pytest.fail("measured again")
    assert Table(meter).network(program.with_facts(scores={"conv1": np.ones(3)})) == first


def test_of_several_sweeps_of_a_network_the_fastest_nodes_count():
    slow = tuple(replace(node, seconds=node.seconds * factor) for node, factor in zip(NODES, (1, 2, 1, 3), strict=True))
    other = tuple(replace(node, seconds=node.seconds * 1.5) for node in NODES)
    found = latency_table._fastest([NetworkTime(slow, 9.0), NetworkTime(other, 8.0)])
    assert [node.seconds for node in found.nodes] == [4.0, 1.5, 0.5, 0.75]
    assert found.seconds == 8.0


def test_another_runtime_has_times_of_its_own(folder):
    Table(Formula()).surfaces(WANTED)
    other = Formula()
    other.name = "another"
    table = Table(other)
    table.surfaces(WANTED)
    assert table.measured == set(WANTED)
    assert len(list(folder.iterdir())) == 2 * len(WANTED)


def test_of_several_sweeps_the_fastest_counts():
    class Tiring(Formula):
        def layer(self, layer, points):
            slow = 1 + len(self.asked) % 2
            return [time * slow for time in super().layer(layer, points)]

    (steady,) = Table(Formula()).surfaces(WANTED[:1]).values()
    tired = Tiring()
    tired.name = "tired"
    (found,) = Table(tired).surfaces(WANTED[:1]).values()
    assert found.at(8, 16) == pytest.approx(steady.at(8, 16))


def test_processes_that_write_at_once_leave_whole_files(folder):
    cache = Cache(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.store({"a": 1}, [float(n)] * 1000), range(64)))
    found = cache.load({"a": 1})
    assert len(found) == 1000
    assert len(set(found)) == 1
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"can't keep measured times in .*file") as caught:
        Cache(tmp_path / "file" / "inside").store({"a": 1}, 1)
    assert "PRUNEC_CACHE_DIR" in caught.value.hint


def test_where_times_are_kept(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "times"
    monkeypatch.delenv("PRUNEC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "prunec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "prunec"


def test_a_processor_has_a_name():
    assert processor()


# -- the real runtime ----------------------------------------------------------------------------------------------


def test_a_layer_is_really_measured():
    meter = Measured(OnnxRuntimeMeter())
    small, large = meter.layer(replace(CONV, inner=64, outer=64, sizes=(24, 24)), [(4, 4), (64, 64)])
    assert 0 < small < large < 1


def test_a_network_is_really_measured():
    program = trace(cnn().eval(), (torch.zeros(1, 1, 8, 8),))
    found = Measured(OnnxRuntimeMeter()).network(program)
    assert 0 < found.seconds < 1
    assert {"Conv", "Gemm"} <= {node.op for node in found.nodes}
    assert all(node.elements > 0 and node.seconds >= 0 for node in found.nodes)


def test_points_are_measured_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(latency_table, "HELD", 100)
    assert len(Measured(OnnxRuntimeMeter()).layer(CONV, [(4, 4), (8, 4), (8, 8)])) == 3


def test_a_profile_has_the_nodes_of_every_file():
    made = [model_of(CONV, 4, 4), model_of(Layer("linear", 8, 5, 2, (7,)), 8, 5)]
    found = profile([model for model, _ in made], [fed for _, fed in made], rounds=1, block=0.0)
    ops = [{node.op for node in nodes} for nodes in found]
    assert "Conv" in ops[0]
    assert "Gemm" in ops[1]


def test_bytes_that_the_runtime_cannot_load():
    with pytest.raises(ModelError, match="onnxruntime can't load the ONNX file"):
        session(b"garbage")


def test_a_feed_has_the_inputs_names():
    opened = session(model_of(CONV, 8, 4)[0])
    assert {name: value.shape for name, value in feed(opened, (torch.zeros(1, 8, 6, 6),)).items()} == {
        "x": (1, 8, 6, 6)
    }


# -- in a compile --------------------------------------------------------------------------------------------------

PLAN = {
    "plan": 1,
    "inputs": [[1, 1, 8, 8]],
    "passes": [{"score": "l1"}, {"select": {"budget": {"latency": "50%"}}}, "shrink"],
}


@pytest.fixture
def formula(monkeypatch):
    monkeypatch.setattr(latency_model_module, "Measured", lambda meter: Formula())


def test_the_report_compares_predicted_and_measured(formula, tmp_path):
    result = compile(cnn((16, 32)).eval(), PLAN)
    assert (
        0.45 < result.report["latency"]["predicted"]["after"] / result.report["latency"]["predicted"]["before"] <= 0.5
    )
    report = result.write(tmp_path / "out")
    assert min(report.latency.measured.before, report.latency.measured.after) > 0
    assert report.to_dict() == json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures.foretold(report)
    assert figures.foretold(report) in report_html(report)
    assert {"predicted latency", "measured latency"} <= {figure.name for figure in figures.figures(report)}


def test_with_an_onnx_file_that_is_what_is_measured(formula, tmp_path):
    report = compile(cnn((16, 32)).eval(), {**PLAN, "export": ["onnx"]}).write(tmp_path / "out")
    assert report.latency.measured == report.onnx.latency
    names = [figure.name for figure in figures.figures(report)]
    assert "predicted latency" in names
    assert "measured latency" not in names


def test_a_budget_in_milliseconds(formula):
    program = trace(cnn((16, 32)).eval(), (torch.zeros(1, 1, 8, 8),))
    now = latency_resource(program, Context()).now
    passes = [{"score": "l1"}, {"select": {"budget": {"latency": f"{600 * now:.6f}ms"}}}, "shrink"]
    found = compile(cnn((16, 32)).eval(), {**PLAN, "passes": passes}).report["latency"]["predicted"]
    assert 0.55 * now < found["after"] <= 0.6 * now


def test_without_such_a_budget_nothing_is_predicted():
    plan = {**PLAN, "passes": [{"score": "l1"}, {"select": {"ratio": 0.5}}, "shrink"]}
    result = compile(cnn((16, 32)).eval(), plan)
    assert "latency" not in result.report
    assert figures.foretold(result.findings) == ""


def test_the_command_prints_every_layer(formula, capsys):
    arguments = ["latency", "prunec.models.digits:cnn", "--inputs", "1,1,8,8"]
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    for text in ("conv 3x3", "linear", "in the network", "in formula", "were measured now, 0 were known"):
        assert text in out
    assert cli.run(arguments) == 0
    assert "0 layers were measured now" in capsys.readouterr().out
    assert cli.run([*arguments, "--refresh"]) == 0
    assert ", 0 were known" in capsys.readouterr().out


def test_the_command_wants_inputs(capsys):
    assert cli.run(["latency", "prunec.models.digits:cnn"]) == 1
    assert "needs example inputs" in capsys.readouterr().err
