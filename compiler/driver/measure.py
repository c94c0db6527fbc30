"""What a compile gained, measured on both models in one process: file sizes and latency.

The original is converted only to be weighed and timed, so its file is neither written nor checked. In both files the
sizes that may vary are fixed while they are timed: so the runtime plans both alike.
"""

from __future__ import annotations

from pathlib import Path

from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plan.schema import OnnxExport
from prunec.compiler.report.report import Change, OnnxFindings
from prunec.compiler.targets.onnx_export import export_onnx, onnx_bytes
from prunec.compiler.targets.ort_session import ort_latency


def write_onnx(
    before: Program,
    after: Program,
    path: Path,
    export: OnnxExport,
    progress: Progress = silent,
    *,
    quick: bool = False,
) -> OnnxFindings:
    """Write the slim model's ONNX file, and compare its size and latency with the original's, unless it is `quick`."""
    steps = 1 if quick else 3
    progress("onnx", 0, steps)
    slim = export_onnx(after, path, opset=export.opset, dynamic=export.dynamic)
    progress("onnx", 1, steps)
    if quick:
        return OnnxFindings(slim)
    original = onnx_bytes(before, export.opset)
    progress("onnx", 2, steps)
    inputs = before.deployed.inputs
    latency = Change(*ort_latency((original, path), inputs, sizes=_sizes(inputs)))
    progress("onnx", 3, steps)
    return OnnxFindings(slim, len(original), latency)


def measure_latency(before: Program, after: Program) -> Change[float]:
    """Both programs' latency in onnxruntime, in seconds, where no ONNX file is asked for."""
    return Change(*ort_latency([onnx_bytes(program) for program in (before, after)], before.deployed.inputs))


def _sizes(inputs: tuple[object, ...]) -> dict[str, int]:
    """The sizes that a file may leave open, as these inputs have them."""
    batch = batch_of(inputs)
    sizes = {} if batch is None else {"batch": batch}
    image = next((tensor.shape for tensor in tensors_in(inputs) if tensor.ndim == 4), None)
    return sizes if image is None else {**sizes, "height": image[2], "width": image[3]}
