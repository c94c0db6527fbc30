"""Second order: exact where the loss is quadratic, and close to the Hessian where Fisher information is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain, Samples, Stream, gated, images, lively, program_of, scores
from torch import Tensor, nn

from prunec.passes.criteria.curvature import surgeon


class Quadratic(nn.Module):
    """x -> W2 W1 x: with the mean square as loss, quadratic in W1. The columns of W2 are orthonormal."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b = nn.Linear(6, 4, bias=False), nn.Linear(4, 8, bias=False)
        basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
        self.a.weight.data = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        self.b.weight.data = basis[:, :4].clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def quadratic(inputs: Tensor) -> tuple[nn.Module, Samples]:
    """The network at its minimum: targets are its own outputs. The Hessian of row i of W1 is 2/8 mean x x'."""
    model = Quadratic().double().eval()
    with torch.no_grad():
        return model, Samples(inputs, model(inputs))


def test_obd_is_exact_on_a_quadratic_with_a_diagonal_hessian():
    model, data = quadratic(3 * torch.eye(6, dtype=torch.float64).repeat(2, 1))
    program = program_of(model, data)
    weight = model.a.weight.detach()
    expected = (weight.square() * (2 / 8) * 9 / 6).sum(1) / 2
    for probes in (1, 5):
        found = scores(program, {"obd": {"probes": probes, "diagonal": True}}, data, loss="mse")["a"]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(scores(program, "oracle", data, loss="mse")["a"], expected, atol=1e-9)


def test_hutchinson_converges_to_the_diagonal():
    inputs = images(40, (6,)).inputs
    model, data = quadratic(inputs)
    program = program_of(model, data)
    diagonal = (2 / 8) * inputs.square().mean(0)
    expected = (model.a.weight.detach().square() * diagonal).sum(1) / 2
    errors = [
        np.abs(
            scores(program, {"obd": {"probes": n, "diagonal": True}}, data, loss="mse")["a"] / expected.numpy() - 1
        ).max()
        for n in (4, 1024)
    ]
    assert errors[1] < 0.05 < errors[0]


def test_fisher_is_the_hessian_where_labels_are_the_models_own():
    """Logistic regression behind a fixed layer: labels are drawn from what the model says."""
    generator = torch.Generator().manual_seed(0)
    model = lively(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    inputs = torch.randn(15_000, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shares = model(inputs).softmax(1)
    data = Samples(inputs, torch.multinomial(shares, 1, generator=generator).squeeze(1), size=3000)
    program = program_of(model, data)
    fisher = scores(program, {"obd_fisher": {"diagonal": True}}, data, samples=15_000)["0"]
    variance = shares[:, 0] * shares[:, 1]
    column = (model[1].weight[0] - model[1].weight[1]).detach()  # what unit i adds to the difference of the logits
    x = torch.cat([inputs, torch.ones(15_000, 1, dtype=torch.float64)], 1)  # with the bias
    w = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach()
    hessian = torch.stack([(variance[:, None] * (x * c) ** 2).mean(0) for c in column])
    np.testing.assert_allclose(fisher, (hessian * w.square()).sum(1) / 2, rtol=0.02)


DIAGONAL = {"obd_fisher": {"diagonal": True}}


def test_fisher_by_a_loop():
    model, data = lively(Chain()), images(6)
    expected = torch.zeros(5, dtype=torch.float64)
    for x, label in zip(data.inputs.split(1), data.labels.split(1), strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        for tensor in (model.conv1.weight, model.conv1.bias):
            expected += (tensor.detach() * tensor.grad).square().reshape(5, -1).sum(1) / 2 / 6
    np.testing.assert_allclose(scores(program_of(model, data), DIAGONAL, data)["conv1"], expected, rtol=1e-10)


# -- of whole units ------------------------------------------------------------------------------------------------


def test_obd_of_whole_units_is_exact_on_a_quadratic():
    """Rows of W1 don't act on each other, so that one vector is enough; and no Hessian need be diagonal."""
    model, data = quadratic(images(40, (6,)).inputs)
    program = program_of(model, data)
    hessian = (2 / 8) * data.inputs.T @ data.inputs / 40
    w = model.a.weight.detach()
    expected = torch.einsum("ui,ij,uj->u", w, hessian, w) / 2
    for probes in (1, 3):
        found = scores(program, {"obd": {"probes": probes}}, data, loss="mse")["a"]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(scores(program, "oracle", data, loss="mse")["a"], expected, atol=1e-9)
    diagonal = scores(program, {"obd": {"diagonal": True, "probes": 512}}, data, loss="mse")["a"]
    assert np.abs(diagonal / expected.numpy() - 1).max() > 0.1, "single weights miss how they act together"


def test_obd_of_readers_is_the_curvature_of_a_gate():
    """d^2 C / dg^2 at g = 1 by central differences of a gate on the unit; its estimate has noise of other units."""
    model, data = lively(Chain()), images(8)
    program = program_of(model, data)
    found = scores(program, {"obd": {"probes": 2000}}, data, axes="readers")["conv1"]

    def loss(unit: int, factor: float) -> float:
        with torch.no_grad():
            outputs = gated(program, np.array([unit]), factor)(data.inputs)
        return float(nn.functional.cross_entropy(outputs, data.labels))

    expected = [(loss(u, 1.01) - 2 * loss(u, 1) + loss(u, 0.99)) / 1e-4 / 2 for u in range(5)]
    np.testing.assert_allclose(found, expected, atol=0.08 * max(map(abs, expected)))


@pytest.mark.parametrize("name", ["chain", "stream"])
def test_fisher_of_readers_is_that_of_gates(name):
    """Readers' weights times their gradients are the values that are read times theirs, over all readers of a unit."""
    model, data = lively({"chain": Chain, "stream": Stream}[name]()), images(6)
    program = program_of(model, data)
    weights = scores(program, "obd_fisher", data, axes="readers", aggregate="sum")
    gates = scores(program, "fisher_gate", data)
    for group in set(weights) & set(gates) - {"stem"}:
        np.testing.assert_allclose(weights[group], gates[group], rtol=1e-9, atol=1e-15)
    assert {"conv1"} <= set(weights) or {"a", "squeeze"} <= set(weights)


def test_second_order_looks_at_readers_by_default():
    model, data = lively(Stream()), images(6)
    program = program_of(model, data)
    for criterion in ("obd", "obd_fisher", "obs"):
        default = scores(program, criterion, data, axes="auto")
        readers, writers = (scores(program, criterion, data, axes=axes) for axes in ("readers", "writers"))
        np.testing.assert_array_equal(default["a"], readers["a"])
        assert not np.allclose(default["a"], writers["a"])


def test_tied_weights_count_in_both_places():
    """One weight that reads at two places: its gradient is that of both, and the curvature is exact."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.c.weight = self.b.weight
            self.end = nn.Linear(4, 3)

        def forward(self, x):
            return self.end(torch.relu(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))

    model, data = lively(Tied()), images(6, (3,))
    program = program_of(model, data)
    for criterion in ("obd", "obd_fisher"):
        for axes in ("writers", "readers", "all"):
            found = scores(program, criterion, data, axes=axes)
            assert all(np.isfinite(figures).all() for figures in found.values())


# -- optimal brain surgeon -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer():
    """Gradients [samples, rows, columns], weights, and the Hessian that the two make with damping 0.2."""
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(9, 5, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    flat = g.flatten(1)
    added = 0.2 * float(flat.square().mean())
    return g, w, flat.T @ flat / 9 + added * torch.eye(15, dtype=torch.float64)


def inverse_form(hessian: Tensor, w: Tensor, where: Tensor) -> float:
    inner = torch.linalg.inv(torch.linalg.inv(hessian)[where][:, where])
    own = w.flatten()[where]
    return float(own @ inner @ own / 2)


@pytest.mark.parametrize("unit", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2]], ids=["rows", "pairs of rows"])
def test_surgeon_is_the_formula_with_the_inverse(layer, unit):
    g, w, hessian = layer
    found = surgeon(g, w, torch.tensor(unit), 0.2, g)
    for number, score in enumerate(found):
        rows = [row for row, of in enumerate(unit) if of == number]
        where = torch.tensor([3 * row + column for row in rows for column in range(3)])
        assert float(score) == pytest.approx(inverse_form(hessian, w, where), abs=1e-9)


def test_surgeon_is_the_least_rise_of_the_quadratic(layer):
    """min over d with (w + d)_Q = 0 of 1/2 d' H d, by its normal equations."""
    g, w, hessian = layer
    found = surgeon(g, w, torch.arange(5), 0.2, g)
    for row, score in enumerate(found):
        fixed = torch.zeros(15, dtype=torch.bool)
        fixed[3 * row : 3 * row + 3] = True
        change = torch.zeros(15, dtype=torch.float64)
        change[fixed] = -w[row]
        change[~fixed] = -torch.linalg.solve(hessian[~fixed][:, ~fixed], hessian[~fixed][:, fixed] @ change[fixed])
        assert float(score) == pytest.approx(float(change @ hessian @ change / 2), abs=1e-9)


def test_surgeon_never_says_more_than_damage_of_one_weight(layer):
    g, w, hessian = layer
    single = surgeon(g.reshape(9, 15, 1), w.reshape(15, 1), torch.arange(15), 0.2, g)
    damage = hessian.diagonal() * w.flatten().square() / 2
    assert bool((single <= damage + 1e-12).all())
    assert bool((single < 0.99 * damage).any())


def test_surgeon_in_a_plan_takes_the_first_samples():
    model, data = lively(Chain()), images(20)
    program = program_of(model, data)
    few = scores(program, {"obs": {"gradients": 8}}, data)
    alone = scores(program, {"obs": {"gradients": 8}}, Samples(data.inputs[:8], data.labels[:8], 3))
    whole = scores(program, "obs", data)
    np.testing.assert_allclose(few["conv1"], alone["conv1"], rtol=1e-9)
    assert not np.allclose(few["conv1"], whole["conv1"])


def test_forms_of_first_order():
    model, data = lively(Chain()), images(6)
    nn.functional.cross_entropy(model(data.inputs), data.labels).backward()
    tensors = (model.conv1.weight, model.conv1.bias)
    terms = torch.cat([(t.detach() * t.grad).reshape(5, -1) for t in tensors], 1)
    model.zero_grad()
    by_hand = {"sum": terms.sum(1).abs(), "absolute": terms.abs().sum(1), "squared": terms.square().sum(1)}
    program = program_of(model, data)
    for form, expected in by_hand.items():
        found = scores(program, {"taylor_weight": {"form": form}}, data)["conv1"]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)
    each = scores(program, {"taylor_weight": {"each_sample": True}}, data)["conv1"]
    assert (each >= by_hand["sum"].numpy() - 1e-12).all()
