"""A package of Core ML has the names and shapes of the model, and its structure is checked where it can't be run."""

from __future__ import annotations

import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.errors import TargetError
from prunec.compiler.targets import coreml
from prunec.compiler.targets.base import ExportOptions
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.exporting import missing
from prunec.compiler.tracing.trace import trace

TARGET = coreml.CoreML()
if (_lacking := missing(TARGET)) is not None:
    pytest.skip(_lacking.message, allow_module_level=True)
FLOAT32 = 65568
"""`ArrayFeatureType.FLOAT32` of Core ML's format."""


class Net(nn.Module):
    """Two outputs; a shuffle that `coreml`'s tools don't know and torch writes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2)

    def forward(self, image):
        y = self.shuffle(self.conv(image))
        return {"map": y, "mean": y.mean((2, 3))}


with captured():  # its import warns
    from prunec.compiler.targets import coreml_convert


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("coreml") / "model.mlpackage"
    with captured():  # as all converters are called: it leaves folders to the garbage collector, which warns
        TARGET.convert(trace(Net().eval(), (torch.randn(1, 3, 8, 8),)), path, ExportOptions())
    return path


def test_names_are_the_models(package):
    described = coreml_convert._spec(package).description
    assert [entry.name for entry in described.input] == ["image"]
    assert [entry.name for entry in described.output] == ["map", "mean"]
    assert list(described.input[0].type.multiArrayType.shape) == [1, 3, 8, 8]


def test_a_package_whose_weights_are_cut_short_is_found(package):
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    held = weights.read_bytes()
    try:
        weights.write_bytes(held[: len(held) // 2])
        with pytest.raises(TargetError, match="the package's weights don't hold"):
            coreml_convert._check(package, [(1, 3, 8, 8)])
    finally:
        weights.write_bytes(held)
    coreml_convert._check(package, [(1, 3, 8, 8)])
    with pytest.raises(TargetError, match="takes inputs of"):
        coreml_convert._check(package, [(1, 3, 9, 9)])


def test_truth_values_are_handed_as_numbers(tmp_path):
    made = trace(
        Made({}, lambda m, x, y: torch.where(x, y, -y)), (torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4))
    )
    with captured():
        TARGET.convert(made, tmp_path / "model.mlpackage", ExportOptions())
    described = coreml_convert._spec(tmp_path / "model.mlpackage").description
    assert [entry.type.multiArrayType.dataType for entry in described.input] == [FLOAT32, FLOAT32]


def test_an_input_of_a_type_that_it_lacks_is_told(tmp_path):
    made = trace(Made({}, lambda m, x: x.real), (torch.ones(1, 4, dtype=torch.complex64),))
    with pytest.raises(TargetError, match=r"Core ML takes no input of torch\.complex64"):
        TARGET.convert(made, tmp_path / "model.mlpackage", ExportOptions())
