"""Networks that were trained for one task, with a new head for another.

vgg16        torchvision's VGG-16 as far as its last pooling, and 25088 - 4096 - 4096 - classes
digits_cnn   the convolutional network for digits with its weights, and a new linear layer
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from prunec.models import digits


def vgg16(num_classes: int = 2, weights: str | None = None, hidden: int = 4096) -> nn.Module:
    """torchvision's VGG-16 for `[N, 3, 224, 224]`, with a new classifier; `weights` is a file of ImageNet's weights,
    of which the convolutions are taken."""
    try:
        from torchvision.models import vgg16 as made  # noqa: PLC0415  (heavy, and an optional extra)
    except ModuleNotFoundError as error:
        message = "this network needs torchvision, which isn't installed: pip install 'prunec[vision]'"
        raise ModuleNotFoundError(message) from error
    model: nn.Module = made(weights=None)
    if weights is not None:
        state = torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True)
        features = {key: value for key, value in state.items() if key.startswith("features.")}
        model.load_state_dict({**model.state_dict(), **features})
    model.classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(25088, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    return model


def digits_cnn(num_classes: int = 2) -> digits.DigitsCNN:
    """The trained network for 8x8 digits, `[N, 1, 8, 8]`, with a new last layer."""
    model = digits.cnn()
    model.load_state_dict(load_file(digits.WEIGHTS / "digits.safetensors"))
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model
