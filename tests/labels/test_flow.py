"""Labels flow like data: whatever an operation does to elements, it does to their labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import NETS, Made
from torch import nn

from prunec.compiler.labels.flow import FIXED, Flow
from prunec.compiler.labels.propagate import run_rules
from prunec.compiler.tracing.trace import trace


def flowed(parts, run, *shapes):
    """The labels of a program's values, by node name."""
    model = Made(parts, run).eval()
    program = trace(model, tuple(torch.zeros(shape) for shape in shapes))
    flow = Flow(program)
    run_rules(flow)
    return flow, {node.name: value for node, value in flow.values.items()}


def test_concatenation_with_the_image_has_fixed_columns():
    _, values = flowed({"a": nn.Conv2d(3, 4, 1)}, lambda m, x: torch.cat([x, m.a(x)], 1), (1, 3, 2, 2))
    [labels] = values["cat"]
    assert labels.shape == (1, 7, 1, 1)
    assert labels.ravel().tolist() == [FIXED] * 3 + values["a"][0].ravel().tolist()


def test_a_residual_chain_shares_one_array():
    """Elementwise operations pass the very same array on: that keeps long chains cheap."""
    parts = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4)}
    _, values = flowed(parts, lambda m, x: (lambda y: y + m.bn(m.b(y.relu())))(m.a(x)), (1, 3, 2, 2))
    assert values["add"][0] is values["a"][0]


def test_batch_and_image_stay_compressed():
    _, values = flowed({"a": nn.Conv2d(3, 4, 3)}, lambda m, x: m.a(x).permute(0, 2, 3, 1).flatten(1, 2), (5, 3, 9, 9))
    assert values["flatten"][0].shape == (1, 1, 4)


def test_flattening_repeats_each_channel_for_its_pixels():
    _, values = flowed({"a": nn.Conv2d(3, 4, 1)}, lambda m, x: m.a(x).flatten(1), (2, 3, 2, 2))
    first = values["a"][0].ravel()
    assert values["flatten"][0].ravel().tolist() == np.repeat(first, 4).tolist()


@pytest.mark.parametrize("name", sorted(NETS))
def test_no_label_is_invented(name):
    """Every label comes from an axis or from padding, and no field is all fixed or wider than its value."""
    net = NETS[name]
    flow = Flow(trace(net.build(), net.inputs()))
    run_rules(flow)
    for node, fields in flow.values.items():
        for labels in fields if isinstance(fields, tuple) else ():
            shape = node.meta["val"].shape
            assert labels.ndim == len(shape), node
            assert all(size in (1, full) for size, full in zip(labels.shape, shape, strict=True)), node
            assert labels.size > 1, node
            assert labels.min() >= FIXED, node
            assert FIXED < labels.max() < flow.count, node
