"""What holds for every method of selection."""

from __future__ import annotations

import numpy as np
import pytest
from selecting import METHODS, SMALL, bare, context, kept_of, scored

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.isomorphic import isomorphic_classes
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


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_units_compete_with_those_of_groups_of_their_structure_alone(name):
    """Each class loses the same share, up to a unit; within one, the lowest scores of all its groups go."""
    program = scored(name)
    result = Select(budget={"macs": 0.5}, scope="isomorphic").run(program, context(name))
    keep, groups = kept_of(program, result), analyse(program).groups
    classes = isomorphic_classes(analyse(program))
    of_class: dict[int, list[str]] = {}
    for group in (name for name, group in groups.items() if group.free.all()):
        of_class.setdefault(classes[group], []).append(group)
    assert max(map(len, of_class.values())) > 3
    shares = []
    for names in of_class.values():
        stays = np.concatenate([keep[groups[n].where] for n in names])
        score = np.concatenate([program.facts["scores"][n] for n in names])
        shares.append((1 - stays.mean(), 1 / stays.size))
        if all(keep[groups[n].where].sum() > 1 for n in names):
            lowest = np.argsort(score)[: (~stays).sum()]
            assert (~stays)[lowest].mean() > 0.98, "all but a few that were put back to fill the budget"
    assert max(share - one for share, one in shares) <= min(share + one for share, one in shares)


def test_scores_of_other_structures_may_have_any_scale():
    program, classes = scored("mobilenet_v2"), isomorphic_classes(analyse(bare("mobilenet_v2")))
    other = program.with_facts(scores={k: s * 10.0 ** (classes[k] % 5) for k, s in program.facts["scores"].items()})
    select = Select(budget={"macs": 0.6}, scope="isomorphic")
    one, two = (kept_of(program, select.run(p, context("mobilenet_v2"))) for p in (program, other))
    np.testing.assert_array_equal(one, two)


def test_every_method_is_listed():
    assert set(SELECTORS.names()) >= set(METHODS)
