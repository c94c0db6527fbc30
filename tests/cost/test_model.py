"""Costs in closed form are the costs of the slim program, and the figures are those that everyone knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import NETS, Made, conv
from oracle import selection
from random_nets import programs
from torch import nn

from prunec.compiler.cost.model import Cost, cost, cost_model
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace


def assert_closed_form(program: Program, seed: int, share: float):
    keep = selection(analyse(program), seed, share)
    slim = remove_units(program, keep)
    predicted, real = cost_model(program).cost(keep), cost(slim)
    assert (predicted.macs, predicted.params) == (real.macs, real.params)
    assert abs(predicted.memory - real.memory) <= picked_elements(program)
    assert cost(slim).params == sum(p.numel() for p in slim.module.parameters())


def picked_elements(program: Program) -> int:
    """The closed form doesn't count what is picked from computed values; elsewhere it is exact."""
    sources = {pick.source for picks in analyse(program).flow.picks.values() for pick in picks}
    return sum(node.meta["val"].numel() for node in sources)


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_closed_form_is_the_cost_of_the_slim_program(name):
    net = NETS[name]
    program = trace(net.build(), net.inputs())
    for seed, share in enumerate((0.0, 0.4, 1.0)):
        assert_closed_form(program, seed, share)


@given(programs(), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_the_closed_form_on_random_programs(made, seed):
    assert_closed_form(trace(made.model, made.inputs(2)), seed, 0.5)


def zoo(name: str, size: int = 224) -> Program:
    """A torchvision classifier without weights."""
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name, weights=None, **({"init_weights": False} if "google" in name else {})
        )
    return trace(model.eval(), (torch.empty(1, 3, size, size),))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnext50_32x4d",
        "mobilenet_v2",
        "shufflenet_v2_x0_5",
        "densenet121",
        "squeezenet1_1",
        "convnext_tiny",
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_closed_form_on_known_networks(name, share):
    program = zoo(name, 64)
    analysis = analyse(program)
    rng = np.random.default_rng(0)
    keep = np.ones(analysis.size, dtype=bool)
    for group in analysis.groups.values():
        units = np.flatnonzero(group.free)
        keep[group.start + rng.choice(units, int(units.size * share), replace=False)] = False
    for units in analysis.covers:
        keep[units[0]] |= not keep[units].any()
    assert cost_model(program).cost(keep) == cost(remove_units(program, keep))


GOLDEN = {
    "resnet50": (4_089_184_256, 25_557_032),
    "resnet18": (1_814_073_344, 11_689_512),
    "vgg16": (15_470_264_320, 138_357_544),
    "mobilenet_v2": (300_774_272, 3_504_872),
    "densenet121": (2_834_161_664, 7_978_856),
}
"""Multiply-accumulates and parameters at 224 by 224, as the papers and tools give them."""


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_figures(name):
    found = cost(zoo(name))
    assert (found.macs, found.params) == GOLDEN[name]


PUBLISHED = [
    "alexnet",
    "googlenet",
    "mnasnet1_0",
    "resnext50_32x4d",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    """torchvision prints billions of operations, to three digits, and parameters."""
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    found = cost(zoo(name))
    assert found.macs / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)
    assert found.params == meta["num_params"] or name == "googlenet"  # its published count has the auxiliary heads


# -- single figures ----------------------------------------------------------------------------------------------------


def _words(text):
    return text.split()


def costed(parts, forward, *shapes) -> Cost:
    return cost(trace(Made(parts, forward), tuple(torch.zeros(shape) for shape in shapes)))


@pytest.mark.parametrize(
    ("parts", "forward", "shape", "macs"),
    [
        ({"a": conv(3, 8)}, lambda m, x: m.a(x), (1, 3, 6, 6), 8 * 3 * 9 * 36),
        ({"a": nn.Conv2d(4, 8, 3, stride=2, groups=2)}, lambda m, x: m.a(x), (1, 4, 7, 7), 8 * 2 * 9 * 9),
        ({"a": conv(4, 4, groups=4)}, lambda m, x: m.a(x), (1, 4, 6, 6), 4 * 9 * 36),
        ({"a": nn.ConvTranspose2d(4, 6, 2, stride=2)}, lambda m, x: m.a(x), (1, 4, 5, 5), 4 * 6 * 4 * 25),
        ({"a": nn.ConvTranspose2d(4, 6, 2, groups=2)}, lambda m, x: m.a(x), (1, 4, 5, 5), 4 * 3 * 4 * 25),
        ({"a": nn.Linear(6, 8)}, lambda m, x: m.a(x), (1, 5, 6), 5 * 6 * 8),
        ({"a": nn.Linear(6, 8)}, lambda m, x: x @ m.a.weight.t(), (1, 5, 6), 5 * 6 * 8),
        ({"a": nn.Linear(6, 8)}, lambda m, x: torch.einsum("btc,dc->btd", x, m.a.weight), (1, 5, 6), 5 * 6 * 8),
        ({"a": nn.Linear(6, 8)}, lambda m, x: x @ x.mT, (1, 5, 6), 5 * 5 * 6),
        (
            {"a": nn.Linear(6, 8)},
            lambda m, x: nn.functional.scaled_dot_product_attention(*[m.a(x).unflatten(2, (2, 4)).transpose(1, 2)] * 3),
            (1, 5, 6),
            5 * 6 * 8 + 2 * 2 * 5 * 5 * 4,
        ),
    ],
    ids=_words("conv grouped depthwise transposed grouped_transposed linear matmul einsum products attention"),
)
def test_multiply_accumulates(parts, forward, shape, macs):
    assert costed(parts, forward, shape).macs == macs
    assert costed(parts, forward, (3, *shape[1:])).macs == macs, "the cost is that of one sample"


def test_memory_is_what_is_alive_at_once():
    """The image and the first map, then that and the second: 3 + 8, 8 + 4 channels of 36 pixels."""
    found = costed({"a": conv(3, 8), "b": conv(8, 4)}, lambda m, x: m.b(m.a(x)), (2, 3, 6, 6))
    assert found.memory == 12 * 36


def test_a_skipped_value_stays_alive():
    found = costed({"a": conv(3, 8), "b": conv(8, 8)}, lambda m, x: (lambda y: y + m.b(y))(m.a(x)), (1, 3, 6, 6))
    assert found.memory == 24 * 36


def test_costs_by_node():
    net = NETS["chain"]
    model = cost_model(trace(net.build(), net.inputs()))
    assert model.by_node() == {"a": 3 * 8 * 9 * 36, "b": 8 * 6 * 9 * 9, "fc": 24}
    keep = model.everything.copy()
    keep[:4] = False
    assert model.by_node(keep) == {"a": 3 * 4 * 9 * 36, "b": 4 * 6 * 9 * 9, "fc": 24}


def test_a_shared_layer_has_its_parameters_once():
    net = NETS["shared_module"]
    found = cost(trace(net.build(), net.inputs()))
    assert found.params == (3 * 9 + 1) * 6 + (6 * 9 + 1) * 6 + 2 * 6 + 7 * 4
    assert found.macs == 36 * 9 * (3 * 6 + 2 * 6 * 6) + 24


def test_a_cost_as_plain_numbers():
    assert Cost(1, 2, 3).to_dict() == {"macs": 1, "params": 2, "memory": 3}
