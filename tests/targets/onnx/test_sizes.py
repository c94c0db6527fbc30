"""Sizes as functions of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.targets.onnx.sizes import Affine, NotAffine, Shapes, shapes_of
from prunec.compiler.tracing.trace import trace


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ((64, 64, 64), 64),
        ((1, 3, 5), Affine(1, 0)),
        ((5, 13, 21), Affine(4, 1)),
        ((2, 0, -2), Affine(-1, 3)),
        ((3, 3, 5), None),
        ((1, 9, 25), None),
        ((0, 1, 2), None),
    ],
)
def test_a_size_is_a_number_or_a_line(values, size):
    shapes = Shapes((1, 3, 5), ({}, {}, {}))
    if size is not None:
        assert shapes.size(values) == size
        return
    with pytest.raises(NotAffine):
        shapes.size(values)


def test_a_rank_that_follows_the_batch_is_no_shape():
    tensors = [torch.empty(4), torch.empty(3, 4), torch.empty(5, 4)]
    with pytest.raises(NotAffine):
        Shapes((1, 3, 5), ({}, {}, {})).shape(tensors)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        rows = x.shape[0] * 4
        return self.conv(x).reshape(rows, -1) + torch.zeros(rows, 1, device=x.device)


def test_every_node_is_known_at_three_batches_where_the_batch_is_open():
    program = trace(Net().eval(), (torch.randn(3, 3, 6, 6),))
    shapes = shapes_of(program, open_batch=True)
    assert shapes.batches == (3, 5, 7)
    conv = next(iter(program.graph.find_nodes(op="call_module")))
    reshape = next(node for node in program.graph.nodes if node.target == "reshape")
    assert shapes.shape(shapes.of(conv)) == (Affine(1, 0), 4, 4, 4)
    assert shapes.shape(shapes.of(reshape)) == (Affine(4, 0), 16)
    assert all(
        value.is_meta for known in shapes.values[1:] for value in known.values() if isinstance(value, torch.Tensor)
    )
    assert not program.module.conv.weight.is_meta


def test_with_a_fixed_batch_nothing_is_run():
    program = trace(Net().eval(), (torch.randn(3, 3, 6, 6),))
    shapes = shapes_of(program, open_batch=False)
    assert shapes.batches == (3,)
    conv = next(iter(program.graph.find_nodes(op="call_module")))
    assert shapes.shape(shapes.of(conv)) == (3, 4, 4, 4)
