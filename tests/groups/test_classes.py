"""The class axis: which outputs hold classes, which units go with them, and what keeps a class where it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, head
from torch import nn

from prunec.compiler.errors import ModelError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.classes import class_axis
from prunec.compiler.ir.graph import output_of
from prunec.compiler.tracing.trace import trace

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def axis_of(model: nn.Module, *places: int, needed: tuple[int, ...] = (0,)):
    program = trace(model, (X,))
    returned = torch.utils._pytree.tree_leaves(output_of(program.graph).args[0])
    chosen = [returned[place] for place in places or range(len(returned))]
    return class_axis(program, chosen, [returned[place] for place in needed])


@pytest.mark.parametrize("name", HEADS)
def test_the_classes_of_a_head_are_free(name):
    axis = axis_of(head(name))
    assert axis.count == 10
    keep = axis.without([1, 4, 7])
    assert (~keep).sum() == 7 * len({tuple(units) for units in axis.units.tolist()})
    assert not analyse(axis.analysis.program).free[axis.units].any(), "the analysis of all other passes pins them"


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda s, h, p: F.layer_norm(s.fc(p), (10,)), "class 0 is counted by layer_norm"),
        (lambda s, h, p: F.normalize(s.fc(p), dim=1), "class 0 is added up at normalize"),
        (lambda s, h, p: s.fc(p) - s.fc(p).mean(1, keepdim=True), "class 0 is added up at mean"),
        (lambda s, h, p: s.fc(p) - s.fc(p).logsumexp(1, keepdim=True), "class 0 is reduced over at logsumexp"),
        (lambda s, h, p: s.fc(p) * s.fc(p).softmax(1), "class 0 is normalised over at softmax"),
        (lambda s, h, p: s.fc(p).softmax(1) * s.offset, "aren't written by weights of their own"),
        (lambda s, h, p: (s.fc(p).softmax(1) + s.aux(p).softmax(1)) / 2, "aren't written by weights of their own"),
        (lambda s, h, p: s.fc(p).cumsum(1), "aren't written by weights of their own"),
        (lambda s, h, p: s.head(h).flatten(2).transpose(1, 2), "aren't written by weights of their own"),
        (lambda s, h, p: s.fc(p).view(-1, 2, 5).softmax(2).flatten(1), "several positions of dimension 1 go together"),
        (lambda s, h, p: torch.cat([s.fc(p)[:, :5]] * 2, 1), "several positions of dimension 1 go together"),
    ],
)
def test_what_needs_all_classes_keeps_them(returned, reason):
    with pytest.raises(ModelError, match=f"can't lose classes: .*{reason}"):
        axis_of(head(returned))


def test_an_output_that_a_layer_reads_holds_no_classes():
    def both(s, h, p):
        features = s.aux(p)
        return s.after(features), features

    axis = axis_of(head(both))
    assert [node.name for node in axis.outputs] == ["after"]
    with pytest.raises(ModelError, match="class 0 is read by after"):
        axis_of(head(both), needed=(1,))


def test_another_output_may_hold_the_classes_in_place():
    with pytest.raises(ModelError, match="class 0 is reduced over at argmax"):
        axis_of(head(lambda s, h, p: (s.fc(p), s.fc(p).argmax(1))), 0)


def test_softmaxes_are_those_of_classes_alone():
    axis = axis_of(head(lambda s, h, p: s.fc((h.flatten(2).softmax(2) * h.flatten(2)).sum(2)).softmax(-1)))
    assert {node.name: dim for node, dim in axis.softmaxes.items()} == {"softmax_1": 1}
