"""The house: a folder for each phase, imports that go down only, and a test for every module."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("compiler", "passes", "models")


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the three folders in a copy, with the rules of `pyproject.toml`."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, tmp_path / "prunec" / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down_only(copy):
    done = linted(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


ARROWS = {
    "up": ("verify/masks.py", "from prunec.compiler.groups.analysis import analyse"),
    "up, for types alone": (
        "ir/graph.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from prunec.compiler.driver.lock import make_lock",
    ),
    "up, in a function": ("text/literals.py", "def f():\n    from prunec.compiler.emit.python import emit_source"),
    "verifier to analysis": ("verify/verify.py", "from prunec.compiler.labels.flow import Flow"),
    "analysis to verifier": ("ops/conv.py", "from prunec.compiler.verify.masks import Marked"),
    "a circle in a phase": ("ir/ops.py", "from prunec.compiler.ir.aliasing import mutates"),
    "to a pass": ("driver/compile.py", "from prunec.passes.score import Score"),
}


@pytest.mark.parametrize("name", ARROWS)
def test_an_arrow_too_many_is_found(copy, name):
    file, line = ARROWS[name]
    path = copy / "prunec/compiler" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    done = linted(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " BROKEN" in done.stdout
    assert f".{Path(file).stem} -> " in done.stdout


# -- a test for every module -------------------------------------------------------------------------------------------

TESTED_ELSEWHERE: dict[str, str] = {
    "compiler/cli/passes.py": "cli/test_main.py",
    "compiler/cli/plugins.py": "cli/test_main.py",
    "compiler/driver/pass_manager.py": "driver/test_compile.py",
    "compiler/driver/trained.py": "passes/test_finetune.py",
    "compiler/train_spec.py": "passes/training/test_engine.py",
    "compiler/ir/operations.py": "thirdparty/test_acme_ops.py",
    "compiler/labels/grouped.py": "passes/test_axes.py",
    "compiler/labels/known.py": "end_to_end/test_patterns_of_models.py",
    "compiler/labels/propagate.py": "labels/test_flow.py",
    "compiler/ops/conv.py": "rewrite/test_shrink.py",
    "compiler/ops/distance.py": "end_to_end/test_patterns_of_models.py",
    "compiler/ops/elementwise.py": "rewrite/test_shrink.py",
    "compiler/ops/expand.py": "rewrite/test_shrink.py",
    "compiler/ops/fft.py": "end_to_end/test_patterns_of_models.py",
    "compiler/ops/gather_scatter.py": "end_to_end/test_patterns_of_models.py",
    "compiler/ops/image.py": "end_to_end/test_patterns_of_models.py",
    "compiler/ops/indexing.py": "rewrite/test_shrink.py",
    "compiler/ops/linear.py": "rewrite/test_shrink.py",
    "compiler/ops/norm.py": "rewrite/test_shrink.py",
    "compiler/ops/pooling.py": "rewrite/test_shrink.py",
    "compiler/ops/reduction.py": "rewrite/test_shrink.py",
    "compiler/ops/reshape.py": "rewrite/test_shrink.py",
    "compiler/ops/rnn.py": "end_to_end/test_patterns_of_models.py",
    "compiler/ops/setitem.py": "rewrite/test_shrink.py",
    "compiler/ops/sign_analysis.py": "end_to_end/test_patterns_of_models.py",
    "compiler/pass_base.py": "plan/test_plan.py",
    "passes/rounds/watch.py": "passes/test_repeat.py",
    "passes/studies/asked.py": "passes/studies/test_sensitivity.py",
    "passes/visualising/presets.py": "passes/visualising/test_ascent.py",
    "passes/visualising/work.py": "passes/test_visualise.py",
    "compiler/rewrite/gather.py": "labels/test_parameter_free.py",
    "compiler/driver/exports.py": "end_to_end/test_exports.py",
    "passes/repairing/low_rank.py": "passes/test_factorise.py",
    "passes/training/few.py": "passes/test_finetune.py",
    "passes/repairing/pictures.py": "passes/criteria/test_reconstruction.py",
    "passes/repairing/inputs.py": "passes/criteria/test_reconstruction.py",
    "compiler/targets/coreml_convert.py": "targets/test_coreml.py",
    "compiler/targets/executorch_lower.py": "targets/test_runtimes.py",
    "compiler/targets/executorch_meter.py": "targets/test_meters.py",
    "compiler/targets/flat.py": "targets/test_runtimes.py",
    "compiler/targets/litert.py": "targets/test_runtimes.py",
    "compiler/targets/litert_convert.py": "targets/test_runtimes.py",
    "compiler/targets/litert_meter.py": "targets/test_meters.py",
    "compiler/targets/metering.py": "targets/test_meters.py",
    "compiler/targets/mnn_meter.py": "targets/test_meters.py",
    "compiler/targets/mnn_session.py": "targets/test_mnn.py",
    "compiler/targets/ncnn_meter.py": "targets/test_meters.py",
    "compiler/targets/ncnn_session.py": "targets/test_ncnn.py",
    "compiler/targets/onnx/ops/concat.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/conv.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/elementwise.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/expand.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/image.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/indexing.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/linear.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/matmul.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/norm.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/pooling.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/reduction.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/reshape.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx/ops/shuffle.py": "targets/onnx/test_call.py",
    "compiler/targets/onnx_file.py": "targets/test_runtimes.py",
    "compiler/targets/openvino_convert.py": "targets/test_runtimes.py",
    "compiler/targets/openvino_meter.py": "targets/test_meters.py",
    "compiler/targets/openvino_session.py": "targets/test_openvino.py",
    "compiler/targets/ort.py": "targets/test_runtimes.py",
    "compiler/targets/ort_convert.py": "targets/test_runtimes.py",
    "compiler/targets/ort_int8.py": "targets/test_runtimes.py",
    "compiler/targets/timing.py": "targets/test_meters.py",
    "compiler/targets/torch.py": "targets/test_base.py",
    "compiler/targets/torch_meter.py": "targets/test_meters.py",
    "compiler/tracing/answers.py": "tracing/test_either_way.py",
    "compiler/tracing/calls.py": "tracing/test_trace.py",
    "compiler/tracing/constant_folding.py": "tracing/test_trace.py",
    "compiler/tracing/data_dependent.py": "tracing/test_trace.py",
    "compiler/tracing/joint_graph.py": "tracing/test_both_modes.py",
    "compiler/tracing/lowering.py": "tracing/test_trace.py",
    "compiler/tracing/parametrizations.py": "end_to_end/test_as_they_are.py",
    "compiler/tracing/patches.py": "tracing/test_tracer.py",
    "compiler/tracing/shape_inference.py": "tracing/test_trace.py",
    "compiler/tracing/rebinding.py": "tracing/test_meta_model.py",
    "compiler/verify/names.py": "verify/test_verify.py",
    "compiler/verify/ops/concat.py": "verify/test_verify.py",
    "compiler/verify/ops/conv.py": "verify/test_verify.py",
    "compiler/verify/ops/distance.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/elementwise.py": "verify/test_verify.py",
    "compiler/verify/ops/expand.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/fft.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/gather_scatter.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/image.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/indexing.py": "verify/test_verify.py",
    "compiler/verify/ops/linear.py": "verify/test_verify.py",
    "compiler/verify/ops/matmul.py": "verify/test_verify.py",
    "compiler/verify/ops/norm.py": "verify/test_verify.py",
    "compiler/verify/ops/pooling.py": "verify/test_verify.py",
    "compiler/verify/ops/reduction.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/reshape.py": "verify/test_verify.py",
    "compiler/verify/ops/rnn.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/setitem.py": "end_to_end/test_patterns_of_models.py",
    "compiler/verify/ops/shuffle.py": "ops/test_shuffle.py",
    "compiler/version.py": "cli/test_main.py",
    "models/convnet.py": "models/test_models.py",
    "models/densenet.py": "models/test_models.py",
    "models/mobilenet.py": "models/test_models.py",
    "models/digits.py": "models/test_models.py",
    "models/example.py": "models/test_models.py",
    "models/idx.py": "models/test_data.py",
    "models/mlp.py": "models/test_models.py",
    "models/preact_resnet.py": "models/test_models.py",
    "models/resnet.py": "models/test_models.py",
    "models/train.py": "models/test_models.py",
    "models/vgg.py": "models/test_models.py",
    "compiler/task/outputs.py": "task/test_losses.py",
    "passes/training/scoring.py": "passes/test_finetune.py",
    "passes/training/base.py": "passes/test_finetune.py",
    "passes/training/distill.py": "passes/test_finetune.py",
    "passes/training/freezing.py": "passes/test_finetune.py",
    "passes/training/loop.py": "passes/test_finetune.py",
    "passes/training/options.py": "passes/test_finetune.py",
    "passes/calibration/trials.py": "passes/studies/test_rank.py",
    "passes/criteria/base.py": "passes/test_score.py",
    "passes/criteria/class_evidence.py": "passes/test_class_evidence.py",
    "passes/criteria/torch_pruning.py": "passes/test_score.py",
    "passes/selection/exchange.py": "passes/selection/test_knapsack.py",
    "passes/repairing/calls.py": "passes/test_repair.py",
    "passes/repairing/layers.py": "passes/test_repair.py",
    "passes/repairing/refit.py": "passes/test_repair.py",
    "passes/repairing/rows.py": "passes/test_repair.py",
    "passes/repairing/walk.py": "passes/test_repair.py",
    "passes/shrink.py": "rewrite/test_shrink.py",
    "passes/studies/commands.py": "passes/studies/test_sensitivity.py",
    "passes/studies/pictures.py": "passes/studies/test_sensitivity.py",
    "passes/studies/run.py": "passes/studies/test_sensitivity.py",
    "passes/studies/subject.py": "passes/studies/test_sensitivity.py",
    "passes/studies/tables.py": "passes/studies/test_sensitivity.py",
}
"""Modules without a test file of their own -> the file in `tests/` that tests them."""

WHOLE = {
    "models/test_models.py": "networks of several files, against one table of published counts",
    "targets/test_meters.py": "every runtime alike",
    "targets/test_runtimes.py": "every runtime alike",
    "test_layout.py": "the house",
}
"""Test files that are of no one module, and what they are of; so are those in `APART`."""

APART = ("end_to_end/", "support/", "thirdparty/")


def home(module: str) -> str:
    """The test file of a module: `compiler/ir/sizes.py` has `ir/test_sizes.py`, in `tests/`."""
    path = Path(module.removeprefix("compiler/"))
    return path.with_name(f"test_{path.name}").as_posix()


def faults(modules: set[str], files: set[str], rows: dict[str, str]) -> list[str]:
    """Modules that nothing tests, rows that say what isn't so, and tests that lie where nobody looks for them."""
    homes = {home(module) for module in modules}
    strangers = {file for file in files - homes - WHOLE.keys() if not file.startswith(APART)}
    return sorted((
        *(f"{m} has neither tests/{home(m)} nor a row" for m in modules - rows.keys() if home(m) not in files),
        *(f"the row of {m}: there is no such module" for m in rows.keys() - modules),
        *(f"the row of {m}: it has a test of its own" for m in rows if home(m) in files),
        *(f"the row of {m}: there is no tests/{file}" for m, file in rows.items() if file not in files),
        *(f"tests/{file} is named like no module" for file in strangers),
    ))  # fmt: skip


def found_in(folder: str, pattern: str, start: Path) -> set[str]:
    """The files below a folder, as paths from `start`."""
    return {path.relative_to(start).as_posix() for path in (ROOT / folder).rglob(pattern)}


MODULES = {module for name in FOLDERS for module in found_in(name, "*.py", ROOT) if not module.endswith("__init__.py")}
TESTS = found_in("tests", "test_*.py", ROOT / "tests")


def test_every_module_has_a_test_of_its_own_or_a_row():
    assert len(MODULES) > 150
    assert faults(MODULES, TESTS, TESTED_ELSEWHERE) == []
    assert WHOLE.keys() <= TESTS


UNTESTED = {
    "a new module": (
        {"compiler/ir/new.py"},
        set(),
        {},
        "has neither tests/ir/test_new.py nor a row",
    ),
    "a new method": ({"passes/new.py"}, set(), {}, "has neither tests/passes/test_new.py nor a row"),
    "a module that is gone": (set(), set(), {"models/old.py": "models/test_models.py"}, "there is no such module"),
    "a test by now": ({"models/a.py"}, {"models/test_a.py"}, {"models/a.py": "models/test_data.py"}, "of its own"),
    "a test that is gone": ({"models/a.py"}, set(), {"models/a.py": "test_gone.py"}, "there is no tests/test_gone.py"),
    "a test that nobody finds": (set(), {"ir/test_old.py"}, {}, "tests/ir/test_old.py is named like no module"),
    "a test in another folder": (set(), {"test_sizes.py"}, {}, "tests/test_sizes.py is named like no module"),
}


@pytest.mark.parametrize(("modules", "files", "rows", "fault"), UNTESTED.values(), ids=UNTESTED)
def test_a_hole_in_the_table_is_found(modules, files, rows, fault):
    (found,) = faults(MODULES | modules, TESTS | files, TESTED_ELSEWHERE | rows)
    assert fault in found


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = (file.parent for top in ("compiler", "passes", "models") for file in (ROOT / top).rglob("__init__.py"))
    assert sorted(listed) == sorted(".".join(("prunec", *folder.relative_to(ROOT).parts)) for folder in folders)


def _missing(name: str) -> bool:
    """Whether there is no such function as `prunec.folder.module:function`."""
    module, function = name.removeprefix("prunec.").split(":")
    file = ROOT / f"{module.replace('.', '/')}.py"
    held = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    return not any(isinstance(part, ast.FunctionDef) and part.name == function for part in held)


def test_functions_that_other_processes_call_by_name_are_there():
    """Their modules import extras, so that nothing else finds a name that is wrong before the extra is installed."""
    parts = [
        part
        for folder in ("compiler", "passes")
        for file in (ROOT / folder).rglob("*.py")
        for part in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    names = {part.value for part in parts if re.fullmatch(r"prunec(\.\w+)+:\w+", part.value)}
    assert "prunec.compiler.targets.coreml_convert:convert" in names
    assert not [name for name in names if _missing(name)]


@pytest.mark.parametrize("name", ["targets.gone:convert", "targets.coreml_convert:gone"])
def test_a_name_that_is_wrong_is_found(name):
    assert _missing(f"prunec.compiler.{name}")
