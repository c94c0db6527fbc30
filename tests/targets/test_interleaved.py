"""Times in turns: as many rounds as there is time for, and medians of blocks."""

from __future__ import annotations

import pytest

from prunec.compiler.targets.interleaved import FEWEST, MOST, RUNS, interleaved, rounds_of


def test_rounds_are_a_few_at_least_and_not_all_too_many():
    assert rounds_of(0.04, 2.0) == 50
    assert rounds_of(0.2, 2.0) == 10
    assert rounds_of(30.0, 2.0) == FEWEST
    assert rounds_of(1e-6, 2.0) == MOST


def test_blocks_take_turns_and_the_median_of_each_counts():
    clock, order = [0.0], []

    def runs(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds

        return run

    found = interleaved([runs("slow", 0.004), runs("fast", 0.001)], 0.1, lambda: clock[0])
    assert [{round(time, 9) for time in times} for times in found] == [{0.004}, {0.001}]
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert turns == ["slow", "fast"] * (len(turns) // 2)
    assert len(turns) // 2 == len(found[0]) + 1, "a turn to warm up, and one a round"


def test_what_takes_no_time_on_a_coarse_clock_ends():
    found = interleaved([lambda: None], 1.0, lambda: 0.0)
    assert len(found[0]) == MOST
    assert found[0][0] == pytest.approx(0, abs=1e-8)
    assert RUNS * MOST < 10_000
