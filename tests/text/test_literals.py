"""Literals read as they are written."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

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
