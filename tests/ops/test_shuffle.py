"""Channel shuffles whose rows choose for themselves: the same channels arrive in the same order, however written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import Made, conv, lively, pooled
from oracle import difference, masked, run, selection
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify
from prunec.passes.axes import Axes
from prunec.passes.cluster import Cluster
from prunec.passes.merge import Merge

TOLERANCE = 1e-9
Form = Callable[[Any, Tensor, int], Tensor]


def _sizes_read(m: Any, x: Tensor, g: int) -> Tensor:
    n, c, h, w = x.size()
    x = x.view(n, g, c // g, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(n, c, h, w)


def _image_merged(m: Any, x: Tensor, g: int) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, g, c // g, h * w).permute(0, 2, 1, 3).reshape(n, -1, h, w)


def _batch_merged(m: Any, x: Tensor, g: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n * c // g, g, h * w).permute(1, 0, 2).reshape(g, -1, c // g, h, w)
    return torch.cat([x[i] for i in range(g)], 1)


FORMS: dict[str, Form] = {
    "view, transpose, view": _sizes_read,
    "reshape with -1": lambda m, x, g: x.reshape(x.shape[0], g, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
    "the other way": lambda m, x, g: (
        x.reshape(x.shape[0], x.shape[1] // g, g, *x.shape[2:]).swapaxes(1, 2).flatten(1, 2)
    ),
    "permute": lambda m, x, g: x.unflatten(1, (g, -1)).permute(0, 2, 1, 3, 4).reshape(x.shape),
    "image merged": _image_merged,
    "batch merged": _batch_merged,
    "nn.Unflatten and nn.Flatten": lambda m, x, g: m.flatten(m.unflatten(x).transpose(1, 2)),
    "nn.ChannelShuffle": lambda m, x, g: m.shuffle(x),
    "F.channel_shuffle": lambda m, x, g: F.channel_shuffle(x, g),
    "movedim": lambda m, x, g: torch.movedim(x.unflatten(1, (g, x.shape[1] // g)), 1, 2).flatten(1, 2),
    "in lists": lambda m, x, g: (lambda y: torch.cat([y[:, :, i] for i in range(g)], 1))(x.unflatten(1, (-1, g))),
}


def _units(m: Any, x: Tensor, form: Form, g: int) -> Tensor:
    """Two units as of ShuffleNet v2: half of the channels pass, the others are computed; both are shuffled."""
    x = F.relu(m.stem(x))
    for layer in (m.first, m.second):
        left, right = x.chunk(2, 1)
        x = form(m, torch.cat([left, F.relu(layer(right))], 1), g)
    return m.fc(pooled(m.last(x)))


def built(name: str, groups: int, choice: str) -> tuple[Program, Callable[[int], tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    parts = {
        "stem": conv(3, 24), "first": conv(12, 12), "second": conv(12, 12, 1), "last": conv(24, 6, 1),
        "fc": nn.Linear(6, 4), "shuffle": nn.ChannelShuffle(groups), "flatten": nn.Flatten(1, 2),
        "unflatten": nn.Unflatten(1, (groups, 24 // groups)),
    }  # fmt: skip
    model = lively(Made(parts, lambda m, x: _units(m, x, FORMS[name], groups)))
    program = trace(model, (torch.randn(2, 3, 6, 5, dtype=torch.float64),))
    inputs = lambda batch: (torch.randn(batch, 3, 6, 5, dtype=torch.float64),)  # noqa: E731
    return program.derive(granularity=Granularity(grouped=(("*", choice),))), inputs


def _gathers(program: Program) -> int:
    return len(program.graph.find_nodes(op="call_function", target=torch.index_select))


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("name", FORMS)
def test_each_row_loses_what_it_likes(name: str, groups: int) -> None:
    program, inputs = built(name, groups, "free")
    analysis = analyse(program)
    owners = {group.name: (group.size, int(group.free.sum())) for group in analysis.groups.values()}
    assert owners == {"stem": (24, 24), "first": (12, 12), "second": (12, 12), "last": (6, 6), "fc": (4, 0)}
    for seed, share in enumerate((0.2, 0.5, 0.9)):
        keep = selection(analysis, seed, share)
        slim = remove_units(program, keep)
        assert _gathers(slim) >= 2
        for batch in (1, 3):
            fresh = inputs(batch)
            assert difference(run(program, keep, fresh), masked(program, keep, fresh)) < TOLERANCE
        reference = Masked(program, removed_positions(analysis, keep))
        assert verify(slim, reference, pass_name="shrink", exact=True).difference < TOLERANCE


def test_freedom_is_more_than_the_same_positions() -> None:
    free = {choice: int(analyse(built("permute", 2, choice)[0]).free.sum()) for choice in ("same", "equal", "free")}
    assert free["same"] < free["equal"] <= free["free"]


def _positions(analysis: Analysis, lost: dict[str, list[int]]) -> np.ndarray:
    keep = np.ones(analysis.size, dtype=bool)
    for name, units in lost.items():
        keep[analysis.groups[name].start + np.array(units)] = False
    return keep


def test_a_shuffle_that_still_fits_stays_a_view() -> None:
    program, _ = built("view, transpose, view", 2, "free")
    lost = {"stem": [0, 1, 2, 3, 12, 13], "first": [0, 1, 2, 3]}
    slim = remove_units(program, _positions(analyse(program), lost))
    names = [node.name for node in slim.graph.nodes]
    assert _gathers(slim) == 1  # the first unit loses the same of both halves, the second doesn't
    assert "transpose" in names
    assert "transpose_1" not in names


def test_a_second_round_and_the_text() -> None:
    program, inputs = built("permute", 3, "free")
    once = remove_units(program, selection(analyse(program), 0, 0.3))
    keep = selection(analyse(once), 1, 0.3)
    fresh = inputs(3)
    assert difference(run(once, keep, fresh), masked(once, keep, fresh)) < TOLERANCE
    twice = remove_units(once, keep)
    indices = {name for name in twice.state if name.endswith(("_order", "_order_1"))}
    assert len(indices) == _gathers(twice) == 2
    assert to_text(from_text(to_text(twice))) == to_text(twice)


def test_equal_rows_stay_equal() -> None:
    program, _ = built("permute", 2, "equal")
    analysis = analyse(program)
    assert {block.units.shape for block in analysis.balanced} == {(2, 12)}
    assert not list(Axes(grouped="equal").run(program.derive(granularity=Granularity()), Context()).notes)


def test_what_is_no_shuffle_is_not_gathered() -> None:
    """A view whose rows are summed up mixes them, so that the same positions go."""
    torch.manual_seed(0)
    parts = {"a": conv(3, 8), "b": conv(4, 5), "fc": nn.Linear(5, 4)}
    model = lively(Made(parts, lambda m, x: m.fc(pooled(m.b(m.a(x).unflatten(1, (2, 4)).sum(1))))))
    program = trace(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    divided = Axes(grouped="free").run(program, Context())
    assert analyse(divided.program).groups["a"].size == 4
    assert not analyse(divided.program).flow.gathers


def test_clusters_merge_through_a_gather() -> None:
    program, inputs = built("permute", 2, "free")
    module = program.state["last"]
    assert isinstance(module, nn.Conv2d)
    first = program.state["first"]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    with torch.no_grad():
        first.weight[5], first.bias[5] = first.weight[1], first.bias[1]
    clusters = Cluster(method="given", clusters={"first": [[1, 5]]}).run(program, Context()).program
    merged = Merge().run(clusters, Context()).program
    fresh = inputs(2)
    with torch.no_grad():
        assert difference(merged.module(*fresh), program.module(*fresh)) < TOLERANCE


def test_a_plan_shuffles_freely_and_exports(tmp_path: Any) -> None:
    torch.manual_seed(0)
    parts = {"a": conv(3, 8), "b": conv(8, 5), "fc": nn.Linear(5, 4)}
    model = Made(parts, lambda m, x: m.fc(pooled(m.b(FORMS["permute"](m, m.a(x), 2))))).eval()
    passes = [{"axes": {"grouped": "free"}}, {"select": {"units": {"a": [0, 5, 6]}}}, "shrink"]
    result = compile(
        model, {"plan": 1, "passes": passes, "export": ["onnx"]}, example_inputs=(torch.randn(2, 3, 6, 6),)
    )
    result.save(tmp_path)
    assert "index_select" in (tmp_path / "model.py").read_text()
    assert (tmp_path / "model.onnx").is_file()
