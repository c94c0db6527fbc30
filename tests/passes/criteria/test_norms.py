"""Criteria of weights alone, joining and normalising: against loops, by hand, and what refuses what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain, Stream, images, lively, program_of, scores
from scipy.stats import rankdata
from torch import nn

from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan
from prunec.passes.criteria.aggregates import AGGREGATES, NORMALS, Evidence, normalised
from prunec.passes.criteria.tiles import survivors, tile_scores
from prunec.passes.score import Score


@pytest.fixture(scope="module")
def program():
    return program_of(lively(Chain()), images())


def by_loop(weight, figure):
    return [figure(weight[j].flatten().tolist()) for j in range(weight.shape[0])]


@pytest.mark.parametrize(
    ("criterion", "figure"),
    [("l1", lambda row: sum(map(abs, row))), ("l2", lambda row: sum(w * w for w in row) ** 0.5)],
)
def test_norms_are_those_of_a_loop(program, criterion, figure):
    found = scores(program, criterion)
    for name in ("conv1", "conv2"):
        np.testing.assert_allclose(found[name], by_loop(program.tensors[f"{name}.weight"], figure))


def test_geometric_median_sums_distances(program):
    weight = program.tensors["conv1.weight"].detach().flatten(1)
    expected = [sum(float((weight[i] - weight[j]).norm()) for j in range(5)) for i in range(5)]
    np.testing.assert_allclose(scores(program, "fpgm")["conv1"], expected)


def test_random_is_seeded_and_differs_between_groups(program):
    found = [Score(criterion="random").run(program, Context(seed=s)).program.facts["scores"] for s in (1, 1, 2)]
    assert found[0]["conv1"].tolist() == found[1]["conv1"].tolist() != found[2]["conv1"].tolist()
    assert found[0]["conv1"][:4].tolist() != found[0]["conv2"].tolist()


class Deep(nn.Module):
    """Three layers, of which the second is grouped."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 5, 1)
        self.d = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))


def test_greedy_is_independent_for_the_first_layer_and_without_cuts(program):
    independent, none = scores(program, "l1"), scores(program, {"greedy_l1": {"ratio": 0}})
    half = scores(program, {"greedy_l1": {"ratio": "40%"}})
    np.testing.assert_allclose(none["conv2"], independent["conv2"])
    np.testing.assert_allclose(half["conv1"], independent["conv1"])
    kept = np.argsort(independent["conv1"])[2:]
    weight = program.tensors["conv2.weight"].detach()
    np.testing.assert_allclose(half["conv2"], by_loop(weight[:, np.sort(kept)], lambda row: sum(map(abs, row))))


def test_greedy_takes_a_selection_for_what_is_lost(program):
    chosen = program.with_facts(selection={"conv1": np.array([0, 3])})
    weight = program.tensors["conv2.weight"].detach()
    got = scores(chosen, "greedy_l1")["conv2"]
    np.testing.assert_allclose(got, by_loop(weight[:, [1, 2, 4]], lambda row: sum(map(abs, row))))


def test_greedy_goes_through_grouped_convolutions():
    deep = program_of(lively(Deep()), images())
    found = scores(deep, {"greedy_l1": {"ratio": {"a": 0.3}}})
    lost = np.argsort(scores(deep, "l1")["a"])[:1]
    group = analyse(deep).groups["a"]
    positions = [p for member in group.writers for p in member.positions[np.isin(member.units, lost)]]
    weight = deep.tensors["b.weight"].detach().clone()  # [4, 3]: rows 0, 1 read inputs 0 to 2, rows 2, 3 inputs 3 to 5
    for position in positions:
        weight[2 * (position // 3) : 2 * (position // 3) + 2, position % 3] = 0
    writers = [m for m in analyse(deep).groups["b"].writers if m.axis.tensor == "b.weight"]
    rows = np.array(by_loop(weight, lambda row: sum(map(abs, row))))
    sums = np.bincount(writers[0].units, rows[writers[0].positions]) / np.bincount(writers[0].units)
    np.testing.assert_allclose(found["b"], sums)


def test_greedy_without_anything_to_go_by_is_refused(program):
    with pytest.raises(PassError, match="needs to know what earlier layers lose"):
        scores(program, "greedy_l1")
    with pytest.raises(PassError, match="no group is called 'conv9'"):
        scores(program, {"greedy_l1": {"ratio": {"conv9": 0.5}}})


# -- tiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 5), (7, 11), (9, 20)])
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_tile_scores_by_loop(tile, norm):
    matrix = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tile_scores(matrix, *tile, norm)
    loop = {"l1": lambda t: t.abs().sum(), "l2": lambda t: t.norm(), "max": lambda t: t.abs().max()}[norm]
    for p, rows in enumerate(matrix.split(tile[0])):
        for q, block in enumerate(rows.split(tile[1], 1)):
            assert float(found[p, q]) == pytest.approx(float(loop(block)))
    if norm == "l1":
        assert float(found.sum()) == pytest.approx(float(matrix.abs().sum()))


def test_a_tile_of_one_row_and_all_columns_is_a_filter(program):
    for norm in ("l1", "l2"):
        one, other = scores(program, {"tile": {"norm": norm}}), scores(program, norm)
        np.testing.assert_allclose(one["conv1"], other["conv1"])


def test_rows_share_their_tiles(program):
    found = scores(program, {"tile": {"rows": 2, "columns": 4}})["conv1"]
    weight = program.tensors["conv1.weight"].detach().flatten(1).abs().sum(1).numpy()
    np.testing.assert_allclose(found, np.repeat([weight[:2].mean(), weight[2:4].mean(), weight[4]], [2, 2, 1]))


def test_surviving_tiles():
    marks = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    balanced, overall = survivors(marks, 0.3, "balanced"), survivors(marks, 0.3, "global")
    assert balanced.sum(1).tolist() == [7] * 6
    assert int(overall.sum()) == 42
    assert float(marks[~overall].max()) <= float(marks[overall].min())


def test_a_row_of_cut_tiles_counts_for_nothing(program):
    found = scores(program, {"tile": {"sparsity": 0.4}})["conv1"]
    l1 = scores(program, "l1")["conv1"]
    assert np.flatnonzero(found == 0).tolist() == sorted(np.argsort(l1)[:2])


# -- joining and normalising ---------------------------------------------------------------------------------------

PARTS = [
    Evidence("a", np.array([0, 1, 1, 2]), np.array([4.0, 1.0, 3.0, 5.0])),
    Evidence("b", np.array([0, 1, 3]), np.array([2.0, 7.0, 6.0])),
]
JOINED = {
    "mean": [3, 11 / 3, 5, 6, np.nan],
    "sum": [6, 11, 5, 6, np.nan],
    "max": [4, 7, 5, 6, np.nan],
    "product": [8, 21, 5, 6, np.nan],
    "first": [4, 2, 5, 6, np.nan],
}


@pytest.mark.parametrize("how", AGGREGATES)
def test_evidence_is_joined(how):
    np.testing.assert_allclose(AGGREGATES[how](5, PARTS), JOINED[how])


@pytest.mark.parametrize(
    ("how", "holds"),
    [
        ("none", lambda s, raw: np.array_equal(s, raw)),
        ("mean", lambda s, raw: np.isclose(s.mean(), 1)),
        ("max", lambda s, raw: s.max() == 1),
        ("l2", lambda s, raw: np.isclose((s**2).sum(), 1)),
        ("sum", lambda s, raw: np.isclose(s.sum(), 1)),
        ("rank", lambda s, raw: np.array_equal(s, rankdata(raw) / raw.size)),
        ("gaussian", lambda s, raw: np.isclose(s.mean(), 0) and np.isclose(s.std(), 1)),
    ],
)
def test_normalised(how, holds):
    raw = np.array([3.0, 0.0, 1.0, 1.0, 7.0])
    found = NORMALS[how](raw)
    assert holds(found, raw)
    assert np.array_equal(rankdata(found), rankdata(raw))
    assert np.isfinite(NORMALS[how](np.zeros(4))).all()


def test_every_normalisation_is_one_of_the_option(program):
    assert set(Score.model_fields["normalize"].annotation.__args__) == {"auto", *NORMALS}
    assert set(Score.model_fields["aggregate"].annotation.__args__) == set(AGGREGATES)


def test_units_of_which_nothing_is_known_are_the_last_to_go():
    assert normalised(np.array([1.0, np.nan, 3.0]), "sum").tolist() == [0.25, 0.75, 0.75]


def test_first_is_the_pacesetter():
    program = program_of(lively(Stream()), images())
    found = scores(program, "l1", aggregate="first")["stem"]
    np.testing.assert_allclose(found, program.tensors["stem.weight"].detach().abs().sum((1, 2, 3)))


def test_readers_columns(program):
    found = scores(program, "l1", axes="readers")["conv1"]
    np.testing.assert_allclose(found, program.tensors["conv2.weight"].detach().abs().sum((0, 2, 3)))


def test_scaling_changes_weight_norms():
    model = lively(Chain())
    before = scores(program_of(model, images()), "l1")["conv1"]
    with torch.no_grad():
        model.conv1.weight[1] *= 3
    after = scores(program_of(model, images()), "l1")["conv1"]
    np.testing.assert_allclose(after / before, [1, 3, 1, 1, 1])


# -- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"criterion": "tailor"}, r"criterion must be the name of a criterion, got 'tailor'"),
        ({"criterion": {"tile": {"row": 3}}}, "unknown key 'row'"),
        ({"criterion": {"tile": {"rows": 0}}}, "rows must be at least 1, got 0"),
        ({"criterion": {"tile": 3}}, "tile must be a mapping, got 3"),
        ({"criterion": {"tile": {}, "l1": {}}}, "criterion must be the name of a criterion, or one name"),
        ({"criterion": "l1", "samples": 3}, "must not have 'samples': the criterion l1 looks at no data"),
        ({"criterion": "taylor", "memory": "2 bananas"}, "memory must be a number of bytes"),
        ({"criterion": "taylor", "batches": 0}, "batches must be at least 1, got 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_plans_that_are_refused(entry, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_dict({"plan": 1, "passes": [{"score": entry}]})


def test_the_place_of_a_criterions_option(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("plan: 1\npasses:\n  - score: {criterion: {tile: {colums: 3}}, normalize: l2}\n")
    with pytest.raises(PlanError) as caught:
        Plan.load(file)
    assert str(caught.value) == (
        f"{file}:3:32: unknown key 'colums'\n"
        "    - score: {criterion: {tile: {colums: 3}}, normalize: l2}\n"
        "                                 ^^^^^^\n"
        "hint: did you mean 'columns'?"
    )


@pytest.mark.parametrize(
    "entry", ["l2", {"criterion": {"l2": None}}, {"criterion": {"l2": {}}}, {"criterion": "l2"}], ids=str
)
def test_spellings_of_one_criterion(entry):
    made = Plan.from_dict({"plan": 1, "passes": [{"score": entry}]}).passes[0].pass_
    assert made == Score(criterion="l2")
