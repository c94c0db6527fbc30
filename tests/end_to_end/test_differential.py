"""What goes together, by two independent tools: our units against torch-pruning's groups, channel by channel.

Both answer the same question: which positions of which parameters vanish when one output channel of a layer does. On
networks that the peer can do, the answers must be the same. Where they aren't, an entry of `DIFFERENT` says why ours is
right, and numbers decide: removing a channel must give what the original computes when that channel is zero.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from nets import Made, conv, pooled
from oracle import difference
from torch import Tensor, nn
from torchvision import models

from prunec.compiler.groups.analysis import Group, analyse
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace

with warnings.catch_warnings(action="ignore"):
    peer = pytest.importorskip("torch_pruning", reason="the optional peer, torch-pruning, isn't installed")

Position = tuple[str, int, int]
"""Tensor, dimension, position."""

NORM = ("weight", "bias", "running_mean", "running_var")


# -- the two answers ---------------------------------------------------------------------------------------------------


def our_units(group: Group) -> list[set[Position]]:
    """For each unit of a group, all that goes with it."""
    found: list[set[Position]] = [set() for _ in range(group.size)]
    for member in group.members:
        for position, unit in zip(member.positions.tolist(), member.units.tolist(), strict=True):
            found[unit].add((member.axis.tensor, member.axis.dim, position))
    return found


def root(group: Group) -> tuple[str, dict[int, int]]:
    """The layer that writes the group first, and the unit of each of its output channels."""
    first = group.writers[0]
    assert first.axis.dim == 0
    assert first.axis.tensor.endswith(".weight")
    return first.axis.owner, dict(zip(first.positions.tolist(), first.units.tolist(), strict=True))


class Peer:
    """torch-pruning's dependency graph of a model."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        with warnings.catch_warnings(action="ignore"):
            self.graph = peer.DependencyGraph().build_dependency(model, example_inputs=x, verbose=False)

    def group(self, layer: str, channel: int) -> Any:
        """Its group for one output channel."""
        module = self.model.get_submodule(layer)
        prune = peer.prune_linear_out_channels if isinstance(module, nn.Linear) else peer.prune_conv_out_channels
        return self.graph.get_pruning_group(module, prune, idxs=[channel])

    def unit(self, layer: str, channel: int) -> set[Position]:
        """All that goes with one output channel."""
        found: set[Position] = set()
        for item in self.group(layer, channel).items:
            module = item.dep.target.module
            outward = item.dep.handler.__name__ == "prune_out_channels"
            for tensor, dim in touched(module, outward):
                found |= {(f"{self.names[module]}.{tensor}", dim, int(index)) for index in item.idxs}
        return found


def touched(module: nn.Module, outward: bool) -> Iterator[tuple[str, int]]:
    """The tensors and dimensions of a module that lose a position; none of an operation's stand-in."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        yield from ((name, 0) for name in NORM)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        both = getattr(module, "groups", 1) > 1
        if outward or both:
            yield "weight", 0
            yield from [("bias", 0)] if module.bias is not None else []
        if both or not outward:
            yield "weight", 1


# -- where they agree --------------------------------------------------------------------------------------------------


def flattened(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.norm1d(m.norm(m.conv1(x)).relu().flatten(1)))


def shared(m: Any, x: Tensor) -> Tensor:
    h = m.conv1(x)
    return m.fc(pooled(torch.cat([m.conv2(h) + h, m.conv3(h)], 1)))


SMALL: Mapping[str, tuple[Callable[[], Mapping[str, nn.Module]], Callable[..., Tensor]]] = {
    "flatten": (
        lambda: {
            "conv1": conv(3, 8),
            "norm": nn.BatchNorm2d(8),
            "norm1d": nn.BatchNorm1d(8 * 36),
            "fc": nn.Linear(8 * 36, 5),
        },
        flattened,
    ),
    "residual and concatenation": (
        lambda: {"conv1": conv(3, 8), "conv2": conv(8, 8), "conv3": conv(8, 4), "fc": nn.Linear(12, 5)},
        shared,
    ),
}

CLASSIFIERS = {
    "resnet18": 64,
    "vgg11_bn": 32,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "mnasnet0_5": 64,
    "squeezenet1_1": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "densenet121": 32,
}
"""torchvision's name, and how large an image it gets."""


def classifier(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=7, **options).eval()


def sampled(count: int, seed: int) -> list[int]:
    """The first, the middle and the last channel, and one drawn."""
    return sorted({0, count // 2, count - 1, int(np.random.default_rng(seed).integers(count))})


def assert_same_units(model: nn.Module, x: Tensor) -> None:
    """Every group's sampled channels, and no layer but the classifier without a channel that may go."""
    program, theirs = trace(model, (x,)), Peer(model, x)
    reached: set[str] = set()
    for number, group in enumerate(g for g in analyse(program).groups.values() if g.free.any()):
        assert group.free.all()
        reached |= {member.axis.owner for member in group.members if member.axis.dim == 0}
        units, (layer, unit_of) = our_units(group), root(group)
        channels = sorted(unit_of)
        for channel in (channels[index] for index in sampled(len(channels), number)):
            assert theirs.unit(layer, channel) == units[unit_of[channel]], f"{layer}, channel {channel}"
    layers = [name for name, module in program.state.items() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [name for name in layers if name not in reached] == layers[-1:]


@pytest.mark.parametrize("name", SMALL)
def test_the_same_units_in_small_nets(name):
    parts, forward = SMALL[name]
    torch.manual_seed(0)
    assert_same_units(Made(parts(), forward).eval(), torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_same_units_in_classifiers(name):
    edge = CLASSIFIERS[name]
    assert_same_units(classifier(name), torch.randn(1, 3, edge, edge))


# -- where they differ -------------------------------------------------------------------------------------------------


def _two(channels: int) -> Callable[[], dict[str, nn.Module]]:
    """Two convolutions of which the second reads `channels`, and a classifier."""
    return lambda: {"conv1": conv(3, 8), "conv2": conv(channels, 6), "fc": nn.Linear(6, 5)}


def _grouped() -> dict[str, nn.Module]:
    return {**_two(8)(), "conv2": conv(8, 6, groups=2)}


def _with(move: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A forward that moves data between the convolutions; `move` gets the first one's channels and the image."""
    return lambda m, x: m.fc(pooled(m.conv2(move(m.conv1(x).relu(), x))))


DIFFERENT: Mapping[str, tuple[Callable[[], Mapping[str, nn.Module]], Callable[..., Tensor], str]] = {
    "image first in a concatenation": (
        _two(11),
        _with(lambda h, x: torch.cat([x, h], 1)),
        "the image takes the first three columns of conv2; the peer doesn't see a tensor that no layer has written",
    ),
    "channel shuffle": (
        _two(8),
        _with(lambda h, x: h.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)),
        "the channels change places, and two go together so that the view stays rectangular",
    ),
    "padding": (
        _two(10),
        _with(lambda h, x: nn.functional.pad(h, (0, 0, 0, 0, 2, 0))),
        "two columns of conv2 read zeros, and all others are two further",
    ),
    "flip": (_two(8), _with(lambda h, x: h.flip(1)), "the last channel is read first"),
    "roll": (_two(8), _with(lambda h, x: h.roll(3, 1)), "the sixth channel is read first"),
    "permutation": (_two(8), _with(lambda h, x: h[:, [3, 1, 0, 2, 7, 5, 6, 4]]), "the fourth channel is read first"),
    "grouped convolution": (
        _grouped,
        _with(lambda h, x: h),
        "both groups must stay equally wide; the peer sees to that in its pruner, not in its dependency graph",
    ),
}
"""Parts, forward, and why our unit is the right one."""


def zeroed(model: nn.Module, positions: set[Position]) -> nn.Module:
    """The model with zeros in some output channels: right, since what is between them and their readers keeps zeros."""
    model = copy.deepcopy(model)
    for tensor, dim, position in positions:
        assert dim == 0
        model.get_parameter(tensor).data[position] = 0.0
    return model


def peer_output(model: nn.Module, x: Tensor, layer: str, channel: int) -> Tensor | None:
    """What the model gives after the peer has removed a channel with its group; None where it can't run any more."""
    slim = copy.deepcopy(model)
    graph = Peer(slim, x)
    try:
        graph.group(layer, channel).prune()
        with torch.no_grad():
            return slim(x)
    except (RuntimeError, IndexError):
        return None


@pytest.mark.parametrize("name", DIFFERENT)
def test_ours_is_right_where_they_differ(name):
    parts, forward, reason = DIFFERENT[name]
    torch.manual_seed(0)
    model, x = Made(parts(), forward).eval(), torch.randn(2, 3, 6, 6)
    program, theirs = trace(model, (x,)), Peer(model, x)
    analysis = analyse(program)
    group = analysis.groups["conv1"]
    units, (layer, unit_of) = our_units(group), root(group)
    differing = [c for c, unit in unit_of.items() if group.free[unit] and theirs.unit(layer, c) != units[unit]]
    faults = []
    for channel in differing:
        unit = units[unit_of[channel]]
        keep = np.ones(analysis.size, dtype=bool)
        keep[group.start + unit_of[channel]] = False
        with torch.no_grad():
            ours = remove_units(program, keep).module(x)
            right = zeroed(model, {p for p in unit if p[0].startswith("conv1.")})(x)
            alone = zeroed(model, {p for p in unit if p[0].startswith("conv1.") and p[2] == channel})(x)
        assert difference(ours, right) < 1e-5, reason
        other = peer_output(model, x, layer, channel)
        faults += [channel] if other is None or difference(other, alone) > 1e-3 else []
    assert faults, f"the peer is right now, so this entry has to go: {reason}"


def test_ours_refuses_where_no_channel_can_go():
    """A local response norm divides by what the neighbours hold; the peer takes one out all the same."""
    torch.manual_seed(0)
    norm = nn.LocalResponseNorm(5, alpha=1.0)
    model, x = Made(_two(8)(), _with(lambda h, x: norm(h))).eval(), torch.randn(2, 3, 6, 6)
    assert set(analyse(trace(model, (x,))).groups["conv1"].pinned) == {"is normalised over at local_response_norm"}
    right, theirs = zeroed(model, {("conv1.weight", 0, 2), ("conv1.bias", 0, 2)}), peer_output(model, x, "conv1", 2)
    with torch.no_grad():
        assert theirs is None or difference(theirs, right(x)) > 1e-3


def test_the_judge_finds_the_peer_right_where_they_agree():
    torch.manual_seed(0)
    model, x = Made(_two(8)(), _with(lambda h, x: h)).eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        right = zeroed(model, {("conv1.weight", 0, 2), ("conv1.bias", 0, 2)})(x)
    theirs = peer_output(model, x, "conv1", 2)
    assert theirs is not None
    assert difference(theirs, right) < 1e-5
