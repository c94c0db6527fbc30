"""Questions about a call: its name, its arguments, what it indexes."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from prunec.compiler.ir.ops import argument, index_dims, known_places, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.train_eval import by_mode


def add(x: object, y: object) -> object:
    """A user's own, which isn't torch's."""
    return (x, y)


def node(op: str, target: object, *args: object, **kwargs: object) -> fx.Node:
    return fx.Graph().create_node(op, target, args, kwargs)


NAMES = [
    ("call_function", torch.add, "add"),
    ("call_function", operator.add, "add"),
    ("call_function", operator.and_, "and"),
    ("call_function", F.relu_, "relu"),
    ("call_function", torch.Tensor.add_, "add"),
    ("call_method", "relu_", "relu"),
    ("call_method", "__getitem__", "__getitem__"),
    ("call_function", getattr, "getattr"),
    ("call_function", add, f"{__name__}.add"),
    ("call_function", by_mode, "by_mode"),
]


@pytest.mark.parametrize(("op", "target", "name"), NAMES, ids=range(len(NAMES)))
def test_names_of_operations(op, target, name):
    assert op_name(node(op, target)) == name


def test_arguments_by_position_by_name_and_by_numpys_name():
    call = node("call_method", "sum", 1, 2, axis=3, keepdim=True)
    assert argument(call, 1, "dim") == 2
    assert argument(call, 2, "dim") == 3
    assert argument(call, 2, "keepdim", False) is True
    assert argument(call, 3, "dtype", torch.float32) == torch.float32


def test_an_argument_is_put_where_it_was_given():
    call = node("call_function", torch.sum, 0, 1, keepdim=True)
    put(call, 1, "dim", 5)
    put(call, 2, "keepdim", False)
    assert (call.args, call.kwargs) == ((0, 5), {"keepdim": False})


def test_shapes_of_tensors_and_of_numbers():
    graph = fx.Graph()
    x, n = graph.placeholder("x"), graph.placeholder("n")
    x.meta["val"], n.meta["val"] = torch.empty(2, 3, device="meta"), 4
    assert [shape_of_argument(each) for each in (x, n, torch.ones(5), 7)] == [(2, 3), (), (5,), ()]
    assert (rank_of(x), rank_of(n)) == (2, 0)


ALL = slice(None)
INDICES = [
    ((0, ALL), 3, [(0, 0), (1, 1)]),
    ((None, 0, ALL), 3, [(1, 0), (2, 1)]),
    ((..., 1), 4, [(1, 3)]),
    ((0, ..., 1, 2), 5, [(0, 0), (2, 3), (3, 4)]),
    ((0, ..., None, 1), 4, [(0, 0), (3, 3)]),
    ((...,), 2, []),
]


@pytest.mark.parametrize(("entries", "rank", "expected"), INDICES, ids=[str(row[0]) for row in INDICES])
def test_which_dimension_an_entry_indexes(entries, rank, expected):
    assert index_dims(entries, rank) == expected


@pytest.mark.parametrize(
    ("index", "places"),
    [
        ([2, 0], [2, 0]),
        ((1,), [1]),
        (torch.tensor([3, 1]), [3, 1]),
        ([], None),
        ([1, True], None),
        ([0.5], None),
        (torch.tensor([True, False, True]), [0, 2]),
        ([False, True], [1]),
        (torch.tensor([1], dtype=torch.uint8), None),
        (torch.tensor([[1]]), None),
        (torch.tensor([0.5]), None),
        (torch.empty(2, dtype=torch.int64, device="meta"), None),
        (3, None),
    ],
    ids=str,
)
def test_places_that_are_known(index, places):
    assert known_places(index) == places
