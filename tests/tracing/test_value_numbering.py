"""Which nodes of two traces compute the same: shared values, values of one mode, and where the modes meet again."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from prunec.compiler.ir.aliasing import mutates
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.value_numbering import NotJoinable, Trace, flag_of, numbered


class Lines:
    """A graph written call by call."""

    def __init__(self, training: bool) -> None:
        self.graph, self.state, self.training = fx.Graph(), {"fc": nn.Linear(3, 3), "table": torch.ones(3)}, training

    def __call__(self, target, *args, **kwargs) -> fx.Node:
        op = "call_function" if callable(target) else "call_module" if target in self.state else "call_method"
        return self._valued(self.graph.create_node(op, target, args, kwargs))

    def input(self, name: str) -> fx.Node:
        return self._valued(self.graph.placeholder(name))

    def table(self) -> fx.Node:
        return self._valued(self.graph.get_attr("table"))

    def _valued(self, node: fx.Node) -> fx.Node:
        node.meta["val"] = torch.empty(2, 3, device="meta")
        if mutates(node, self.state):
            node.meta["mutates"] = True
        return node


def numbers(write, **only) -> tuple[dict[str, int], dict[str, int], tuple[Trace, Trace]]:
    """The numbers of both traces by node; `write(line, training)` gives the output."""
    traces = []
    for training in (False, True):
        line = Lines(training)
        line.graph.output(write(line, training))
        traces.append(Trace(Program(line.graph, line.state, ()), training))
    found = numbered(*traces)
    names = [{node.name: number for node, number in each.items()} for each in found]
    return *names, tuple(traces)


def test_what_both_compute_has_one_number():
    def write(line, training):
        y = line("fc", line.input("x"))
        return line(torch.relu, y) if training else line(torch.sigmoid, y)

    evaluated, trained, _ = numbers(write)
    assert evaluated["fc"] == trained["fc"]
    assert evaluated["x"] == trained["x"]
    assert evaluated["sigmoid"] != trained["relu"]
    assert len({*evaluated.values(), *trained.values()}) == 4


def test_the_same_call_twice_has_two_numbers():
    def write(line, training):
        x = line.input("x")
        return line(operator.add, line(torch.rand_like, x), line(torch.rand_like, x))

    evaluated, trained, _ = numbers(write)
    assert evaluated == trained
    assert evaluated["rand_like"] != evaluated["rand_like_1"]


def test_what_is_written_in_place_is_told_apart():
    def write(line, training):
        y = line("fc", line.input("x"))
        before = line(torch.relu, y)
        line("add_", y, 1)
        return (before, line(torch.relu, y))

    evaluated, trained, _ = numbers(write)
    assert evaluated == trained
    assert evaluated["relu"] != evaluated["relu_1"]


def test_what_one_mode_alone_writes_into_is_its_own():
    def write(line, training):
        y = line("fc", line.input("x"))
        if training:
            line("add_", y, 1)
        return line(torch.relu, y)

    evaluated, trained, traces = numbers(write)
    assert evaluated["x"] == trained["x"]
    assert evaluated["fc"] != trained["fc"]
    assert evaluated["relu"] != trained["relu"]
    assert {node.name for node in traces[1].alone} >= {"fc"}


@pytest.mark.parametrize("outer", ["x", "table"])
def test_one_mode_may_not_write_into_what_both_are_given(outer):
    def write(line, training):
        x, table = line.input("x"), line.table()
        if training:
            line("add_", x if outer == "x" else table, 1)
        return line(operator.add, x, table)

    with pytest.raises(NotJoinable, match=f"'{outer}' is written into in train mode alone"):
        numbers(write)


def noisy(line, training):
    y = line("fc", line.input("x"))
    drowned = line(operator.mul, y, line(torch.rand_like, y)) if training else y
    return line(torch.relu, line(operator.add, drowned, 1))


def test_the_modes_meet_again_by_a_choice():
    evaluated, trained, traces = numbers(noisy)
    assert evaluated["add"] == trained["add"]
    assert evaluated["relu"] == trained["relu"]
    assert [{(a.name, b.name) for a, b in trace.choices} for trace in traces] == [{("add", "fc")}, {("add", "mul")}]
    choices = [{(a.name, b.name) for a, b in trace.choices.values()} for trace in traces]
    assert choices == [{("fc", "mul")}] * 2, "eval mode's first"


def test_unrelated_values_are_no_choice():
    def write(line, training):
        x, y = line.input("x"), line.input("y")
        return line(torch.relu, line(torch.exp, y) if training else line(torch.sin, x))

    evaluated, trained, traces = numbers(write)
    assert evaluated["relu"] != trained["relu"]
    assert not any(trace.choices for trace in traces)


@pytest.mark.parametrize(
    ("evaluated", "trained", "shared"),
    [(False, True, True), (True, True, True), (True, False, False)],
    ids=["follows the mode", "on in both", "the other way round"],
)
def test_a_flag_may_follow_the_mode(evaluated, trained, shared):
    def write(line, training):
        return line(F.dropout, line.input("x"), 0.5, trained if training else evaluated)

    one, other, traces = numbers(write)
    assert (one["dropout"] == other["dropout"]) is shared
    assert [flag_of(trace, node) for trace in traces for node in trace.nodes if node.name == "dropout"] == [
        evaluated,
        trained,
    ]
