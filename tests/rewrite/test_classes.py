"""Classes taken out of a classifier: the others are as they were; probabilities are those among the kept classes."""

from __future__ import annotations

import pytest
import torch
from heads import HEADS, LOG_SHARES, LOGITS, SHARES, head
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.groups.classes import class_axis
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.program import Axis
from prunec.compiler.rewrite.classes import keep_classes
from prunec.compiler.tracing.trace import trace

X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()
KEPT = [1, 4, 7]


def outputs(model: torch.nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(X))


@pytest.mark.parametrize("name", HEADS)
def test_the_kept_classes_are_as_they_were(name):
    model = head(name).double()
    program = trace(model, (X[:2],))
    leaves = pytree.tree_leaves(output_of(program.graph).args[0])
    slim = keep_classes(program, class_axis(program, leaves, leaves), KEPT)
    for node, want, got in zip(leaves, outputs(model), outputs(slim.module), strict=True):
        picked = want[:, KEPT]
        if name in SHARES:
            picked = picked / picked.sum(1, keepdim=True)
        elif name in LOG_SHARES:
            picked = picked.log_softmax(1)
        else:
            assert name in LOGITS
        torch.testing.assert_close(got, picked, rtol=1e-12, atol=1e-12)
        assert node.meta["val"].shape[1] == 10
    told = pytree.tree_leaves(output_of(slim.graph).meta["val"])
    assert [value.shape[1] for value in told] == [3] * len(leaves)


def test_the_removed_positions_are_noted():
    program = trace(head("linear"), (X[:2].float(),))
    leaves = pytree.tree_leaves(output_of(program.graph).args[0])
    slim = keep_classes(program, class_axis(program, leaves, leaves), KEPT)
    assert {axis: kept.tolist() for axis, kept in slim.origin.items()} == {
        Axis("fc.weight", 0): KEPT,
        Axis("fc.bias", 0): KEPT,
    }
    assert torch.equal(slim.tensors["fc.weight"], program.tensors["fc.weight"][KEPT])
