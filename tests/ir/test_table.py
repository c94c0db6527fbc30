"""Tables of rows: a second row for one key is refused, and then nothing is entered."""

from __future__ import annotations

import pytest

from prunec.compiler.ir.table import Table


def test_one_row_for_several_keys():
    table: Table[str, int] = Table()
    table.add(["a", "b"], 1)
    table.add(["c"], 2)
    assert table == {"a": 1, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("keys", "why"),
    [(["c", "a"], "a has a row already"), (["c", "c"], "is named twice"), ([int, str], "int has a row")],
)
def test_a_second_row_is_refused_whole(keys, why):
    table: Table[object, int] = Table()
    table.add(["a", int], 1)
    with pytest.raises(AssertionError, match=why):
        table.add(keys, 2)
    assert table == {"a": 1, int: 1}
