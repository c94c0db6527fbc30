"""Ratios, widths and thresholds: each group by itself."""

from __future__ import annotations

import numpy as np
from selecting import channels, context, scored, selected

from prunec.passes.select import Select


def test_thresholds():
    program = scored("chain")
    scores = program.facts["scores"]
    result = Select(threshold=0.3).run(program, context("chain"))
    for name, score in scores.items():
        gone = set(np.flatnonzero(score < 0.3).tolist())
        assert set(result.program.facts["selection"].get(name, [])) == gone
    by_name = Select(threshold={"a": 0.3}).run(program, context("chain"))
    assert set(by_name.program.facts["selection"]) <= {"a"}


def test_a_skip_list_in_ratios():
    left = channels("resnet18", selected("resnet18", ratio={"layer1.0.*": 0.0, "layer1.*": 0.5, "*": 0.25}))
    assert left["layer1.0.conv1"] == 64
    assert left["layer1.1.conv1"] == 32
    assert left["layer4.1.conv1"] == 384
