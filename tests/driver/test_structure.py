"""Outlines: what two values have in common but for their numbers and sizes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from prunec.compiler.driver.structure import mismatch, outline


@dataclass
class Record:
    x: torch.Tensor
    y: list[int]


ALIKE = {
    "sizes": (torch.zeros(3, 4), torch.ones(9, 1)),
    "a record": (Record(torch.zeros(1), [1]), {"x": torch.ones(5), "y": (2,)}),
    "how many": ([torch.zeros(1)], [torch.ones(1), torch.ones(2)]),
    "nothing found": ({"x": None}, {"x": torch.ones(1)}),
    "numbers": ((1, "a"), (2, "b")),
}
OTHERS = {
    "dtype": ([torch.zeros(1)], [torch.zeros(1).int()], r"float32\[_\] instead of int32\[_\] at \[0\]"),
    "dimensions": (torch.zeros(1, 2), torch.zeros(2), r"float32\[_, _\] instead of float32\[_\]"),
    "keys": ({"a": 1}, {"b": 1}, "a dict of 'a' instead of a dict of 'b'"),
    "nesting": ({"a": [1, 2]}, {"a": 1}, r"a list of 2 instead of int at \['a'\]"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_alike(name):
    got, want = map(outline, ALIKE[name])
    assert mismatch(got, want) == mismatch(want, got) == ""


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    got, want, message = OTHERS[name]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(mismatch(outline(got), outline(want)))


def test_values_stay_where_they_are_asked_for():
    found = outline({"x": torch.zeros(2), "scale": 0.5, "mode": None, "other": object()}, values=True)
    assert found == {"x": ("float32", 1), "scale": 0.5, "mode": None, "other": ("object", 0)}
