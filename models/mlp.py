"""Multilayer perceptrons: Linear - ReLU - ... - Linear.

    [N, 784] or [N, 1, 28, 28] -> flatten -> fc1 -> relu -> fc2 -> relu -> fc3 -> [N, 10]

The simplest chain there is: one neuron is one row of a weight, one bias and one column of the next weight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers `fc1`, `fc2`, ... with ReLU between them; images are flattened first."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths must name at least the inputs and the outputs, got {list(widths)}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            layers[f"fc{index}"] = nn.Linear(inputs, outputs)
            layers[f"relu{index}"] = nn.ReLU()
        layers.popitem()  # logits go out as they are
        self.layers = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, ...]` with `widths[0]` values per sample -> `[N, widths[-1]]`."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits


def mlp(widths: Sequence[int] = (784, 200, 200, 10)) -> MLP:
    """An MLP; `widths` runs from the number of inputs to the number of classes."""
    return MLP(widths)
