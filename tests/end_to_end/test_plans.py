"""Every plan in `plans/` compiles as it stands and reaches its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from torch import nn

from prunec.compiler import Result, compile
from prunec.compiler.plan.exports import EXPORTING
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.exporting import missing

PLANS = Path(__file__).parents[2] / "plans"


class Golden(NamedTuple):
    """Published counts: MACs and parameters before and after."""

    macs: tuple[int, int]
    params: tuple[int, int]


GOLDEN = {
    "mlp_50_100": Golden((198_800, 45_200), (199_210, 45_360)),
    "convnet_8_16_32": Golden((5_676_160, 523_712), (87_114, 21_578)),
    "vgg16_a": Golden((313_463_808, 206_279_680), (14_978_250, 5_390_698)),
    "resnet56_a": Golden((125_485_696, 112_435_840), (853_018, 773_336)),
    "resnet56_b": Golden((125_485_696, 90_907_264), (853_018, 735_712)),
    "resnet110_a": Golden((252_887_680, 212_779_648), (1_727_962, 1_688_522)),
    "resnet110_b": Golden((252_887_680, 155_124_352), (1_727_962, 1_168_424)),
}
WITHOUT_NORMS = {"vgg16_a"}
"""Where the published parameters don't count batch norm."""

TRAINED = {
    "all_runtimes": (0.52, 0.97),
    "class_adaptive": (0.25, 0.96),
    "digits": (0.52, 0.98),
    "digits_merge": (0.80, 0.95),
    "digits_taylor": (0.50, 0.98),
    "digits_train": (0.10, 0.97),
    "no_retraining": (0.25, 0.985),
}
"""The share of the MACs that may be left at most, and the accuracy on the test split that is left at least."""


def test_every_plan_is_tested():
    assert {path.stem for path in PLANS.glob("*.yaml")} == {*GOLDEN, *TRAINED}


def norms(result: Result, side: str) -> int:
    module = (result.before if side == "before" else result.program).module
    layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    return sum(2 * layer.num_features for layer in layers)


@pytest.mark.parametrize("name", GOLDEN)
def test_published_counts(name):
    result = compile(None, PLANS / f"{name}.yaml")
    cost = result.report["cost"]
    assert (cost["before"]["macs"], cost["after"]["macs"]) == GOLDEN[name].macs
    params = [
        cost[side]["params"] - (norms(result, side) if name in WITHOUT_NORMS else 0) for side in ("before", "after")
    ]
    assert tuple(params) == GOLDEN[name].params
    assert sum(p.numel() for p in result.module.parameters()) == cost["after"]["params"]
    (shrink,) = (record for record in result.report["passes"] if record["pass"] == "shrink")
    assert shrink["verification"]["difference"] <= 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_keep_their_accuracy(name):
    report = compile(None, PLANS / f"{name}.yaml").report
    most, least = TRAINED[name]
    assert report["cost"]["after"]["macs"] <= most * report["cost"]["before"]["macs"]
    assert report["accuracy"]["before"] > 0.99
    assert report["accuracy"]["after"] >= least


def test_the_embedded_default_writes_its_artifacts(tmp_path):
    report = compile(None, PLANS / "digits.yaml").save(tmp_path / "out")
    assert report["weights"]["after"] < 0.7 * report["weights"]["before"]
    assert report["onnx"]["bytes"]["after"] < 0.75 * report["onnx"]["bytes"]["before"]
    assert report["onnx"]["max_difference"] < 1e-5
    assert report["onnx"]["dynamic_batch"]


def test_every_runtime_that_is_installed_has_its_files_and_the_others_fail_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    report = compile(None, PLANS / "all_runtimes.yaml", quick=True).write(tmp_path / "out")
    assert {row.target for row in report.targets} == set(EXPORTING)
    lacking = {name: missing(TARGETS.named(name)()) for name in EXPORTING}
    assert bool(report.failed) == any(lacking.values())
    for row in report.targets:
        if (why := lacking[row.target]) is not None:
            assert (row.error, row.files) == (why.message, ())
            continue
        assert not row.failed, row
        made = (*row.files, *(row.int8.files if row.int8 else ()))
        assert all((tmp_path / "out" / name).exists() for name in made)
        assert (row.difference is None) == bool(row.unrunnable)
        assert (row.int8 is not None) == TARGETS.named(row.target).quantizes()
        if row.int8 and not row.unrunnable:
            assert row.int8.before >= 0.97
            assert row.int8.after >= row.int8.before - 0.02, row.target
    assert (tmp_path / "out/labels.txt").read_text().split()[:2] == ["zero", "one"]
