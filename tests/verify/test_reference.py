"""What a rewritten program is compared with: the old one as it is, with other tensors, or masked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from slimmed_by_hand import CASES, program_of, seeded

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis
from prunec.compiler.verify.reference import Masked, Replaced, Same
from prunec.compiler.verify.verify import verify


@pytest.mark.parametrize(
    ("axis", "position", "message"),
    [(Axis("gone.weight", 0), 0, "no such tensor"), (Axis("conv1.weight", 0), 5, "has 5 positions")],
    ids=["tensor", "position"],
)
def test_axes_that_the_program_lacks_are_named(axis, position, message):
    case = CASES["conv-bn-relu-conv"]
    with pytest.raises(VerifyError, match=message):
        verify(case.after(), Masked(case.before, {axis: np.array([position])}), pass_name="shrink")


def test_replaced_tensors_count():
    case = CASES["conv-bn-relu-conv"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    weight = model.conv1.weight.detach().clone()
    weight[:2] = weight[:2].mean(0)
    model.conv1.weight.data = weight
    after = program_of(model, case.example())
    assert verify(after, Replaced(before, {"conv1.weight": weight}), pass_name="merge").difference == 0
    with pytest.raises(VerifyError, match="node 'conv1'"):
        verify(after, Same(before), pass_name="merge")
    with pytest.raises(VerifyError, match="can't be replaced"):
        Replaced(before, {"conv1.weight": weight[:2]})
