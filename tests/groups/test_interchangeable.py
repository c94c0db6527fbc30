"""Units that may stand for each other lie alike in every value and every axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Made, conv, program_of
from torch import nn

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import kinds, label_arrays_of, pacesetter, unmergeable
from prunec.compiler.tracing.trace import trace

IMAGE = torch.zeros(1, 3, 4, 4)


def analysed(run, **parts: nn.Module) -> Analysis:
    return analyse(trace(Made(parts, run).eval(), (IMAGE,)))


def halves(m, x):
    first, second = m.a(x).chunk(2, 1)
    return m.b(torch.cat([first.relu(), second.sigmoid()], 1))


def padded(m, x):
    return m.c(m.b(x) + nn.functional.pad(m.a(x), (0, 0, 0, 0, 0, 3)))


ALIKE = {
    "chain": (lambda m, x: m.b(m.a(x).relu()), {"a": conv(3, 6), "b": conv(6, 2)}, "a", [6]),
    "halves": (halves, {"a": conv(3, 6), "b": conv(6, 2)}, "a", [3, 3]),
    "padded": (padded, {"a": conv(3, 3), "b": conv(3, 6), "c": conv(6, 2)}, "b", [3, 3]),
    "flattened": (lambda m, x: m.b(m.a(x).flatten(1)), {"a": conv(3, 4), "b": nn.Linear(64, 2)}, "a", [4]),
}


@pytest.mark.parametrize(("run", "parts", "name", "expected"), ALIKE.values(), ids=ALIKE)
def test_units_of_one_kind_are_treated_alike(run, parts, name, expected):
    analysis = analysed(run, **parts)
    mine = [kinds(analysis)[group.where] for group in analysis.groups.values()]
    sizes = sorted(np.unique(np.concatenate([part for part in mine if (part != NO_UNIT).all()]), return_counts=True)[1])
    assert sizes == sorted(expected)


def test_units_that_may_not_go_are_of_no_kind():
    analysis = analyse(program_of("chain"))
    found = kinds(analysis)
    assert ((found == NO_UNIT) == ~analysis.free).all()
    assert set(found[analysis.groups["a"].where]) != {NO_UNIT}


def test_units_whose_number_matters_are_of_no_kind_and_say_why():
    analysis = analysed(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 6), n=nn.GroupNorm(1, 6), b=conv(6, 2))
    group = analysis.groups["a"]
    assert group.free.all()
    assert set(kinds(analysis)[group.where]) == {NO_UNIT}
    assert "n" in unmergeable(analysis, group)
    assert unmergeable(analysis, group, []) == "no two of its units are produced and read alike"


def test_a_pin_is_the_reason():
    analysis = analyse(program_of("chain"))
    assert unmergeable(analysis, analysis.groups["fc"]) == "reaches the model's output"


def test_the_pacesetter_is_the_writer_with_fewest_layers_before_it():
    def run(m, x):
        x = m.stem(x).relu()
        return m.head(m.c2(m.c1(x).relu()) + m.short(x))

    analysis = analysed(run, stem=conv(3, 4), c1=conv(4, 5), c2=conv(5, 6), short=nn.Conv2d(4, 6, 1), head=conv(6, 2))
    (group,) = [group for group in analysis.groups.values() if group.size == 6]
    assert {member.cause for member in group.writers} == {"c2", "short"}
    for writers in (group.writers, group.writers[::-1]):
        assert pacesetter(analysis, writers).cause == "short"


def test_arrays_of_labels_in_a_nest():
    one, two = np.arange(2), np.arange(3)
    assert list(label_arrays_of(((one,), None, [(two, one)]))) == [one, two, one]
    assert list(label_arrays_of(None)) == []
