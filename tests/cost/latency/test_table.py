"""Measured times are kept and read again, and measured anew wherever a file can't be trusted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from timing import CONV, NODES, Formula

from prunec.compiler.cost.latency import table as latency_table
from prunec.compiler.cost.latency.layers import PART
from prunec.compiler.cost.latency.table import Measured, NetworkTime, Table
from prunec.compiler.targets.base import NodeTime
from prunec.compiler.targets.onnxruntime import OnnxRuntimeMeter
from prunec.compiler.tracing.trace import trace
from prunec.models.digits import cnn

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


def test_points_are_measured_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(latency_table, "HELD", 100)
    assert len(Measured(OnnxRuntimeMeter()).layer(CONV, [(4, 4), (8, 4), (8, 8)])) == 3


def test_points_are_measured_as_many_at_a_time_as_caches_hold(monkeypatch):
    point = (8, 16)
    own = CONV.weights(*point) + CONV.values(*point)
    assert own == 8 * 16 * 9 + (8 + 16) * 36
    asked = []

    class Meter:
        name, layout = "a runtime", frozenset()

        def profile(self, program, seconds):
            parts = [node.name for node in program.graph.nodes if PART.search(node.name) and node.op != "placeholder"]
            asked.append((len(parts), seconds))
            return [NodeTime("Conv", 1, 1e-6, name) for name in parts]

    for cached, sizes in ((100 * own, [20]), (8 * own, [8, 8, 4]), (7 * own, [20])):
        asked.clear()
        monkeypatch.setattr(latency_table, "CACHED", cached)
        assert Measured(Meter()).layer(CONV, [point] * 20) == [1e-6] * 20
        seconds = latency_table.LAYER_SECONDS / len(sizes)
        assert asked == [(size, pytest.approx(seconds)) for size in sizes]
