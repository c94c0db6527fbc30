"""Criteria of activations: the identities that hold exactly, brute force, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calibrating import DATA, EXACT, ON_DATA, Chain, Stream, flat, images, lively, program_of, scores
from torch import Tensor, nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.passes.calibration.calibration import bytes_of_a_sample


def gate_gradients(chain: Chain, of: str = "conv1") -> Tensor:
    """dC_n/dg of a gate that really stands in the model, [samples, channels]; C_n is sample n's loss."""
    found = []
    for x, label in zip(DATA.inputs.split(1), DATA.labels.split(1), strict=True):
        gate = torch.ones(1, 5 if of == "conv1" else 4, 1, 1, dtype=torch.float64, requires_grad=True)
        z = chain.read(x)
        y = chain.head(z * gate) if of == "conv1" else chain.fc((chain.relu(chain.conv2(z)) * gate).mean((2, 3)))
        found.append(torch.autograd.grad(F.cross_entropy(y, label), gate)[0].flatten())
    return torch.stack(found)


M = {"conv1": 9, "conv2": 1}
"""Elements of a unit's map where it is read: 3x3 behind the pool, and one behind the mean."""

BY_HAND = {
    "taylor": lambda t, m: (t / m).abs().mean(0),
    "taylor_signed": lambda t, m: (t / m).mean(0).abs(),
    "gate": lambda t, m: t.mean(0).abs(),
    "fisher_gate": lambda t, m: t.square().mean(0) / 2,
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("group", ["conv1", "conv2"])
def test_gates_agree_with_gates_in_the_model(chain, program, name, group):
    expected = BY_HAND[name](gate_gradients(chain, group), M[group])
    np.testing.assert_allclose(scores(program, name, DATA)[group], expected.detach(), **EXACT)


def test_the_product_is_the_same_before_and_behind_relu(chain):
    x, before = DATA.inputs, None
    before = chain.conv1(x).detach().requires_grad_()
    behind = chain.relu(before)
    behind.retain_grad()
    loss = F.cross_entropy(chain.head(torch.max_pool2d(behind, 2)), DATA.labels)
    loss.backward()
    terms = [(z * z.grad).sum((2, 3)) for z in (before, behind)]
    torch.testing.assert_close(*terms, rtol=1e-12, atol=1e-14)


def test_the_error_of_first_order_shrinks_with_the_step(chain):
    """The loss with a gate at 1 - e, against C - e dC/dg: an error of second order, so a ratio that falls with e."""
    slope = gate_gradients(chain).mean(0)

    def change(step: float, channel: int) -> float:
        gate = torch.ones(1, 5, 1, 1, dtype=torch.float64)
        gate[0, channel] -= step
        with torch.no_grad():
            z = chain.read(DATA.inputs)
            losses = [F.cross_entropy(chain.head(z * g), DATA.labels) for g in (gate, torch.ones(1, 5, 1, 1))]
        return float(losses[0] - losses[1])

    channel = int(slope.abs().argmax())
    errors = [abs(change(e, channel) / (-e * float(slope[channel])) - 1) for e in (0.1, 0.01, 0.001)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_a_channel_that_nothing_reads_matters_to_none():
    model = lively(Chain())
    model.conv2.weight.data[:, 2] = 0
    program = program_of(model, DATA)
    for name in ("oracle", "taylor", "taylor_signed", "gate", "fisher_gate", "taylor_weight", "class_maps"):
        assert scores(program, name, DATA)["conv1"][2] == pytest.approx(0, abs=1e-14), name


@pytest.mark.parametrize("name", ["taylor", "taylor_signed", "gate", "fisher_gate", "taylor_weight", "oracle"])
def test_rescaling_between_layers_changes_no_loss_and_no_score(program, name):
    model = lively(Chain())
    with torch.no_grad():
        model.conv1.weight[1] *= 3
        model.conv1.bias[1] *= 3
        model.conv2.weight[:, 1] /= 3
    scaled = program_of(model, DATA)
    np.testing.assert_allclose(scores(scaled, name, DATA)["conv1"], scores(program, name, DATA)["conv1"], rtol=1e-9)


# -- what they must not depend on ----------------------------------------------------------------------------------

QUICK = {"obd": {"probes": 2}, "obs": {"gradients": 10}}


@pytest.mark.parametrize("name", ON_DATA)
def test_scores_do_not_depend_on_batches_or_memory(stream, name):
    made = {name: QUICK.get(name)}
    whole = scores(stream, made, DATA.in_batches_of(20))
    assert {"stem", "a", "squeeze"} <= set(whole)
    for data, options in (
        (DATA.in_batches_of(7), {}),
        (DATA.in_batches_of(20), {"memory": 3 * bytes_of_a_sample(stream)}),
    ):
        other = scores(stream, made, data, **options)
        for group, found in whole.items():
            np.testing.assert_allclose(other[group], found, rtol=1e-8, atol=1e-12, err_msg=group)


@pytest.mark.parametrize("name", ON_DATA)
def test_scoring_leaves_the_model_as_it_was(name):
    model = lively(Stream()).train()
    program = program_of(model, DATA)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores(program, {name: QUICK.get(name)}, DATA, samples=4)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["taylor", "activation_mean", "taylor_weight"])
def test_scores_are_those_of_evaluation_mode(name):
    model = lively(Stream())
    there = scores(program_of(model, DATA), name, DATA)
    here = scores(program_of(model.train(), DATA), name, DATA)
    np.testing.assert_allclose(flat(here), flat(there), **EXACT)


def test_every_read_may_be_evidence_of_its_own(stream):
    """Joint gates add what reads say of a sample with its sign; apart, they are averaged."""
    joint, apart = scores(stream, "gate", DATA), scores(stream, {"gate": {"joint": False}}, DATA, aggregate="sum")
    np.testing.assert_allclose(joint["a"], apart["a"], **EXACT)  # read once
    assert (joint["stem"] <= apart["stem"] + 1e-15).all()
    assert (joint["stem"] < apart["stem"] * 0.99).any()


def test_a_value_that_was_overwritten_is_noticed():
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x)
            x += y
            return self.fc(x)

    data = images(shape=(6,))
    program = program_of(lively(Overwritten()), data)
    assert analyse(program).groups["a"].free.all()
    with pytest.raises(PassError, match="can't be taken backwards"):
        scores(program, "taylor", data)


class Padded(nn.Module):
    """A stream that is padded with channels when its map shrinks: the first three also live in the larger map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        small = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3))
        return self.c(torch.relu(small + torch.max_pool2d(self.b(x), 2))).mean((2, 3))


def test_channels_that_also_live_in_larger_maps_count_for_no_less():
    program = program_of(lively(Padded()), DATA)
    signed, gate = scores(program, "taylor_signed", DATA), scores(program, "gate", DATA)
    (name,) = (group.name for group in analyse(program).groups.values() if group.size == 6)
    np.testing.assert_allclose(signed[name] * 36, gate[name], **EXACT)
