"""Sessions of onnxruntime: what they are fed, what they refuse, and their profiles."""

from __future__ import annotations

import onnx
import pytest
import torch
from timing import CONV

from prunec.compiler.cost.latency.layers import Layer, parts_of
from prunec.compiler.errors import ModelError
from prunec.compiler.targets.interleaved import FEWEST, MOST, RUNS
from prunec.compiler.targets.onnx_export import onnx_bytes, onnx_feed
from prunec.compiler.targets.ort_session import feed, latency, ort_latency, profile, session


def model_of(layer, inner, outer):
    """A layer's ONNX file, in bytes, and what it is fed."""
    program = parts_of(layer, [(inner, outer)])
    model = onnx_bytes(program)
    return model, onnx_feed(model, program)


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
        "part0000_x": (1, 8, 6, 6)
    }


class Session:
    """Stands in for onnxruntime's: it counts its runs, and each takes so long on a clock of the test's."""

    def __init__(self, seconds, clock) -> None:
        self.seconds, self.clock, self.runs = seconds, clock, 0

    def run(self, names, fed):
        self.runs += 1
        self.clock[0] += self.seconds


@pytest.mark.parametrize(
    ("seconds", "total"),
    [
        ((0.00002, 0.00001), MOST * RUNS * 0.00003),  # of short runs, enough
        ((0.0001, 0.00005), MOST * RUNS * 0.00015),
        ((0.0005, 0.0004), 2.0),
        ((0.004, 0.002), 2.0),
        ((0.1, 0.06), 2.0),
        ((0.15, 0.15), 2.0),
        ((2.0, 1.0), (FEWEST + 2) * 3.0),  # a few rounds, whatever they take
    ],
)
def test_the_rounds_follow_what_a_run_takes(seconds, total, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("prunec.compiler.targets.interleaved._own_clock", lambda: clock[0])
    sessions = [Session(each, clock) for each in seconds]
    assert latency(sessions, [{}, {}]) == pytest.approx(seconds)
    assert clock[0] == pytest.approx(total, rel=0.35)


def test_latency_of_bytes_and_of_a_file(tmp_path):
    model, _ = model_of(CONV, 8, 4)
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    found = ort_latency([model, path], (torch.zeros(1, 8, 6, 6),), seconds=0.01)
    assert len(found) == 2
    assert min(found) > 0


def test_open_sizes_are_fixed_by_name():
    model = onnx.load_from_string(model_of(CONV, 8, 4)[0])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    data = model.SerializeToString()
    assert session(data).get_inputs()[0].shape == ["batch", 8, 6, 6]
    assert session(data, sizes={"batch": 3, "height": 5}).get_inputs()[0].shape == [3, 8, 6, 6]
