"""The global percentile, against its definition spelled out."""

from __future__ import annotations

import numpy as np
import pytest
from selecting import bare, context, scored

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.isomorphic import isomorphic_classes
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink


def gone(program: Program, result) -> dict[str, list[int]]:
    return {name: units.tolist() for name, units in result.program.facts["selection"].items()}


def kept_by_the_paper(scores: dict[str, np.ndarray], share: float) -> dict[str, list[int]]:
    """`t = sorted(all)[int(total * p)]`, `keep > t`: the units that go, by group."""
    values = np.sort(np.concatenate(list(scores.values())))
    threshold = values[int(values.size * share)]
    found = {name: np.flatnonzero(~(score > threshold)).tolist() for name, score in scores.items()}
    return {name: units for name, units in found.items() if units}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_score_at_the_share_and_what_is_above_it_stays(share, seed):
    rng = np.random.default_rng(seed)
    scores = {name: rng.random(score.size) for name, score in scored("vgg11_bn").facts["scores"].items()}
    program = bare("vgg11_bn").with_facts(scores=scores)
    result = Select(ratio=share, scope="global").run(program, context("vgg11_bn"))
    assert gone(program, result) == kept_by_the_paper(scores, share)
    total = sum(score.size for score in scores.values())
    assert sum(map(len, gone(program, result).values())) == int(total * share) + 1  # one more, as in the paper's code
    threshold = result.details["threshold"]
    left = total - sum(int((score <= threshold).sum()) for score in scores.values())
    assert left == total - int(total * share) - 1


def test_ties_go_too():
    program = scored("chain").with_facts(scores={"a": np.array([1.0, 2, 2, 2, 2, 5, 6, 7]), "b": np.arange(8.0, 14)})
    result = Select(ratio="20%", scope="global").run(program, context("chain"))  # position 2 of 14
    assert gone(program, result) == {"a": [0, 1, 2, 3, 4]}


def test_nothing_goes_at_no_share_and_one_stays_at_any():
    program = scored("chain")
    assert gone(program, Select(ratio=0, scope="global").run(program, context("chain"))) == {}
    result = Select(ratio=1, scope="global").run(program, context("chain"))
    assert {name: len(units) for name, units in gone(program, result).items()} == {"a": 7, "b": 5}
    assert [str(note) for note in result.notes] == [
        "a: 8 of 8 units are at or under the threshold; 7 of them may go",
        "b: 6 of 6 units are at or under the threshold; 5 of them may go",
    ]


def test_what_a_plan_protects_has_no_part_in_it():
    program = scored("chain").with_facts(scores={"a": np.arange(8.0), "b": np.arange(100.0, 106)})
    alone = Select(ratio=0.5, scope="global", only=["b"]).run(program, context("chain"))
    assert gone(program, alone) == {"b": [0, 1, 2, 3]}


def test_without_a_scope_every_group_has_its_share():
    program = scored("chain").with_facts(scores={"a": np.arange(8.0), "b": np.arange(100.0, 106)})
    for options in ({}, {"scope": "local"}):
        result = Select(ratio=0.5, **options).run(program, context("chain"))
        assert gone(program, result) == {"a": [0, 1, 2, 3], "b": [0, 1, 2]}


def test_groups_of_one_structure_have_a_threshold_of_their_own():
    program = scored("resnet18")
    scores, classes = program.facts["scores"], isomorphic_classes(analyse(program))
    result = Select(ratio=0.3, scope="isomorphic").run(program, context("resnet18"))
    expected: dict[str, list[int]] = {}
    for number in set(classes.values()):
        mine = {name: score for name, score in scores.items() if classes[name] == number}
        expected |= kept_by_the_paper(mine, 0.3) if mine else {}
    assert gone(program, result) == expected
    assert len({classes[name] for name in scores}) > 3


# -- in rounds -------------------------------------------------------------------------------------------------------


def test_shares_are_of_the_traced_model_and_what_is_gone_counts_as_lowest():
    traced = bare("chain")
    once = Select(ratio=0.5, scope="global").run(
        traced.with_facts(scores={"a": np.arange(8.0), "b": np.arange(8.0, 14)}), context("chain")
    )
    assert gone(traced, once) == {"a": [0, 1, 2, 3, 4, 5, 6]}  # one of the eight under the threshold has to stay
    first = Select(ratio=0.25, scope="global").run(
        traced.with_facts(scores={"a": np.arange(8.0), "b": np.arange(8.0, 14)}), context("chain")
    )
    assert gone(traced, first) == {"a": [0, 1, 2, 3]}
    cut = Shrink().run(first.program, Context(traced=traced)).program
    again = cut.with_facts(scores={"a": np.arange(4.0, 8), "b": np.arange(8.0, 14)})
    second = Select(ratio=0.5, scope="global").run(again, Context(traced=traced))
    assert gone(cut, second) == {"a": [0, 1, 2]}  # of the eight at or under the threshold, four are gone, one stays
    same = Select(ratio=0.25, scope="global").run(again, Context(traced=traced))
    assert gone(cut, same) == {}  # the unit at position 3 of 14 is gone by now


def test_one_selection_takes_at_most_a_share_of_what_is_there():
    traced = bare("chain")
    scores = {"a": np.arange(8.0), "b": np.arange(8.0, 14)}
    options = {"scope": "global", "take_at_most": 0.5}
    first = Select(ratio=0.5, **options).run(traced.with_facts(scores=scores), context("chain"))
    assert gone(traced, first) == {"a": [0, 1, 2, 3]}
    assert [str(note) for note in first.notes] == ["a: 8 of 8 units are at or under the threshold; 4 of them may go"]
    cut = Shrink().run(first.program, Context(traced=traced)).program
    again = cut.with_facts(scores={"a": np.arange(4.0, 8), "b": np.arange(8.0, 14)})
    second = Select(ratio=0.9, **options).run(again, Context(traced=traced))
    assert gone(cut, second) == {"a": [0, 1], "b": [0, 1, 2]}  # half of four, and of six
    held = Select(ratio=0.9, scope="global", remove_at_most=0.5).run(again, Context(traced=traced))
    assert gone(cut, held) == {"b": [0, 1, 2]}  # that one is a share of the traced model
    named = Select(ratio=0.9, scope="global", take_at_most={"a": 0.0}).run(again, Context(traced=traced))
    assert gone(cut, named) == {"b": [0, 1, 2, 3, 4]}
