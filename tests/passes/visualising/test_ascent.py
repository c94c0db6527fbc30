"""Ascent: every image raises its own unit over the start and over noise, the same however it is chunked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunec.compiler import trace
from prunec.models.convnet import convnet
from prunec.models.digits import WEIGHTS, cnn
from prunec.passes.visualising.ascent import Climbed, activations, climb, moved, regularised
from prunec.passes.visualising.layers import find_layers
from prunec.passes.visualising.pixels import ImageInput
from prunec.passes.visualising.presets import CAP, PRESETS, Ascent

PLAIN = Ascent(12, "normalized", 0.1)


def digits() -> nn.Module:
    """Trained on digits, so that its units look for something."""
    model = cnn()
    model.load_state_dict(load_file(WEIGHTS / "digits.safetensors"))
    return model


def setting(model, shape, layer="*"):
    torch.manual_seed(0)
    program = trace(model().eval(), (torch.zeros(2, *shape),))
    found = find_layers(program, (layer,))[-1]
    source = ImageInput.of(found.program)
    start = 0.04 * torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    return found, source, source.given(-1.0, 1.0), start


def run(model, shape, ascent, layer="*", units=None) -> tuple[Climbed, object]:
    found, source, pixels, start = setting(model, shape, layer)
    places = torch.arange(found.units.size) if units is None else units
    return climb(found, places, source, pixels, ascent, start, lambda made: None), found


@pytest.mark.parametrize("preset", ["fast", "yosinski_a", "yosinski_b", "yosinski_c", "yosinski_d", "class_adaptive"])
def test_every_preset_raises_the_activations(preset):
    ascent = replace(PRESETS[preset], steps=min(PRESETS[preset].steps, 200))
    found, _ = run(digits, (1, 8, 8), ascent, "block2.conv2")
    assert found.last.mean() > 1.4 * found.first.mean()
    assert not found.dead.any()


@pytest.mark.parametrize(("model", "shape"), [(digits, (1, 8, 8)), (convnet, (1, 28, 28))])
def test_images_beat_the_start_and_all_noise(model, shape):
    found, layer = run(model, shape, PRESETS["fast"], "conv2" if model is digits else "*")
    source = ImageInput.of(layer.program)
    assert bool((found.last > found.first).all())
    for seed in range(8):
        noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        units = torch.arange(layer.units.size)
        assert bool((activations(layer, units, source, noise.expand(len(units), *shape)) < found.last).all())


def test_the_activation_that_is_told_is_that_of_the_image():
    found, layer = run(cnn, (1, 8, 8), PLAIN, "conv2")
    again = activations(layer, torch.arange(layer.units.size), ImageInput.of(layer.program), found.images)
    assert torch.allclose(again, found.last, rtol=1e-5, atol=1e-6)
    assert found.images.abs().max() <= 1


def test_a_unit_has_the_same_image_alone_and_among_others():
    whole, _ = run(cnn, (1, 8, 8), PLAIN, "conv2")
    alone, _ = run(cnn, (1, 8, 8), PLAIN, "conv2", torch.tensor([7]))
    assert torch.allclose(alone.images[0], whole.images[7], atol=1e-5)


def test_the_same_run_gives_the_same_bytes():
    first, second = (run(cnn, (1, 8, 8), PRESETS["fast"], "conv2")[0] for _ in range(2))
    assert torch.equal(first.images, second.images)


def test_dead_units_are_told():
    def dead() -> nn.Module:
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
        )
        net(torch.zeros(1, 2, 8, 8))
        with torch.no_grad():
            net[2].weight[[1, 4]] = 0
        return net

    found, _ = run(dead, (2, 8, 8), PLAIN, "2")
    assert found.dead.tolist() == [False, True, False, False, True]
    assert torch.equal(found.first[found.dead], found.last[found.dead])


def test_the_gradient_is_the_units_own():
    """By finite differences, through a step whose length is the gradient's."""
    found, source, pixels, start = setting(cnn, (1, 8, 8), "conv2")
    unit = torch.tensor([3])
    made = climb(found, unit, source, pixels, Ascent(1, "constant", 1e-4, pixel_range=False), start, lambda made: None)
    step = (made.images[0] - start) / (1e-4 * pixels.width**2)
    for place in ((0, 2, 3), (0, 5, 5)):
        nudge = torch.zeros_like(start)
        nudge[place] = 1e-2
        ends = torch.stack([start + nudge, start - nudge])
        high, low = activations(found, unit.expand(2), source, ends)
        assert step[place].item() == pytest.approx(((high - low) / 2e-2).item(), rel=0.05, abs=1e-3)


def test_steps_have_the_length_that_their_rule_says():
    gradient = torch.randn(4, 3, 5, 5)
    gradient[3] = 0
    assert torch.equal(moved(gradient, Ascent(1, "constant", 0.5), 2.0), 0.5 * 4.0 * gradient)
    found = moved(gradient, Ascent(1, "normalized", 0.1), 2.0)
    assert torch.allclose(found[:3].flatten(1).square().mean(1).sqrt(), torch.full((3,), 0.2))
    assert torch.equal(found[3], gradient[3])
    rises = (moved(gradient * 40, Ascent(1, "progress", 2.0), 100.0) * gradient * 40).flatten(1).sum(1)
    assert torch.allclose(rises[:3], torch.full((3,), 2.0))
    capped = moved(gradient * 1e-3, Ascent(1, "progress", 2.0), 2.0)
    assert torch.allclose(capped, CAP * 4.0 * gradient * 1e-3)
    halfway = moved(gradient, Ascent(8, "normalized", 0.1), 2.0, step=4)
    assert torch.allclose(halfway, found / 2)


def test_the_regularisers_follow_each_other_and_the_blur_comes_now_and_then():
    x, g = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    off = Ascent(1, "constant", 1.0)
    assert torch.equal(regularised(x, g, off, 0), x)
    every = replace(off, blur_width=1.0, blur_every=4)
    changed = [not torch.equal(regularised(x, g, every, step), x) for step in range(8)]
    assert changed == [False, False, False, True] * 2
