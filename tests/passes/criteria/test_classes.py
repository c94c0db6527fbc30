"""Which classes a unit drives: finite differences, planted networks, and what holds as more classes stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain, Samples, images, lively, program_of, scores
from torch import Tensor, nn

from prunec.compiler.errors import DataError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.criteria.base import Setting
from prunec.passes.criteria.classes import ClassMaps, ClassWeights

DATA = images(12)
KINDS = {"class_maps": ClassMaps, "class_weights": ClassWeights}


@pytest.fixture(scope="module")
def chain():
    return lively(Chain())


def tables(model: nn.Module, data: Samples, kind: str, **options) -> dict[str, np.ndarray]:
    program = program_of(model, data)
    groups = tuple(group for group in analyse(program).groups.values() if group.free.any())
    return KINDS[kind](**options).tables(Setting(program, groups, Context(data=data), Calibration()))


def shares(y: Tensor, labels: Tensor, of: str) -> Tensor:
    return (y.softmax(1) if of == "probability" else y).gather(1, labels[:, None]).squeeze(1)


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_maps_by_a_loop(chain, of):
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for x, label in zip(DATA.inputs.split(1), DATA.labels.split(1), strict=True):
        z = chain.read(x).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(shares(chain.head(z), label, of).sum(), z)
        expected[:, label] += gradient.abs().sum((0, 2, 3))[:, None]
    expected /= torch.bincount(DATA.labels, minlength=3)
    np.testing.assert_allclose(tables(chain, DATA, "class_maps", of=of)["conv1"], expected, rtol=1e-9)


def test_a_single_weight_by_finite_differences():
    """A first layer of one weight a unit, so that its evidence is one derivative a sample."""
    model = lively(nn.Sequential(nn.Linear(1, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)))
    data = images(9, (1,))
    expected = np.zeros((4, 3))
    for unit in range(4):
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                model[0].weight[unit] += step
                sides.append(shares(model(data.inputs), data.labels, "probability"))
                model[0].weight[unit] -= step
        slopes = ((sides[0] - sides[1]) / 2e-5).abs()
        for label in range(3):
            expected[unit, label] = slopes[data.labels == label].mean()
    np.testing.assert_allclose(tables(model, data, "class_weights")["0"], expected, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_absolute_values_are_taken_of_each_sample(chain, kind):
    """Two copies of a sample say what one says; a mean before the absolute value can only be smaller."""
    table = tables(chain, DATA, kind)["conv1"]
    twice = Samples(DATA.inputs.repeat(2, 1, 1, 1), DATA.labels.repeat(2), 5)
    np.testing.assert_allclose(tables(chain, twice, kind)["conv1"], table, rtol=1e-9)
    means = np.zeros((5, 3))
    for label in range(3):
        mine = label == DATA.labels
        z = chain.read(DATA.inputs[mine])
        y = chain.head(z)
        target = shares(y, DATA.labels[mine], "probability").sum()
        at = z if kind == "class_maps" else chain.conv1.weight
        (gradient,) = torch.autograd.grad(target, at)
        summed = gradient.sum(0).abs().sum((1, 2)) if kind == "class_maps" else gradient.abs().sum((1, 2, 3))
        means[:, label] = (summed / mine.sum()).numpy()
    assert (table >= means - 1e-12).all()
    assert (table > 1.05 * means).any()


class Planted(nn.Module):
    """Channel i reaches class i alone; channel 3 reaches none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sigmoid(self.a(x)))


@pytest.fixture(scope="module")
def planted():
    model = lively(Planted())
    model.fc.weight.data = torch.eye(3, 4, dtype=torch.float64) * torch.tensor([[5.0], [1.0], [0.2]])
    return model, images(30, (6,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_channel_gets_its_class(planted, kind):
    table = tables(*planted, kind, of="logit")["a"]
    assert np.argmax(table[:3], axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(table[3], 0, atol=1e-14)
    np.testing.assert_allclose(table[:3][~np.eye(3, dtype=bool)], 0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_for_classes(planted, kind):
    model, data = planted
    program = program_of(model, data)

    def of(classes, **options):
        return scores(program, {kind: {"classes": classes, "of": "logit", **options}}, data)["a"]

    everything = scores(program, {kind: {"of": "logit"}}, data)["a"]
    assert (everything[:3] > 0).all()
    assert everything[3] == pytest.approx(0, abs=1e-14)
    assert np.flatnonzero(of([1]) > 1e-9).tolist() == [1]
    assert (of([0, 1]) >= of([1]) - 1e-12).all()  # what stays for some classes stays for more
    np.testing.assert_allclose(of([0, 1, 2]), everything)


def test_balance_keeps_one_class_from_owning_everything(planted):
    model, data = planted
    program = program_of(model, data)
    raw = scores(program, {"class_maps": {"of": "logit", "balance": False}}, data)["a"]
    balanced = scores(program, {"class_maps": {"of": "logit"}}, data)["a"]
    assert raw[0] > 20 * raw[2]
    np.testing.assert_allclose(balanced[:3], 4)  # each class's evidence lies in one of four units


@pytest.mark.parametrize(
    ("classes", "message"), [([7], "there is no class 7: the model knows 3"), ([2], "no sample of class 2")]
)
def test_classes_that_are_not_there(planted, classes, message):
    model, data = planted
    some = Samples(data.inputs[data.labels < 2], data.labels[data.labels < 2])
    with pytest.raises(DataError, match=message):
        scores(program_of(model, some), {"class_maps": {"classes": classes}}, some)
