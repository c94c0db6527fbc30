"""Multiples that hold in every layer of a group of which layers hold different parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from selecting import scored
from torch import Tensor, nn

from prunec.compiler import compile as compiled
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.passes.select import Select
from prunec.passes.selection import aligned
from prunec.passes.selection.aligned import in_aligned_steps, parts


class Halves(nn.Module):
    """As detectors have it: half of a layer's channels goes through more layers, and all of them are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.one, self.other = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.last = nn.Conv2d(72, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = F.relu(self.first(x)).chunk(2, 1)
        added = worked + self.other(F.relu(self.one(worked)))
        return self.fc(F.relu(self.last(torch.cat([passed, worked, added], 1))).mean((2, 3)))


class Parts(nn.Module):
    """As in networks of several scales: each part but the first has a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = F.relu(self.first(x)).split(16, 1)
        read = [conv(part) for conv, part in zip(self.convs, others, strict=True)]
        return self.fc(torch.cat([first, *read], 1).mean((2, 3)))


class Shuffled(nn.Module):
    """Halves of a stream take turns: what was read goes on beside what wasn't, and both are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for conv in self.convs:
            kept, read = x.chunk(2, 1)
            x = F.channel_shuffle(torch.cat([kept, F.relu(conv(read))], 1), 2)
        return self.fc(x.mean((2, 3)))


def widths(module: nn.Module) -> list[int]:
    """The widths of all convolutions, but for the image's."""
    found = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    return [width for each in found for width in (each.in_channels, each.out_channels) if width != 3]


@pytest.mark.parametrize(("net", "share"), [(Halves, 0.6), (Parts, 0.6), (Shuffled, 0.8)])
@pytest.mark.parametrize("multiple", [4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_layer_keeps_a_multiple(net, share, multiple, seed):
    torch.manual_seed(seed)
    select = {"budget": {"macs": share}, "multiple_of": multiple}
    plan = {"plan": 1, "passes": ["score", {"select": select}, "shrink"]}
    before = net().eval()
    found = compiled(before, plan, example_inputs=(torch.randn(2, 3, 8, 8),))
    assert sum(widths(found.module)) < sum(widths(before))
    assert all(width % multiple == 0 for width in widths(found.module))
    assert found.report["cost"]["after"]["macs"] <= share * found.report["cost"]["before"]["macs"]


def test_what_goes_is_the_least_important_that_fits():
    """Of the layer that reads the second half two units must go or none, and so of the first."""
    held = np.array([[1] * 8, [0] * 4 + [1] * 4])
    scores = np.array([5.0, 1, 6, 7, 2, 8, 3, 9])
    order, ends = in_aligned_steps(held, 2, scores, np.ones(8, dtype=bool))
    assert order.tolist() == [1, 0, 4, 6, 2, 3, 5, 7]
    assert ends.tolist() == [2, 4, 6, 8]


def test_a_first_step_takes_off_what_is_over():
    """Ten units of which six are read: two go first, so that eight and four are left."""
    held = np.array([[1] * 10, [0] * 4 + [1] * 6])
    _, ends = in_aligned_steps(held, 4, np.arange(10.0), np.ones(10, dtype=bool))
    assert ends.tolist() == [2, 6, 10]


def test_a_kind_of_which_too_few_units_may_go_begins_no_step():
    """Of the first half three may go, which is no multiple of four: only those that are read go, by fours."""
    held = np.array([[1] * 12, [0] * 4 + [1] * 8])
    may_go = np.arange(12) > 0
    order, ends = in_aligned_steps(held, 4, np.arange(12.0), may_go)
    assert order.tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]
    assert ends.tolist() == [4, 8, 9, 10, 11]


def test_units_that_hold_several_channels_go_alone_where_that_is_a_multiple():
    held = np.array([[4] * 3 + [1] * 4, [4] * 3 + [0] * 4])
    order, ends = in_aligned_steps(held, 4, np.array([1.0, 9, 9, 2, 3, 4, 5]), np.ones(7, dtype=bool))
    assert order[:1].tolist() == [0]
    assert ends.tolist() == [1, 5, 6, 7]


def test_a_layer_that_a_unit_holds_up_is_not_asked():
    """The unit that must stay holds three channels of the second layer, and all others hold fours of it."""
    held = np.array([[1] * 8, [3] + [4] * 7])
    may_go = np.arange(8) > 0
    _, ends = in_aligned_steps(held, 4, np.arange(8.0), may_go)
    assert ends.tolist() == [4, 5, 6, 7]


def test_too_many_remainders_leave_layers_unasked(monkeypatch):
    held = np.array([[1] * 8, [0] * 4 + [1] * 4])
    aligned._distances.cache_clear()
    monkeypatch.setattr(aligned, "MOST", 4)
    _, ends = in_aligned_steps(held, 4, np.arange(8.0), np.ones(8, dtype=bool))
    aligned._distances.cache_clear()
    assert ends.tolist() == [4, 8]


def test_groups_whose_layers_hold_all_of_them_are_left_to_plain_steps():
    program = scored("resnet18")
    assert all(parts(group).size == 0 for group in analyse(program).groups.values())


def test_a_shuffled_network_of_the_field_keeps_multiples():
    """All layers but the last of each stage, of which the unit that holds many of their channels may be pinned."""
    program = scored("shufflenet_v2_x0_5", seed=1)
    select = Select.model_validate({"budget": {"macs": 0.3}, "multiple_of": 8})
    removed = select.run(program, Context(traced=program)).program.facts["selection"]
    left = [
        (width, int(row @ ~np.isin(np.arange(group.size), removed.get(group.name, []))))
        for group in analyse(program).groups.values()
        for row in parts(group)
        for width in [int(row.sum())]
    ]
    changed = [now for width, now in left if now != width]
    assert len(changed) > 20
    assert sum(now % 8 == 0 for now in changed) >= 0.85 * len(changed)
