"""A trained network for some of its classes, without training: units go by what they do for these, or for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunec.compiler import compile

WEIGHTS = Path(__file__).parents[2] / "models" / "weights" / "digits_resnet.safetensors"
KEPT = {(1, 4): (0, 8), (3, 5, 7): (0, 2, 6), (2, 6, 9): (1, 4, 8), (0, 8): (3, 5), (0, 3, 6, 7): (1, 2, 8, 9)}
"""The classes that are kept -> as many others."""


def accuracy(kept, score, *before, seed: int = 0) -> float:
    """The share of right answers among the kept classes, behind a loss of 70% of each late layer's filters."""
    plan = {
        "plan": 1,
        "seed": seed,
        "model": {"factory": "prunec.models.digits:resnet", "weights": str(WEIGHTS)},
        "inputs": [[1, 1, 8, 8]],
        "data": "prunec.models.data:digits",
        "classes": list(kept),
        "passes": [*before, {"score": score}, {"select": {"ratio": {"layer3.*": "70%"}}}, "shrink"],
    }
    return compile(None, plan, quick=True).findings.accuracy.after


@pytest.fixture(scope="module")
def by_chance():
    return np.mean([accuracy(kept, "random", seed=seed) for kept in KEPT for seed in range(2)])


@pytest.mark.parametrize("kind", ["class_weights", "class_maps"])
def test_evidence_for_the_kept_classes_keeps_them(kind, by_chance):
    """At equal widths, evidence for the kept classes loses less than evidence for others, or chance."""

    def mean(wanted: dict) -> float:
        evidence = {"class_evidence": {"criterion": kind, "samples": 400}}
        scores = [{"criterion": {"class_evidence": {"classes": list(each)}}} for each in wanted.values()]
        return float(np.mean([accuracy(kept, score, evidence) for kept, score in zip(wanted, scores, strict=True)]))

    right, wrong = mean({kept: kept for kept in KEPT}), mean(KEPT)
    assert right > wrong + 0.1
    assert right > by_chance + 0.3
