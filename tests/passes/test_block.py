"""Tiles that become zero: which, that they stay so, and that what they have cut off can be removed without loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain, Samples, images, lively
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.task.losses import TorchLoss
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import difference
from prunec.compiler.verify.verify import verify
from prunec.models.convnet import convnet
from prunec.models.resnet import resnet
from prunec.passes.block import Block
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.criteria.base import Setting
from prunec.passes.criteria.curvature import Obd, damage_of_elements
from prunec.passes.regroup import Regroup
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink
from prunec.passes.tiles.matrices import matrices
from prunec.passes.tiles.patterns import spread, tile_sums
from prunec.passes.training.masks import masks_of

DIGITS = {
    "plan": 1,
    "model": {"factory": "prunec.models.convnet:convnet", "args": {"image_size": 8}},
    "inputs": [[1, 1, 8, 8]],
    "data": {"factory": "prunec.models.data:digits", "args": {"batch_size": 64}},
}


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return convnet(widths=(8, 12, 16), image_size=8)


def program_of(model: nn.Module, data: Samples | None = None):
    return trace(model, (torch.ones(1, 1, 8, 8) if data is None else data.inputs[:1],))


def blocked(program, **options):
    pass_ = Block(**options)
    result = pass_.run(program, Context())
    verify(result.program, pass_.reference(program, result.program), pass_name="block")
    return result


def zeros(program, name: str) -> torch.Tensor:
    matrix = matrices(program)[name]
    return matrix.of(program.tensors[matrix.tensor].detach()) == 0


@pytest.mark.parametrize("score", ["l1", "l2", "max"])
@pytest.mark.parametrize("tile", [(4, 4), (2, "kernel"), (3, 5)])
def test_the_smaller_half_of_each_layers_tiles_goes(score, tile):
    before = program_of(small())
    after = blocked(before, tile=tile, score=score).program
    for name, matrix in matrices(before).items():
        rows, columns = tile[0], matrix.kernel if tile[1] == "kernel" else tile[1]
        scores = tile_sums(matrix.of(before.tensors[matrix.tensor].detach()).abs().double(), rows, columns, score)
        left = tile_sums((~zeros(after, name)).double(), rows, columns, "max").bool()
        assert int(left.sum()) == round(left.numel() / 2)
        assert scores[left].min() >= scores[~left].max()


@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_balanced_tiles_leave_as_many_in_each_row_of_tiles(keep):
    after = blocked(program_of(small()), tile=(4, "kernel"), keep=keep, mode="balanced").program
    for name, matrix in matrices(after).items():
        left = tile_sums((~zeros(after, name)).double(), 4, matrix.kernel, "max")
        assert left.sum(1).tolist() == [max(1, round(matrix.inputs * keep))] * len(left)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("network", [small, lambda: resnet(8, in_channels=1)])
def test_tiles_as_wide_as_the_matrix_are_filter_pruning(criterion, network):
    before = program_of(network().eval())
    inner = [g.name for g in analyse(before).groups.values() if g.free.any() and len(g.writers) <= 2]
    tiled = blocked(before, mode="rows", score=criterion, only=inner, keep=0.5).program
    scored = Score(criterion=criterion, axes="writers").run(before, Context()).program
    chosen = Select(ratio=0.5, only=inner).run(scored, Context()).program
    assert {n: u.tolist() for n, u in tiled.facts["selection"].items()} == {
        n: sorted(u.tolist()) for n, u in chosen.facts["selection"].items()
    }
    by_tiles, by_filters = (Shrink().run(p, Context()).program for p in (tiled, chosen))
    assert by_tiles.tensors.keys() == by_filters.tensors.keys()
    for name, tensor in by_filters.tensors.items():
        assert torch.equal(by_tiles.tensors[name], tensor)


@pytest.mark.parametrize(
    "options", [{"mode": "rows"}, {"tile": (4, 4), "keep": 0.3}, {"keep": 0.2, "tile": (2, "kernel")}]
)
@pytest.mark.parametrize("network", [small, lambda: resnet(8, in_channels=1)])
def test_what_tiles_have_cut_off_goes_without_loss(network, options):
    masked = blocked(program_of(network().eval()), **options).program
    result = Shrink().run(masked, Context())
    assert result.warnings == ()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert difference(result.program.module.double()(x), masked.module.double()(x)) < 1e-9


def test_outputs_of_the_model_keep_their_rows_and_biases():
    result = blocked(program_of(small()), mode="rows")
    assert not zeros(result.program, "fc").any()
    assert [note.subject for note in result.notes] == ["fc"]
    some = blocked(program_of(small()), tile=(1, "all"), keep=0.3).program
    assert zeros(some, "fc").all(1).any()
    assert (some.tensors["fc.bias"] != 0).all()


@pytest.mark.parametrize("groups", [2, 4])
def test_into_groups_leaves_each_group_inputs_of_its_own(groups):
    result = blocked(program_of(small()), into={"groups": groups})
    assert [note.subject for note in result.notes] == ["conv1"] if groups == 2 else ["conv1", "fc"]
    for name in ("conv2", "conv3", *(["fc"] if groups == 2 else [])):
        left = ~zeros(result.program, name).numpy()
        patterns, counts = np.unique(left, axis=0, return_counts=True)
        assert (patterns.sum(0) == 1).all()
        assert counts.tolist() == [len(left) // groups] * groups
        assert result.details["sparsity"][f"{name}.weight"] == pytest.approx(1 - 1 / groups)


def test_behind_a_flatten_the_pixels_of_a_channel_stay_together():
    program = blocked(program_of(small()), into="groups=2", only=["fc"]).program
    pixels = (~zeros(program, "fc")).reshape(10, 16, 4)
    assert torch.equal(pixels.all(2), pixels.any(2))


class Called(nn.Module):
    """Convolutions and a product that are functions of parameters, and one with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.grouped = nn.Parameter(torch.randn(8, 1, 3, 3)), nn.Conv2d(8, 8, 3, groups=4)
        self.last = nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(torch.relu(nn.functional.conv2d(x, self.kernel)))
        return nn.functional.linear(x.flatten(1), self.last.weight, self.last.bias)


def test_functions_of_parameters_have_tiles_and_layers_with_groups_are_told():
    torch.manual_seed(0)
    model = Called().eval()
    result = blocked(program_of(model), tile=(2, 1), keep=0.25)
    assert [str(note) for note in result.notes] == ["grouped: it has groups, and its tiles are left alone"]
    for name in ("kernel", "last.weight"):
        assert result.details["sparsity"][name] == pytest.approx(0.75, abs=0.03)
    (again,) = Block(tile=(2, 1), keep=0.25).resolved(result)
    same = again.run(program_of(model), Context()).program
    assert all(torch.equal(tensor, same.tensors[name]) for name, tensor in result.program.tensors.items())
    halved = blocked(program_of(model), into="groups=2", only=["last"]).program
    regrouped = Regroup().run(halved, Context())
    assert regrouped.details["grouped"]["last.weight"]["groups"] == 2
    verify(regrouped.program, Regroup().reference(halved, regrouped.program), pass_name="regroup")


def test_into_groups_keeps_more_than_neighbours_would():
    before = program_of(small())
    after = blocked(before, into="groups=4", only=["conv3"]).program
    weight = before.tensors["conv3.weight"].detach().abs().sum((2, 3))
    kept = float(after.tensors["conv3.weight"].detach().abs().sum())
    assert kept > 1.05 * sum(float(weight[4 * g : 4 * g + 4, 3 * g : 3 * g + 3].sum()) for g in range(4))


class Kernel(nn.Conv2d):
    """A layer of one's own, whose forward is traced."""

    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias)


class Functional(nn.Module):
    """Weights that are values of the graph, with biases, on their way to the output."""

    def __init__(self):
        super().__init__()
        sizes = {
            "kernel": (8, 8, 3, 3),
            "shift": (8,),
            "up": (8, 6, 2, 2),
            "lift": (6,),
            "weight": (4, 6),
            "bias": (4,),
        }
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(size)))
        self.first, self.factor = Kernel(1, 8, 3, padding=1), nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        x = F.relu(F.conv2d(F.relu(self.first(x)), self.kernel, self.shift, padding=1))
        x = F.conv_transpose2d(x, self.up, self.lift, stride=2).mean((2, 3))
        return F.linear(x.sigmoid(), self.weight, self.bias) @ self.factor


@pytest.mark.parametrize("options", [{"mode": "rows"}, {"tile": (2, "kernel"), "keep": 0.4}, {"into": "groups=2"}])
def test_weights_that_are_values_and_subclasses_are_layers_too(options, tmp_path):
    torch.manual_seed(0)
    model = Functional().eval()
    plan = {"plan": 1, "passes": [{"block": options}, "shrink", "regroup"], "export": ["onnx"]}
    result = compile(model, plan, (torch.rand(2, 1, 8, 8),))
    block, _, grouped = (record["details"] for record in result.report["passes"])
    if "into" in options:
        assert set(grouped["grouped"]) == {"kernel", "up", "weight", "factor"}
        assert all(sparsity == 0.5 for sparsity in block["sparsity"].values())
        assert result.report["cost"]["after"]["macs"] < 0.6 * result.report["cost"]["before"]["macs"]
    else:
        assert {"first.weight", "kernel", "up"} <= set(block["sparsity"])
        assert block["removable_units"]
    assert result.report["passes"][0]["verification"]
    result.save(tmp_path / "out")
    again = compile(model, result.lock, (torch.rand(2, 1, 8, 8),))
    assert again.lock["hashes"] == result.lock["hashes"]


def test_layers_that_are_left_alone_are_told():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    program = program_of(model.eval())
    assert [str(note) for note in blocked(program).notes] == ["1: it has groups, and its tiles are left alone"]
    with pytest.raises(PassError) as caught:
        Block(only=["1"]).check(program)
    assert str(caught.value) == "no layer is left to change\nhint: 1: it has groups, and its tiles are left alone"


def test_no_layer_that_fits_is_an_error():
    with pytest.raises(PassError, match="no layer can have 7 groups: 1 inputs and 8 outputs"):
        Block(into={"groups": 7}).check(program_of(small()))
    with pytest.raises(PassError, match="nothing is called 'conv9'"):
        Block(only=["conv9"]).check(program_of(small()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"into": "groups=4", "keep": 0.5}, "must not name 'keep' beside 'into'"),
        ({"into": "four"}, "must be groups=N"),
        ({"scope": "network"}, "must not name 'scope: network' for a norm"),
        ({"scope": "network", "score": "obd", "mode": "balanced"}, "for the mode balanced"),
        ({"mode": "rows", "tile": [1, 4]}, "tiles as wide as the matrix"),
        ({"keep": 0}, "must keep some tiles"),
    ],
)
def test_options_that_dont_fit(options, message):
    with pytest.raises(ValidationError, match=message):
        Block.model_validate(options)


@pytest.mark.parametrize("tile", [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_second_order_takes_the_tiles_whose_loss_rises_least(tile):
    """On a quadratic whose Hessian is diagonal a tile's figure is what the loss rises without it, to the last digit."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False)).double().eval()
    weight = model[0].weight.data = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    inputs = torch.diag(torch.arange(1, 7, dtype=torch.float64))
    data = Samples(inputs, model(inputs).detach())
    program = program_of(model, data)
    context, loss = Context(data=data, loss=TorchLoss("mse")), nn.functional.mse_loss
    setting = Setting(program, (), context, Calibration(loss=context.loss))
    damage = damage_of_elements(setting, ["0.weight"], Obd(diagonal=True))["0.weight"]
    figures = tile_sums(damage, *tile, "sum")
    rises = torch.zeros_like(figures)
    for place in np.ndindex(*figures.shape):
        one = torch.zeros_like(figures, dtype=torch.bool)
        one[place] = True
        without = weight.masked_fill(spread(one, (4, 6), *tile), 0)
        rises[place] = loss(inputs @ without.T, data.labels)
    assert torch.allclose(figures, rises, rtol=1e-9, atol=0)
    after = Block(score="obd", tile=tile, keep=0.5).run(program, context).program
    least = rises.flatten().argsort()[: rises.numel() - round(rises.numel() / 2)]
    gone = torch.zeros(rises.numel(), dtype=torch.bool).index_fill(0, least, True).reshape(rises.shape)
    assert torch.equal(after.tensors["0.weight"] == 0, spread(gone, (4, 6), *tile))


def test_fisher_information_of_tiles_is_the_sum_over_their_weights():
    model, data = lively(Chain()), images(6)
    before = program_of(model, data)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, label in zip(data.inputs.split(1), data.labels.split(1), strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        for name, p in model.named_parameters():
            expected[name] += (p.detach() * p.grad).square() / 2 / 6
    layers = matrices(before)
    sums = {name: tile_sums(m.of(expected[m.tensor]), 2, m.kernel, "sum") for name, m in layers.items()}
    options = {"score": "obd_fisher", "tile": (2, "kernel"), "keep": 0.4, "scope": "network"}
    after = Block(**options).run(before, Context(data=data)).program
    every = torch.cat([grid.flatten() for grid in sums.values()])
    bound = every.sort(descending=True).values[round(0.4 * len(every)) - 1]
    for name, matrix in layers.items():
        left = tile_sums((~zeros(after, name)).double(), 2, matrix.kernel, "max").bool()
        assert torch.equal(left, sums[name] >= bound), name


def test_second_order_needs_data():
    with pytest.raises(PassError, match="data"):
        Block(score="obd").ready(program_of(small()), Context())


def test_masks_are_held_through_training_and_the_lock_gives_the_same():
    pytest.importorskip("lightning_fabric")
    passes = [
        {"block": {"tile": [4, 4], "keep": 0.3}},
        {"finetune": {"updates": 3, "lr": 0.05}},
        "shrink",
        {"finetune": {"updates": 3, "optimizer": "adam"}},
    ]
    result = compile(None, {**DIGITS, "passes": passes})
    program = result.program
    masks = masks_of(program)
    assert set(masks) >= {"conv2.weight", "conv3.weight"}
    for name, stays in masks.items():
        assert not program.tensors[name][~stays].any()
        assert (program.tensors[name][stays] != 0).all()
    last = result.report["passes"][-1]["history"][-1]
    assert last["masked"] == pytest.approx(1 - float(torch.cat([m.flatten() for m in masks.values()]).double().mean()))
    assert compile(None, result.lock).lock["hashes"] == result.lock["hashes"]


@pytest.mark.parametrize("block", [{"into": "groups=2"}, {"mode": "rows", "keep": 0.7}])
def test_rounds_of_blocks_go_on_where_no_layer_is_left(block):
    pytest.importorskip("lightning_fabric")
    passes = [{"block": block}, {"finetune": {"updates": 2}}, "shrink", "regroup"]
    result = compile(None, {**DIGITS, "passes": [{"repeat": {"steps": 2, "passes": passes}}]})
    gone = [record["details"]["sparsity"] for record in result.report["passes"] if record["pass"] == "block"]
    assert bool(gone[1]) == ("mode" in block)
    assert compile(None, result.lock).lock["hashes"] == result.lock["hashes"]


def test_a_second_block_adds_to_the_first():
    first = blocked(program_of(small()), keep=0.5, only=["conv3"]).program
    second = blocked(first, keep=0.25, only=["conv3"]).program
    assert not (masks_of(second)["conv3.weight"] & ~masks_of(first)["conv3.weight"]).any()


def test_a_lock_for_another_model_is_an_error():
    plan = {**DIGITS, "passes": [{"block": {"masks": {"conv9": {"tile": [1, 1], "patterns": ["1"], "rows": [0]}}}}]}
    with pytest.raises((PassError, PlanError), match="no layer is called 'conv9'"):
        compile(None, plan)
