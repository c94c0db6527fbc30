"""Marks: what may not be removed, and selections that don't fit together."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slimmed_by_hand import CASES, IMAGE, Case, Net, conv, layer, program_of, seeded
from torch import Tensor, nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis
from prunec.compiler.verify.masks import (
    FREE,
    KEPT,
    REMOVED,
    Call,
    Marked,
    collapse,
    compressed,
    constant,
    contract,
    linked,
    mark,
    meet,
    plain,
    zeroed,
)
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify

INCONSISTENT = r"kept meet channels|positions of an axis|no whole channels"


def forgotten() -> Iterator[tuple[str, Axis]]:
    for name, case in CASES.items():
        for axis in case.axes():
            yield name, axis


@pytest.mark.parametrize(("name", "axis"), forgotten(), ids=str)
def test_a_selection_that_forgets_an_axis_is_inconsistent(name, axis):
    case = CASES[name]
    removed = {a: positions for a, positions in case.axes().items() if a != axis}
    with pytest.raises(VerifyError, match=INCONSISTENT):
        Masked(case.before, removed).run((case.example(),), torch.float64)


@pytest.mark.parametrize(("name", "axis"), forgotten(), ids=str)
def test_a_selection_of_one_other_position_is_inconsistent(name, axis):
    case = CASES[name]
    removed = dict(case.axes())
    spare = next(i for i in range(100) if i not in removed[axis])
    removed[axis] = np.array([spare, *removed[axis][1:]])
    with pytest.raises(VerifyError, match=INCONSISTENT):
        Masked(case.before, removed).run((case.example(),), torch.float64)


def test_an_unequal_selection_from_the_groups_of_a_convolution_is_read_by_group():
    """Groups may lose different positions, as long as each loses as many."""
    case = CASES["grouped"]
    removed = {Axis("a.weight", 0): [1, 5], Axis("a.bias", 0): [1, 5], Axis("g.weight", 1): [1, 5]}
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    model.a.weight.data = model.a.weight.detach()[[0, 2, 3, 4]]
    model.a.bias.data = model.a.bias.detach()[[0, 2, 3, 4]]
    weight = model.g.weight.detach()
    model.g.weight.data = torch.cat([weight[:4, [0, 2]], weight[4:, [0, 1]]])
    masked = Masked(before, {axis: np.array(lost) for axis, lost in removed.items()})
    verify(program_of(model, case.example()), masked, pass_name="shrink")
    model.g.weight.data = torch.cat([weight[:4, [0, 2]], weight[4:, [0, 2]]])
    with pytest.raises(VerifyError, match="node 'g'"):
        verify(program_of(model, case.example()), masked, pass_name="shrink")


def test_a_view_of_marked_channels():
    """What is a view of the data must be one of the marks."""

    class Viewed(Net):
        def forward(self, x):
            return self.fc(self.conv1(x).view(x.size(0), -1))

    case = Case(Viewed(conv1=conv(3, 4), fc=nn.Linear(144, 2)), IMAGE,
                {**layer("conv1", [1]), **layer("fc", None, list(range(36, 72)))})  # fmt: skip
    assert verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink").difference <= 1e-9


class After(Net):
    """A convolution that loses a channel, then `then`, then a reader."""

    def forward(self, x):
        return self.read(self.then(self.conv(x)))


class Do(nn.Module):
    """A plain function as a step of the graph."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = {
    "output": (lambda x: x, nn.Identity(), "reach the model's output"),
    "softmax": (lambda x: x.softmax(1), conv(4, 2), "reduces over removed channels at node 'softmax'"),
    "product": (lambda x: x.prod(1, keepdim=True).expand(-1, 4, -1, -1), conv(4, 2), "reduces over removed"),
    "argmax": (lambda x: x.argmax(1), nn.Identity(), "reduces over removed"),
    "median-of-all": (lambda x: torch.median(x), nn.Identity(), "reduces over removed"),
    "unknown": (lambda x: x.renorm(2, 1, 1.0), conv(4, 2), "doesn't know at node 'renorm'"),
    "response-norm": (lambda x: F.local_response_norm(x, 2), conv(4, 2), "a norm over removed channels at"),
    "flip": (lambda x: x.flip(1), conv(4, 2), "not those of the channels that arrive at node 'read'"),
    "kept-image": (lambda x: x + torch.cat([x[:, 2:], x[:, :2]], 1), conv(4, 2), "kept meet .* at node 'add'"),
    "whole-outer": (lambda x: x * x.mean((2, 3), keepdim=True).roll(1, 1), conv(4, 2), "kept meet .* at node 'mul'"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "reader", "message"), REFUSED.values(), ids=REFUSED)
def test_a_removed_channel_must_not_get_there(function, reader, message):
    model = seeded(After(conv=conv(3, 4), then=Do(function), read=reader))
    removed = {Axis("conv.weight", 0): np.array([1]), Axis("conv.bias", 0): np.array([1])}
    if isinstance(reader, nn.Conv2d):
        removed[Axis("read.weight", 1)] = np.array([1])
    program = program_of(model, torch.zeros(IMAGE))
    with pytest.raises(VerifyError, match=message):
        verify(program, Masked(program, removed), pass_name="shrink")


def test_a_kept_constant_is_not_dropped_unless_it_is_zero():
    class Joined(Net):
        def forward(self, x):
            y = self.conv(x)
            return self.read(F.pad(y, (0, 0, 0, 0, 0, 1), value=self.value))

    removed = {Axis("read.weight", 1): np.array([2])}
    for value, refused in ((0.0, False), (0.5, True)):
        masked = Masked(
            program_of(seeded(Joined(conv=conv(3, 2), read=conv(3, 2), value=value)), torch.zeros(IMAGE)), removed
        )
        if refused:
            with pytest.raises(VerifyError, match="positions of an axis"):
                masked.run((torch.ones(IMAGE),), torch.float64)
        else:
            masked.run((torch.ones(IMAGE),), torch.float64)


# -- marks alone -------------------------------------------------------------------------------------------------------


def m(*values: int, shape: tuple[int, ...] = (-1,)) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(shape)


def call(name: str = "add") -> Call:
    return Call("node 'x'", name, torch.add, (), {})


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        (m(1, 1, 1), [1]),
        (m(1, 2, 1), [1, 2, 1]),
        (m(1, 2, 1, 2, shape=(2, 2)), [[1, 2]]),
        (m(1, 1, 2, 2, shape=(2, 2)), [[1], [2]]),
        (m(1, 2, 2, 1, shape=(2, 2)), [[1, 2], [2, 1]]),
        (m(1, 2).expand(3, 2), [[1, 2]]),
    ],
    ids=str,
)
def test_marks_are_of_size_one_where_they_do_not_vary(marks, expected):
    assert compressed(marks).tolist() == expected


def test_what_is_kept_everywhere_is_plain():
    data = torch.ones(2, 3)
    assert mark(data, m(1, 1, 1, shape=(1, 3))) is data
    found = mark(data, m(1, 2, 1, shape=(1, 3)))
    assert isinstance(found, Marked)
    assert found.kept.tolist() == [[True, False, True]] * 2
    assert zeroed(found).tolist() == [[1, 0, 1]] * 2
    assert plain([found, {"a": data}])[0] is data


LOST, WHOLE, CONSTANT = m(KEPT, REMOVED, shape=(1, 2)), m(KEPT, shape=(1, 1)), m(FREE, shape=(1, 1))
MEETINGS = {
    "the same": (LOST, LOST, [[KEPT, REMOVED]]),
    "kept": (LOST, WHOLE, None),
    "constants": (LOST, CONSTANT, [[KEPT, REMOVED]]),
    "others": (LOST, LOST.flip(1), None),
    "nothing": (WHOLE, WHOLE, [[KEPT]]),
    "constants alone": (CONSTANT, CONSTANT, [[FREE]]),
}


@pytest.mark.parametrize(("one", "other", "expected"), MEETINGS.values(), ids=MEETINGS)
def test_nothing_that_is_kept_gets_lost_where_values_meet(one, other, expected):
    operands = [Marked(torch.ones(3, 2), marks) for marks in (one, other)]
    for turned in (operands, operands[::-1]):
        if expected is None:
            with pytest.raises(VerifyError, match="channels that are kept meet channels that are removed at node 'x'"):
                meet(call(), turned, (3, 2))
        else:
            assert meet(call(), turned, (3, 2)).tolist() == expected


def test_a_gate_of_one_channel_is_lost_where_all_that_it_reaches_is():
    gate = torch.ones(3, 1)
    assert meet(call(), [Marked(torch.ones(3, 2), LOST), gate], (3, 2)).tolist() == [[KEPT, REMOVED]]
    with pytest.raises(VerifyError):
        meet(call(), [Marked(torch.ones(3, 2), m(REMOVED, REMOVED, shape=(1, 2))), gate], (3, 2))


def test_copies_along_constants_are_as_free_as_they_are():
    gate, ones = torch.ones(3, 1), constant(torch.ones(1, 2))
    assert meet(call(), [gate, ones], (3, 2)).tolist() == [[FREE]]


@pytest.mark.parametrize(
    ("marks", "dims", "expected"),
    [
        (m(1, 2, 1, 2, shape=(2, 2)), [0], [[1, 2]]),
        (m(0, 2, 1, 0, shape=(2, 2)), [0], [[1, 2]]),
        (m(0, 0, 1, 1, shape=(2, 2)), [0, 1], [[1]]),
        (m(1, 2, 1, 2, shape=(2, 2)), [1], None),
    ],
    ids=["alike", "up to free ones", "two dimensions", "mixed"],
)
def test_dimensions_that_are_taken_together(marks, dims, expected):
    if expected is None:
        with pytest.raises(VerifyError, match="it sorts removed channels at node 'x'"):
            collapse(call(), marks, dims, "it sorts removed channels")
    else:
        assert collapse(call(), marks, dims, "it sorts removed channels").tolist() == expected


PRODUCTS = {
    "nothing is lost": (m(1, 1, 1), m(1, 1, 1), [[1]]),
    "the same columns": (m(1, 2, 1), m(1, 2, 1), [[1]]),
    "other columns": (m(1, 2, 1), m(1, 1, 2), None),
    "a forgotten column": (m(1, 2, 1), m(1, 1, 1), None),
    "all": (m(2, 2, 2), m(2, 2, 2), [[2]]),
}


@pytest.mark.parametrize(("arriving", "columns", "expected"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_reader_loses_what_arrives_no_more(arriving, columns, expected):
    values = (torch.ones(1, 3), torch.ones(1, 3))
    marks = [arriving.reshape(1, 3), columns.reshape(1, 3)]
    if expected is None:
        with pytest.raises(VerifyError, match="not those of the channels that arrive"):
            contract(call("linear"), F.linear, *values, marks=marks)
    else:
        assert contract(call("linear"), F.linear, *values, marks=marks).tolist() == expected


def test_a_constant_that_is_no_zero_can_not_be_dropped_from_a_sum():
    for value, fits in ((0.0, True), (0.5, False)):
        given = Marked(torch.full((1, 3), value), m(KEPT, FREE, KEPT, shape=(1, 3)))
        marks = [given.marks, m(KEPT, REMOVED, KEPT, shape=(1, 3))]
        if fits:
            assert contract(call("linear"), F.linear, given, torch.ones(1, 3), marks=marks).tolist() == [[KEPT]]
        else:
            with pytest.raises(VerifyError):
                contract(call("linear"), F.linear, given, torch.ones(1, 3), marks=marks)


def test_a_row_of_zeros_and_removed_elements_is_removed():
    """Row 0 has a constant zero and a removed element, row 1 is kept: what row 0 gives counts no kept term."""
    left = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    marks = torch.tensor([[FREE, REMOVED], [KEPT, KEPT]], dtype=torch.uint8)
    both = m(KEPT, KEPT)
    found = contract(call("mv"), torch.mv, Marked(left, marks), torch.ones(2), marks=(marks, both))
    assert found.tolist() == [REMOVED, KEPT]


def test_a_view_writes_through_to_what_it_is_of():
    whole = constant(torch.zeros(2, 4))
    part = linked(constant(whole.data[:, 1:3]), whole, lambda x: x[:, 1:3])
    part.write(m(KEPT, REMOVED, shape=(1, 2)))
    assert whole.marks.tolist() == [[FREE, KEPT, REMOVED, FREE]]
    copy = linked(constant(whole.data[:, 1:3].clone()), whole, lambda x: x[:, 1:3])
    copy.write(m(KEPT, shape=(1, 1)))
    assert whole.marks.tolist() == [[FREE, KEPT, REMOVED, FREE]], "a copy has marks of its own"
