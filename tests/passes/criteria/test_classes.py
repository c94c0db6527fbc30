"""Which classes a unit drives: finite differences, planted networks, and what holds as more classes stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain, Samples, Stream, images, lively, program_of, scores
from torch import Tensor, nn

from prunec.compiler.errors import DataError, PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.criteria.base import Setting
from prunec.passes.criteria.classes import ClassMaps, ClassWeights

DATA = images(12)
KINDS = {"class_maps": ClassMaps, "class_weights": ClassWeights}


@pytest.fixture(scope="module")
def chain():
    return lively(Chain())


def tables(model: nn.Module, data: Samples, kind: str, memory: int | None = None, **options) -> dict[str, np.ndarray]:
    program = program_of(model, data)
    groups = tuple(group for group in analyse(program).groups.values() if group.free.any())
    return KINDS[kind](**options).tables(
        Setting(program, groups, Context(data=data), Calibration(memory=memory), aggregate="sum")
    )


def shares(y: Tensor, labels: Tensor, of: str) -> Tensor:
    return (y.softmax(1) if of == "probability" else y).gather(1, labels[:, None]).squeeze(1)


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_maps_by_a_loop(chain, of):
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for x, label in zip(DATA.inputs.split(1), DATA.labels.split(1), strict=True):
        z = chain.conv1(x).detach().requires_grad_()
        read = torch.max_pool2d(chain.relu(z), 2)
        (gradient,) = torch.autograd.grad(shares(chain.head(read), label, of).sum(), z)
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
        z = chain.conv1(DATA.inputs[mine])
        y = chain.head(torch.max_pool2d(chain.relu(z), 2))
        target = shares(y, DATA.labels[mine], "probability").sum()
        at = z if kind == "class_maps" else chain.conv1.weight
        (gradient,) = torch.autograd.grad(target, at)
        summed = gradient.sum(0).abs().sum((1, 2)) if kind == "class_maps" else gradient.abs().sum((1, 2, 3))
        means[:, label] = (summed / mine.sum()).numpy()
    assert (table >= means - 1e-12).all()
    assert (table > 1.05 * means).any()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_memory_make_no_difference(kind):
    model, data = lively(Stream()), images(12)
    program = program_of(model, data)
    whole = tables(model, data, kind)
    assert {"stem", "a", "squeeze"} <= whole.keys()
    for other, memory in ((data.in_batches_of(5), None), (data, 6 * bytes_of_a_sample(program))):
        found = tables(model, other, kind, memory=memory)
        for group, table in whole.items():
            np.testing.assert_allclose(found[group], table, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_what_adds_to_a_stream_is_summed(kind):
    """The stream's evidence is that of the stem, of the branch that adds to it, and of the gates on it, each by a loop
    over the samples."""
    model, data = lively(Stream()), images(9)
    expected = np.zeros((6, 3))
    for x, label in zip(data.inputs.split(1), data.labels.split(1), strict=True):
        given = {}
        hooks = [
            layer.register_forward_hook(lambda _, args, out, name=name, given=given: given.setdefault(name, out))
            for name, layer in (("stem", model.stem), ("b", model.b), ("excite", model.excite))
        ]
        target = shares(model(x), label, "probability").sum()
        at = list(given.values()) if kind == "class_maps" else [getattr(model, name).weight for name in given]
        gradients = torch.autograd.grad(target, at)
        channels = 1 if kind == "class_maps" else 0
        expected[:, label.item()] += sum(g.abs().movedim(channels, 0).flatten(1).sum(1).numpy() for g in gradients)
        for hook in hooks:
            hook.remove()
    expected /= np.bincount(data.labels, minlength=3)
    np.testing.assert_allclose(tables(model, data, kind)["stem"], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_other_kinds(kind):
    """A recurrent layer, an embedding and a product with a parameter, which take a run of each sample."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.rnn, self.mix = nn.Embedding(9, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 7)
            self.weight = nn.Parameter(torch.zeros(7, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.mix(self.rnn(self.words(x))[0][:, -1])) @ self.weight

    model = lively(Words())
    labels = torch.arange(9) % 3
    words = torch.randint(0, 9, (9, 4), generator=torch.Generator().manual_seed(0))
    data = Samples(words, labels, 4)
    found = tables(model, data, kind)
    assert {"words", "mix"} <= found.keys()
    assert all(np.isfinite(table).all() and (table > 0).any() for table in found.values())
    expected = np.zeros((6, 3))
    if kind == "class_maps":
        return
    for x, label in zip(words.split(1), labels.split(1), strict=True):
        (gradient,) = torch.autograd.grad(shares(model(x), label, "probability").sum(), model.words.weight)
        expected[:, label.item()] += gradient.abs().sum(0).numpy() / 3
    np.testing.assert_allclose(found["words"], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_filter_has_no_evidence(kind):
    model = lively(Chain())
    model.conv1.bias.data[2], model.conv1.weight.data[2] = -1.0, 0.0
    table = tables(model, DATA, kind)["conv1"]
    assert (table[2] == 0).all()
    assert (np.delete(table, 2, axis=0) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_probabilities_are_taken_as_they_are(chain, kind, head):
    whole = tables(chain, DATA, kind)
    for group, table in tables(nn.Sequential(chain, head), DATA, kind).items():
        np.testing.assert_allclose(table, whole[group.removeprefix("0.")], rtol=1e-9)


def test_maps_of_one_element_are_outputs(chain):
    """A head of convolutions, without a flatten behind it."""
    headless = nn.Sequential(chain, nn.Unflatten(1, (3, 1, 1)))
    np.testing.assert_allclose(
        tables(headless, DATA, "class_weights")["0.conv1"], tables(chain, DATA, "class_weights")["conv1"]
    )


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


@pytest.mark.parametrize("kind", KINDS)
def test_more_classes_keep_more_at_one_threshold(chain, kind):
    """At one threshold the units that stay for some classes stay for more, and for all classes every live one does."""
    program = program_of(chain, DATA)

    def kept(classes, threshold):
        found = scores(program, {kind: {"classes": classes}}, DATA, normalize="auto")
        return {(name, unit) for name, each in found.items() for unit in np.flatnonzero(each > threshold)}

    for threshold in (0.5, 0.9, 1.1):
        nested = [kept(classes, threshold) for classes in ([1], [1, 2], [0, 1, 2])]
        assert nested[0] <= nested[1] <= nested[2]
    assert kept([1], 0.9) < kept([0, 1, 2], 0.9)
    whole = tables(chain, DATA, kind)
    live = {(name, unit) for name, table in whole.items() for unit in np.flatnonzero(table.any(1))}
    assert kept([0, 1, 2], 0) == live


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["filter", "balanced"])
def test_what_says_nothing_of_any_class_goes_first(planted, kind, level):
    model, data = planted
    found = scores(program_of(model, data), {kind: {"of": "logit", "level": level}}, data)["a"]
    assert np.argmin(found) == 3
    assert found[3] < 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_priority_serves_each_class(planted, kind):
    """Of classes 0 and 2 each has its own unit before the others, though class 0's gradients are 25 times as large."""
    model, data = planted
    options = {"classes": [0, 2], "of": "logit", "balance": False, "level": "balanced"}
    found = scores(program_of(model, data), {kind: options}, data)["a"]
    assert found[0] > found[2] > max(found[1], found[3])


@pytest.mark.parametrize(
    ("classes", "message"), [([7], "there is no class 7: the model knows 3"), ([2], "no sample of class 2")]
)
def test_classes_that_are_not_there(planted, classes, message):
    model, data = planted
    some = Samples(data.inputs[data.labels < 2], data.labels[data.labels < 2])
    with pytest.raises((DataError, PassError), match=message):
        scores(program_of(model, some), {"class_maps": {"classes": classes}}, some)
