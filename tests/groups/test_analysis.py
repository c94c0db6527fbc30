"""Which units and groups a program has, and what is pinned and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import NETS, Made, conv
from oracle import legal
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Axis
from prunec.compiler.tracing.trace import trace


@pytest.fixture(scope="module", params=sorted(NETS))
def found(request):
    """A network of the table and its analysis."""
    net = NETS[request.param]
    return net, analyse(trace(net.build(), net.inputs()))


def test_groups_are_as_expected(found):
    net, analysis = found
    assert {g.name: (g.size, int(g.free.sum())) for g in analysis.groups.values()} == dict(net.groups)


def test_pins_say_why(found):
    net, analysis = found
    for name, reason in net.pins.items():
        assert any(reason in said for said in analysis.groups[name].pinned), analysis.groups[name].pinned


def test_units_are_numbered_by_group(found):
    _, analysis = found
    ends = [(group.start, group.start + group.size) for group in analysis.groups.values()]
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])][: len(ends)]
    assert analysis.size == (ends[-1][1] if ends else 0) == analysis.free.size == analysis.group_of.size


def test_every_position_belongs_to_one_unit_or_is_fixed(found):
    """The members of the groups, put together, are the bound axes without their fixed positions."""
    _, analysis = found
    seen = {axis: np.full(b.labels.size, NO_UNIT) for axis, b in analysis.flow.bindings.items()}
    for group in analysis.groups.values():
        for member in group.members:
            assert (seen[member.axis][member.positions] == NO_UNIT).all()
            seen[member.axis][member.positions] = member.units + group.start
    for axis, binding in analysis.flow.bindings.items():
        assert np.array_equal(seen[axis], analysis.units(binding.labels))


def test_every_unit_is_written_somewhere(found):
    _, analysis = found
    for group in analysis.groups.values():
        written = np.unique(np.concatenate([writer.units for writer in group.writers]))
        assert np.array_equal(written, np.arange(group.size))


def test_every_free_unit_may_go_alone(found):
    _, analysis = found
    for unit in np.flatnonzero(analysis.free):
        keep = np.ones(analysis.size, dtype=bool)
        keep[unit] = False
        assert legal(analysis, keep)


def test_an_axis_is_bound_at_its_size(found):
    _, analysis = found
    for axis, binding in analysis.flow.bindings.items():
        assert binding.labels.size == analysis.program.size(axis), axis


def analysed(parts, run, *shapes):
    return analyse(trace(Made(parts, run), tuple(torch.zeros(shape) for shape in shapes)))


def test_a_reader_of_a_concatenation_is_in_each_group():
    analysis = analysed(
        {"a": conv(3, 4), "b": conv(3, 6), "c": conv(10, 5)},
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
        (1, 3, 6, 6),
    )
    parts = {g.name: m.positions.tolist() for g in analysis.groups.values() for m in g.readers}
    assert parts == {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7, 8, 9]}


def test_pieces_of_a_split_are_covered():
    analysis = analysed(
        {"a": conv(3, 6), "b": conv(2, 4), "c": conv(4, 4)},
        lambda m, x: (lambda p, q: m.b(p) + m.c(q))(*m.a(x).split([2, 4], 1)),
        (1, 3, 6, 6),
    )
    assert [units.tolist() for units in analysis.covers] == [[0, 1], [2, 3, 4, 5]]


def test_a_layer_that_is_padded_to_its_group_keeps_a_channel():
    """Four of the ten channels are written by `a`: these can't all go, though six of the group would be left."""
    net = NETS["zero_pad_shortcut"]
    analysis = analyse(trace(net.build(), net.inputs()))
    assert [units.tolist() for units in analysis.covers] == [analysis.units(_labels(analysis, "a")).tolist()]
    assert analysis.covers[0].size == 4


def _labels(analysis, name):
    return np.sort(analysis.flow.bindings[Axis(f"{name}.weight", 0)].labels)


def test_coupling_keeps_the_corresponding_channels_together():
    """Channel shuffle: what goes together are the same positions of the two halves, as the grouped reader asks."""
    net = NETS["grouped"]
    analysis = analyse(trace(net.build(), net.inputs()))
    [writer] = analysis.groups["a"].writers
    assert writer.units.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_an_analysis_is_made_once():
    net = NETS["chain"]
    program = trace(net.build(), net.inputs())
    assert analyse(program) is analyse(program)


def test_a_users_function_is_not_taken_for_torchs():
    """`add` of another module than torch's is another operation."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")

    def add(left, right):
        return left - right

    assert op_name(graph.call_function(add, (x, x))) == f"{__name__}.add"
    assert op_name(graph.call_function(torch.add, (x, x))) == "add"


def test_a_network_without_free_channels():
    analysis = analysed({"fc": nn.Linear(6, 4)}, lambda m, x: m.fc(x), (1, 6))
    assert not analysis.free.any()
    assert list(analysis.groups) == ["fc"]
