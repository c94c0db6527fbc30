"""Slim models and their ONNX files on other sizes than the example's."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import PlanError

PASSES = [{"score": {"criterion": "l1", "normalize": "l2"}}, {"select": {"budget": {"params": "60%"}}}, "shrink"]


class UNet(nn.Module):
    """Goes down once and up again to the size that it came from; and halves a size in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.c, self.d = nn.Conv2d(28, 10, 3, padding=1), nn.Conv2d(10, 4, 1)

    def forward(self, x):
        high = F.relu(self.a(x))
        low = F.relu(self.b(high))
        up = F.interpolate(low, size=high.shape[-2:], mode="bilinear", align_corners=False)
        y = self.d(F.relu(self.c(torch.cat([high, up], 1))))
        return y[:, :, : x.shape[2] // 2].reshape(x.shape[0], -1, x.shape[2] // 2, x.shape[3])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 16)
        self.c = nn.Linear(16, 5)

    def forward(self, x):
        return self.c(F.relu(self.b(self.a(x).flatten(2).transpose(1, 2)))).mean(1)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12 * 64, 5)

    def forward(self, x):
        return self.fc(self.a(x).flatten(1))


def compiled(model, dynamic):
    torch.manual_seed(0)
    plan = {"plan": 1, "passes": PASSES, "export": [{"onnx": {"dynamic": dynamic}}]}
    return compile(model.eval(), plan, example_inputs=(torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("kind", [UNet, Tokens])
def test_other_image_sizes(kind, tmp_path):
    result = compiled(kind(), ["batch", "height", "width"])
    report = result.save(tmp_path / "out")
    assert report["onnx"]["dynamic_batch"]
    assert result.lock["export"] == [{"onnx": {"opset": 20, "dynamic": ["batch", "height", "width"]}}]
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    for shape in ((1, 3, 8, 8), (3, 3, 14, 10), (2, 3, 20, 34)):
        x = torch.randn(shape)
        want = result.module(x)
        assert want.shape == result.before.module(x).shape
        got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_fixed_size_stays_fixed(tmp_path):
    report = compiled(Fixed(), ["batch", "width"]).save(tmp_path / "out")
    assert "the width can't be left open" in report["targets"][0]["error"]
    assert report["alarms"] == [f"the export to onnx failed: {report['targets'][0]['error']}"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.py" in names
    assert "model.onnx" not in names
    assert (
        compiled(Fixed(), []).save(tmp_path / "out")["onnx"]["static_reason"] == "the plan leaves it out of 'dynamic'"
    )


def test_sizes_have_names():
    with pytest.raises(PlanError, match=r"dynamic\[0\] must be 'batch', 'height' or 'width'; got 'heigth'") as caught:
        compiled(Fixed(), ["heigth"])
    assert "did you mean 'height'" in str(caught.value)
