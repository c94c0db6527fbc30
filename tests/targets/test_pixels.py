"""Raw pixels in, probabilities out: what is folded in computes what an app would have computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_runtimes import Fake, programs
from torch import nn

from prunec.compiler.errors import ModelError, VerifyError
from prunec.compiler.targets import pixels as module
from prunec.compiler.targets.base import ExportOptions
from prunec.compiler.targets.exporting import export
from prunec.compiler.targets.pixels import Folded, Pixels, classes_of
from prunec.compiler.tracing.trace import trace

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("integer", [False, True])
def test_an_image_file_is_fed_as_it_is(swapped, last, integer):
    (program, _) = programs(batch=2)
    made = Folded(Pixels(1 / 255, MEAN, STD, swapped, last, integer), softmax=True).into(program)
    image = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)  # red, green, blue
    fed = image[..., ::-1] if swapped else image
    fed = fed if last else fed.transpose(0, 3, 1, 2)
    got = made.module(torch.from_numpy(np.ascontiguousarray(fed)).to(torch.uint8 if integer else torch.float32))
    prepared = (image / 255.0 - np.array(MEAN)) / np.array(STD)
    expected = program.module(torch.from_numpy(prepared.transpose(0, 3, 1, 2)).float()).softmax(1)
    assert torch.allclose(got, expected, atol=1e-6)
    assert made.inputs[0].dtype == (torch.uint8 if integer else torch.float32)
    assert made.inputs[0].shape == ((2, 16, 16, 3) if last else (2, 3, 16, 16))
    assert program.inputs[0].shape == (2, 3, 16, 16)


def test_raw_pixels_are_what_the_models_input_comes_from():
    pixels = Pixels(1 / 255, MEAN, STD, swapped=True, last=True, integer=True)
    raw = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    given = torch.from_numpy(pixels.applied(raw).copy()).float()
    assert np.array_equal(pixels.raw(given).numpy(), raw)


def test_one_number_for_all_channels_and_pixels_alone():
    (program, _) = programs(batch=1)
    made = Folded(Pixels(scale=2.0, mean=(1.0,), std=(4.0,))).into(program)
    x = torch.randn(1, 3, 16, 16)
    assert torch.allclose(made.module(x), program.module((x * 2 - 1) / 4), atol=1e-6)


def test_nothing_said_is_nothing_done():
    (program, _) = programs()
    assert Folded().into(program) is program
    assert Folded().raw(program, program.inputs) == program.inputs
    assert classes_of(program) == 10


def test_probabilities_are_logits_again():
    logits = torch.randn(4, 10)
    back = Folded(softmax=True).logits((logits.softmax(1), 3))
    assert torch.allclose(back[0].log_softmax(1), logits.log_softmax(1), atol=1e-6)
    assert back[1] == 3


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocess, self.conv = nn.Conv2d(1, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, mask, image, scale):
        return {"classes": (self.preprocess(mask) + self.conv(image)).mean((2, 3)) * scale, "mask": mask}


def test_of_several_inputs_the_one_that_is_named():
    inputs = (torch.randn(1, 1, 8, 8), torch.randn(1, 3, 8, 8), torch.tensor(2.0))
    program = trace(Two().eval(), inputs)
    made = Folded(Pixels(0.5, MEAN, STD, swapped=True), "image", softmax=True).into(program)
    mask, image, scale = inputs
    pixels = (image * torch.tensor(STD).reshape(3, 1, 1) + torch.tensor(MEAN).reshape(3, 1, 1)) / 0.5
    got = made.module(mask, pixels.flip(1), scale)
    expected = program.module(*inputs)
    assert torch.allclose(got["classes"], expected["classes"].softmax(1), atol=1e-6)
    assert torch.equal(got["mask"], mask)


@pytest.mark.parametrize(
    ("folded", "words"),
    [
        (Folded(Pixels(mean=(1.0, 2.0))), "mean has 2 numbers, and the image 3 channels"),
        (Folded(Pixels(), "y"), "'y' is no image"),
    ],
)
def test_what_does_not_fit_is_told(folded, words):
    with pytest.raises(ModelError, match=words):
        folded.into(programs()[0])


def test_a_model_without_an_image_or_without_classes():
    flat = trace(nn.Linear(4, 3).eval(), (torch.randn(2, 4),))
    with pytest.raises(ModelError, match="no input is an image"):
        Folded(Pixels()).into(flat)
    with pytest.raises(ModelError, match="a softmax already"):
        Folded(softmax=True).into(trace(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).eval(), (torch.randn(2, 4),)))
    single = trace(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).eval(), (torch.randn(2, 4),))
    with pytest.raises(ModelError, match="needs an output of classes"):
        Folded(softmax=True).into(single)


def _in_wrong_order(pixels, channels, like):
    made = _convolution(pixels, channels, like)
    made.weight.data = made.weight.data.flip(0)
    return made


def _without_bias(pixels, channels, like):
    made = _convolution(pixels, channels, like)
    made.bias.data.zero_()
    return made


_convolution = module._convolution


@pytest.mark.parametrize("fault", [_in_wrong_order, _without_bias])
def test_a_fault_in_what_is_folded_in_is_found(fault, monkeypatch):
    monkeypatch.setattr(module, "_convolution", fault)
    with pytest.raises(VerifyError, match="folded in for pixels"):
        Folded(Pixels(1 / 255, MEAN, STD, swapped=True)).into(programs()[0])


class Reorders(Fake):
    """A runtime that takes the channels of the first convolution in another order."""

    spoils = nn.Conv2d


def test_a_runtime_that_prepares_pixels_in_another_way_is_found(tmp_path):
    made = Folded(Pixels(1 / 255, MEAN, STD)).into(programs()[0])
    found = export(Reorders(), made, tmp_path, ExportOptions())
    assert "it begins with preprocess (Conv2d)" in found.error
