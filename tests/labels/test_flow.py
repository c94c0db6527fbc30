"""Labels flow like data: whatever an operation does to elements, it does to their labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Made
from torch import nn

from prunec.compiler.groups import analysis as units
from prunec.compiler.ir.program import Program
from prunec.compiler.labels.fields import compress, reshape_labels
from prunec.compiler.labels.flow import FIXED, Flow
from prunec.compiler.labels.propagate import run_rules
from prunec.compiler.labels.registry import MODULE_ROWS, OP_ROWS, TENSOR_SIZES, VALUE_SIZES
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.table import RULES
from prunec.passes.criteria.reads import find_reads


def flowed(parts, run, *shapes):
    """The labels of a program's values, by node name."""
    model = Made(parts, run).eval()
    program = trace(model, tuple(torch.zeros(shape) for shape in shapes))
    flow = Flow(program)
    run_rules(flow)
    return flow, {node.name: value for node, value in flow.values.items()}


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_reshaping_compressed_labels_is_reshaping_full_ones(data):
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))
    old = data.draw(_shapes(factors))
    new = data.draw(_shapes(factors))
    varying = [size if data.draw(st.booleans()) else 1 for size in old]
    labels = np.arange(int(np.prod(varying))).reshape(varying)
    found = reshape_labels(labels, old, new)
    assert np.array_equal(np.broadcast_to(found, new), np.broadcast_to(labels, old).reshape(new))


@st.composite
def _shapes(draw, factors):
    """A shape with the product of the factors, ones strewn in."""
    shape: list[int] = []
    for factor in draw(st.permutations(factors)):
        if shape and draw(st.booleans()):
            shape[-1] *= factor
        else:
            shape.append(factor)
    place = draw(st.integers(0, len(shape)))
    return (*shape[:place], *[1] * draw(st.integers(0, 2)), *shape[place:])


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_compressing_keeps_every_label(shape, data):
    varying = [size if data.draw(st.booleans()) else 1 for size in shape]
    full = np.broadcast_to(np.arange(int(np.prod(varying))).reshape(varying), shape).copy()
    small = compress(full)
    assert small.shape == tuple(varying)
    assert np.array_equal(np.broadcast_to(small, shape), full)


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


CARRIED = {
    "gate of one channel, expanded": lambda m, x: m.b(m.a(x) * m.g(x).sigmoid().expand(-1, 8, -1, -1)),
    "the same, repeated": lambda m, x: m.b(m.a(x) * m.g(x).sigmoid().repeat(1, 8, 1, 1)),
    "the same, element by element": lambda m, x: m.b(m.a(x) * (-m.g(x).expand(-1, 8, -1, -1)).sigmoid()),
    "picked from": lambda m, x: m.b(m.a(x) * m.g(x).expand(-1, 8, -1, -1)[:, :8]),
    "pooled": lambda m, x: m.b(m.a(x) * F.avg_pool2d(m.g(x).expand(-1, 8, -1, -1), 1)),
    "put together": lambda m, x: m.b(
        m.a(x) * torch.cat([m.g(x).expand(-1, 4, -1, -1), m.g(x).expand(-1, 4, -1, -1)], 1)
    ),
}
"""Copies of one value that meet eight channels: all eight may go."""


@pytest.mark.parametrize("name", CARRIED)
def test_copies_go_with_the_channels_that_they_meet(name, moved_rules):
    parts = {"a": nn.Conv2d(3, 8, 1), "g": nn.Conv2d(3, 1, 1), "b": nn.Conv2d(8, 4, 1)}
    program = trace(Made(parts, CARRIED[name]).eval(), (torch.zeros(2, 3, 5, 5),))
    assert free_units(program) == 8


def free_units(program: Program) -> int:
    return int(units.analyse(program).free.sum())


@pytest.fixture(params=["where they are", "moved"])
def moved_rules(request, monkeypatch):
    """The rules, as they are and as if each of them stood in another file: nothing may depend on a file's name."""
    if request.param == "moved":
        for row in (*OP_ROWS.values(), *MODULE_ROWS.values()):
            monkeypatch.setattr(row.rule, "__module__", "elsewhere")


def test_a_weight_that_is_picked_from_stays_computed(moved_rules):
    """Picking pins what is picked from, but it is no statistic: the weight keeps its parameter."""
    model = Made(
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}, lambda m, x: F.conv2d(m.a(x), m.b.weight[[2, 0, 1]])
    )
    program = trace(model.eval(), (torch.zeros(1, 3, 2, 2),))
    assert program.tensors["b.weight"].shape == (4, 8, 1, 1)


def test_a_standardised_weight_is_computed_once(moved_rules):
    def run(m, x):
        w = m.a.weight
        return m.b(F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)))

    program = trace(Made({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}, run).eval(), (torch.zeros(1, 3, 2, 2),))
    assert free_units(program) == 8


def test_a_mean_over_channels_is_a_read(moved_rules):
    model = Made({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(1, 4, 1)}, lambda m, x: m.b(m.a(x).mean(1, keepdim=True)))
    reads = find_reads(units.analyse(trace(model.eval(), (torch.zeros(1, 3, 2, 2),))))
    assert [(read.consumer.name, read.units.size) for read in reads] == [("mean", 8)]


SPELLINGS = {"and": "and_", "or": "or_"}
NO_DATA = {"_assert", "element_size", "get_device", "is_complex", "is_contiguous", "isqrt", "len", "sym_sqrt"}


def test_the_verifier_knows_every_operation_that_passes_removed_channels_on():
    """Else a right rewrite would be called a bug."""
    plain = {name for name in OP_ROWS if not name.startswith("__")} - NO_DATA
    assert {SPELLINGS.get(name, name) for name in plain} - {"ifloordiv"} <= set(RULES)


def _makes_a_weight(cls: type) -> bool:
    code = getattr(cls.__init__, "__code__", None)
    return code is not None and "weight" in code.co_names


def test_every_layer_with_axes_can_be_resized():
    """A rule that binds the axes of a module needs a row that says which attributes repeat their sizes."""
    recurrent = (nn.RNNBase, nn.RNNCellBase)  # these make their weights by name, in a loop
    binding = {cls for cls in MODULE_ROWS if issubclass(cls, recurrent) or any(map(_makes_a_weight, cls.__mro__))}
    assert len(binding) > 20
    unsized = {cls for cls in binding if not any(issubclass(cls, base) for base in TENSOR_SIZES)}
    assert unsized == set()
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    assert all(cls in VALUE_SIZES for cls in norms)
