"""Values that no parameter writes: which they are, and that channels which meet them may go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import difference, masked, run, selection
from torch import Tensor, nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.labels.parameter_free import ParameterFree
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace

WIDTH = 8


class Tokens(nn.Module):
    """Embedded tokens, a step between, a classifier."""

    def __init__(self, step):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("rates", torch.rand(1))
        self.step = step

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        return self.head(self.step(self, self.embedding(tokens), places).tanh())


def waves(places: Tensor, like: Tensor) -> Tensor:
    """[..., places, WIDTH]"""
    return (places[..., None].to(like) * (torch.arange(WIDTH, device=like.device).to(like) + 1)).sin()


def traced(step, places=None):
    inputs = (torch.tensor([[1, 5, 2], [7, 7, 0]]), torch.tensor([[0, 1, 2], [4, 2, 9]]))
    return trace(Tokens(step).double(), inputs if places is None else (inputs[0], places))


def without(program, *gone):
    """The slim program without some units of the embedding."""
    analysis = analyse(program)
    keep = np.ones(analysis.size, dtype=bool)
    keep[analysis.groups["embedding"].start + np.array(gone, dtype=int)] = False
    return remove_units(program, keep)


def orders(program):
    """The positions that a program gathers, by the name of their buffer."""
    return {name: t.tolist() for name, t in program.tensors.items() if name.endswith("order")}


def by_index(m, y, places):
    return y + waves(places, y)


def in_every_layer(m, y, places):
    table = waves(torch.arange(y.shape[1]), y)
    return (m.linear(y + table) + y) * table


def beside_a_copy(m, y, places):
    table = (places[..., None].to(y) * torch.arange(2 * WIDTH, device=y.device).to(y)).sin()
    return (y.repeat(1, 1, 2) + table).unflatten(-1, (2, -1)).sum(-2)


@pytest.mark.parametrize("step", [by_index, in_every_layer, beside_a_copy])
def test_what_is_left_of_the_table_is_picked(step):
    program = traced(step)
    analysis = analyse(program)
    assert int(analysis.groups["embedding"].free.sum()) == WIDTH
    for seed in range(3):
        keep = selection(analysis, seed, 0.6)
        assert difference(run(program, keep, program.inputs), masked(program, keep, program.inputs)) < 1e-9


def test_readers_share_what_is_left():
    slim = without(traced(in_every_layer), 0, 6)
    assert list(orders(slim).values()) == [[1, 2, 3, 4, 5, 7]]
    assert len(slim.graph.find_nodes(op="call_function", target=torch.index_select)) == 1


def test_a_second_round_picks_from_the_whole_table():
    slim = without(without(traced(in_every_layer), 0, 6), 1)
    assert [len(t) for name, t in slim.tensors.items() if "order" in name] == [5]
    [picked] = slim.graph.find_nodes(op="call_function", target=torch.index_select)
    assert slim.tensors[str(picked.args[2].target)].tolist() == [1, 3, 4, 5, 7]


def test_nothing_is_picked_where_nothing_goes():
    program = traced(by_index)
    assert without(program) is program


def test_channels_that_meet_different_columns_are_not_merged():
    analysis = analyse(traced(by_index))
    assert set(analysis.counted) == {int(u) for u in range(WIDTH)}


GIVEN = {
    "places": lambda m, y, places: places * 2,
    "a table": lambda m, y, places: waves(places, y),
    "of a buffer": lambda m, y, places: places[..., None] * m.rates,
    "a size": lambda m, y, places: torch.arange(y.shape[1]),
    "like": lambda m, y, places: y.new_ones(3).cumsum(0),
    "written": lambda m, y, places: torch.zeros(2, 3).index_put_((places[:, 0] % 2,), torch.ones(3)),
}
NOT_GIVEN = {
    "channels": lambda m, y, places: y * 2,
    "a parameter": lambda m, y, places: m.head.bias + places[0, 0],
    "both": lambda m, y, places: places[..., None] * y,
    "filled": lambda m, y, places: filled(y),
    "filled through a view": lambda m, y, places: filled(y, view=True),
    "of several results": lambda m, y, places: y.sort(1)[0],
}


def filled(y: Tensor, view: bool = False) -> Tensor:
    table = torch.zeros(y.shape, dtype=y.dtype)
    if view:
        table[:, 1:].copy_(y[:, 1:])
    else:
        table[:, 0] = y[:, 0]
    return table


@pytest.mark.parametrize("name", [*GIVEN, *NOT_GIVEN])
def test_what_is_given(name):
    compute = {**GIVEN, **NOT_GIVEN}[name]
    program = traced(lambda m, y, places: (y, compute(m, y, places))[0] * compute(m, y, places).sum())
    [total] = program.graph.find_nodes(op="call_method", target="sum")
    assert (total.args[0] in ParameterFree(program)) == (name in GIVEN)


def test_numbers_with_a_point_that_come_in_are_kept():
    program = traced(by_index, torch.rand(2, 3, dtype=torch.float64))
    assert set(analyse(program).groups["embedding"].pinned) == {"meets positions that are fixed at add_1"}
