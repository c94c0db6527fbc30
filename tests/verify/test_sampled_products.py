"""Costly products are computed in the new program alone, and compared on few rows; every fault is still caught."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batch_faults import Between
from slimmed_by_hand import Net, by_case, conv, program_of, seeded
from torch import nn
from wrong_weights import MUTATIONS, mutated

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis
from prunec.compiler.verify import products, sampled_products
from prunec.compiler.verify import verify as verifying
from prunec.compiler.verify.compare import TOLERANCE
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify


@pytest.fixture(autouse=True)
def _costly(monkeypatch):
    """Every network counts as one whose samples cost much, and every product as a costly one."""
    monkeypatch.setattr(verifying, "COSTLY", -1)
    monkeypatch.setattr(products, "SAMPLED", 0)


@pytest.fixture
def full_runs(monkeypatch):
    """The batch sizes that are computed in full."""
    seen, compared = [], verifying._compared
    monkeypatch.setattr(verifying, "_compared", lambda *args: seen.append(args[4][0].shape[0]) or compared(*args))
    return seen


@pytest.fixture
def filled(monkeypatch):
    """How many values of the old program come from the new one."""
    seen, fill = [], sampled_products._fill
    monkeypatch.setattr(sampled_products, "_fill", lambda want, got: seen.append(want) or fill(want, got))
    return seen


@by_case
def test_hand_slimmed_networks_pass_and_nothing_is_computed_twice(case, full_runs, filled):
    report = verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink")
    assert report.batches == (1, 3)
    assert report.difference <= TOLERANCE[torch.float64]
    assert full_runs == []
    assert filled


@pytest.mark.parametrize(("change", "culprit"), MUTATIONS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_wrong_weights_are_caught(change, culprit):
    assert culprit in mutated("conv-bn-relu-conv", change)


@pytest.mark.parametrize("kind", Between.__subclasses__(), ids=lambda kind: kind.__name__)
def test_what_differs_in_a_batch_of_three_alone_is_caught(kind, full_runs):
    layers = seeded(Between(conv1=conv(3, 4), conv2=conv(4, 4), fc=nn.Linear(144, 2)))._modules
    before, after = (program_of(each(**layers), torch.zeros(1, 3, 6, 6)) for each in (Between, kind))
    with pytest.raises(VerifyError):
        verify(after, Masked(before, {}), pass_name="shrink")
    assert full_runs[0] == 3, "a full run convicts, of three samples"


# -- every weight and every setting ------------------------------------------------------------------------------------


class Layers(Net):
    def forward(self, x):
        return self.fc(self.down(torch.sigmoid(self.conv(x))).flatten(1))


def layers() -> nn.Module:
    parts = {
        "conv": nn.Conv2d(2, 3, (3, 2), padding=1),
        "down": nn.Conv2d(3, 2, 2, stride=2, groups=1),
        "fc": nn.Linear(24, 3),
    }
    return seeded(Layers(**parts))


IMAGE = (1, 2, 8, 5)


def caught(after: nn.Module) -> str:
    before = program_of(layers(), torch.zeros(IMAGE))
    with pytest.raises(VerifyError) as found:
        verify(program_of(after, torch.zeros(IMAGE)), Masked(before, {}), pass_name="shrink")
    return found.value.message


def test_the_layers_pass(full_runs, filled):
    before, after = (program_of(layers(), torch.zeros(IMAGE)) for _ in range(2))
    assert verify(after, Masked(before, {}), pass_name="shrink").dtype == "float32"
    assert full_runs == []
    assert len(filled) == 3


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "down.weight", "fc.weight", "fc.bias"])
def test_each_wrong_number_of_a_layer_is_caught(name):
    places = range(layers().get_parameter(name).numel())
    for place in places:
        wrong = layers()
        wrong.get_parameter(name).data.view(-1)[place] *= 1.01
        assert f"'{name.partition('.')[0]}'" in caught(wrong), f"{name}, number {place}"


SETTINGS = {
    "padding": ("conv", {"padding": (1, 0)}),
    "padding mode": ("conv", {"padding_mode": "circular", "_reversed_padding_repeated_twice": [1, 1, 1, 1]}),
    "stride": ("down", {"stride": (2, 1)}),
    "dilation": ("down", {"dilation": (3, 1)}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_caught(case):
    name, settings = SETTINGS[case]
    wrong = layers()
    for key, value in settings.items():
        setattr(wrong.get_submodule(name), key, value)
    assert f"'{name}'" in caught(wrong)


def test_a_missing_bias_is_caught():
    wrong = layers()
    wrong.fc.bias = None
    assert "'fc'" in caught(wrong)


@pytest.mark.parametrize("kind", ["flipped", "scaled"])
def test_wrong_operands_are_caught(kind):
    """What the new program alone does before a product."""

    class Viewed(Layers):
        def forward(self, x):
            x = torch.sigmoid(self.conv(x))
            x = x.flip(2) if kind == "flipped" else x * 1.01
            return self.fc(self.down(x).flatten(1))

    assert "'down'" in caught(Viewed(**layers()._modules))


# -- attention, and weights that are values of the graph ---------------------------------------------------------------


class Attention(Net):
    """Two heads of three features; the second one is removed, or its third feature."""

    scale = None

    def forward(self, x):
        parts = F.linear(x, self.weight, self.bias).unflatten(-1, (3, -1, 3)).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.fc(out.transpose(1, 2).flatten(2))


TOKENS = (1, 5, 4)
HEAD = [3, 4, 5]
ROWS = [row + 6 * part for part in range(3) for row in HEAD]


def attention() -> nn.Module:
    return seeded(
        Attention(weight=nn.Parameter(torch.zeros(18, 4)), bias=nn.Parameter(torch.zeros(18)), fc=nn.Linear(6, 4))
    )


def without_a_head() -> nn.Module:
    model, slim = attention(), attention()
    kept = [row for row in range(18) if row not in ROWS]
    slim.weight, slim.bias = (nn.Parameter(x.detach()[kept]) for x in (model.weight, model.bias))
    slim.fc = nn.Linear(3, 4)
    slim.fc.weight, slim.fc.bias = nn.Parameter(model.fc.weight.detach()[:, :3]), model.fc.bias
    return slim


def masked_attention() -> Masked:
    removed = {Axis("weight", 0): ROWS, Axis("bias", 0): ROWS, Axis("fc.weight", 1): HEAD}
    before = program_of(attention(), torch.zeros(TOKENS))
    return Masked(before, {axis: np.array(positions) for axis, positions in removed.items()})


def test_attention_passes(full_runs, filled):
    assert verify(program_of(without_a_head(), torch.zeros(TOKENS)), masked_attention(), pass_name="x").batches == (
        1,
        3,
    )
    assert full_runs == []
    assert len(filled) == 3


def other_scale(model):
    model.scale = 0.5


def other_head(model):
    model.weight = nn.Parameter(attention().weight.detach()[ROWS])


def other_bias(model):
    model.bias.data[7] += 0.1


def other_columns(model):
    model.fc.weight = nn.Parameter(attention().fc.weight.detach()[:, 3:])


@pytest.mark.parametrize("change", [other_scale, other_head, other_bias, other_columns], ids=lambda x: x.__name__)
def test_faults_around_attention_are_caught(change):
    slim = copy.deepcopy(without_a_head())
    change(slim)
    with pytest.raises(VerifyError, match=r"'(linear|weight|bias|scaled_dot_product_attention|fc)'"):
        verify(program_of(slim, torch.zeros(TOKENS)), masked_attention(), pass_name="x")


def test_a_product_that_constants_reach_is_computed(filled):
    """What becomes of them depends on whether they are zeros."""

    class Padded(Net):
        def forward(self, x):
            return self.read(F.pad(self.conv(x), (0, 0, 0, 0, 0, 1)))

    program = program_of(seeded(Padded(conv=conv(3, 2), read=conv(3, 2))), torch.zeros(1, 3, 6, 6))
    slim = copy.deepcopy(seeded(Padded(conv=conv(3, 2), read=conv(3, 2))))

    class Bare(Net):
        def forward(self, x):
            return self.read(F.pad(self.conv(x), (0, 0, 0, 0, 0, 0)))

    slim.read.weight = nn.Parameter(slim.read.weight.detach()[:, :2])
    after = program_of(Bare(**slim._modules), torch.zeros(1, 3, 6, 6))
    verify(after, Masked(program, {Axis("read.weight", 1): np.array([2])}), pass_name="shrink")
    assert len(filled) == 1
