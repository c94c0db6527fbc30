"""Literals read as they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from prunec.compiler.errors import ModelError, TextError
from prunec.compiler.text.lexer import Fragment
from prunec.compiler.text.literals import Reader, literal

CONSTANTS = [
    torch.float32,
    torch.int64,
    torch.channels_last,
    torch.strided,
    torch.device("cpu"),
    torch.device("cuda", 1),
    ...,
]


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(CONSTANTS)
    | st.builds(slice, st.none() | st.integers(), st.none() | st.integers(), st.none() | st.integers())
)


KEYS = st.text() | st.integers() | st.booleans()


LITERALS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(LITERALS)
def test_a_literal_reads_as_it_is_written(value):
    fragment = Fragment.of(literal(value))
    assert repr(Reader(fragment, {}).value(fragment.expression())) == repr(value)


SPELLINGS = [
    (float("-inf"), 'float("-inf")'),
    (slice(None, 3), "slice(None, 3, None)"),
    ((1,), "(1,)"),
    ([], "[]"),
    ({"a": (1, 2.5)}, '{"a": (1, 2.5)}'),
    (torch.float16, "torch.float16"),
    (torch.device("cpu"), 'torch.device("cpu")'),
    (np.int64(3), "3"),
    (True, "True"),
    (..., "..."),
    ('say "hi"', "'say \"hi\"'"),
    ("a\nb", r"'a\nb'"),
]


@pytest.mark.parametrize(("value", "text"), SPELLINGS, ids=[text for _, text in SPELLINGS])
def test_how_a_value_is_spelled(value, text):
    assert literal(value) == text


def test_a_value_without_a_literal_is_refused():
    with pytest.raises(ModelError, match=r"a value of type 'set' has no literal: \{1\}"):
        literal([{1}])


def test_nodes_in_a_value_are_spelled_by_the_caller():
    node = fx.Graph().placeholder("x")
    assert literal((node, [node])) == "(%x, [%x])"
    assert literal({"a": node}, lambda found: found.name.upper()) == '{"a": X}'


NO_LITERALS = ["b'x'", "1 + 2", "-x", "-True", "f(1)", "torch.float23", "torch.load", "{**a}", "float(x='1')", "x"]


@pytest.mark.parametrize("text", NO_LITERALS)
def test_nothing_but_literals_is_read(text):
    fragment = Fragment.of(text)
    with pytest.raises(TextError, match="expected a literal, got"):
        Reader(fragment, {}).value(fragment.expression())


def test_a_constructor_that_fails_is_told_at_its_place():
    fragment = Fragment.of('(1, float("one"))')
    with pytest.raises(TextError, match="could not convert") as caught:
        Reader(fragment, {}).value(fragment.expression())
    assert caught.value.at is not None
    assert caught.value.at.column == 5
