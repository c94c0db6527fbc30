"""The table unit x class as text and as a picture."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np

from prunec.passes.criteria import class_pictures
from prunec.passes.criteria.class_pictures import ROWS, heat_map, table_csv
from prunec.passes.criteria.class_tables import ClassTable


def test_a_line_for_each_unit():
    table = ClassTable(conv=np.array([[0.5, 1.5], [np.nan, np.nan], [1, 0]]))
    table.titles = ("cat (0)", "1")
    expected = ["group,unit,label,cat (0),1", "conv,0,1,0.5,1.5", "conv,1,,,", "conv,2,cat (0),1,0"]
    assert table_csv(table).splitlines() == expected


def test_a_large_table_is_of_the_kept_classes(monkeypatch):
    monkeypatch.setattr(class_pictures, "NUMBERS", 5)
    table = ClassTable(conv=np.array([[1.0, 2, 0], [0, 0, 3]]))
    assert table_csv(table).splitlines()[0] == "group,unit,label,0,1,2"
    table.kept = (0, 2)
    assert table_csv(table).splitlines() == ["group,unit,label,0,2", "conv,0,0,1,0", "conv,1,2,0,3"]


def size(table: ClassTable) -> tuple[int, int]:
    return matplotlib.image.imread(io.BytesIO(heat_map(table)), format="png").shape[:2]


def test_the_picture_grows_with_groups_and_not_with_many_classes():
    rng = np.random.default_rng(0)
    one = ClassTable(a=rng.random((8, 10)))
    two = ClassTable(a=rng.random((8, 10)), b=rng.random((30, 10)))
    many = ClassTable(a=rng.random((8, 1000)))
    few = ClassTable(a=rng.random((8, 1000)))
    few.kept = (3, 500)
    assert size(two)[0] > 1.5 * size(one)[0]
    assert size(many)[0] < 2.6 * size(ClassTable(a=rng.random((8, ROWS))))[0]
    assert size(few)[0] < size(one)[0]


def test_the_same_table_gives_the_same_bytes():
    table = ClassTable(a=np.random.default_rng(0).random((8, 3)), b=np.full((4, 3), np.nan))
    assert heat_map(table) == heat_map(table)


def test_a_name_with_dollars_is_no_formula():
    table = ClassTable({"a$_$": np.random.default_rng(0).random((8, 2))})
    table.titles = ("US$ and $x_", "b")
    assert heat_map(table)[:4] == b"\x89PNG"
