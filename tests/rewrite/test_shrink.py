"""Removing units: the slim program computes what the masked one does, whatever is removed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import NETS, Made, conv, pooled
from oracle import difference, masked, run, selection, zeroed
from random_nets import programs
from torch import nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Axis
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.tracing.trace import trace

TOLERANCE = 1e-9
COUNTING = {name for name in NETS if "layer_norm" in name or "group_norm" in name or "rms_norm" in name}
"""Networks that count the channels they are given: zeros aren't the same as fewer channels there."""
SHARES = (0.2, 0.6, 1.0)


@pytest.fixture(scope="module", params=sorted(NETS))
def traced(request):
    net = NETS[request.param]
    model = net.build()
    return net, model, trace(model, net.inputs())


def test_slim_is_masked(traced):
    net, _, program = traced
    for seed, share in enumerate(SHARES):
        keep = selection(analyse(program), seed, share)
        for batch in (1, 3):
            inputs = net.inputs(batch)
            assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", sorted(set(NETS) - COUNTING))
def test_slim_is_the_old_model_with_zeros(name):
    net = NETS[name]
    model = net.build()
    program = trace(model, net.inputs())
    for seed, share in enumerate(SHARES):
        keep = selection(analyse(program), seed, share)
        inputs = net.inputs(3, seed)
        with torch.no_grad():
            want = zeroed(model, removed_positions(analyse(program), keep))(*inputs)
        assert difference(run(program, keep, inputs), want) < TOLERANCE


def test_nothing_removed_is_the_same_program(traced):
    _, _, program = traced
    assert remove_units(program, np.ones(analyse(program).size, dtype=bool)) is program


def test_the_old_program_stays_as_it_was(traced):
    net, model, program = traced
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = str(program.graph)
    inputs = net.inputs()
    with torch.no_grad():
        want = model(*inputs)
        run(program, selection(analyse(program), 0, 0.9), inputs)
        assert difference(model(*inputs), want) == 0
    assert str(program.graph) == text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_shapes_on_the_nodes_are_the_real_ones(traced):
    """`meta["val"]` of the slim program is what tracing it anew finds."""
    net, _, program = traced
    slim = remove_units(program, selection(analyse(program), 1, 0.6))
    again = trace(slim.module, net.inputs())
    shapes = {n.name: _shapes(n.meta.get("val")) for n in slim.graph.nodes if n.op == "call_module"}
    fresh = {n.name: _shapes(n.meta.get("val")) for n in again.graph.nodes if n.op == "call_module"}
    assert shapes == fresh


def _shapes(value):
    return [tuple(part.shape) for part in value] if isinstance(value, tuple) else tuple(value.shape)


def test_every_free_unit_can_go_alone(traced):
    net, _, program = traced
    analysis, inputs = analyse(program), net.inputs(1)
    for group in analysis.groups.values():
        for unit in np.flatnonzero(group.free)[[0, -1]] if group.free.any() else ():
            keep = np.ones(analysis.size, dtype=bool)
            keep[group.start + unit] = False
            assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


def union(program, twice):
    """The selection on the original that leaves what is left after two removals."""
    analysis = analyse(program)
    keep = np.ones(analysis.size, dtype=bool)
    for axis, left in twice.origin.items():
        units = analysis.units(analysis.flow.bindings[axis].labels)
        gone = np.setdiff1d(np.arange(units.size), left)
        keep[units[gone]] = False
    return keep


def assert_twice_is_once(program, seed):
    first = remove_units(program, selection(analyse(program), seed, 0.4))
    second = remove_units(first, selection(analyse(first), seed + 1, 0.4))
    keep = union(program, second)
    once = removed_positions(analyse(program), keep)
    lost = {axis: len(left) for axis, left in second.origin.items()}
    # A group that shrank to one channel a block may lose whole blocks, which the original doesn't offer.
    if {axis: program.size(axis) - len(gone) for axis, gone in once.items()} != lost:
        return
    direct = remove_units(program, keep)
    assert direct.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(direct.tensors[name], second.tensors[name]) for name in direct.tensors)
    assert {a: p.tolist() for a, p in direct.origin.items()} == {a: p.tolist() for a, p in second.origin.items()}


def test_shrinking_twice_is_shrinking_once(traced):
    assert_twice_is_once(traced[2], seed=1)


# -- single cases ------------------------------------------------------------------------------------------------------


def slim_of(parts, forward, shape, *gone):
    """The slim program without the given units, numbered through."""
    program = trace(Made(parts, forward).double().eval(), (torch.zeros(shape, dtype=torch.float64),))
    keep = np.ones(analyse(program).size, dtype=bool)
    keep[list(gone)] = False
    return remove_units(program, keep)


@pytest.mark.parametrize(
    ("forward", "node", "arguments"),
    [
        (lambda m, x: m.fc(F.max_pool2d(m.a(x), 6).view(-1, 8)), "view", (-1, 6)),
        (lambda m, x: m.fc(m.a(x)[:, :8, 0, 0]), "getitem", ((slice(None), slice(None), 0, 0),)),
        (lambda m, x: m.h(m.a(x)[:, 2:6, 0, 0]), "getitem", ((slice(None), slice(1, 4), 0, 0),)),
        (lambda m, x: m.h(m.a(x)[:, ::2, 0, 0]), "getitem", ((slice(None), [0, 2, 4], 0, 0),)),
    ],
    ids=["view", "whole slice", "slice", "steps"],
)
def test_literals_follow(forward, node, arguments):
    parts = {"a": conv(3, 8), "fc": nn.Linear(8, 4), "h": nn.Linear(4, 4)}
    slim = slim_of(parts, forward, (2, 3, 6, 6), 1, 2)
    [found] = [n for n in slim.graph.nodes if n.name == node]
    assert found.args[1:] == arguments


def test_an_uneven_chunk_becomes_a_split():
    parts = {"a": conv(3, 8), "b": conv(4, 4), "c": conv(4, 4)}
    slim = slim_of(parts, lambda m, x: (lambda p, q: m.b(p) + m.c(q))(*m.a(x).chunk(2, 1)), (2, 3, 6, 6), 0, 1, 7)
    [node] = [n for n in slim.graph.nodes if n.target is torch.split]
    assert node.args[1:] == ([2, 3], 1)


def test_module_attributes_follow():
    parts = {"a": conv(3, 8), "n": nn.GroupNorm(8, 8), "d": conv(8, 8, groups=8), "b": conv(8, 6)}
    slim = slim_of(parts, lambda m, x: m.b(m.d(m.n(m.a(x)))), (2, 3, 6, 6), 2, 5)
    a, n, d, b = (slim.state[name] for name in "andb")
    assert (a.in_channels, a.out_channels) == (3, 6)
    assert (n.num_groups, n.num_channels) == (6, 6)
    assert (d.groups, d.in_channels, d.out_channels) == (6, 6, 6)
    assert (b.in_channels, b.out_channels) == (6, 6)


def test_origin_numbers_positions_as_in_the_original():
    net = NETS["chain"]
    program = trace(net.build(), net.inputs())
    keep = np.ones(analyse(program).size, dtype=bool)
    keep[[1, 4]] = False
    once = remove_units(program, keep)
    keep = np.ones(analyse(once).size, dtype=bool)
    keep[[0, 3]] = False
    twice = remove_units(once, keep)
    assert twice.origin[Axis("a.weight", 0)].tolist() == [2, 3, 6, 7]
    assert twice.origin[Axis("b.weight", 1)].tolist() == [2, 3, 6, 7]


def test_tied_weights_stay_tied():
    net = NETS["tied_twins"]
    program = trace(net.build(), net.inputs())
    slim = remove_units(program, selection(analyse(program), 0, 0.5))
    assert slim.state["a"].weight is slim.state["b"].weight
    assert slim.state["a"].weight.shape[0] < 8


def test_gradients_flow_in_the_slim_model():
    net = NETS["residual"]
    model = net.build()
    model.a.weight.requires_grad_(False)
    program = trace(model, net.inputs())
    slim = remove_units(program, selection(analyse(program), 0, 0.5)).module
    slim(*net.inputs()).sum().backward()
    assert slim.a.weight.grad is None
    assert slim.b.weight.grad is not None
    assert model.b.weight.grad is None


def test_a_width_in_arithmetic_stays_the_old_one_for_every_batch():
    """The slim mean is divided by 8 * batch still, though 5 channels are left."""
    parts = {"a": conv(3, 8), "fc": nn.Linear(8, 4)}
    slim = slim_of(parts, lambda m, x: (lambda y: m.fc(pooled(y) / y.numel()))(m.a(x)), (2, 3, 6, 6), 0, 1, 2)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        want = slim.state["fc"](pooled(slim.state["a"](x)) / (5 * 8 * 6 * 6))
        assert difference(slim.module(x), want) < TOLERANCE


def test_arithmetic_that_slim_sizes_do_not_have():
    """With three channels left, `(3 // 4) ** -0.5` is no number; the model goes on with the old one."""
    parts = {"a": conv(3, 8), "fc": nn.Linear(8, 4)}
    slim = slim_of(
        parts, lambda m, x: (lambda y: m.fc(pooled(y) * (y.shape[1] // 4) ** -0.5))(m.a(x)), (2, 3, 6, 6), *range(5)
    )
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert difference(slim.module(x), slim.state["fc"](pooled(slim.state["a"](x)) * 2**-0.5)) < TOLERANCE


# -- random programs ---------------------------------------------------------------------------------------------------


def check(made, seed):
    """Everything that holds for a network of the table holds for a random one."""
    program = trace(made.model, made.inputs(2))
    analysis = analyse(program)
    keep = selection(analysis, seed, (0.3, 0.6, 1.0)[seed % 3])
    for batch in (1, 3):
        inputs = made.inputs(batch)
        assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE
    assert_twice_is_once(program, seed)


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@given(programs(), st.integers(0, 99))
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW, derandomize=True)
def test_random_programs(made, seed):
    check(made, seed)


@pytest.mark.sweep
@given(programs(longest=14), st.integers(0, 9999))
@settings(max_examples=2000, deadline=None, suppress_health_check=SLOW)
def test_many_random_programs(made, seed):
    check(made, seed)
