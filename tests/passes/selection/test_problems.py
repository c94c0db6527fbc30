"""The state of a search: every move costs what the levels cost that it leads to."""

from __future__ import annotations

import numpy as np
from selecting import context, problem, scored

from prunec.passes.select import Select
from prunec.passes.selection.problems import State


def test_a_search_sees_the_costs_of_what_it_moves():
    program, select = scored("mobilenet_v2"), Select(budget={"macs": 0.5, "memory": 0.5, "file_size": 0.5})
    found = problem(program, select, context("mobilenet_v2"))
    rng, state = np.random.default_rng(0), State(found, np.zeros_like(found.last))
    for _ in range(40):
        queue = int(rng.integers(found.last.size))
        level = int(rng.integers(found.last[queue] + 1))
        foreseen, before = state.trial(queue, level), np.concatenate(state.rows)
        others = np.array([level, int(state.levels[queue])])
        changes = state.changes(queue, others)
        np.testing.assert_allclose(before + changes[:, 0], np.concatenate(foreseen), rtol=1e-12)
        np.testing.assert_allclose(changes[:, 1], 0, atol=1e-9)
        state.move(queue, level)
        fresh = State(found, state.levels)
        for a, b, c in zip(foreseen, state.rows, fresh.rows, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
            np.testing.assert_allclose(b, c, rtol=1e-9)
