"""The rows of operations: one for each, which says of itself what it is, wherever it stands."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import Made
from torch import fx, nn

from prunec.compiler.groups import analysis as units
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.table import Table
from prunec.compiler.labels import registry
from prunec.compiler.labels.flow import Flow
from prunec.compiler.labels.registry import (
    MODULE_ROWS,
    OP_ROWS,
    REWRITES,
    SIZED,
    TENSOR_SIZES,
    VALUE_SIZES,
    Row,
    on_module,
    on_op,
    rewriter,
    row_for,
)
from prunec.compiler.tracing.trace import trace
from prunec.passes.criteria.reads import find_reads

CARRIED = {
    "gate of one channel, expanded": lambda m, x: m.b(m.a(x) * m.g(x).sigmoid().expand(-1, 8, -1, -1)),
    "the same, repeated": lambda m, x: m.b(m.a(x) * m.g(x).sigmoid().repeat(1, 8, 1, 1)),
    "the same, element by element": lambda m, x: m.b(m.a(x) * (-m.g(x).expand(-1, 8, -1, -1)).sigmoid()),
    "picked from": lambda m, x: m.b(m.a(x) * m.g(x).expand(-1, 8, -1, -1)[:, :8]),
    "padded": lambda m, x: m.b(F.pad(m.a(x), (1, 1)) * F.pad(m.g(x).expand(-1, 8, -1, -1), (1, 1))),
    "stacked": lambda m, x: m.b(m.a(x) * torch.stack([m.g(x).expand(-1, 8, -1, -1)] * 2, 1).sum(1)),
    "as complex numbers": lambda m, x: m.b(
        m.a(x) * torch.view_as_complex(m.g(x)[..., None].expand(-1, 8, -1, -1, 2).contiguous()).real
    ),
    "pooled": lambda m, x: m.b(m.a(x) * F.avg_pool2d(m.g(x).expand(-1, 8, -1, -1), 1)),
    "put together": lambda m, x: m.b(
        m.a(x) * torch.cat([m.g(x).expand(-1, 4, -1, -1), m.g(x).expand(-1, 4, -1, -1)], 1)
    ),
}
"""Copies of one value that meet eight channels: all eight may go."""


@pytest.mark.parametrize("name", CARRIED)
def test_copies_go_with_the_channels_that_they_meet(name, moved_rules):
    parts = {"a": nn.Conv2d(3, 8, 1), "g": nn.Conv2d(3, 1, 1), "b": nn.Conv2d(8, 4, 1)}
    program = trace(Made(parts, CARRIED[name]).eval(), (torch.zeros(2, 3, 5, 5),))
    assert free_units(program) == 8


def free_units(program: Program) -> int:
    return int(units.analyse(program).free.sum())


@pytest.fixture(params=["where they are", "moved"])
def moved_rules(request, monkeypatch):
    """The rules, as they are and as if each of them stood in another file: nothing may depend on a file's name."""
    if request.param == "moved":
        for row in (*OP_ROWS.values(), *MODULE_ROWS.values()):
            monkeypatch.setattr(row.rule, "__module__", "elsewhere")


def test_a_weight_that_is_picked_from_stays_computed(moved_rules):
    """Picking pins what is picked from, but it is no statistic: the weight keeps its parameter."""
    model = Made(
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}, lambda m, x: F.conv2d(m.a(x), m.b.weight[[2, 0, 1]])
    )
    program = trace(model.eval(), (torch.zeros(1, 3, 2, 2),))
    assert program.tensors["b.weight"].shape == (4, 8, 1, 1)


def test_a_standardised_weight_is_computed_once(moved_rules):
    def run(m, x):
        w = m.a.weight
        return m.b(F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)))

    program = trace(Made({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}, run).eval(), (torch.zeros(1, 3, 2, 2),))
    assert free_units(program) == 8


def test_a_mean_over_channels_is_a_read(moved_rules):
    model = Made({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(1, 4, 1)}, lambda m, x: m.b(m.a(x).mean(1, keepdim=True)))
    reads = find_reads(units.analyse(trace(model.eval(), (torch.zeros(1, 3, 2, 2),))))
    assert [(read.consumer.name, read.units.size) for read in reads] == [("mean", 8)]


def _makes_a_weight(cls: type) -> bool:
    code = getattr(cls.__init__, "__code__", None)
    return code is not None and "weight" in code.co_names


def test_every_layer_with_axes_can_be_resized():
    """A rule that binds the axes of a module needs a row that says which attributes repeat their sizes."""
    recurrent = (nn.RNNBase, nn.RNNCellBase)  # these make their weights by name, in a loop
    binding = {cls for cls in MODULE_ROWS if issubclass(cls, recurrent) or any(map(_makes_a_weight, cls.__mro__))}
    assert len(binding) > 20
    unsized = {cls for cls in binding if not any(issubclass(cls, base) for base in TENSOR_SIZES)}
    assert unsized == set()
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    assert all(cls in VALUE_SIZES for cls in norms)


def test_a_second_row_for_one_name_is_refused():
    before, modules = dict(OP_ROWS), dict(MODULE_ROWS)
    with pytest.raises(AssertionError, match="relu has a row already"):
        on_op("relu")(lambda flow, node: ())
    with pytest.raises(AssertionError, match="Linear has a row already"):
        on_module(nn.Linear)(lambda flow, node: ())
    assert (before, modules) == (OP_ROWS, MODULE_ROWS)


def test_a_second_rewriter_for_one_name_is_refused():
    before = dict(REWRITES)
    with pytest.raises(AssertionError, match="view has a row already"):
        rewriter("view")(lambda old, new, slim: None)
    assert before == REWRITES
    assert set(REWRITES) >= SIZED


@pytest.fixture
def two_rows(monkeypatch):
    """A table of its own for this test."""
    monkeypatch.setattr(registry, "OP_ROWS", Table())
    monkeypatch.setattr(registry, "MODULE_ROWS", Table())
    monkeypatch.setattr(registry, "REWRITES", Table())
    monkeypatch.setattr(registry, "SIZED", set())
    return registry


def test_a_row_says_of_which_kind_it_is(two_rows):
    def rule(flow, node):
        return ()

    assert on_op("moving", "also", moves=True)(rule) is rule
    on_op("taking", reduces=True)(rule)
    on_module(nn.ReLU, carries_copies=True)(rule)
    assert {
        "moving": Row(rule, moves=True, carries_copies=True),
        "also": Row(rule, moves=True, carries_copies=True),
        "taking": Row(rule, reduces=True),
    } == two_rows.OP_ROWS
    assert {nn.ReLU: Row(rule, carries_copies=True)} == two_rows.MODULE_ROWS
    rewriter("plain")(rule)
    rewriter("counted", sized=True)(rule)
    assert (set(two_rows.REWRITES), two_rows.SIZED) == ({"plain", "counted"}, {"counted"})


class Renamed(nn.Linear):
    """Computes what its base does."""


class Squared(nn.Linear):
    """Computes something else."""

    def forward(self, x):
        return super().forward(x) ** 2


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_pre_hook(lambda module, args: None)
    return layer


LAYERS = {
    "known": (nn.Linear(2, 2), True),
    "subclass": (Renamed(2, 2), True),
    "another forward": (Squared(2, 2), False),
    "hook": (hooked(), False),
    "parametrized": (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), False),
    "unknown": (nn.Module(), False),
}


@pytest.mark.parametrize(("layer", "known"), LAYERS.values(), ids=LAYERS)
def test_which_layers_a_row_is_for(layer, known):
    graph = fx.Graph()
    node = graph.call_module("a", (graph.placeholder("x"),))
    row = row_for(Flow(Program(graph, {"a": layer}, ())), node)
    assert row is (MODULE_ROWS[nn.Linear] if known else None)
