"""Costly samples: one is computed in full, and in batches of three products are given; every fault is still caught."""

from __future__ import annotations

import copy

import pytest
import torch
from batch_faults import Between, ImageShifted
from slimmed_by_hand import by_case, conv, program_of, seeded
from torch import Tensor, nn
from wrong_weights import MUTATIONS, mutated

from prunec.compiler.errors import VerifyError
from prunec.compiler.verify import verify as verifying
from prunec.compiler.verify.compare import TOLERANCE
from prunec.compiler.verify.given_products import Giving, Learning, Products
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


@pytest.mark.parametrize(("change", "culprit"), MUTATIONS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_wrong_weights_are_caught(change, culprit):
    assert culprit in mutated("conv-bn-relu-conv", change)


# -- what shows in a batch of three alone ------------------------------------------------------------------------------


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
    learning, giving = Learning(products), Giving(products)
    learning.connect(reference, reference)
    for node, value in reference.steps((torch.zeros(1, 3, 6, 6),)):
        learning.take(node, value)
    reference.give = giving.of_reference
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
