"""A package of Core ML has the names and shapes of the model, and its structure is checked where it can't be run."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.errors import TargetError
from prunec.compiler.targets import coreml, exporting
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


class Placed(nn.Module):
    """Reads its input at 400 places, which lie in the file among the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(400, 32)
        self.register_buffer("places", torch.arange(400).flip(0).reshape(20, 20) % 300)

    def forward(self, x):
        return self.head(x[:, self.places].flatten(1))


def test_weights_in_int8_are_near_and_places_stay(tmp_path):
    """Read from the file by its format's description, not by the tools that wrote it."""
    torch.manual_seed(0)
    program = trace(Placed().eval(), (torch.randn(1, 300),))
    path, to = tmp_path / "model.mlpackage", tmp_path / "model.int8.mlpackage"
    with captured():
        TARGET.convert(program, path, ExportOptions())
    weight = program.state["head"].weight.detach().numpy()
    for per_channel in (True, False):
        options = ExportOptions.model_validate({"int8": {"per_channel": per_channel}})
        with captured():
            TARGET.quantize(program, path, to, options, [])
        held = (to / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").read_bytes()
        operations = list(coreml_convert._operations(coreml_convert._spec(to)))
        (made,) = (each.attributes for each in operations if each.type.startswith("constexpr"))
        rounded = _stored(made["quantized_data"], held, np.int8).reshape(weight.shape)
        scale = _stored(made["scale"], held, np.float32)
        assert scale.size == (len(weight) if per_channel else 1)
        assert np.abs(rounded * scale.reshape(-1, 1) - weight).max() <= 0.501 * scale.max()
        assert np.abs(rounded).max() == 127
        assert exporting.size_of(to) < 0.5 * exporting.size_of(path)


def _stored(value, held, kind):
    if value.WhichOneof("value") == "immediateValue":
        return np.array(value.immediateValue.tensor.floats.values)
    _, _, size, start = struct.unpack_from("<IIQQ", held, value.blobFileValue.offset)
    return np.frombuffer(held[start : start + size], kind)


def test_a_model_without_weights_has_no_int8(tmp_path):
    program = trace(Made({}, lambda m, x: x.relu()), (torch.randn(1, 4),))
    options = ExportOptions.model_validate({"int8": True})
    path, to = tmp_path / "model.mlpackage", tmp_path / "model.int8.mlpackage"
    with captured():
        TARGET.convert(program, path, options)
        with pytest.raises(TargetError, match="the model has no weights that Core ML's tools quantise"):
            TARGET.quantize(program, path, to, options, [])
