"""What a compile gained, measured on both models in one process: file sizes and latency."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from prunec.compiler.emit.python import save_weights
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plan.schema import OnnxExport
from prunec.compiler.report.report import Change, OnnxFindings
from prunec.compiler.targets.onnx_export import export_onnx, onnx_bytes
from prunec.compiler.targets.ort_session import ort_latency


def write_onnx(
    before: Program, after: Program, path: Path, export: OnnxExport, progress: Progress = silent
) -> OnnxFindings:
    """Write the slim model's ONNX file, and compare its size and latency with the original's."""
    with TemporaryDirectory() as folder:
        old = Path(folder) / "before.onnx"
        progress("onnx", 0, 3)
        new_report = export_onnx(after, path, opset=export.opset, dynamic=export.dynamic)
        progress("onnx", 1, 3)
        old_report = export_onnx(before, old, opset=export.opset, dynamic=export.dynamic)
        progress("onnx", 2, 3)
        latency = Change(*ort_latency((old, path), before.deployed.inputs))
        progress("onnx", 3, 3)
    return OnnxFindings(Change(old_report, new_report), latency)


def measure_latency(before: Program, after: Program) -> Change[float]:
    """Both programs' latency in onnxruntime, in seconds, where no ONNX file is asked for."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in ("before", "after")]
        for path, program in zip(paths, (before, after), strict=True):
            path.write_bytes(onnx_bytes(program))
        return Change(*ort_latency(paths, before.deployed.inputs))


def weights_size(program: Program) -> int:
    """The bytes of the program's safetensors file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(program, path)
        return path.stat().st_size
