"""Which groups are of one structure: layers and their forms count, names and widths don't."""

from __future__ import annotations

import torch
from selecting import bare
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.isomorphic import isomorphic_classes
from prunec.compiler.tracing.trace import trace


def together(program) -> set[frozenset[str]]:
    """The groups of each class."""
    found: dict[int, set[str]] = {}
    for name, number in isomorphic_classes(analyse(program)).items():
        found.setdefault(number, set()).add(name)
    return {frozenset(names) for names in found.values()}


def chain(*layers: nn.Module) -> set[frozenset[str]]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *layers)
    return together(trace(model, (torch.randn(1, 3, 16, 16),)))


def test_blocks_of_a_resnet_whatever_their_width():
    inner = frozenset(f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2))
    classes = together(bare("resnet18"))
    assert inner in classes
    streams = [names for names in classes if names != inner and "fc" not in names]
    assert frozenset({"layer2.0.conv2", "layer3.0.conv2"}) in streams, "each has two blocks, a projection, and a reader"
    assert frozenset({"conv1"}) in streams, "the stem's stream has no projection"


def test_depthwise_and_dense_layers_are_of_two_structures():
    pointwise, depthwise = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, groups=12)
    classes = chain(pointwise, depthwise, nn.Conv2d(12, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1))
    assert frozenset({"1"}) in classes
    assert frozenset({"0"}) in classes
    assert frozenset({"3", "4"}) in classes


def test_kernels_and_norms_count():
    same = chain(nn.Conv2d(8, 12, 3), nn.Conv2d(12, 20, 3), nn.Conv2d(20, 4, 1))
    assert frozenset({"0", "1"}) in same
    assert frozenset({"2"}) in same, "it is read by a 1x1 convolution"
    normed = chain(nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 20, 3), nn.Conv2d(20, 4, 3))
    assert frozenset({"0"}) in normed
    assert frozenset({"2", "3"}) in normed


def test_heads_and_hidden_units_are_of_two_structures():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(layer, nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), nn.Linear(16, 5))
    classes = together(trace(model.eval(), (torch.randn(1, 6, 16),)))
    assert frozenset({"0.linear1", "1.linear1"}) in classes
    assert all(len(names) <= 2 for names in classes), "neither the stream nor the heads are among them"


def test_parameters_of_a_models_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.randn(n, m)) for n, m in ((6, 4), (8, 6), (3, 8)))

        def forward(self, x):
            return x @ self.a.T @ self.b.T @ self.c.T

    assert frozenset({"a[0]", "b"}) in together(trace(Own(), (torch.randn(2, 4),)))
