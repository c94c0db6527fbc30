"""Costly samples: one is computed in full, and in batches of three products are given; every fault is still caught."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from slimmed_by_hand import CASES, Net, by_case, conv, program_of, seeded
from torch import Tensor, nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.verify import verify as verifying
from prunec.compiler.verify.compare import TOLERANCE
from prunec.compiler.verify.given_products import Products
from prunec.compiler.verify.interpreter import Interpreter
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify


@pytest.fixture(autouse=True)
def _costly(monkeypatch):
    """Every network counts as one whose samples cost much."""
    monkeypatch.setattr(verifying, "COSTLY", -1)


@pytest.fixture
def full_runs(monkeypatch):
    """The batch sizes that are computed in full."""
    seen, compared = [], verifying._compared
    monkeypatch.setattr(verifying, "_compared", lambda *args: seen.append(args[4][0].shape[0]) or compared(*args))
    return seen


@by_case
def test_hand_slimmed_networks_pass_and_one_sample_is_computed(case, full_runs):
    report = verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink")
    assert report.batches == (1, 3)
    assert report.difference <= TOLERANCE[torch.float64]
    assert full_runs == [1]


def mutated(name, change):
    """The error that a hand-slimmed network meets after a `change` of its slim model."""
    case = CASES[name]
    model = case.slim()
    with torch.no_grad():
        change(model, case.before.tensors)
    with pytest.raises(VerifyError) as caught:
        verify(program_of(model, case.example()), Masked(case.before, case.axes()), pass_name="shrink")
    return caught.value.message


def wrong_index(model, old):
    model.conv1.weight[0] = old["conv1.weight"][1]


def off_by_one_later(model, old):
    model.conv2.weight.copy_(model.conv2.weight.roll(1, 1))


def bias_not_sliced(model, old):
    model.conv1.bias.copy_(old["conv1.bias"][: len(model.conv1.bias)])


def bias_left_whole(model, old):
    model.conv1.bias = nn.Parameter(old["conv1.bias"].detach().clone())


def statistics_of_others(model, old):
    model.bn1.running_mean.copy_(old["bn1.running_mean"][: len(model.bn1.running_mean)].flip(0))


def statistics_left_whole(model, old):
    model.bn1.running_var = old["bn1.running_var"].detach().clone()


def wrong_order(model, old):
    model.bn1.weight.copy_(model.bn1.weight.flip(0))


MUTATIONS = {
    wrong_index: "'conv1'",
    off_by_one_later: "'conv2'",
    bias_not_sliced: "'conv1'",
    bias_left_whole: "'conv1'",
    statistics_of_others: "'bn1'",
    statistics_left_whole: "'bn1'",
    wrong_order: "'bn1'",
}


@pytest.mark.parametrize(("change", "culprit"), MUTATIONS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_wrong_weights_are_caught(change, culprit):
    assert culprit in mutated("conv-bn-relu-conv", change)


# -- what shows in a batch of three alone ------------------------------------------------------------------------------


class Between(Net):
    """Something between two convolutions and a linear layer."""

    def forward(self, x):
        x = self.conv2(self.between(F.relu(self.conv1(x))))
        return self.fc(self.flat(x))

    def between(self, x):
        return x

    def flat(self, x):
        return x.flatten(1)


class SamplesMixed(Between):
    def between(self, x):
        return x.roll(x.shape[0] // 3, 0)


class ImageShifted(Between):
    def between(self, x):
        return x.roll(x.shape[0] // 3, 3)


class ChannelsTurned(Between):
    def between(self, x):
        return x.index_select(1, (torch.arange(4) + x.shape[0] // 3) % 4)


class Scaled(Between):
    def between(self, x):
        return x * (x.shape[0] // 3 + 1)


class ChannelsAcrossSamples(Between):
    """Channels before samples: the same for one sample."""

    def between(self, x):
        return x.transpose(0, 1).reshape(x.shape)


class FrozenBatch(Between):
    def flat(self, x):
        return x.reshape(1, 144)


class FrozenRest(Between):
    def flat(self, x):
        return x.reshape(1, -1)


class SamplesMixedInView(Between):
    def flat(self, x):
        return x.transpose(0, 1).reshape(-1, 144)


class LastShifted(Between):
    def forward(self, x):
        x = super().forward(x)
        return x.roll(x.shape[0] // 3, 1)


@pytest.mark.parametrize("kind", [Between, *Between.__subclasses__()], ids=lambda kind: kind.__name__)
def test_what_differs_in_a_batch_of_three_alone_is_caught(kind, full_runs):
    layers = seeded(Between(conv1=conv(3, 4), conv2=conv(4, 4), fc=nn.Linear(144, 2)).double())._modules
    example = torch.zeros(1, 3, 6, 6).double()
    before, after = program_of(Between(**layers), example), program_of(kind(**layers), example)
    assert (
        Interpreter(before, torch.float64)
        .run((example + 1,))
        .equal(Interpreter(after, torch.float64).run((example + 1,)))
    )
    masked = Masked(before, {})
    if kind is Between:
        verify(after, masked, pass_name="shrink")
        assert full_runs == [1]
    else:
        with pytest.raises(VerifyError):
            verify(after, masked, pass_name="shrink")
        assert full_runs[:2] == [1, 3], "a full run convicts"


def test_products_are_given_other_numbers_each():
    """Else branches that are taken for each other would look alike."""
    layers = seeded(Between(conv1=conv(3, 4), conv2=conv(4, 4), fc=nn.Linear(144, 2)))._modules
    program = program_of(ImageShifted(**layers), torch.zeros(1, 3, 6, 6))
    products = Products(program, program, torch.float32, 0, 1e-5)
    assert products.names == {"conv1", "conv2", "fc"}
    assert not products.unseen
    reference = Masked(program, {}).interpreter(torch.float32)
    reference.give = products.learn
    for node, value in reference.steps((torch.zeros(1, 3, 6, 6),)):
        products.learn_result(node, value)
    reference.give = products.of_reference
    steps = reference.steps((torch.zeros(3, 3, 6, 6),))
    values = {node.name: value.clone() for node, value in steps if isinstance(value, Tensor)}
    assert values["conv1"].shape == values["conv2"].shape == (3, 4, 6, 6)
    assert not torch.isclose(values["conv1"], values["conv2"]).any()
    assert values["fc"].shape == (3, 2)


def test_a_batch_that_is_refused_teaches_nothing(full_runs):
    """The first one that the old program takes is computed in full."""

    class Third(Between):
        def between(self, x):
            return x + x.select(0, 2)

    layers = seeded(Between(conv1=conv(3, 4), conv2=conv(4, 4), fc=nn.Linear(144, 2)))
    before = program_of(Third(**layers._modules), torch.zeros(1, 3, 6, 6))
    assert verify(before, Masked(before, {}), pass_name="shrink").batches == (3,)
    assert full_runs == [1, 3]
    other = copy.deepcopy(layers)
    other.conv1.weight.data[0] += 1
    after = program_of(Third(**other._modules), torch.zeros(1, 3, 6, 6))
    with pytest.raises(VerifyError, match="'conv1'"):
        verify(after, Masked(before, {}), pass_name="shrink")


# -- what is given, and what of it has no numbers ----------------------------------------------------------------------


class Parts(Net):
    def forward(self, x):
        return self.last(self.middle(self.norm(self.first(x))))


def given(kind, norm, middle):
    layers = Net(first=conv(3, 4), norm=norm, middle=middle, last=conv(4, 2))._modules
    program = program_of(kind(**layers).eval(), torch.zeros(1, 3, 6, 6))
    products = Products(program, program, torch.float32, 0, 1e-5)
    return set(products.names), set(products.unseen)


NORM = nn.BatchNorm2d(4)


def test_what_lies_between_products_alone_has_no_numbers():
    assert given(Parts, NORM, nn.ReLU(inplace=True)) == (
        {"first", "norm", "middle", "last"},
        {"first", "norm", "middle"},
    )


def test_samples_that_meet_in_a_norm_are_computed():
    assert given(Parts, nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()) == (
        {"first", "middle", "last"},
        {"middle"},
    )


def test_an_activation_with_another_reader_is_computed():
    class Added(Net):
        def forward(self, x):
            x = self.middle(self.norm(self.first(x)))
            return self.last(x + x.roll(x.shape[0], 0))

    assert given(Added, NORM, nn.ReLU()) == ({"first", "norm", "last"}, {"first"})


@pytest.mark.parametrize(("inplace", "unseen"), [(False, {"middle"}), (True, set())])
def test_what_is_written_into_and_read_elsewhere_is_computed(inplace, unseen):
    class Seen(Net):
        def forward(self, x):
            x = self.first(x) * 2
            y = self.norm(self.last(self.middle(x)))
            return y + x

    layers = Net(first=conv(3, 4), norm=nn.BatchNorm2d(4), middle=nn.ReLU(inplace), last=conv(4, 4))._modules
    program = program_of(Seen(**layers).eval(), torch.zeros(1, 3, 6, 6))
    products = Products(program, program, torch.float32, 0, 1e-5)
    assert set(products.unseen) == unseen | {"last"}
    assert verify(program, Masked(program, {}), pass_name="shrink").batches == (1, 3)


def test_what_the_new_program_reads_elsewhere_has_numbers():
    class Longer(Parts):
        def forward(self, x):
            return self.last(self.middle(self.norm(self.first(x)).roll(0, 0)))

    layers = Net(first=conv(3, 4), norm=NORM, middle=nn.ReLU(), last=conv(4, 2))._modules
    programs = [program_of(kind(**layers).eval(), torch.zeros(1, 3, 6, 6)) for kind in (Parts, Longer)]
    assert set(Products(*programs, torch.float32, 0, 1e-5).unseen) == {"first", "middle"}
