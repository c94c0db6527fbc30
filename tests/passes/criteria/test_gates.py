"""Criteria of activations: the identities that hold exactly, brute force, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calibrating import Chain, Samples, Stream, flat, images, lively, program_of, scores
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from prunec.compiler.errors import DataError, PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.criteria.activations import mutual_information
from prunec.passes.criteria.spelling import CRITERIA, criterion
from prunec.passes.score import Score

DATA = images()
ON_DATA = [name for name in CRITERIA.names() if criterion(name).data and name != "torch_pruning"]
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def chain():
    return lively(Chain())


@pytest.fixture(scope="module")
def program(chain):
    return program_of(chain, DATA)


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


def test_absolute_values_of_samples_are_at_least_that_of_the_mean(program):
    taylor, signed = scores(program, "taylor", DATA), scores(program, "taylor_signed", DATA)
    assert (flat(taylor) >= flat(signed) - 1e-15).all()
    assert (flat(taylor) > flat(signed) * 1.01).any()


def test_the_product_is_the_same_before_and_behind_relu(chain):
    x, before = DATA.inputs, None
    before = chain.conv1(x).detach().requires_grad_()
    behind = chain.relu(before)
    behind.retain_grad()
    loss = F.cross_entropy(chain.head(torch.max_pool2d(behind, 2)), DATA.labels)
    loss.backward()
    terms = [(z * z.grad).sum((2, 3)) for z in (before, behind)]
    torch.testing.assert_close(*terms, rtol=1e-12, atol=1e-14)


def test_gates_equal_weights_without_batch_norm(program):
    gate, weight = scores(program, "gate", DATA), scores(program, "taylor_weight", DATA)
    for group in ("conv1", "conv2"):
        np.testing.assert_allclose(gate[group], weight[group], **EXACT)


class Linear(nn.Module):
    """Nothing but linear layers: the loss `-y[label]` is linear in every gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_taylor_is_exact_where_the_loss_is_linear_in_the_gate():
    data = images(shape=(6,))
    program = program_of(lively(Linear()), data)
    oracle = scores(program, "oracle", data, loss="nll")
    np.testing.assert_allclose(scores(program, "taylor_signed", data, loss="nll")["a"], oracle["a"], **EXACT)


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


def test_the_oracle_is_the_loss_of_the_network_without_the_channel(chain, program):
    with torch.no_grad():
        z = chain.read(DATA.inputs)
        base = F.cross_entropy(chain.head(z), DATA.labels)
        gates = 1 - torch.eye(5, dtype=torch.float64)
        losses = [F.cross_entropy(chain.head(z * gate.view(1, 5, 1, 1)), DATA.labels) for gate in gates]
    signed = scores(program, {"oracle": {"signed": True}}, DATA)
    np.testing.assert_allclose(signed["conv1"], torch.stack(losses) - base, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(scores(program, "oracle", DATA)["conv1"], np.abs(signed["conv1"]))


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


# -- statistics ----------------------------------------------------------------------------------------------------


def test_statistics_by_hand(chain, program):
    with torch.no_grad():
        z = chain.read(DATA.inputs)  # [20, 5, 3, 3]
    by_hand = {
        "activation_mean": z.mean((0, 2, 3)),
        "activation_std": z.std((0, 2, 3), unbiased=False),
        "apoz": (z != 0).double().mean((0, 2, 3)),
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(scores(program, name, DATA)["conv1"], expected, rtol=1e-9, err_msg=name)


def test_a_spread_far_from_zero_keeps_its_digits(chain):
    model = lively(Chain())
    model.conv1.bias.data += 1e5
    with torch.no_grad():
        expected = model.read(DATA.inputs).std((0, 2, 3), unbiased=False)
    found = scores(program_of(model, DATA), "activation_std", DATA)["conv1"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_mutual_information_is_that_of_the_binned_values():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    values = np.stack([labels + 0.1 * rng.standard_normal(200), rng.standard_normal(200), np.ones(200)], 1)
    found = mutual_information(values, labels, bins=4)
    for column, value in enumerate(found):
        edges = np.quantile(values[:, column], [0.25, 0.5, 0.75])
        binned = np.searchsorted(edges, values[:, column], side="left")
        assert value == pytest.approx(mutual_info_score(labels, binned), abs=1e-12)
    assert found[0] > 1 > 0.2 > found[1] > found[2] == 0


# -- what they must not depend on ----------------------------------------------------------------------------------

QUICK = {"obd": {"probes": 2}, "obs": {"gradients": 10}}


@pytest.fixture(scope="module")
def stream():
    return program_of(lively(Stream()), DATA)


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


def test_how_much_is_looked_at(program):
    first = Samples(DATA.inputs[:12], DATA.labels[:12])
    expected = flat(scores(program, "taylor", first))
    for options in ({"samples": 12}, {"batches": 3}):
        found = scores(program, "taylor", DATA.in_batches_of(4 if "batches" in options else 8), **options)
        np.testing.assert_allclose(flat(found), expected, **EXACT)


def test_one_pass_over_the_data_and_its_progress(stream):
    seen: list[tuple[str, int, int]] = []

    class Once(Samples):
        passes = 0

        def train(self):
            Once.passes += 1
            return super().train()

    data = Once(DATA.inputs, DATA.labels)
    Score(criterion="taylor", batches=2).run(stream, Context(data=data, progress=lambda *step: seen.append(step)))
    assert Once.passes == 1
    assert seen == [("calibrate", 1, 2), ("calibrate", 2, 2), ("calibrate", 1, 1)]


def test_memory_is_a_bound(program):
    one = bytes_of_a_sample(program)
    pieces = Calibration(memory=5 * one + 1).pieces(program, Context(data=DATA.in_batches_of(8)), one)
    assert [piece.count for piece in pieces] == [5, 3, 5, 3, 4]
    with pytest.raises(PassError, match="one sample needs"):
        scores(program, "taylor", DATA, memory=one - 1)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ON_DATA, "torch_pruning"])
def test_without_data(program, name):
    made = {name: {"importance": "TaylorImportance"}} if name == "torch_pruning" else name
    with pytest.raises(PassError, match="calibration needs data, and the plan has none"):
        scores(program, made)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Samples(DATA.inputs, DATA.labels.double()), {}, "the loss cross_entropy can't take outputs"),
        (Samples(DATA.inputs[:, :1], DATA.labels), {}, "the model can't take the data's batches, of shape"),
        (Samples(DATA.inputs[:0], DATA.labels[:0]), {}, "the data's split 'train' is empty"),
    ],
    ids=["labels", "shape", "empty"],
)
def test_data_that_do_not_fit(program, data, options, message):
    with pytest.raises(DataError, match=message):
        scores(program, "taylor", data, **options)


def test_labels_that_are_no_classes(program):
    data = Samples(DATA.inputs, DATA.labels.double())
    with pytest.raises(DataError, match="one class a sample is needed"):
        scores(program, "mutual_information", data)


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
