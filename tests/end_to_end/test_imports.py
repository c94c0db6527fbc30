"""What a command imports: nothing that takes long and isn't used. Each runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SLOW = (
    "matplotlib networkx onnx onnxruntime onnxscript pandas scipy.optimize scipy.stats sklearn sympy torch._dynamo "
    "torch._inductor torch.fx.experimental.symbolic_shapes torch.onnx._internal torchvision"
).split()
PLAN = """\
plan: 1
model: prunec.models.resnet:resnet20
inputs: [[1, 3, 32, 32]]
passes: [score, {select: {budget: {macs: 50%}}}, shrink, fold_bn]
"""
EXPORTED = """\
plan: 1
model: prunec.models.digits:cnn
inputs: [[1, 1, 8, 8]]
passes: [score, {select: {budget: {macs: 50%}}}, shrink, fold_bn]
export: [onnx]
"""
EXPLAIN = ("explain", "prunec.models.resnet:resnet20", "--inputs", "1,3,32,32")
USED = {
    ("--help",): {"torch", "numpy", "scipy"},
    ("compile", "--help"): {"torch", "numpy", "scipy"},
    ("passes",): set(),
    EXPLAIN: set(),
    (*EXPLAIN, "--group", "layer1.0.conv1"): {"networkx"},
    ("ir", *EXPLAIN[1:]): set(),
    ("check", "plan.yaml"): set(),
    ("compile", "plan.yaml"): set(),
    ("compile", "exported.yaml"): {"onnx", "onnxruntime"},
    ("compile", "exported.yaml", "--quick"): {"onnx", "onnxruntime"},
}
"""Command -> what of the slow packages it uses, after all; for the help, what it mustn't import besides them."""


@pytest.mark.parametrize("command", USED, ids=" ".join)
def test_a_command_imports_nothing_slow_that_it_does_not_use(command, tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN, encoding="utf-8")
    (tmp_path / "exported.yaml").write_text(EXPORTED, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from prunec.compiler.cli.main import run; code = run(sys.argv[1:]); "
        "Path('imported').write_text(' '.join(sys.modules), encoding='utf-8'); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = set((tmp_path / "imported").read_text(encoding="utf-8").split())
    assert "prunec.compiler.cli.main" in imported
    unwanted = {*SLOW, *USED[command]} if "--help" in command else {*SLOW} - USED[command]
    assert not imported & unwanted
