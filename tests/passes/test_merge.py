"""Merging clustered channels: the readers' columns are summed, and what can't be merged soundly is left alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from mergeable_nets import (
    NETS,
    Attention,
    Chain,
    Halves,
    Interleaved,
    Net,
    Tied,
    UsedTwice,
    clustered,
    conv,
    middle,
    residual_net,
    small,
    traced,
)
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.interchangeable import kinds
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.merge import chi, producers
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import difference
from prunec.compiler.verify.reference import Replaced, Same
from prunec.compiler.verify.verify import verify
from prunec.passes import merge
from prunec.passes.merge import Merge


def channel(program, axis, position):
    """A view of what one position of an axis holds; a grouped transposed convolution counts outputs through groups."""
    tensor = program.tensors[axis.tensor].detach()
    blocks = getattr(program.state.get(axis.owner), "groups", 1) if axis.dim == 1 else 1
    block, place = divmod(position, tensor.shape[axis.dim])
    return tensor.chunk(blocks)[block].select(axis.dim, place)


def make_identical(program, strength=1.0):
    """Move every unit of a cluster towards the cluster's first, in the model's own tensors."""
    for name, clusters in program.facts["clusters"].items():
        for member in producers(analyse(program).groups[name]):
            for cluster in clusters:
                places = [member.positions[member.units == unit].tolist() for unit in cluster]
                for first, *others in zip(*places, strict=True):
                    for other in others:
                        mine = channel(program, member.axis, other)
                        mine.copy_(torch.lerp(mine, channel(program, member.axis, first), strength))


def outputs(program):
    with torch.no_grad():
        return program.module(*program.inputs)


def dropped(program):
    """The program with the units removed that a merge removes, but with nothing added."""
    analysis = analyse(program)
    keep = np.ones(analysis.size, dtype=bool)
    for name, clusters in program.facts["clusters"].items():
        for cluster in clusters:
            keep[[analysis.groups[name].start + unit for unit in cluster[1:]]] = False
    return remove_units(program, keep)


@pytest.mark.parametrize("name", NETS)
def test_identical_channels_merge_without_loss(name):
    program = clustered(small(name))
    make_identical(program)
    merge = Merge()
    result = merge.run(program, Context())
    assert sum(result.details["removed"].values()) > 0
    assert result.details["largest_difference"] == 0
    assert difference(outputs(result.program), outputs(program)) < 1e-9
    assert difference(outputs(dropped(program)), outputs(program)) > 1e-3
    reference = merge.reference(program, result.program)
    assert isinstance(reference, Same)
    assert verify(result.program, reference, pass_name="merge").difference < 1e-9


@pytest.mark.parametrize("name", NETS)
def test_means_are_checked_against_the_old_program_with_means(name):
    program = clustered(small(name))
    merge = Merge(inexact="mean")
    result = merge.run(program, Context())
    reference = merge.reference(program, result.program)
    assert isinstance(reference, Replaced)
    assert verify(result.program, reference, pass_name="merge").difference < 1e-9
    assert difference(outputs(result.program), outputs(program)) > 1e-3
    assert result.details["chi"] > 0


def test_flatten_sums_the_same_pixels_columns():
    program = small("flatten").with_facts(clusters={"conv": ((1, 4),)})
    make_identical(program)
    old = program.tensors["fc.weight"].detach().reshape(5, 6, 16)
    new = Merge().run(program, Context()).program.tensors["fc.weight"].detach().reshape(5, 5, 16)
    expected = old[:, [0, 1, 2, 3, 5]].clone()
    expected[:, 1] += old[:, 4]
    torch.testing.assert_close(new, expected, rtol=0, atol=0)


def test_a_parameter_with_clusters_along_both_dimensions_has_the_means_of_both():
    program = small("two_dimensions").with_facts(clusters={"channels": ((0, 3), (1, 2, 6)), "tokens": ((2, 5),)})
    table = program.tensors["table"].detach()
    rows = torch.stack([table[0], table[1], table[[2, 5]].mean(0), table[3], table[4]])
    expected = torch.stack([rows[:, [0, 3]].mean(1), rows[:, [1, 2, 6]].mean(1), *rows[:, [4, 5, 7]].T], 1)
    new = Merge(inexact="mean").run(program, Context()).program.tensors["table"].detach()
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-12)


def test_origins_name_the_units_that_stay():
    program = small("flatten").with_facts(clusters={"conv": ((1, 4), (2, 3, 5))})
    make_identical(program)
    after = Merge().run(program, Context()).program
    left = {str(axis): positions.tolist() for axis, positions in after.origin.items()}
    assert left["conv.weight[0]"] == left["bn.running_var[0]"] == left["act.weight[0]"] == [0, 1, 2]
    assert left["fc.weight[1]"] == list(range(48))
    assert after.facts == {}


def test_the_old_program_is_left_alone():
    program = clustered(small("residual"))
    before = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    Merge(inexact="mean").run(program, Context())
    assert all(torch.equal(before[name], tensor) for name, tensor in program.tensors.items())


def test_one_differing_norm_vector_is_refused():
    program = small("flatten").with_facts(clusters={"conv": ((1, 4),)})
    make_identical(program)
    vector = program.tensors["bn.running_mean"]
    vector[:] = torch.tensor([0.0, 1.0, 0.5, -4.0, 2.0, 1.0])
    with pytest.raises(PassError) as caught:
        Merge().run(program, Context())
    assert str(caught.value) == (
        "group 'conv': the channels of cluster [1, 4] aren't identical: they differ by 0.25 of the largest value of "
        "bn.running_mean[0], more than the tolerance 1e-06\n"
        "hint: train until they agree, or merge their means: {inexact: mean}"
    )


def test_differing_depthwise_kernels_are_refused():
    program = small("depthwise").with_facts(clusters={"conv": ((0, 1),)})
    make_identical(program)
    program.tensors["layer.weight"].detach()[1] += 1
    with pytest.raises(PassError, match=r"largest value of layer\.weight\[0\]"):
        Merge().run(program, Context())


def test_within_the_tolerance_the_mean_is_taken():
    program = clustered(small("residual"))
    make_identical(program, strength=1 - 1e-9)
    result = Merge().run(program, Context())
    assert 0 < result.details["largest_difference"] < 1e-6
    assert isinstance(Merge().reference(program, result.program), Replaced)
    assert difference(outputs(result.program), outputs(program)) < 1e-6


def test_the_error_shrinks_with_chi():
    errors, spreads = [], []
    for strength in (0.0, 0.9, 0.99, 0.999):
        program = clustered(small("residual"))
        make_identical(program, strength)
        spreads.append(chi(program, analyse(program).groups, program.facts["clusters"]))
        after = Merge(inexact="mean").run(program, Context()).program
        errors.append(difference(outputs(after), outputs(program)))
    assert spreads == sorted(spreads, reverse=True)
    assert all(later < 0.3 * earlier for earlier, later in pairwise(errors))


def test_chi_is_the_distance_from_the_means():
    program = small("residual").with_facts(clusters={"first": ((0, 2, 5),)})
    kernels = program.tensors["first.weight"].detach()[[0, 2, 5]]
    expected = sum((kernel - kernels.mean(0)).square().sum() for kernel in kernels)
    assert chi(program, analyse(program).groups, program.facts["clusters"]) == pytest.approx(float(expected))


def test_without_clusters_nothing_changes():
    program = clustered(small("residual"), ratio=0)
    result = Merge().run(program, Context())
    assert result.program is program
    assert result.notes == ()


def test_half_precision_keeps_its_dtype():
    program = trace(residual_net().half().eval(), (torch.randn(2, 3, 4, 4).half(),))
    after = Merge(inexact="mean").run(clustered(program), Context()).program
    assert {tensor.dtype for tensor in after.tensors.values() if tensor.is_floating_point()} == {torch.float16}
    assert after.tensors["head.weight"].shape[1] == 4


def test_frozen_parameters_stay_frozen():
    model = residual_net()
    model.head.weight.requires_grad_(False)
    program = clustered(traced(model))
    after = Merge(inexact="mean").run(program, Context()).program
    assert not after.tensors["head.weight"].requires_grad
    assert after.tensors["first.weight"].requires_grad


def test_a_tied_weight_is_kept_where_it_writes_and_summed_where_it_reads():
    model = Tied().eval()
    with torch.no_grad():
        model.embedding.weight[:, 4] = model.embedding.weight[:, 1]
    program = trace(model, (torch.randint(0, 10, (2, 5)),)).with_facts(clusters={"embedding": ((1, 4),)})
    merge = Merge()
    after = merge.run(program, Context()).program
    assert verify(after, merge.reference(program, after), pass_name="merge").difference < 1e-6
    assert torch.equal(after.tensors["decoder.weight"][:, 1], 2 * after.tensors["embedding.weight"][:, 1])


class Products(Net):
    def forward(self, x):
        return self.head(self.query(x) @ self.key(x).transpose(1, 2))


def test_heads_that_are_alike_become_one():
    layers = {name: nn.Linear(8, 8) for name in ("query", "key", "value")}
    program = traced(Attention(**layers, head=nn.Linear(8, 4)), 2, 5, 8).with_facts(clusters={"query": ((0, 1),)})
    make_identical(program)
    merge = Merge()
    result = merge.run(program, Context())
    assert result.details["removed"] == {"query": 1}
    assert verify(result.program, merge.reference(program, result.program), pass_name="merge").difference < 1e-9


class Masked(Net):
    """Which channels are let through is a buffer of truth values."""

    def forward(self, x):
        return self.head(torch.where(self.mask, self.conv(x), 0.0))


def test_truth_values_that_differ_are_a_difference():
    model = Masked(conv=conv(3, 6), head=conv(6, 4))
    model.register_buffer("mask", torch.tensor([True, False, True] * 2).view(6, 1, 1))
    program = traced(model)
    same, apart = (program.with_facts(clusters={"conv": (cluster,)}) for cluster in ((0, 2), (0, 1)))
    for inexact in ("refuse", "mean"):
        with pytest.raises(PassError) as caught:
            Merge(inexact=inexact).run(apart, Context())
        assert str(caught.value) == (
            "group 'conv': the channels of cluster [0, 1] aren't identical: mask[0] holds truth values, which differ, "
            "and have no mean\n"
            "hint: leave channels in which they differ apart, as `cluster` does where it finds the clusters"
        )
    assert Merge(inexact="mean").run(same, Context()).details["removed"] == {"conv": 1}


class Counting(Net):
    """How often each channel counts is a buffer of whole numbers."""

    def forward(self, x):
        return self.head(self.conv(x) * self.times)


@pytest.mark.parametrize("method", ["kmeans", "even"])
def test_channels_that_differ_in_whole_numbers_share_no_cluster(method):
    model = Counting(conv=conv(3, 6), head=conv(6, 4))
    model.register_buffer("times", torch.tensor([1, 2, 1, 1, 2, 3]).view(6, 1, 1))
    program = clustered(traced(model), method=method, ratio=0.5)
    merge = Merge(inexact="mean")
    after = merge.run(program, Context()).program
    assert after.tensors["times"].flatten().tolist() == [1, 2, 3]
    assert verify(after, merge.reference(program, after), pass_name="merge").difference < 1e-9
    with pytest.raises(PassError, match="whole numbers, which differ"):
        merge.check(program.with_facts(expected_clusters={"conv": ((0, 5),)}))


DECLINED = {
    "layer_norm": (
        lambda: Chain(fc=nn.Linear(8, 6), norm=nn.LayerNorm(6), head=nn.Linear(6, 4)),
        (2, 8),
        "fc: cluster [0, 1] isn't merged: is counted by norm (LayerNorm)",
    ),
    "group_norm": (
        lambda: middle(nn.GroupNorm(2, 6)),
        (2, 3, 4, 4),
        "conv: cluster [0, 1] isn't merged: is counted by layer (GroupNorm)",
    ),
    "products_of_features": (
        lambda: Products(query=nn.Linear(8, 6), key=nn.Linear(8, 6), head=nn.Linear(5, 4)),
        (2, 5, 8),
        "query: cluster [0, 1] isn't merged: is contracted at matmul",
    ),
    "weight_that_writes_too": (
        lambda: UsedTwice(conv=conv(3, 6), weight=nn.Parameter(torch.randn(4, 6, 3, 3)), head=conv(6, 4)),
        (2, 3, 4, 4),
        "conv: cluster [0, 1] isn't merged: is contracted at conv2d",
    ),
    "interleaved": (
        lambda: Interleaved(conv=conv(3, 6), head=conv(12, 4)),
        (2, 3, 4, 4),
        "conv: cluster [0, 1] isn't merged: no two of its units are produced and read alike",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_cannot_be_merged_is_left_alone_with_a_reason(name):
    build, shape, note = DECLINED[name]
    program = traced(build(), *shape)
    program = program.with_facts(clusters={note.split(":")[0]: ((0, 1),)})
    result = Merge(inexact="mean").run(program, Context())
    assert [str(each) for each in result.notes] == [note]
    assert result.program is program


def test_channels_that_meet_different_operations_are_of_different_kinds():
    program = traced(Halves(conv=conv(3, 8), head=conv(8, 4)))
    analysis = analyse(program)
    kind = kinds(analysis)[analysis.groups["conv"].where].tolist()
    assert len(set(kind[:4])) == len(set(kind[4:])) == 1
    assert kind[0] != kind[4]
    result = Merge(inexact="mean").run(program.with_facts(clusters={"conv": ((0, 1), (2, 6))}), Context())
    assert result.details["removed"] == {"conv": 1}
    assert [str(note) for note in result.notes] == [
        "conv: cluster [2, 6] isn't merged: no two of its units are produced and read alike"
    ]


def test_padded_streams_have_a_kind_for_each_stage():
    program = small("resnet_zero_pad")
    analysis = analyse(program)
    stream = analysis.groups["conv1"]
    kind = kinds(analysis)[stream.where]
    written = np.array([sum(unit in member.units for member in stream.writers) for unit in range(stream.size)])
    assert {len(set(written[kind == value])) for value in set(kind)} == {1}
    assert len(set(kind)) >= 3


@pytest.mark.parametrize(("budget", "missed"), [({"macs": "60%"}, ["macs"]), ({"macs": "60%", "params": "65%"}, None)])
def test_a_budget_that_is_missed_since_groups_stay_whole_is_told(budget, missed, monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    x = torch.randn(2, 3, 8, 8)
    right = merge.reads_of
    monkeypatch.setattr(merge, "reads_of", lambda a, group: "odd" if group.name == "0" else right(a, group))
    passes = [{"cluster": {"budget": budget, "method": "even"}}, {"merge": "least_squares"}]
    result = compile(net, {"plan": 1, "passes": passes}, (x,), [x])
    merged = result.report["passes"][1]
    reached = result.report["cost"]["after"]["macs"] / result.report["cost"]["before"]["macs"]
    found = merged["details"]["missed"]
    assert list(found) == (missed or ["macs", "params"])
    assert found["macs"]["reached"] == pytest.approx(reached)
    assert found["macs"]["planned"] <= 0.6 < reached - 0.002
    (warning,) = [each for each in result.report["warnings"] if each.startswith("merge: ")]
    assert f"merge: {reached:.1%} of the macs (not {found['macs']['planned']:.1%})" in warning
    assert "are left, since some clusters aren't merged; the first reason: 0: its units stay: odd" in warning


def test_a_budget_that_is_met_is_not_told():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    passes = [{"cluster": {"budget": {"macs": "60%"}, "method": "even"}}, {"merge": "least_squares"}]
    result = compile(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)), {"plan": 1, "passes": passes}, (x,), [x])
    assert "missed" not in result.report["passes"][1]["details"]
    assert not [each for each in result.report["warnings"] if each.startswith("merge: ")]
