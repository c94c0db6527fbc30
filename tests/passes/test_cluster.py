"""Clusters: exact widths, coupled writers, determinism, and every complaint."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cost.model import cost
from prunec.compiler.driver.pass_manager import run_passes
from prunec.compiler.driver.steps import Step
from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.interchangeable import pacesetter
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.models.resnet import resnet
from prunec.passes.cluster import Cluster, kmeans
from prunec.passes.merge import Merge


def chain(*widths):
    """Convolutions of these widths between an image and four outputs."""
    sizes = [3, *widths, 4]
    torch.manual_seed(0)
    layers = {f"conv{i}": nn.Conv2d(a, b, 3, padding=1) for i, (a, b) in enumerate(pairwise(sizes))}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return trace(model.eval(), (torch.randn(2, 3, 8, 8),))


def residual(shortcut="projection"):
    torch.manual_seed(0)
    return trace(resnet(8, shortcut, widths=(8, 12, 16)).eval(), (torch.randn(2, 3, 16, 16),))


def clusters(program, seed=0, **options):
    return Cluster(**options).run(program, Context(seed=seed)).program.facts["clusters"]


def complete(found, size):
    """The clusters with those of one unit."""
    alone = set(range(size)) - {unit for cluster in found for unit in cluster}
    return sorted([*found, *((unit,) for unit in alone)])


@pytest.mark.parametrize(
    ("width", "sizes"), [(1, [10]), (3, [4, 3, 3]), (4, [3, 3, 2, 2]), (9, [2, *[1] * 8]), (10, [1] * 10)]
)
def test_even_clusters_are_runs_of_neighbours(width, sizes):
    found = clusters(chain(10), method="even", widths={"conv0": width})
    whole = complete(found.get("conv0", ()), 10)
    assert [len(cluster) for cluster in whole] == sizes
    assert [unit for cluster in whole for unit in cluster] == list(range(10))


@pytest.mark.parametrize("width", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("source", ["pacesetter", "concat"])
def test_kmeans_gives_as_many_clusters_as_asked(width, source):
    found = clusters(residual(), widths={"layer2.0.conv1": width}, source=source).get("layer2.0.conv1", ())
    assert len(complete(found, 12)) == width
    assert sorted(unit for cluster in complete(found, 12) for unit in cluster) == list(range(12))


def test_kmeans_finds_planted_clusters():
    program = chain(8)
    weight = program.tensors["conv0.weight"].detach()
    for unit, centre in enumerate([0, 0, 2, 0, 2, 5, 6, 5]):
        weight[unit] = weight[centre] + 1e-3 * torch.randn(weight[0].shape)
    assert clusters(program, widths={"conv0": 4})["conv0"] == ((0, 1, 3), (2, 4), (5, 7))


def test_kmeans_depends_on_the_seed_alone():
    program = chain(32)
    first = clusters(program, ratio=0.5)
    assert first == clusters(chain(32), ratio=0.5)
    assert first == clusters(program, ratio=0.5, only=["conv0"])
    assert any(clusters(program, seed=seed, ratio=0.5) != first for seed in (1, 2, 3))


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_equal_rows_leave_no_cluster_empty(distinct):
    rows = np.repeat(np.eye(distinct), 12 // distinct, axis=0)
    found = kmeans(rows, 6, np.random.default_rng(0))
    assert len(found) == 6
    assert all(cluster.size for cluster in found)
    assert sorted(np.concatenate(found)) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"ratio": 0.5}, 5),
        ({"ratio": "30%"}, 7),
        ({"ratio": 0.35}, 6),
        ({"ratio": 0.99}, 1),
        ({"ratio": 0.0}, 10),
        ({"ratio": 0.5, "multiple_of": 4}, 8),
        ({"ratio": 0.1, "multiple_of": 8}, 10),
    ],
)
def test_the_ratio_is_the_share_that_goes(options, left):
    found = clusters(chain(10), method="even", **options)
    assert len(complete(found.get("conv0", ()), 10)) == left


def test_a_ratio_in_rounds_is_one_of_the_traced_model():
    program = chain(20)
    rounds = [each for r in ("25%", "50%", "40%") for each in (Cluster(method="even", ratio=r), Merge(inexact="mean"))]
    slim = run_passes(program, [Step(each) for each in rounds], Context()).program
    assert analyse(slim).groups["conv0"].size == 10


def test_as_many_clusters_as_units_leave_the_program_alone():
    result = Cluster(widths={"conv0": 10}).run(chain(10), Context())
    assert result.program.facts["clusters"] == {}
    assert Merge().run(result.program, Context()).program is result.program


def test_coupled_writers_share_the_clusters_of_the_pacesetter():
    program = residual()
    found = clusters(program, ratio=0.5)
    kernels = program.tensors["layer2.0.shortcut.0.weight"].detach().reshape(12, -1).double().numpy()
    rng = Context().rng("cluster", "layer2.0.conv2", "0")
    alone = sorted(tuple(c.tolist()) for c in kmeans(kernels, 6, rng) if c.size > 1)
    assert list(found["layer2.0.conv2"]) == alone
    after = Merge(inexact="mean").run(program.with_facts(clusters=found), Context()).program
    written = {str(axis): positions.tolist() for axis, positions in after.origin.items()}
    stays = written["layer2.0.shortcut.0.weight[0]"]
    assert stays == [cluster[0] for cluster in complete(found["layer2.0.conv2"], 12)]
    assert written["layer2.0.conv2.weight[0]"] == stays


def test_the_other_source_looks_at_all_writers():
    program = residual()
    assert clusters(program, ratio=0.5) != clusters(program, ratio=0.5, source="concat")


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("conv1", "conv1.weight[0]"),
        ("layer2.0.conv2", "layer2.0.shortcut.0.weight[0]"),
        ("layer3.0.conv2", "layer3.0.shortcut.0.weight[0]"),
        ("layer3.0.conv1", "layer3.0.conv1.weight[0]"),
    ],
)
def test_the_pacesetter_is_the_producer_of_the_shortcut(group, expected):
    analysis = analyse(residual())
    assert str(pacesetter(analysis, analysis.groups[group].writers).axis) == expected


def test_padded_stages_are_clustered_apart():
    program = residual("zero_pad")
    result = Cluster(method="even", ratio=0.5).run(program, Context())
    group = analyse(program).groups["conv1"]
    assert result.details["groups"]["conv1"] == {"units": 16, "left": 8}
    written = [{str(m.axis) for m in group.members if unit in m.units} for unit in range(group.size)]
    for cluster in result.program.facts["clusters"]["conv1"]:
        assert all(written[unit] == written[cluster[0]] for unit in cluster)


def test_identical_channels_are_found():
    program = chain(8, 6)
    for name in ("conv0.weight", "conv0.bias"):
        tensor = program.tensors[name].detach()
        tensor[[3, 5]] = tensor[0].clone()
        tensor[6] = tensor[2].clone()
    program.tensors["conv0.bias"].detach()[5] += 0.1
    assert clusters(program, method="identical") == {"conv0": ((0, 3), (2, 6))}
    assert clusters(program, method="identical", tolerance=10)["conv0"] == (tuple(range(8)),)


def test_what_cannot_be_clustered_is_noted():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    result = Cluster(ratio=0.5).run(trace(model.eval(), (torch.randn(2, 4),)), Context())
    assert result.program.facts["clusters"] == {}
    assert [str(note) for note in result.notes] == [
        "0: is counted by 1 (LayerNorm)",
        "2: reaches the model's output",
    ]


def test_pinned_units_stay_alone():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            return self.head(y[:, 2:]), y[:, :2]

    program = trace(Partly().eval(), (torch.randn(2, 3, 4, 4),))
    result = Cluster(method="even", ratio=0.5, only=["conv"]).run(program, Context())
    assert result.program.facts["clusters"] == {"conv": ((2, 3, 4), (5, 6, 7))}
    tight = Cluster(method="even", widths={"conv": 2}).run(program, Context())
    assert tight.program.facts["clusters"] == {"conv": ((2, 3, 4, 5, 6, 7),)}
    assert [str(note) for note in tight.notes] == ["conv: 3 units are left instead of 2: reaches the model's output"]


def test_only_and_protect_choose_the_groups():
    program = chain(8, 8, 8)
    assert set(clusters(program, ratio=0.5, only=["conv[01]"], protect=["conv0"])) == {"conv1"}
    assert set(clusters(program, widths={"conv?": 4}, protect=["conv0", "conv3"])) == {"conv1", "conv2"}


def test_given_clusters_are_sorted():
    found = clusters(chain(8, 6), method="given", clusters={"conv0": [[5, 2], [7], [4, 0, 1]], "conv1": [[3]]})
    assert found == {"conv0": ((0, 1, 4), (2, 5))}


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.0}, {"method": "identical"}])
def test_the_lock_replays_the_clusters(options):
    program = residual()
    cluster = Cluster(**options)
    result = cluster.run(program, Context())
    (replay,) = cluster.resolved(result)
    again = replay.run(program, Context(seed=99))
    assert again.program.facts["clusters"] == result.program.facts["clusters"]
    assert type(replay).model_validate(replay.model_dump(exclude_unset=True)) == replay


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widths": {"conv9": 4}},
            "widths: no group is called 'conv9'\nhint: did you mean 'conv2'?",
        ),
        ({"widths": {"conv0": 9}}, "widths: 'conv0' asks for 9 units, but 'conv0' has 8"),
        (
            {"widths": {"conv?": 4, "conv0": 3}},
            "widths: two patterns ask for different widths of 'conv0'",
        ),
        (
            {"ratio": 0.5, "only": ["conv1", "covn0"]},
            "only: no group is called 'covn0'\nhint: did you mean 'conv0'?",
        ),
        (
            {"method": "given", "clusters": {"con0": [[0, 1]]}},
            "clusters: there is no group 'con0'\nhint: did you mean 'conv0'?",
        ),
        ({"method": "given", "clusters": {"conv0": [[0, 8]]}}, "clusters: 'conv0' has units 0 to 7, got 8"),
        ({"method": "given", "clusters": {"conv0": [[0, 1], [1, 2]]}}, "clusters: unit 1 of 'conv0' is named twice"),
        (
            {"method": "given", "clusters": {"conv2": [[0, 1]]}},
            "clusters: unit 0 of 'conv2' can't be merged: it reaches the model's output",
        ),
    ],
)
def test_what_the_plan_asks_in_vain(options, message):
    with pytest.raises(PassError) as caught:
        clusters(chain(8, 6), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must name one of 'ratio' and 'widths' for method 'kmeans'"),
        ({"method": "even", "ratio": 0.5, "widths": {"a": 1}}, "must name one of 'ratio' and 'widths'"),
        ({"method": "identical", "ratio": 0.5}, "must not name 'ratio' or 'widths' for method 'identical'"),
        ({"method": "given"}, "must name 'clusters' for method 'given'"),
        ({"ratio": 0.5, "clusters": {}}, "must name 'clusters' for method 'given', and for no other"),
        ({"method": "given", "clusters": {}, "only": ["a"]}, "must not name 'only' or 'protect' for method 'given'"),
        ({"ratio": 0.5, "at_most": 4}, "must not name 'at_most' without a 'budget'"),
        ({"widths": {"a": 0}}, "greater than or equal to 1"),
        ({"ratio": 1.5}, "must be between 0 and 1"),
    ],
)
def test_options_that_do_not_fit_together(options, message):
    with pytest.raises(ValidationError, match=message):
        Cluster(**options)


# -- in rounds, and to a budget --------------------------------------------------------------------------------------


def in_rounds(cluster, **options):
    model = chain(16, 32)
    plan = {
        "plan": 1,
        "inputs": [[2, 3, 8, 8]],
        "passes": [{"repeat": {**options, "passes": [cluster, {"merge": "mean"}]}}],
    }
    return compile(model.deployed.module, plan)


def widths_of(report):
    """The units of every group that each round has left."""
    found = [record["details"]["groups"] for record in report["passes"] if record["pass"] == "cluster"]
    return [[entry["left"] for entry in groups.values()] for groups in found]


def test_a_list_has_a_ratio_or_a_width_for_each_round():
    stages = ["18.75%", "31.25%", "37.5%"]
    assert widths_of(in_rounds({"cluster": {"ratio": stages}}, steps=3).report) == [[13, 26], [11, 22], [10, 20]]
    by_pattern = {"widths": {"conv0": [12, 8], "conv1": 24}}
    assert widths_of(in_rounds({"cluster": by_pattern}, steps=3).report) == [[12, 24], [8], []]


def test_rounds_give_their_budget_to_a_cluster_that_leaves_it_open():
    result = in_rounds("cluster", steps=3, to={"macs": "40%"}, schedule="linear")
    before, after = (result.report["cost"][when]["macs"] for when in ("before", "after"))
    assert 0.3 * before < after <= 0.4 * before
    assert len(widths_of(result.report)) == 3


def test_a_budget_is_met_by_one_share_of_all_groups():
    program = chain(16, 32)
    result = Cluster(method="even", budget={"macs": 0.5}).run(program, Context(traced=program))
    slim = Merge(inexact="mean").run(result.program, Context()).program
    assert 0.42 < cost(slim).macs / cost(program).macs <= 0.5
    ratio = result.details["ratio"]
    assert clusters(program, method="even", ratio=ratio) == result.program.facts["clusters"]
    more = Cluster(method="even", ratio=ratio - 2e-6).run(program, Context()).program
    assert cost(Merge(inexact="mean").run(more, Context()).program).macs / cost(program).macs > 0.5


def test_a_budget_out_of_reach_is_refused_or_told():
    program = chain(16, 32)
    with pytest.raises(PassError, match="can't be met") as caught:
        Cluster(budget={"macs": 1e-4}).run(program, Context(traced=program))
    assert caught.value.keys == ("budget",)
    short = Cluster(budget={"macs": 1e-4}, may_fall_short=True).run(program, Context(traced=program))
    assert "are left" in short.details["falls_short"]


def test_what_rounds_have_no_use_for_is_refused():
    for cluster, options, message in (
        ({"cluster": {"ratio": 0.5}}, {"each": 4, "to": {"macs": 0.5}}, "must hold a pass that takes the budget"),
        ("cluster", {"steps": 2}, "must have the key 'to'"),
        ({"cluster": {"ratio": []}}, {"steps": 2}, "empty list"),
        ({"cluster": {"ratio": 0.5, "budget": {"macs": 0.5}}}, {"steps": 2}, "must name one of"),
    ):
        with pytest.raises(PlanError, match=message):
            in_rounds(cluster, **options)
    with pytest.raises(ValidationError, match="outside of 'repeat'"):
        Cluster(ratio=(0.1, 0.2))


@pytest.mark.parametrize("method", ["kmeans", "even"])
@pytest.mark.parametrize("each", [1, 5, 16])
def test_each_round_joins_so_many_units(method, each):
    result = in_rounds({"cluster": {"method": method}}, each=each, to={"macs": "40%"})
    before, after = (result.report["cost"][when]["macs"] for when in ("before", "after"))
    merges = [record["details"]["removed"] for record in result.report["passes"] if record["pass"] == "merge"]
    *all_but_the_last, last = [sum(removed.values()) for removed in merges]
    assert set(all_but_the_last) == {each}
    assert 0 < last <= each
    assert 0.35 * before < after <= 0.4 * before
    program = result.program
    left = {name: program.tensors[f"{name}.weight"].shape[0] for name in ("conv0", "conv1")}
    assert abs(left["conv0"] / 16 - left["conv1"] / 32) <= 1 / 16, "all groups lose the same share"


def test_a_round_takes_a_whole_step_where_widths_are_multiples():
    result = in_rounds({"cluster": {"multiple_of": 4}}, each=1, to={"macs": "60%"})
    for removed in (record["details"]["removed"] for record in result.report["passes"] if record["pass"] == "merge"):
        assert sum(removed.values()) == 4


def test_rounds_of_clusters_end_when_nothing_more_may_be_joined():
    result = in_rounds({"cluster": {"protect": ["conv1"]}}, each=6, to={"macs": "1%"})
    assert result.program.tensors["conv0.weight"].shape[0] == 1
    assert any("the budget isn't met" in warning for warning in result.report["warnings"])
