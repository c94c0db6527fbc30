"""Queues of packs, and of groups that are tied."""

from __future__ import annotations

import numpy as np
import pytest
from nets import program_of

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.granularity import Granularity
from prunec.passes.selection.limits import Limits
from prunec.passes.selection.queues import Queue, queue_of, tied_queue


@pytest.fixture
def packed() -> Analysis:
    """The net whose group `a` of eight units loses equally many of each half."""
    return analyse(program_of("grouped").derive(granularity=Granularity(grouped=(("*", "equal"),))))


def test_the_least_important_of_every_row_leave_together(packed):
    group = packed.groups["a"]
    (balance,) = [balance for balance in packed.balances if balance.cells[0][0] == group.start]
    assert [cell.tolist() for cell in balance.cells] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    scores = np.array([4.0, 1, 3, 2, 8, 7, 6, 5])
    found = queue_of(packed, group, scores, np.ones(8, dtype=bool), Limits())
    assert found.units.tolist() == [1, 7, 3, 6, 2, 5]
    assert found.steps.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.ends.tolist() == [0, 2, 4, 6]


def test_a_unit_that_stays_takes_the_next_of_its_row(packed):
    free = np.ones(8, dtype=bool)
    free[[1, 2]] = False
    found = queue_of(packed, packed.groups["a"], np.array([4.0, 1, 3, 2, 8, 7, 6, 5]), free, Limits())
    assert found.units.tolist() == [3, 7, 0, 6]


def test_packs_end_where_limits_say(packed):
    limits = Limits(multiple_of={"a": 4})
    found = queue_of(packed, packed.groups["a"], np.arange(8.0), np.ones(8, dtype=bool), limits)
    assert found.steps.tolist() == [0, 0, 0, 0]


def test_tied_groups_have_one_width_after_every_step():
    analysis = analyse(program_of("chain"))
    one, other = analysis.groups["a"], analysis.groups["b"]
    first = Queue(("a",), one.start + np.array([3, 1, 0, 2]), np.array([0, 1, 2, 3]))
    second = Queue(("b",), other.start + np.array([4, 2, 0, 1]), np.array([0, 0, 1, 1]))
    found = tied_queue(analysis, [first, second])
    assert found.names == ("a", "b")
    assert found.steps.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert set((found.units[:4] - one.start).tolist()) >= {3, 1}
    assert sorted(found.units[:4].tolist()) == sorted(
        [*(one.start + np.array([3, 1])), *(other.start + np.array([4, 2]))]
    )
