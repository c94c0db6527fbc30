"""Networks with a new head keep what the rest has learned."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from prunec.models import digits, transfer


def test_the_embedded_network_keeps_its_features():
    model = transfer.digits_cnn(3).eval()
    trained = load_file(digits.WEIGHTS / "digits.safetensors")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, trained[name])}
    assert set(trained) - same == {"fc.weight", "fc.bias"}


def test_vgg16_has_the_head_of_the_example(tmp_path):
    vision = pytest.importorskip("torchvision.models", reason="torchvision isn't installed")
    source = vision.vgg16(weights=None)
    torch.save(source.state_dict(), tmp_path / "vgg16.pth")
    model = transfer.vgg16(2, str(tmp_path / "vgg16.pth"), hidden=8)
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    assert [layer.out_features for layer in model.classifier if isinstance(layer, torch.nn.Linear)] == [8, 8, 2]
