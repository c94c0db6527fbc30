"""The order in which units go: steps of queues, levels, and what stays at each."""

from __future__ import annotations

import numpy as np
import pytest
from selecting import bare, scored

from prunec.compiler.groups.analysis import analyse
from prunec.passes.selection.limits import Limits
from prunec.passes.selection.ranking import Ranking

SCORES = [3.0, 1.0, 4.0, 2.0, 9.0, 0.0, 5.0, np.nan]


def ranked(limits: Limits = Limits(), **scores: list[float]) -> Ranking:  # noqa: B008  (it is frozen)
    """The queues of `chain`, whose group `a` has eight units and `b` six."""
    return Ranking.of(analyse(bare("chain")), {name: np.array(each) for name, each in scores.items()}, limits)


def steps(ranking: Ranking) -> list[list[int]]:
    """The units of each step of `a`."""
    start = ranking.analysis.groups["a"].start
    return [
        sorted((ranking.unit[ranking.step == number] - start).tolist())
        for number in range(int(ranking.steps.levels[0]))
    ]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), [[5], [1], [3], [0], [2], [6], [4]]),
        (Limits(multiple_of={"a": 4}), [[0, 1, 3, 5]]),
        (Limits(multiple_of={"a": 3}), [[1, 5], [0, 2, 3]]),
        (Limits(keep_at_least={"a": 6}), [[5], [1]]),
        (Limits(remove_at_most={"a": 0.5}), [[5], [1], [3], [0]]),
        (Limits(multiple_of={"a": 2}, remove_at_most={"a": 0.5}), [[1, 5], [0, 3]]),
        (Limits(keep_at_least={"a": 9}), []),
    ],
    ids=["free", "multiple of 4", "multiple of 3", "at least", "at most", "both", "all"],
)
def test_the_least_important_go_first_as_far_as_limits_allow(limits, expected):
    """The last unit has no score, so it never goes."""
    assert steps(ranked(limits, a=SCORES)) == expected


def test_a_step_counts_by_the_mean_of_its_units():
    found = ranked(Limits(multiple_of={"a": 3}), a=SCORES).steps
    assert found.size.tolist() == [2, 3]
    assert found.total.tolist() == [1.0, 9.0]
    assert found.score.tolist() == [0.5, 3.0]
    assert found.ends.tolist() == [2, 5]


def test_a_level_says_how_many_steps_are_gone():
    ranking = ranked(a=SCORES, b=[6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    groups = ranking.analysis.groups
    keep = ranking.keep(np.array([2, 1]))
    assert np.flatnonzero(~keep[groups["a"].where]).tolist() == [1, 5]
    assert np.flatnonzero(~keep[groups["b"].where]).tolist() == [5]
    assert keep.sum() == ranking.analysis.size - 3
    assert ranking.sizes.tolist() == [8, 6]
    assert (ranking.count, ranking.scored) == (2, {"a", "b"})
    assert ranking.matrix.sum(axis=0).A1.tolist() == ranking.steps.size.tolist()


@pytest.mark.parametrize(
    ("gone", "level"), [(0, 0), (1, 0), (2, 1), (4.9999999999, 2), (5, 2), (7, 2), (np.nan, 0)], ids=str
)
def test_the_level_at_which_at_most_so_many_are_gone(gone, level):
    ranking = ranked(Limits(multiple_of={"a": 3}), a=SCORES)
    assert ranking.levels(np.array([gone])).tolist() == [level]


@pytest.mark.parametrize(("threshold", "level"), [(-1, 0), (1.0, 0), (1.5, 1), (4, 1), (4.5, 2), (np.nan, 0)], ids=str)
def test_a_step_goes_where_all_its_units_are_below(threshold, level):
    ranking = ranked(Limits(multiple_of={"a": 3}), a=SCORES)
    assert ranking.below(np.array([threshold])).tolist() == [level]


def test_barred_groups_and_those_without_scores_have_no_queue():
    assert set(ranked(Limits(barred=frozenset({"a"})), a=SCORES, b=SCORES[:6]).groups) == {"b"}
    assert ranked(Limits(barred=frozenset({"a"})), a=SCORES).scored == {"a"}


@pytest.mark.parametrize("name", ["uneven_split", "chunk_two_readers", "cropped_channels"])
def test_a_piece_of_a_split_keeps_its_best(name):
    program = scored(name)
    analysis = analyse(program)
    assert analysis.covers
    ranking = Ranking.of(analysis, program.facts["scores"], Limits())
    keep = ranking.keep(ranking.steps.levels)
    assert all(keep[piece].any() for piece in analysis.covers)
