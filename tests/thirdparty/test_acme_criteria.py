"""The third party's criterion is found by name, scores, and has its options checked like any other's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan, schema
from prunec.compiler.tracing.trace import trace
from prunec.models.digits import cnn
from prunec.passes.score import Score


def test_it_scores(digit_image):
    model = cnn()
    program = trace(model, (digit_image,))
    score = Score(criterion={"acme_heaviest": {"power": 2}}, normalize="none")
    found = score.run(program, Context()).program.facts["scores"]
    expected = model.block1.conv1.weight.detach().abs().amax((1, 2, 3)) ** 2
    np.testing.assert_allclose(found["block1.conv1"], expected.numpy(), rtol=1e-6)


def test_its_options_are_checked():
    with pytest.raises(PlanError, match=r"power must be greater than 0\.0, got -1"):
        Plan.from_dict({"plan": 1, "passes": [{"score": {"criterion": {"acme_heaviest": {"power": -1}}}}]})
    with pytest.raises(PlanError, match="unknown key 'powers'"):
        Plan.from_dict({"plan": 1, "passes": [{"score": {"criterion": {"acme_heaviest": {"powers": 1}}}}]})


def test_the_schema_knows_it():
    forms = json.dumps(schema()["$defs"]["Score"]["properties"]["criterion"])
    assert '"acme_heaviest"' in forms
    assert '"power"' in forms
