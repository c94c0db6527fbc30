"""Layers: which ones there are, what shows their units, and that nothing behind is run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import trace
from prunec.compiler.errors import PassError
from prunec.models.resnet import resnet
from prunec.models.vgg import vgg11_bn
from prunec.passes.visualising.layers import find_layers


class Mixed(nn.Module):
    """Grouped, depthwise, transposed and functional convolutions, one called twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(5, 6, 1, 1))
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.deep(self.bn(self.stem(x)).relu()).relu()
        x = self.twice(self.twice(self.up(x)).relu()).relu()
        x = F.conv2d(x, self.weight).relu()
        return self.fc(x.mean((2, 3)))


def mixed():
    torch.manual_seed(0)
    model = Mixed().eval()
    with torch.no_grad():
        model.bn.weight.copy_(torch.linspace(-1, 1, 8))
        model.bn.running_mean.normal_()
    return model, trace(model, (torch.zeros(2, 3, 8, 8),))


def test_every_layer_with_weights_is_known():
    _, program = mixed()
    assert [layer.name for layer in find_layers(program, ("*",))] == ["stem", "deep", "up", "twice", "conv2d", "fc"]
    assert [layer.name for layer in find_layers(program, "all")] == ["stem", "deep", "up", "twice", "conv2d"]


def test_activations_are_means_over_space_before_the_nonlinearity():
    model, program = mixed()
    x = torch.randn(3, 3, 8, 8)
    found = {layer.name: layer for layer in find_layers(program, ("*",))}
    with torch.no_grad():
        stem = model.bn(model.stem(x))  # the batch norm decides what the nonlinearity is given
        deep = model.deep(stem.relu())
        up = model.up(deep.relu())
        wanted = {"stem": stem, "deep": deep, "up": up, "twice": model.twice(up)}
        for name, value in wanted.items():
            layer = found[name]
            shown = layer.activations(layer.cut.graph_module(x))
            assert torch.allclose(shown, value.mean((2, 3)), atol=1e-5), name
        assert torch.allclose(found["fc"].activations(found["fc"].cut.graph_module(x)), model(x), atol=1e-5)
        own = found["up"].own(up, torch.tensor([5, 0, 2]))
        assert torch.allclose(own, up.mean((2, 3))[torch.arange(3), torch.tensor([5, 0, 2])], atol=1e-6)


def test_nothing_behind_the_layer_is_run():
    _, program = mixed()
    (layer,) = find_layers(program, ("deep",))
    assert [node.name for node in layer.cut.graph.nodes] == ["x", "stem", "bn", "relu", "deep", "output"]
    assert not any(tensor.requires_grad for tensor in layer.cut.tensors.values())


def test_the_late_layers_are_those_of_the_last_stage():
    program = trace(vgg11_bn(num_classes=4).eval(), (torch.zeros(2, 3, 32, 32),))
    names = [layer.name for layer in find_layers(program, "late")]
    assert len(names) == 2  # on maps of 2 x 2
    residual = trace(resnet(8, num_classes=4).eval(), (torch.zeros(2, 3, 32, 32),))
    layers = find_layers(residual, "late")
    assert len(layers) >= 2
    assert {tuple(layer.read.source.meta["val"].shape[2:]) for layer in layers} == {(8, 8)}


def test_a_mlp_has_its_last_layer():
    program = trace(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)), (torch.zeros(2, 3, 2, 2),)
    )
    assert [layer.name for layer in find_layers(program, "late")] == ["3"]


def test_a_units_channels_count_together():
    """Of a shuffle-free grouped convolution that is cut evenly, a unit has a channel in each group."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    program = trace(net.eval(), (torch.zeros(2, 3, 6, 6),))
    layer = next(each for each in find_layers(program, ("2",)))
    value = torch.randn(4, 8, 2, 2)
    table = layer.activations(value)
    channels = value.mean((2, 3))
    for unit in range(layer.units.size):
        own = channels[:, torch.from_numpy(layer.read.place == unit)]
        assert torch.allclose(table[:, unit], own.mean(1), atol=1e-6)


def test_unknown_layers_are_told_with_the_nearest():
    _, program = mixed()
    with pytest.raises(PassError, match="no layer with weights is called 'stemm'") as error:
        find_layers(program, ("stemm",))
    assert "stem" in str(error.value.hint)


def test_a_layer_behind_a_fixed_batch_is_told_with_the_reason():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(512, 4)

        def forward(self, x):
            return self.fc(self.second(self.first(x).relu().view(2, 8, 10, 10)).relu().flatten(1))

    program = trace(Fixed().eval(), (torch.zeros(2, 3, 12, 12),))
    assert [layer.name for layer in find_layers(program, "all")] == ["first"]
    with pytest.raises(PassError, match="'second' can't be visualised: what it gives doesn't follow the batch"):
        find_layers(program, ("sec*",))
    with pytest.raises(PassError, match="no layer that can be visualised: it has no layer with weights"):
        find_layers(trace(nn.Sequential(nn.ReLU()), (torch.zeros(2, 3, 4, 4),)), "late")
