"""What holds for every method of selection."""

from __future__ import annotations

import numpy as np
import pytest
from selecting import METHODS, SMALL, bare, context, kept_of, scored

from prunec.passes.select import Select
from prunec.passes.selection.selectors import SELECTORS


@pytest.mark.parametrize("name", SMALL)
def test_the_zero_of_scores_means_nothing(name):
    """Scores that are normalised around zero: no method takes more to be rid of negative ones."""
    plain, budget = scored(name), {"macs": 0.6}
    lowest = min(float(s.min()) for s in plain.facts["scores"].values())
    shifted, centred = (
        plain.with_facts(scores={k: s - by for k, s in plain.facts["scores"].items()}) for by in (lowest, 5.0)
    )
    for method in METHODS:
        options = {"budget": budget, "method": method, "per_cost": method == "greedy"}
        one, other = (Select(**options).run(p, context(name)) for p in (shifted, centred))
        np.testing.assert_array_equal(kept_of(bare(name), one), kept_of(bare(name), other))
        assert 0 <= other.details["kept_score"] <= other.details["whole_score"]
        assert other.details["kept_score"] == pytest.approx(one.details["kept_score"])


@pytest.mark.parametrize("method", METHODS)
def test_units_without_a_finite_score_stay(method):
    program = scored("chain")
    scores = {k: np.where(np.arange(s.size) % 3 == 0, np.inf, s) for k, s in program.facts["scores"].items()}
    scores = {k: np.where(np.arange(s.size) % 3 == 1, np.nan, s) for k, s in scores.items()}
    result = Select(budget={"macs": 0.8}, method=method).run(program.with_facts(scores=scores), context("chain"))
    gone = result.program.facts["selection"]
    assert gone
    assert all((units % 3 == 2).all() for units in gone.values())


def test_every_method_is_listed():
    assert set(SELECTORS.names()) >= set(METHODS)
