"""What zeros around the image leave of constants is added behind the layer: exactly, where that can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import compile

GONE = [1, 4, 6]
IMAGE = (2, 3, 8, 8)


def _net(reader: nn.Module, *before: nn.Module, places: int = 64, norm: bool = True) -> nn.Sequential:
    """Three of eight filters are zero; a batch norm shifts all. `reader` gives six channels, which a layer reads that
    takes one size of images."""
    torch.manual_seed(0)
    behind = [nn.BatchNorm2d(6)] if norm else []
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *before, reader, *behind, nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * places, 4)),
    )
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.data, 0.5, 1.5) if name.endswith("var") else nn.init.normal_(tensor.data, std=0.5)
    with torch.no_grad():
        net[0].weight[GONE] = 0
        net[1].bias.copy_(torch.linspace(0.5, 1.2, 8))
        net[1].running_mean.zero_()
    return net.double().eval()


def _compiled(net: nn.Module, *passes: Any) -> Any:
    shrink = ({"select": {"units": {"0": GONE}}}, {"shrink": {"constants": "map"}})
    return compile(net, {"plan": 1, "passes": [*shrink, *passes]}, (torch.randn(IMAGE, dtype=torch.float64),))


def _maps(result: Any) -> dict[str, int]:
    found: dict[str, int] = result.report["passes"][1]["details"].get("maps", {})
    return found


def _apart(slim: nn.Module, net: nn.Module) -> float:
    x = 3 * torch.randn(5, *IMAGE[1:], dtype=torch.float64)
    with torch.no_grad():
        return float((slim(x) - net(x)).abs().max() / net(x).abs().max())


READERS = {
    "padded": (nn.Conv2d(8, 6, 3, padding=1), (), 64, 6 * 64),
    "without a bias": (nn.Conv2d(8, 6, 3, padding=1, bias=False), (), 64, 6 * 64),
    "strided and dilated": (nn.Conv2d(8, 6, 3, stride=2, padding=2, dilation=2), (), 16, 6 * 16),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), (), 256, 6 * 256),
    "behind a padded depthwise layer": (nn.Conv2d(8, 6, 3), (nn.Conv2d(8, 8, 3, padding=1, groups=8),), 36, 6 * 36),
    "behind an average with zeros": (nn.Conv2d(8, 6, 3), (nn.AvgPool2d(3, 1, 1),), 36, 6 * 36),
}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("reader", "before", "places", "numbers"), READERS.values(), ids=READERS)
def test_a_map_makes_it_exact(reader, before, places, numbers, norm):
    net = _net(reader, *before, places=places, norm=norm)
    result = _compiled(net, "fold_bn")
    assert result.module.state_dict()["0.weight"].shape[0] == 5
    assert _apart(result.module, net) < 1e-12
    assert list(_maps(result).values()) == [numbers]
    assert result.report["warnings"] == []
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.module.modules()), "it still folds"


def test_a_map_loses_the_channels_that_its_layer_loses():
    net = _net(nn.Conv2d(8, 6, 3, padding=1))
    once = _compiled(net)
    again = _compiled(net, {"select": {"units": {"3": [0, 3]}}}, {"shrink": {"constants": "drop"}})
    assert [p.shape[1] for n, p in again.module.named_parameters() if "constants" in n] == [4]
    with torch.no_grad():  # the same, by zeros in what reads the channels
        once.module.get_parameter("7.weight").view(4, 6, 64)[:, [0, 3]] = 0
    assert _apart(again.module, once.module) < 1e-12


def test_a_lock_gives_the_same_map():
    net = _net(nn.Conv2d(8, 6, 3, padding=1))
    first = _compiled(net)
    again = compile(net, first.lock, (torch.randn(IMAGE, dtype=torch.float64),))
    assert first.module.state_dict().keys() == again.module.state_dict().keys()
    assert all(torch.equal(x, again.module.state_dict()[name]) for name, x in first.module.state_dict().items())


class _Open(nn.Module):
    """A network that takes images of any size."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.net = _net(reader)[:6]
        self.last = nn.Linear(6, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.net(x).mean((2, 3)))
        return found


def test_no_map_fixes_a_size_that_was_open():
    net = _Open(nn.Conv2d(8, 6, 3, padding=1)).eval()
    plan = {"plan": 1, "passes": [{"select": {"units": {"net.0": GONE}}}, {"shrink": {"constants": "map"}}]}
    result = compile(net, plan, (torch.randn(IMAGE, dtype=torch.float64),))
    assert _maps(result) == {}
    assert any("a map would fix the image's size" in warning for warning in result.report["warnings"])
    assert result.module(torch.randn(2, 3, 20, 20, dtype=torch.float64)).shape == (2, 4)


def test_a_map_that_costs_more_than_it_saves_is_not_made():
    """One unit behind a kernel of one tap saves one multiplication for each number."""
    net = _net(nn.Conv2d(8, 6, 1, padding=1), places=100)
    plan = {"plan": 1, "passes": [{"select": {"units": {"0": [1]}}}, {"shrink": {"constants": "map"}}]}
    with torch.no_grad():
        net[0].weight[GONE[1:]] = 0.1
    result = compile(net, plan, (torch.randn(IMAGE, dtype=torch.float64),))
    assert _maps(result) == {}
    assert any("would cost more than it saves" in warning for warning in result.report["warnings"])


def test_fold_constants_takes_maps_too():
    net = _net(nn.Conv2d(8, 6, 3, padding=1))
    result = compile(
        net, {"plan": 1, "passes": [{"fold_constants": "map"}]}, (torch.randn(IMAGE, dtype=torch.float64),)
    )
    assert result.module.state_dict()["0.weight"].shape[0] == 5
    assert _apart(result.module, net) < 1e-12


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("repair", [{"layers": "readers"}, "bias", "batch_norm"])
def test_repair_leaves_a_layer_alone_behind_which_a_map_is_added(repair, norm):
    net = _net(nn.Conv2d(8, 6, 3, padding=1), norm=norm)
    data = [torch.randn(16, *IMAGE[1:], dtype=torch.float64) for _ in range(4)]
    plan = [{"select": {"units": {"0": GONE}}}, {"shrink": {"constants": "map"}}, {"repair": repair}]
    result = compile(net, {"plan": 1, "passes": plan}, (data[0][:2],), data)
    assert _apart(result.module, net) < 1e-12


def test_a_map_is_part_of_the_exported_file(tmp_path):
    net = _net(nn.Conv2d(8, 6, 3, padding=1)).float()
    plan = {"plan": 1, "passes": [{"select": {"units": {"0": GONE}}}, {"shrink": {"constants": "map"}}]}
    result = compile(net, {**plan, "export": ["onnx"]}, (torch.randn(IMAGE),), quick=True)
    result.save(tmp_path / "out")
    x = torch.randn(3, *IMAGE[1:])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert np.abs(got - net(x).numpy()).max() < 1e-5 * float(net(x).abs().max())
