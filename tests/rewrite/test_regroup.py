"""Layers whose weights fall into blocks: the blocks are found, and the grouped layer gives the same values."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.ir.program import Axis
from prunec.compiler.rewrite.regroup import find_blocks, parts_of, regroup
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import difference
from prunec.compiler.verify.reference import Same
from prunec.compiler.verify.verify import verify
from prunec.models.densenet import densenet
from prunec.models.preact_resnet import preact_resnet
from prunec.models.resnet import resnet


def scatter_blocks(model: nn.Module, groups: int, seed: int = 0) -> nn.Module:
    """Leave of every weight a block diagonal, whose rows and columns are shuffled."""
    rng = np.random.default_rng(seed)
    for layer in model.modules():
        if (
            isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
            and getattr(layer, "groups", 1) == 1
        ):
            sides = [rng.permutation(np.arange(size) * groups // size) for size in layer.weight.shape[:2]]
            if all(size % groups == 0 for size in layer.weight.shape[:2]):
                stays = torch.from_numpy(sides[0][:, None] == sides[1][None, :])
                with torch.no_grad():
                    layer.weight[~stays] = 0
    return model.eval()


def layers_of(program, groups=None):
    found = {}
    for name, module in program.state.items():
        if (
            isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
            and getattr(module, "groups", 1) == 1
        ):
            dims = (0, 1) if getattr(module, "transposed", False) else (1, 0)
            blocks = find_blocks(program, *(Axis(f"{name}.weight", dim) for dim in dims), groups)
            if blocks is not None:
                found[name] = blocks
    return found


def regrouped(model: nn.Module, *inputs: torch.Tensor):
    program = trace(model, inputs)
    made = regroup(program, layers_of(program))
    verify(made.program, Same(program), pass_name="regroup", exact=True)
    return made


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.norm, self.depth = (
            nn.Conv2d(4, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, groups=8),
        )
        self.project, self.up, self.last = nn.Conv2d(8, 6, 1), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 3, 1)
        nn.init.uniform_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        x = self.project(F.relu6(self.depth(F.relu6(self.norm(self.expand(x))))))
        return self.last(F.relu(self.up(x)))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        x = self.embed(x)
        return x + self.second(F.gelu(self.first(self.norm(x))))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6 * 9, 4)

    def forward(self, x):
        x = self.join(torch.cat([self.left(x), F.relu(self.right(x))], 1))
        return self.fc(F.max_pool2d(x, 2).flatten(1))


NETWORKS = {
    "resnet": (lambda: resnet(8), (2, 3, 8, 8)),
    "preact": (lambda: preact_resnet(depth=11), (2, 3, 8, 8)),
    "densenet": (lambda: densenet(depth=10), (2, 3, 8, 8)),
    "mobile": (Mobile, (2, 4, 8, 8)),
    "mixer": (Mixer, (2, 5, 6)),
    "shared": (Twice, (2, 1, 6, 6)),
    "concat and flatten": (Pooled, (2, 2, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_grouped_networks_give_the_same_values(name, seed):
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    model = scatter_blocks(make(), 2, seed)
    x = torch.randn(shape)
    made = regrouped(model, x)
    assert made.gathers
    with torch.no_grad():
        assert difference(made.program.module.double()(x.double()), model.double()(x.double())) < 1e-12


def test_between_two_layers_channels_change_places_and_no_gather_is_needed():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 1)
    )
    scatter_blocks(model, 4)
    made = regrouped(model, torch.randn(2, 3, 9, 9))
    assert dict(made.gathers) == {"3": 0}
    assert made.program.state["3"].groups == 4
    assert made.program.state["3"].weight.shape == (12, 2, 3, 3)
    assert [node.op for node in made.program.graph.nodes].count("get_attr") == 0


@pytest.mark.parametrize("groups", [(2, 4), (4, 2), (2, 2), (4, 8), (8, 4), (2, 4, 8), (8, 4, 2), (2, 8, 4)])
def test_groups_that_are_parts_of_another_layers_need_no_gather(groups):
    rng = np.random.default_rng(0)
    finest = [rng.permutation(np.arange(16) // 2) for _ in range(len(groups) + 1)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3))
    part = {8: np.arange(8), 4: rng.permutation(np.arange(8) // 2)}
    part[2] = rng.permutation(np.arange(4) // 2)[part[4]]
    for number, (mine, theirs) in zip(groups, pairwise(finest), strict=True):
        layer = nn.Conv2d(16, 16, 1)
        with torch.no_grad():
            layer.weight[torch.from_numpy(part[number][theirs][:, None] != part[number][mine][None])] = 0
        model.extend([nn.ReLU(), layer])
    model.extend([nn.ReLU(), nn.Conv2d(16, 3, 1)])
    made = regrouped(model.eval(), torch.randn(2, 3, 5, 5))
    assert [made.program.state[name].groups for name in made.gathers] == list(groups)
    assert set(made.gathers.values()) == {0}


def test_inputs_and_outputs_of_the_model_are_put_in_order_by_gathers():
    model = scatter_blocks(nn.Sequential(nn.Conv2d(4, 6, 1)), 2)
    made = regrouped(model, torch.randn(2, 4, 3, 3))
    assert dict(made.gathers) == {"0": 2}


def test_what_stands_in_order_already_needs_nothing():
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    dense = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight[:3, :2], dense.weight[3:, 2:] = grouped.weight[:3], grouped.weight[3:]
        dense.bias.copy_(grouped.bias)
    made = regrouped(nn.Sequential(dense), torch.randn(2, 4, 8, 8))
    assert dict(made.gathers) == {"0": 0}
    assert torch.equal(made.program.tensors["0.weight"], grouped.weight)


def test_a_diagonal_becomes_depthwise():
    layer = nn.Conv2d(6, 6, 3)
    with torch.no_grad():
        layer.weight[~torch.eye(6, dtype=torch.bool)] = 0
    made = regrouped(nn.Sequential(layer), torch.randn(2, 6, 8, 8))
    assert made.program.state["0"].groups == 6


def test_columns_of_zeros_fill_groups_up():
    layer = nn.Conv2d(6, 4, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:2, [0, 3]] = 1
        layer.weight[2:, [1]] = 1
    program = trace(nn.Sequential(layer), (torch.randn(2, 6, 3, 3),))
    blocks = find_blocks(program, Axis("0.weight", 1), Axis("0.weight", 0))
    assert blocks is not None
    assert blocks.groups == 2
    assert np.bincount(blocks.columns).tolist() == [3, 3]
    assert blocks.columns[0] == blocks.columns[3] != blocks.columns[1]


@pytest.mark.parametrize("groups", [None, 2, 4])
def test_dense_weights_and_other_numbers_of_groups_are_not_found(groups):
    program = trace(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    assert find_blocks(program, Axis("0.weight", 1), Axis("0.weight", 0), groups) is None
    sparse = trace(scatter_blocks(nn.Sequential(nn.Linear(8, 8)), 4), (torch.randn(2, 8),))
    found = find_blocks(sparse, Axis("0.weight", 1), Axis("0.weight", 0), groups)
    assert found is not None
    assert found.groups == (groups or 4)


def test_the_positions_of_a_unit_are_one_part():
    program = trace(Pooled(), (torch.randn(1, 2, 8, 8),))
    parts = parts_of(program, Axis("fc.weight", 1))
    assert [part.tolist() for part in parts] == [list(range(9 * c, 9 * c + 9)) for c in range(6)]


def test_tensors_move_as_their_parameters_do():
    model = scatter_blocks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 8)), 2)
    program = trace(model, (torch.randn(1, 3, 8, 8),))
    made = regroup(program, layers_of(program))
    for name, (new, move) in made.moved.items():
        assert torch.equal(move(program.tensors[name].detach()), made.program.tensors[new])
    assert made.moved["3.weight"][0] == "3.blocks"
