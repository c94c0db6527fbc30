"""Nested containers of what calls are given and give back."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from prunec.compiler.tracing.containers import is_foreign, leaves, rebuilt, returned, twin_of
from prunec.compiler.tracing.symbolic_numbers import Refused

Pair = namedtuple("Pair", ["one", "other"])


@dataclass
class Record:
    logits: Any
    cache: Any = None


class Cache:
    """What no graph can make."""


X, Y, CACHE = torch.ones(1), torch.ones(2), Cache()


def test_leaves_of_every_container():
    value = (1, [2, {"a": 3, "b": (4,)}], slice(5, None, 6), Pair(7, 8), X)
    assert list(leaves(value))[:-1] == [1, 2, 3, 4, 5, None, 6, 7, 8]
    assert list(leaves(value))[-1] is X
    assert list(leaves(None)) == [None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), (10, 20)),
        (Pair(1, 2), Pair(10, 20)),
        ([1], [10]),
        ({"a": 1}, {"a": 10}),
        (slice(1, 2, 3), slice(10, 20, 30)),
        (torch.Size([1, 2]), (10, 20)),
        (np.int64(3), 3),
        ("text", "text"),
    ],
    ids=str,
)
def test_a_container_of_the_same_kind(value, expected):
    found = rebuilt(value, lambda item: item * 10)
    assert found == expected
    assert type(found) is type(expected)


HELD = [1, "a", X, torch.float32, np.float32(1), None, ..., range(3), torch.device("cpu")]
FOREIGN = [CACHE, {1}, torch.nn.Identity(), int]


@pytest.mark.parametrize("leaf", [*HELD, *FOREIGN], ids=lambda leaf: type(leaf).__name__)
def test_what_a_graph_can_hold(leaf):
    assert is_foreign(leaf) is any(leaf is each for each in FOREIGN)


RETURNED = {
    "dataclass": (Record(X, Y), {"logits": X, "cache": Y}, []),
    "mapping": (OrderedDict(a=X), {"a": X}, []),
    "named tuple": (Pair(X, Y), Pair(X, Y), []),
    "inner named tuple": ([Pair(X, Y)], [(X, Y)], []),
    "field left out": (Record(X, CACHE), {"logits": X}, ["'cache' (Cache)"]),
    "items left out": ((X, CACHE, {1}), (X,), ["item 2 (set)", "item 1 (Cache)"]),
    "inside": ({"a": Record(X, CACHE)}, {"a": {"logits": X}}, ["'cache' (Cache)"]),
    "empty": ({}, {}, []),
}


@pytest.mark.parametrize(("value", "expected", "words"), RETURNED.values(), ids=RETURNED)
def test_what_a_model_gives_back_in_plain_containers(value, expected, words):
    left_out: list[str] = []
    found = returned(value, left_out)
    assert (repr(found), left_out) == (repr(expected), words)


@pytest.mark.parametrize(
    "value",
    [CACHE, Record(CACHE, CACHE), (CACHE, X), [X, CACHE], (CACHE,), Pair(X, CACHE)],
    ids=["alone", "nothing is left", "before a tensor", "in a list", "alone in a tuple", "in a named tuple"],
)
def test_what_can_not_be_left_out_is_refused(value):
    with pytest.raises(Refused, match="gives back a Cache, which a graph can't make"):
        returned(value, [])


def test_the_last_twin_of_a_tensor():
    x = torch.empty(2, 3, device="meta")
    first, second = x.view(2, 3), x.view(2, 3)
    assert twin_of(x, [first, second, x.T]) is second
    assert twin_of(x, [x.T, x[:1], x.view(torch.int32), torch.empty(2, 3, device="meta")]) is None
    assert twin_of(torch.ones(2), [torch.ones(2)]) is None
