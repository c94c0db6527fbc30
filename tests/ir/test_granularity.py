"""How a plan says how blocks are divided: the first pattern that fits counts."""

from __future__ import annotations

import pytest

from prunec.compiler.ir.granularity import CHOICES, Block, Granularity, misread

SAID = Granularity(
    attention=(("*", "heads"),), grouped=(("layer1.*", "whole"), ("layer1.0", "free"), ("*.conv", "same"))
)


@pytest.mark.parametrize(
    ("kind", "names", "choice"),
    [
        ("grouped", ["layer1.0"], "whole"),
        ("grouped", ["layer2.conv"], "same"),
        ("grouped", ["view", "layer2.conv"], "same"),
        ("grouped", ["LAYER1.0"], ""),
        ("grouped", [], ""),
        ("attention", ["layer1.0"], "heads"),
    ],
)
def test_the_first_pattern_that_fits_counts(kind, names, choice):
    assert SAID.choice(kind, iter(names)) == choice


def test_nothing_said_is_false():
    assert not Granularity()
    assert Granularity(grouped=(("*", "same"),))
    assert Granularity(attention=(("*", "heads"),))


def test_a_block_answers_to_each_of_its_names():
    block = Block("grouped", "conv", "2 rows of 4", ("layer1.conv", "conv"), "same")
    assert block.answers("layer1.*")
    assert block.answers("conv")
    assert not block.answers("layer2.*")


@pytest.mark.parametrize("kind", CHOICES)
def test_every_choice_is_read(kind):
    assert misread(kind, dict.fromkeys("abcd", CHOICES[kind][-1])) == ""


@pytest.mark.parametrize(
    ("kind", "said", "complaint"),
    [
        ("heads", {}, "expected one of attention, grouped, incoming, got 'heads'"),
        ("attention", {"*": "same"}, "each with one of heads, head_width, got {'*': 'same'}"),
        ("grouped", "same", "expected patterns"),
        ("grouped", {1: "same"}, "expected patterns"),
    ],
)
def test_what_no_text_may_say(kind, said, complaint):
    assert complaint in misread(kind, said)
