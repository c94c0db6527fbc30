"""Merging on parameters: which positions correspond, sums and means of rows, and how far units are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Made, conv
from torch import nn

from prunec.compiler import compile
from prunec.compiler.groups.analysis import Group, analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.merge import (
    Tensors,
    chi,
    gaps,
    identical,
    partners,
    producers,
    representatives,
    spread,
    tidy,
    unit_rows,
)
from prunec.compiler.tracing.trace import trace


def made(run, shape=(1, 3, 2, 2), dtype=torch.float32, **parts: nn.Module) -> tuple[Program, Group]:
    """A traced network, and the group that `a` writes."""
    program = trace(Made(parts, run).eval().to(dtype), (torch.zeros(shape, dtype=dtype),))
    return program, analyse(program).groups["a"]


def member(group: Group, axis: str):
    (found,) = [member for member in group.members if str(member.axis) == axis]
    return found


def flattened():
    return made(lambda m, x: m.b(m.a(x).flatten(1)), a=conv(3, 4), b=nn.Linear(16, 2))


def test_representatives_are_the_first_of_their_clusters():
    assert representatives(6, ((0, 3), (2, 4, 5))).tolist() == [0, 1, 2, 0, 2, 2]
    assert representatives(2, ()).tolist() == [0, 1]


def test_after_a_flatten_pixels_correspond():
    _, group = flattened()
    into = representatives(4, ((1, 3),))
    assert partners(member(group, "b.weight[1]"), into).tolist() == [*range(12), 4, 5, 6, 7]
    assert partners(member(group, "a.weight[0]"), into).tolist() == [0, 1, 2, 1]


def test_columns_are_added_and_rows_are_averaged():
    program, group = flattened()
    into = representatives(4, ((1, 3),))
    tensors = Tensors(program)
    tensors.add(member(group, "b.weight[1]"), into)
    tensors.average(member(group, "a.weight[0]"), into)
    done = tensors.finish()
    columns, rows = (program.tensors[name].detach() for name in ("b.weight", "a.weight"))
    torch.testing.assert_close(done.tensors["b.weight"][:, 4:8], columns[:, 4:8] + columns[:, 12:])
    assert torch.equal(done.tensors["b.weight"][:, :4], columns[:, :4])
    for row in (1, 3):
        torch.testing.assert_close(done.tensors["a.weight"][row], (rows[1] + rows[3]) / 2)
    assert torch.equal(done.tensors["a.weight"][2], rows[2])
    assert done.tensors["a.bias"] is program.tensors["a.bias"], "what isn't touched is shared"
    assert isinstance(done.tensors["a.weight"], nn.Parameter)
    assert torch.equal(program.tensors["a.weight"], rows)


def test_halves_are_summed_in_single_precision():
    program, group = made(lambda m, x: m.b(m.a(x)), (1, 3), torch.float16, a=nn.Linear(3, 3), b=nn.Linear(3, 1))
    program.tensors["b.weight"].data = torch.tensor([[2048.0, 1.0, 1.0]], dtype=torch.float16)
    tensors = Tensors(program)
    tensors.add(member(group, "b.weight[1]"), representatives(3, ((0, 1, 2),)))
    found = tensors.finish().tensors["b.weight"]
    assert found.dtype == torch.float16
    assert found[0, 0] == 2050, "2048 + 1 is 2048 in half precision"


def test_grouped_columns_are_added_in_their_group():
    program, group = made(
        lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 4), b=nn.Conv2d(4, 4, 1, groups=2), c=nn.Conv2d(4, 2, 1)
    )
    (reader,) = [each for each in group.members if each.axis.tensor == "b.weight" and each.axis.dim == 1]
    unit = [reader.positions[reader.units == number] for number in range(group.size)]
    rows = Tensors(program).rows(reader.axis, np.concatenate(unit))
    weight = program.tensors["b.weight"].detach()  # [4, 2, 1, 1]: rows 0, 1 read channels 0, 1
    expected = [
        weight[position // 2 * 2 : position // 2 * 2 + 2, position % 2].flatten() for position in np.concatenate(unit)
    ]
    assert torch.equal(rows, torch.stack(expected))


def alike(program: Program) -> None:
    """Units 0 and 2 of `a` write the same."""
    for key in ("a.weight", "a.bias"):
        program.tensors[key].data[2] = program.tensors[key].data[0]


def test_units_that_agree_are_found():
    program, group = flattened()
    alike(program)
    units = np.arange(4)
    assert identical(program, group, units, 0.0) == ((0, 2),)
    program.tensors["a.bias"].data[2] += 1e-3
    assert identical(program, group, units, 0.0) == ()
    assert identical(program, group, units, 0.1) == ((0, 2),)
    assert identical(program, group, np.array([1, 2]), 0.0) == ()


def test_units_whose_biases_are_all_zero_are_compared_by_their_weights():
    program, group = flattened()
    alike(program)
    program.tensors["a.bias"].data.zero_()
    assert identical(program, group, np.arange(4), 0.0) == ((0, 2),)


def test_how_far_a_cluster_is_from_its_first_unit():
    program, group = flattened()
    alike(program)
    clusters = ((0, 2),)
    assert [gap.size for gap in gaps(program, group, clusters)] == [0.0, 0.0]
    program.tensors["a.weight"].data[2, 1, 0, 0] += 3
    found = {str(gap.axis): gap for gap in gaps(program, group, clusters)}
    scale = float(program.tensors["a.weight"].detach().abs().max())
    assert found["a.weight[0]"].size == pytest.approx(3 / scale)
    assert (found["a.weight[0]"].cluster, found["a.weight[0]"].group) == ((0, 2), "a")
    assert found["a.bias[0]"].size == 0


def test_the_spread_is_the_distance_from_the_means():
    program, group = flattened()
    clusters = ((0, 2), (1, 3))
    rows = program.tensors["a.weight"].detach().flatten(1)
    expected = sum(float((rows[list(c)] - rows[list(c)].mean(0)).square().sum()) for c in clusters)
    assert [str(each.axis) for each in group.writers] == ["a.weight[0]"]
    assert spread(program, group, clusters) == pytest.approx(expected, rel=1e-5)
    assert chi(program, {"a": group}, {"a": clusters}) == spread(program, group, clusters)
    assert spread(program, group, ()) == 0
    assert chi(program, {"a": group}, {}) == 0


def test_what_units_write():
    program, group = flattened()
    found = unit_rows(program, member(group, "a.weight[0]"), [3, 1])
    assert torch.equal(found, program.tensors["a.weight"].detach().flatten(1)[[3, 1]])
    assert {str(each.axis) for each in producers(group)} == {"a.weight[0]", "a.bias[0]"}


def test_clusters_are_sorted_and_of_two_at_least():
    assert tidy([[5, 3], {1}, (4, 0, 2)]) == ((0, 2, 4), (3, 5))


class _Tied(nn.Module):
    """Two layers have one weight; `a` writes two channels that are alike."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.apart = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 5), apart
        self.c.weight = self.b.weight
        with torch.no_grad():
            self.a.weight[4], self.a.bias[4] = self.a.weight[1], self.a.bias[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        found: torch.Tensor = self.b(y) + self.c(y.sigmoid() if self.apart else y)
        return found


@pytest.mark.parametrize("inexact", ["refuse", "mean", "least_squares"])
@pytest.mark.parametrize("apart", [False, True])
def test_readers_that_share_a_weight_go_on_sharing_it(apart, inexact):
    net = _Tied(apart=apart).double().eval()
    data = [torch.randn(32, 6, dtype=torch.float64) for _ in range(4)]
    passes = [{"cluster": {"method": "identical"}}, {"merge": inexact}]
    result = compile(net, {"plan": 1, "passes": passes}, (data[0][:2],), data)
    tensors = result.program.tensors
    assert tensors["b.weight"] is tensors["c.weight"]
    assert tuple(tensors["b.weight"].shape) == (5, 7)
    with torch.no_grad():
        assert (result.module(data[0]) - net(data[0])).abs().max() < 1e-9
