"""Sessions of onnxruntime: what they are fed, what they refuse, and their profiles."""

from __future__ import annotations

import pytest
import torch
from timing import CONV

from prunec.compiler.cost.latency.layers import Layer, model_of
from prunec.compiler.errors import ModelError
from prunec.compiler.targets.ort_session import feed, profile, session


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
