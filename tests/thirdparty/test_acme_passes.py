"""The third party's pass is found by name, may be used in a plan, and has its options checked like any other's."""

from __future__ import annotations

import pytest
from torch import nn

from prunec.compiler.driver.compile import compile
from prunec.compiler.errors import PlanError
from prunec.compiler.pass_base import PASSES
from prunec.compiler.plan.plan import Plan
from prunec.models.digits import cnn


def test_it_is_registered():
    assert PASSES.named("acme_every_nth").__module__ == "acme_passes"


def test_it_works_in_a_plan(digit_image):
    plan = {"plan": 1, "passes": [{"acme_every_nth": 2}, "shrink"]}
    result = compile(cnn(), plan, (digit_image,))
    conv = result.module.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.out_channels == 16
    assert result.lock["removed"]["conv1.weight"]["0"] == list(range(1, 32, 2))


def test_its_options_are_checked():
    with pytest.raises(PlanError, match="n must be at least 2, got 1"):
        Plan.from_dict({"plan": 1, "passes": [{"acme_every_nth": {"n": 1}}]})
