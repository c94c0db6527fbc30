"""Numbers that know where they come from: numbers to Python, nodes to the graph once it reads them."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import pytest
import torch
from torch import fx

from prunec.compiler.tracing.symbolic_numbers import Flag, Float, Handle, Int, Number, Shape, plain_number, wrap_number


class Tape:
    """A tracer that takes down what it is asked for."""

    def __init__(self) -> None:
        self.active, self.froze, self.graph = True, False, fx.Graph()
        self.calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def call_node(self, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        self.calls.append((function.__name__, tuple(map(plain_number, args)), value))
        return self.graph.call_function(function, ())


@pytest.fixture
def tape():
    return Tape()


@pytest.fixture
def shape(tape):
    return Shape((4, 6), Handle(tape, torch.Size((4, 6)), tape.graph.placeholder("size")))


OPERATIONS = [
    (lambda n: n + 1, "add", 5),
    (lambda n: 1 + n, "add", 5),
    (lambda n: 10 - n, "sub", 6),
    (lambda n: n * 0.5, "mul", 2.0),
    (lambda n: n / 8, "truediv", 0.5),
    (lambda n: 9 // n, "floordiv", 2),
    (lambda n: n % 3, "mod", 1),
    (lambda n: 2**n, "pow", 16),
    (lambda n: n << 1, "lshift", 8),
    (lambda n: n & 6, "and_", 4),
    (lambda n: -n, "neg", -4),
    (lambda n: abs(n), "abs", 4),
]


@pytest.mark.parametrize(("run", "name", "value"), OPERATIONS, ids=[f"{name} {value}" for _, name, value in OPERATIONS])
def test_arithmetic_becomes_a_node_when_it_is_read(tape, shape, run, name, value):
    found = run(shape[0])
    assert isinstance(found, Number)
    assert found == value
    assert type(found.plain) is type(value)
    assert tape.calls == [], "not when it is computed"
    assert found.handle.node is found.handle.node
    assert [(call[0], call[2]) for call in tape.calls] == [(name, value)]


def test_reading_a_product_reads_sizes_once(tape, shape):
    n, c = shape
    product = n * c
    assert product.handle.node is not None
    assert n.handle.node is not None
    assert [call[0] for call in tape.calls] == ["mul", "getitem"]


@pytest.mark.parametrize(("function", "value"), [(math.floor, 0), (math.ceil, 1), (math.trunc, 0)])
def test_a_fraction_is_rounded_in_the_graph(tape, shape, function, value):
    found = function(shape[0] / 8)
    assert (type(found), found) == (Int, value)
    assert found.handle.node is not None
    assert tape.calls[0][0] == function.__name__
    assert not tape.froze


@pytest.mark.parametrize(
    "decide",
    [lambda n: n > 3, lambda n: n == 4, bool, lambda n: [0] * n, range, str],
    ids=["more", "equal", "truth", "repeated", "range", "text"],
)
def test_decisions_are_plain(tape, shape, decide):
    found = decide(shape[0])
    assert not isinstance(found, Number)
    assert found == decide(4)
    assert tape.calls == []


def test_int_makes_a_plain_number_and_says_so(tape, shape):
    assert type(int(shape[0])) is int
    assert tape.froze


def test_after_the_trace_numbers_are_like_any_other(tape, shape):
    tape.active = False
    assert type(shape[0] + 1) is int
    assert type(shape[0] / 3) is float


def test_both_halves_of_a_division_are_traced(tape, shape):
    found = divmod(shape[1], 4)
    assert found == (1, 2)
    assert [type(each) for each in found] == [Int, Int]


def test_other_operands_are_asked(shape):
    tensor = torch.ones(2) * shape[0]
    assert tensor.tolist() == [4, 4]
    with pytest.raises(TypeError):
        shape[0] + "a"


def test_a_size_is_a_size(shape):
    assert isinstance(shape, torch.Size)
    assert (repr(shape), shape.numel(), shape.plain) == ("torch.Size([4, 6])", 24, torch.Size([4, 6]))
    assert isinstance(shape[1:], torch.Size)
    assert shape[1:].handle is None
    assert isinstance(operator.add(shape, (1,))[0], Int)
    assert isinstance(operator.add((2,), shape)[1], Int)
    assert type(operator.add(shape, ("a",))) is tuple
    assert torch.empty(shape).shape == (4, 6)


def test_copies_and_pickles_have_no_history(tape, shape):
    assert copy.deepcopy(shape[0]) is shape[0], "while it is traced, it stays what it is"
    for value, kind in (
        (shape[0], int),
        (shape[0] / 2, float),
        (shape, torch.Size),
        (Flag(Handle(tape, True, tape.graph.placeholder("t"))), bool),
    ):
        found = pickle.loads(pickle.dumps(value))
        assert type(found) is kind
        assert found == value
    assert tape.calls == []


def test_a_flag_is_a_bool_in_words(tape):
    flag = Flag(Handle(tape, True, tape.graph.placeholder("training")))
    assert (str(flag), flag.plain, bool(flag)) == ("True", True, True)
    assert isinstance(flag * 0.5, Float)
    assert not isinstance(not flag, Number)


def test_truth_values_are_not_traced(tape):
    handle = Handle(tape, 1, tape.graph.placeholder("x"))
    assert wrap_number(True, handle) is True
    assert type(wrap_number(1, handle)) is Int
    assert type(wrap_number(1.5, handle)) is Float
    assert type(plain_number(wrap_number(1, handle))) is int
    assert plain_number("a") == "a"
    assert operator.index(wrap_number(3, handle)) == 3
