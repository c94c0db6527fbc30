"""The centripetal update: against its matrices and its loops, the rates at which clusters collapse, and what moves."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from mergeable_nets import NETS, Attention, clustered, small, traced
from torch import nn
from training_nets import Residual

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import difference
from prunec.passes.axes import Axes
from prunec.passes.merge import Merge
from prunec.passes.training.centripetal import (
    ClusterSlices,
    Collapse,
    add_centripetal,
    chi,
    collapse,
    merge_gradients,
    pull_together,
)
from prunec.passes.training.optimizers import SCHEDULES

CLUSTERS = {"stem": ((0, 2, 5), (1, 4)), "conv1": ((1, 3),)}


OF_GROUP = {
    "stem": ("stem.weight", "stem.bias", "bn0.weight", "bn0.bias", "conv2.weight", "bn2.weight", "bn2.bias"),
    "conv1": ("conv1.weight", "bn1.weight", "bn1.bias"),
}
"""Group -> all parameters that decide what its channels are."""
ALONE = ("fc.weight", "fc.bias")


def made(dtype=torch.float64):
    """(model, slices), with gradients of noise."""
    torch.manual_seed(0)
    model = Residual(bias=True).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    noise(model, 1)
    return model, ClusterSlices.of(trace(model, (torch.zeros(2, 3, 6, 6, dtype=dtype),)), model, CLUSTERS)


def noise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def matrices(size, clusters, eta, eps):
    """Gamma and Lambda as the paper has them."""
    gamma, decay = torch.eye(size, dtype=torch.float64), eta * torch.eye(size, dtype=torch.float64)
    for cluster in clusters:
        for m in cluster:
            for n in cluster:
                gamma[m, n] = 1 / len(cluster)
                decay[m, n] = eta + eps * (1 - 1 / len(cluster)) if m == n else -eps / len(cluster)
    return gamma, decay


def sizes(group):
    return {"stem": 6, "conv1": 5}[group]


def by_cluster(group):
    """Every filter's cluster, those of one filter among them."""
    found = {unit: cluster for cluster in CLUSTERS[group] for unit in cluster}
    return [found.get(unit, (unit,)) for unit in range(sizes(group))]


# -- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "kernel"), [("stem", "conv2.weight"), ("conv1", "conv1.weight")])
def test_the_update_is_a_projection_and_a_pull_that_leaves_equal_filters_alone(group, kernel):
    """Gamma and Lambda as the update has them: what it makes of unit vectors, as gradients and as filters."""
    eps, size = 0.7, sizes(group)
    gamma, pull = (acting(kernel, size, eps, as_gradient=which) for which in (True, False))
    expected, decay = matrices(size, CLUSTERS[group], eta=0.0, eps=eps)
    assert torch.allclose(gamma, expected, atol=1e-15)
    assert torch.allclose(pull, decay, atol=1e-15)
    assert torch.allclose(gamma.sum(1), torch.ones(size, dtype=torch.float64))
    assert torch.allclose(gamma @ gamma, gamma)
    constant = expected @ torch.randn(size, 4, dtype=torch.float64)
    assert torch.allclose(0.3 * constant + pull @ constant, 0.3 * constant, atol=1e-15)  # weight decay of 0.3 alone


def acting(kernel, size, eps, *, as_gradient):
    """[size, size]: the gradient that the update leaves of a kernel, of which a row each is a unit vector."""
    model, slices = made()
    weight = model.get_parameter(kernel)
    units = torch.eye(size, weight[0].numel(), dtype=torch.float64).reshape(weight.shape)
    nothing = torch.zeros_like(units)
    weight.data, weight.grad = (nothing, units) if as_gradient else (units, nothing)
    add_centripetal(slices, eps)
    return weight.grad.reshape(size, -1)[:, :size]


@pytest.mark.parametrize("vectors", [1.0, 0.1])
def test_a_step_is_that_of_the_matrices_and_of_the_loops(vectors):
    model, slices = made()
    tau, eta, eps = 0.1, 0.02, 0.5
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), tau, weight_decay=eta)
    add_centripetal(slices, eps, vectors)
    optimizer.step()
    for group, names in OF_GROUP.items():
        for name in names:
            weight, grad = (x.reshape(sizes(group), -1) for x in before[name])
            pull = eps * (vectors if before[name][0].ndim == 1 else 1)
            gamma, decay = matrices(sizes(group), CLUSTERS[group], eta, pull)
            found = model.get_parameter(name).reshape(sizes(group), -1)
            assert torch.allclose(found, weight - tau * (gamma @ grad + decay @ weight), atol=1e-12), name
            for unit, cluster in enumerate(by_cluster(group)):
                merged = sum(grad[k] for k in cluster) / len(cluster)
                mean = sum(weight[k] for k in cluster) / len(cluster)
                delta = -merged - eta * weight[unit] + pull * (mean - weight[unit])
                assert torch.allclose(found[unit], weight[unit] + tau * delta, atol=1e-12), name
    for name in ALONE:
        weight, grad = before[name]
        assert torch.allclose(model.get_parameter(name), weight - tau * (grad + eta * weight), atol=1e-12)


def test_filters_that_are_alone_move_as_under_plain_sgd_bit_for_bit():
    (model, slices), (plain, _) = made(torch.float32), made(torch.float32)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=1e-4) for m in (model, plain)]
    for step in range(3):
        noise(model, step)
        noise(plain, step)
        add_centripetal(slices, 0.5)
        for optimizer in optimizers:
            optimizer.step()
    for group, names in OF_GROUP.items():
        alone = [unit for unit, cluster in enumerate(by_cluster(group)) if len(cluster) == 1]
        assert alone
        for name in names:
            assert torch.equal(model.get_parameter(name)[alone], plain.get_parameter(name)[alone])
    for name in ALONE:
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))


@pytest.mark.parametrize("eps", [0.0, 0.2, 1.0])
def test_the_means_move_as_under_plain_sgd_with_the_mean_gradient(eps):
    (model, slices), (plain, others) = made(), made()
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01) for m in (model, plain)]
    for step in range(5):
        noise(model, step)
        noise(plain, step)
        add_centripetal(slices, eps)
        merge_gradients(others)
        for optimizer in optimizers:
            optimizer.step()
    for group, names in OF_GROUP.items():
        for name in names:
            for cluster in CLUSTERS[group]:
                found, expected = (m.get_parameter(name)[list(cluster)].mean(0) for m in (model, plain))
                assert torch.allclose(found, expected, atol=1e-12)


# -- how fast clusters collapse --------------------------------------------------------------------------------------


def steps_apart(options, eps, count, seed=0):
    """The norm of what sets one cluster's kernels apart, before each step."""
    model, slices = made()
    optimizer = torch.optim.SGD(model.parameters(), **options)
    found = []
    for step in range(count):
        rows = model.conv2.weight.detach()[[0, 2, 5]]
        found.append(float((rows - rows.mean(0)).norm()))
        noise(model, 100 * seed + step)
        add_centripetal(slices, eps)
        optimizer.step()
    return np.array(found)


def test_under_plain_sgd_differences_shrink_by_one_factor():
    found = steps_apart({"lr": 0.1, "weight_decay": 0.02}, 0.5, 40)
    assert np.allclose(found[1:] / found[:-1], 1 - 0.1 * 0.52, rtol=1e-6)


@pytest.mark.parametrize(("lr", "eps"), [(0.05, 0.05), (0.03, 0.003), (0.05, 1.0)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_with_momentum_they_shrink_at_the_predicted_rate(lr, eps, nesterov):
    mu, eta, count = 0.9, 1e-4, 60
    k = eta + eps
    options = {"lr": lr, "momentum": mu, "weight_decay": eta, "nesterov": nesterov}
    found = steps_apart(options, eps, count)
    step = np.array([[1 - lr * k * (1 + mu), -lr * mu**2], [k, mu]] if nesterov else [[1 - lr * k, -lr * mu], [k, mu]])
    state, expected = np.array([1.0, 0.0]), []
    for _ in range(count):
        expected.append(abs(state[0]))
        state = step @ state
    assert np.allclose(found / found[0], expected, atol=1e-9)
    radius = max(abs(np.linalg.eigvals(step)))
    if lr * k < 1e-3:
        assert math.isclose(1 - radius, lr * k / (1 - mu), rel_tol=0.15)
    assert radius > math.sqrt(mu * (1 - lr * k if nesterov else 1)) - 1e-3  # no strength is faster than the momentum


def test_differences_do_not_depend_on_the_data():
    options = {"lr": 0.05, "momentum": 0.9}
    assert np.allclose(steps_apart(options, 0.5, 20, seed=0), steps_apart(options, 0.5, 20, seed=7), atol=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_other_optimizers_pull_by_a_step_of_their_own(kind):
    model, slices = made()
    update = Collapse(slices, 20.0)
    optimizer = kind(model.parameters(), lr=0.01, **({} if kind is torch.optim.RMSprop else {"weight_decay": 0}))
    update.attach(optimizer)
    found = []
    for step in range(20):
        found.append(sum(chi(slices).values()))
        noise(model, step)
        update.before_step()
        optimizer.step()
        update.after_step()
        update.after_step()  # called twice, it changes nothing
    assert np.allclose(np.array(found[1:]) / found[:-1], (1 - 0.01 * 20) ** 2, rtol=1e-6)


def test_each_parameter_is_pulled_by_its_own_rate():
    model, slices = made()
    before = copy.deepcopy(model)
    pull_together(slices, {model.stem.weight: 0.5, model.bn0.weight: 0.25})
    mean = before.stem.weight[[1, 4]].mean(0)
    assert torch.allclose(model.stem.weight[1], 0.5 * (before.stem.weight[1] + mean))
    assert torch.allclose(model.bn0.weight[1], 0.75 * before.bn0.weight[1] + 0.25 * before.bn0.weight[[1, 4]].mean())
    assert torch.equal(model.conv2.weight, before.conv2.weight)


def test_what_an_optimizer_remembers_is_averaged_first():
    model, slices = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer.step()
    old = {key: optimizer.state[model.conv2.weight][key].clone() for key in ("exp_avg", "exp_avg_sq")}
    Collapse(slices, 1.0).attach(optimizer)
    for key, value in old.items():
        now = optimizer.state[model.conv2.weight][key]
        assert torch.allclose(now[[1, 4]], value[[1, 4]].mean(0).expand(2, -1, -1, -1))
        assert torch.equal(now[3], value[3])
    assert optimizer.state[model.conv2.weight]["step"] == 1


def test_frozen_parameters_are_left_alone():
    model, slices = made()
    model.conv2.weight.requires_grad_(False)
    model.conv2.weight.grad = None
    before = model.conv2.weight.detach().clone()
    update = Collapse(slices, 1.0)
    update.attach(torch.optim.Adam(p for p in model.parameters() if p.requires_grad))
    update.before_step()
    update.after_step()
    assert model.conv2.weight.grad is None
    assert torch.equal(model.conv2.weight, before)


def test_the_strength_follows_its_schedule_and_is_remembered():
    model, slices = made()
    linear = SCHEDULES["linear"].model_validate({"start": 1, "end": 5})
    update = Collapse(slices, 0.5, schedule=linear.factor)
    update.attach(torch.optim.SGD(model.parameters(), 0.0))
    update.planned(4)
    found = []
    for _ in range(4):
        found.append(update.strength)
        update.before_step()
        update.after_step()
    assert found == [0.5, 1.0, 1.5, 2.0]
    other = Collapse(slices, 0.5, schedule=linear.factor)
    other.planned(4)
    other.load_state_dict(update.state_dict())
    assert other.strength == 2.5


# -- chi and the end -------------------------------------------------------------------------------------------------


def test_chi_is_the_distance_from_the_means():
    model, slices = made()
    for norm in (model.bn0, model.bn1, model.bn2):
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 1)
    found = chi(slices)
    statistics = {"stem": ("bn0.running_var", "bn2.running_var"), "conv1": ("bn1.running_var",)}
    for group, names in OF_GROUP.items():
        expected = 0.0
        for name in (*names, *statistics[group]):
            tensor = model.state_dict()[name]
            scale = tensor.abs().max() if "running" in name else 1.0
            for cluster in CLUSTERS[group]:
                rows = tensor[list(cluster)] / scale
                expected += float((rows - rows.mean(0)).square().sum())
        assert math.isclose(found[group], expected, rel_tol=1e-12)


def test_it_ends_below_the_bound_and_takes_out_what_is_left():
    slices = made()[1]
    reached = sum(chi(slices).values())
    assert not Collapse(slices, 1.0, below=reached).ends()
    update = Collapse(slices, 1.0, below=2 * reached)
    assert "collapsed" in update.ends()
    update.finish()
    assert update.measures() == {"chi": reached}
    assert set(update.figures()) == {"chi stem", "chi conv1"}
    assert sum(chi(slices).values()) == 0
    still = Collapse(made()[1], 1.0)
    still.finish()
    assert sum(chi(still.clusters).values()) == reached


def test_without_clusters_there_is_nothing_to_end_for():
    model, _ = made()
    program = trace(model, (torch.zeros(2, 3, 6, 6, dtype=torch.float64),))
    update = Collapse(ClusterSlices.of(program, model, {}), 1.0, below=1.0)
    update.attach(torch.optim.SGD(model.parameters(), 0.1))
    update.before_step()
    assert not update.ends()
    assert update.measures() == {"chi": 0}


# -- which tensors take part -----------------------------------------------------------------------------------------


def merged_difference(program):
    """How far the merged program is from the one before, which must merge without a word."""
    merged = Merge().run(program, Context())
    assert sum(merged.details["removed"].values()) > 0
    with torch.no_grad():
        return difference(merged.program.module(*program.inputs), program.module(*program.inputs))


def attention(unit):
    torch.manual_seed(0)
    layers = {name: nn.Linear(12, 12) for name in ("query", "key", "value")}
    program = traced(Attention(**layers, head=nn.Linear(12, 3)), 2, 5, 12)
    return Axes.model_validate({"attention": unit}).run(program, Context()).program


@pytest.mark.parametrize("name", NETS)
def test_steps_bring_every_kind_of_network_to_where_a_merge_is_exact(name):
    program = clustered(small(name))
    collapsing(program)
    assert merged_difference(program) < 1e-9


def collapsing(program):
    """Train the program's own module on noise, until the clusters have collapsed."""
    module = program.module
    slices = ClusterSlices.of(program, module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.0)
    for step in range(40):
        noise(module, step)
        for p in module.parameters():
            p.grad.mul_(0.01)
        add_centripetal(slices, 6.0)
        optimizer.step()
    statistics = {name for name, _ in module.named_buffers() if "running" in name}
    assert all(each.name in statistics for each in slices.along if each.parameter is None)
    only = [batch for batch in slices.every if batch.along[0].parameter is None]
    for batch in only:  # noise has no running statistics of its own
        tensors = slices.tensors(batch)
        batch.write(tensors, batch.means(batch.rows(tensors)))
    assert sum(chi(slices).values()) < 1e-20


def test_a_collapse_alone_makes_a_merge_exact_of_half_precision_too():
    program = clustered(small("residual"))
    module = program.module.half()
    slices = ClusterSlices.of(program, module)
    collapse(slices)
    assert sum(chi(slices).values()) == 0


@pytest.mark.parametrize(("unit", "group", "size"), [("heads", "query", 2), ("head_width", "value", 6)])
def test_units_of_attention_become_one(unit, group, size):
    program = attention(unit)
    assert analyse(program).groups[group].size == size
    program = program.with_facts(clusters={group: ((0, 1),)})
    collapsing(program)
    assert merged_difference(program) < 1e-9


def test_a_program_without_clusters_and_a_model_of_other_names_are_refused():
    model, _ = made()
    program = trace(model, (torch.zeros(2, 3, 6, 6, dtype=torch.float64),))
    with pytest.raises(PassError, match="no clusters"):
        ClusterSlices.of(program, model)
    with pytest.raises(PassError, match=r"no tensor 'stem\.weight'"):
        ClusterSlices.of(program, nn.Sequential(model), CLUSTERS)
