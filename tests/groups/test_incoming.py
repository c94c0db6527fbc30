"""Readers that select what they read: where they may, and what becomes of the values that they select from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import NETS, Made, conv, lively, pooled
from oracle import difference, masked, run, selection
from random_nets import programs
from torch import nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.incoming import GOES_UNREAD
from prunec.compiler.groups.patterns import group_kinds, group_names
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.ir.program import Edge
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify
from prunec.models.densenet import densenet
from prunec.models.preact_resnet import preact_resnet

TOLERANCE = 1e-9
OWN = Granularity(incoming=(("*", "own"),))


def program_of(model, shape=(2, 3, 6, 6), granularity=OWN):
    program = trace(model.double().eval(), (torch.zeros(shape, dtype=torch.float64),))
    return program.derive(granularity=granularity)


def made(forward, shape=(2, 3, 6, 6), **parts):
    torch.manual_seed(0)
    return program_of(lively(Made({"stem": conv(3, 6), "fc": nn.Linear(6, 2), **parts}, forward)), shape)


def selecting(program):
    """Group -> the node that selects, and what it selects from."""
    return {e.name: (e.node.name, e.source.name) for e in analyse(program).flow.incoming.values()}


# -- where a reader may select -----------------------------------------------------------------------------------------


def _after_norm(m, x):
    y = m.stem(x)
    z = F.relu(m.n(y))
    return m.fc(pooled(y + m.a(z))) + m.fc2(pooled(m.b(z)))


def _behind_layer_norm(m, x):
    y = m.stem(x).flatten(2).transpose(1, 2)
    z = m.n(y)
    return m.fc((y + m.a(z) + m.b(z)).mean(1))


def _swish(m, x):
    y = m.stem(x)
    z = m.n(y)
    return m.fc(pooled(y + m.a(z * z.sigmoid())))


def _swish_of_the_stream(m, x):
    y = m.stem(x)
    return m.fc(pooled(y + m.a(y * y.sigmoid())))


def _depthwise(m, x):
    y = m.stem(x)
    return m.fc(pooled(y + m.a(F.relu(m.dw(y)))))


def _flattened(m, x):
    y = m.stem(x)
    return m.fc(pooled(y)) + m.wide(F.max_pool2d(m.n(y), 2).flatten(1))


def _viewed(m, x):
    y = m.stem(x)
    z = F.relu(m.n(y))
    return m.fc(pooled(y)) + m.wide(F.max_pool2d(z, 2).view(z.size(0), -1))


def _overwritten(m, x):
    y = m.stem(x)
    z = m.a(F.relu_(y))
    return m.fc(pooled(y + z))


def _overwritten_behind_the_norm(m, x):
    y = m.stem(x)
    return m.fc(pooled(y + m.a(F.relu_(m.n(y)))))


def _concatenated(m, x):
    y = m.stem(x)
    z = torch.cat([y, m.a(F.relu(m.n(y)))], 1)
    return m.fc12(pooled(F.relu(m.n12(z))))


def _excited(m, x):
    y = m.stem(x)
    z = F.relu(m.n(y))
    z = z * m.b(F.relu(m.a(F.adaptive_avg_pool2d(z, 1)))).sigmoid()
    return m.fc(pooled(y)) + m.fc2(pooled(z))


def _multiplied_by_another(m, x):
    y = m.stem(x)
    z = F.relu(m.n(y))
    return m.fc(pooled(y)) + m.fc2(pooled(z * m.b(x).sigmoid()))


def _functional(m, x):
    y = m.stem(x)
    z = F.batch_norm(y, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias)
    return m.fc(pooled(y + F.conv2d(F.relu(z), m.a.weight)))


def _normalised(n=6):
    return {"n": nn.BatchNorm2d(n), "a": conv(6, 6, 1), "b": conv(6, 6, 1), "fc2": nn.Linear(6, 2)}


WHERE = {
    "one selection for all behind a norm": (_after_norm, _normalised(), {"n.incoming": ("n", "stem")}),
    "each reader behind a layer norm": (
        _behind_layer_norm,
        {"n": nn.LayerNorm(6), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6)},
        {"a.incoming": ("a", "n"), "b.incoming": ("b", "n")},
    ),
    "a value that is multiplied with itself": (_swish, _normalised(), {"n.incoming": ("n", "stem")}),
    "a shared value that is multiplied with itself": (
        _swish_of_the_stream,
        _normalised(),
        {"a.incoming": ("a", "mul")},
    ),
    "a depthwise layer": (
        _depthwise,
        {"dw": nn.Conv2d(6, 6, 3, padding=1, groups=6), "a": conv(6, 6, 1)},
        {"dw.incoming": ("dw", "stem")},
    ),
    "a flatten": (_flattened, {**_normalised(), "wide": nn.Linear(54, 2)}, {"n.incoming": ("n", "stem")}),
    "a view": (_viewed, {**_normalised(), "wide": nn.Linear(54, 2)}, {"n.incoming": ("n", "stem")}),
    "a shared value that is overwritten": (_overwritten, _normalised(), {"a.incoming": ("a", "relu_")}),
    "a value behind the norm that is overwritten": (
        _overwritten_behind_the_norm,
        _normalised(),
        {"n.incoming": ("n", "stem")},
    ),
    "a concatenation": (
        _concatenated,
        {**_normalised(), "n12": nn.BatchNorm2d(12), "fc12": nn.Linear(12, 2)},
        {"n.incoming": ("n", "stem"), "n12.incoming": ("n12", "cat")},
    ),
    "a squeeze and excitation": (_excited, _normalised(), {"n.incoming": ("n", "stem")}),
    "factors that are made of something else": (
        _multiplied_by_another,
        {**_normalised(), "b": conv(3, 6, 1)},
        {"fc2.incoming": ("mean_1", "mul")},
    ),
    "several readers behind an activation that nobody else reads": (
        lambda m, x: (lambda z: m.fc(pooled(m.a(z) + m.b(z))))(F.relu(m.n(m.stem(x)))),
        _normalised(),
        {"a.incoming": ("a", "relu"), "b.incoming": ("b", "relu")},
    ),
    "one layer that is called twice": (
        lambda m, x: (lambda z: m.fc(pooled(F.relu(m.a(z)) + m.a(z * 2))))(F.relu(m.n(m.stem(x)))),
        _normalised(),
        {},
    ),
    "nobody else": (lambda m, x: m.fc(pooled(m.a(F.relu(m.n(m.stem(x)))))), _normalised(), {}),
}


@pytest.mark.parametrize(("forward", "parts", "found"), WHERE.values(), ids=WHERE)
def test_where_a_reader_selects(forward, parts, found):
    program = made(forward, **parts)
    got = selecting(program)
    assert {name: place for name, place in got.items() if "fc." not in name} == found


def test_a_group_is_called_after_the_reader_whatever_else_is_tied_to_it():
    group = analyse(made(_excited, **_normalised())).groups["n.incoming"]
    assert group.incoming
    assert [str(m.axis) for m in group.writers] == ["n.weight[0]", "b.weight[0]"]
    assert group_names(group) == {"n.incoming", "n", "n.weight"}
    assert {"fc.incoming", "stem", "a"} <= set(analyse(made(_excited, **_normalised())).groups)
    assert "kind:incoming" in group_kinds(group)
    assert sorted({str(m.axis) for m in group.members}) == sorted(str(m.axis) for m in group.members)


def test_a_value_that_is_selected_from_keeps_its_name():
    """The module is called on the stream and on what it selects: both are one unit."""

    def forward(m, x):
        y = m.stem(x)
        return m.fc(pooled(y + m.a(F.relu(m.n(y))))) + m.fc2(pooled(m.b(F.relu(m.n(y + 1)))))

    analysis = analyse(made(forward, **_normalised()))
    assert "stem" in analysis.groups


def test_readers_of_weights_that_are_values_select_too():
    program = made(_functional, **_normalised())
    (entry,) = (e for e in analyse(program).flow.incoming.values() if e.name != "fc.incoming")
    assert (entry.node.name, entry.source.name) == ("batch_norm", "stem")


@pytest.mark.parametrize("shared", [0, 1])
def test_an_overwritten_value_is_what_the_program_reads(shared):
    program = made((_overwritten, _overwritten_behind_the_norm)[shared], **_normalised())
    analysis = analyse(program)
    keep = selection(analysis, 1, 0.6)
    assert not keep.all()
    inputs = (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


def test_without_it_nothing_is_divided():
    program = program_of(preact_resnet(11), (1, 3, 8, 8), Granularity())
    assert not any(group.incoming for group in analyse(program).groups.values())
    assert "layer1.0.bn1.weight[0]" in [str(m.axis) for m in analyse(program).groups["conv1"].members]


# -- units -------------------------------------------------------------------------------------------------------------


def test_the_groups_of_a_network_with_norms_before_its_convolutions():
    analysis = analyse(program_of(preact_resnet(20), (1, 3, 8, 8)))
    groups = analysis.groups
    before = analyse(program_of(preact_resnet(20), (1, 3, 8, 8), Granularity())).groups
    assert set(before) == {name for name, group in groups.items() if not group.incoming}
    stem, stream, mine = groups["conv1"], groups["layer1.0.conv3"], groups["layer1.1.bn1.incoming"]
    assert stem.pinned == (GOES_UNREAD,) * 16
    assert stream.pinned == (GOES_UNREAD,) * 64
    assert [str(m.axis) for m in stream.members] == [
        *("layer1.0.conv3.weight[0]", "layer1.0.shortcut.weight[0]", "layer1.1.conv3.weight[0]")
    ]
    assert mine.free.all()
    assert mine.size == 64
    assert [str(m.axis) for m in mine.writers] == ["layer1.1.bn1.weight[0]"]
    assert {str(m.axis): m.role for m in mine.members} == {
        **{f"layer1.1.bn1.{name}[0]": "carrier" for name in ("weight", "bias", "running_mean", "running_var")},
        "layer1.1.conv1.weight[1]": "reader",
    }
    assert {name for name, group in groups.items() if group.incoming} == {
        *(f"layer{stage}.{block}.bn1.incoming" for stage in (1, 2, 3) for block in (0, 1)),
        *(f"layer{stage}.0.shortcut.incoming" for stage in (1, 2, 3)),
        "bn.incoming",
    }


def test_patterns_choose_the_readers():
    said = Granularity(incoming=(("layer1.*.bn1", "own"), ("bn", "own"), ("layer2.0.conv1", "own")))
    analysis = analyse(program_of(preact_resnet(20), (1, 3, 8, 8), said))
    names = {name for name, group in analysis.groups.items() if group.incoming}
    assert names == {"layer1.0.bn1.incoming", "layer1.1.bn1.incoming", "layer2.0.bn1.incoming", "bn.incoming"}
    assert analysis.groups["conv1"].pinned == ("is read whole at layer1_0_shortcut",) * 16
    assert analysis.groups["layer1.0.conv3"].pinned == ("is read whole at layer2_0_shortcut",) * 64
    assert analysis.groups["layer2.0.conv3"].free.all()  # all of its readers share it
    assert analysis.groups["layer3.0.conv3"].pinned == ("is read whole at layer3_1_conv1",) * 256


def test_units_of_a_reader_are_never_merged():
    analysis = analyse(program_of(preact_resnet(11), (1, 3, 8, 8)))
    group = analysis.groups["layer1.0.bn1.incoming"]
    assert {analysis.counted[unit] for unit in range(group.start, group.start + group.size)} == {
        "is selected at layer1_0_bn1"
    }


# -- what nobody reads -------------------------------------------------------------------------------------------------


def without(analysis, **lost):
    keep = np.ones(analysis.size, dtype=bool)
    for name, units in lost.items():
        keep[analysis.groups[name.replace("__", ".")].start + np.array(units)] = False
    return keep


def test_a_channel_goes_where_no_reader_keeps_it():
    program = made(_after_norm, **_normalised())
    analysis = analyse(program)
    assert set(analysis.groups) >= {"stem", "n.incoming", "fc.incoming"}
    one, both = without(analysis, n__incoming=[2, 4]), without(analysis, n__incoming=[2, 4], fc__incoming=[1, 4])
    stem = analysis.groups["stem"]
    assert analysis.settled(one).sum() == one.sum()
    assert np.flatnonzero(both & ~analysis.settled(both)).tolist() == [stem.start + 4]
    slim = remove_units(program, both)
    assert slim.tensors["stem.weight"].shape[0] == 5
    assert slim.tensors["a.weight"].shape[:2] == (5, 4)
    assert slim.tensors["fc.weight"].shape == (2, 4)


def test_one_channel_of_a_value_stays_though_nobody_reads_it():
    program = made(_concatenated, **{**_normalised(), "n12": nn.BatchNorm2d(12), "fc12": nn.Linear(12, 2)})
    analysis = analyse(program)
    keep = without(analysis, n12__incoming=list(range(6, 12)))
    assert remove_units(program, keep).tensors["a.weight"].shape[0] == 1
    inputs = (torch.randn(3, 3, 6, 6, dtype=torch.float64),)
    assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


def test_what_is_read_whole_stays():
    def forward(m, x):
        y = m.stem(x)
        return m.fc(pooled(m.a(F.relu(m.n(y))))) * y.mean()

    program = made(forward, **_normalised())
    asked = analyse(program.derive(granularity=Granularity(incoming=(("n", "own"),))))
    assert "n.incoming" in asked.groups
    assert set(asked.groups["stem"].pinned) == {"is read whole at mean_1"}
    assert analyse(program).groups["stem"].free.all()  # a wish for all readers doesn't take the stem's own units


def test_the_place_of_a_selection_is_told_to_the_verifier():
    program = made(_after_norm, **_normalised())
    lost = removed_positions(analyse(program), without(analyse(program), n__incoming=[2, 4]))
    assert {str(place): positions.tolist() for place, positions in lost.items()} == {
        **{f"n.{name}[0]": [2, 4] for name in ("weight", "bias", "running_mean", "running_var")},
        "a.weight[1]": [2, 4],
        "b.weight[1]": [2, 4],
        "stem[1] at n": [2, 4],
    }
    assert lost[Edge("n", "stem", 1)].tolist() == [2, 4]


# -- the slim program --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lambda: preact_resnet(20), lambda: densenet(10)], ids=["preact", "dense"])
def test_the_slim_network_is_the_masked_one_in_every_round(build):
    torch.manual_seed(0)
    program = program_of(lively(build()), (2, 3, 8, 8))
    inputs = (torch.randn(2, 3, 8, 8, dtype=torch.float64),)
    by_itself = 0
    for seed in range(3):
        analysis = analyse(program)
        keep = selection(analysis, seed, 0.6)
        by_itself += int((keep & ~analysis.settled(keep)).sum())
        slim = remove_units(program, keep)
        with torch.no_grad():
            got = slim.module(*inputs)
        assert difference(got, masked(program, keep, inputs)) < TOLERANCE
        verify(slim, Masked(program, removed_positions(analysis, keep)), pass_name="shrink")
        program = slim
    assert by_itself


@pytest.mark.parametrize("name", sorted(NETS))
def test_slim_is_masked(name):
    net = NETS[name]
    program = trace(net.build(), net.inputs()).derive(granularity=OWN)
    if not analyse(program).flow.incoming:
        return
    for seed, share in enumerate((0.3, 0.8)):
        keep = selection(analyse(program), seed, share)
        for batch in (1, 3):
            inputs = net.inputs(batch)
            assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


def test_networks_of_every_kind_have_readers_that_select():
    found = {name for name, net in NETS.items() if selecting(trace(net.build(), net.inputs()).derive(granularity=OWN))}
    assert found >= {"residual", "se_gate", "attention", "shared_module", "zero_pad_shortcut", "tied_weights"}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(programs(), st.integers(0, 99))
def test_random_programs(made, seed):
    inputs = made.inputs(2)
    program = trace(made.model, inputs).derive(granularity=OWN)
    for turn in range(2):
        keep = selection(analyse(program), seed + turn, 0.4)
        slim = remove_units(program, keep)
        with torch.no_grad():
            got = slim.module(*inputs)
        assert difference(got, masked(program, keep, inputs)) < TOLERANCE
        program = slim
