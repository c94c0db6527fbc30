"""What a compile gained, measured on both models in one process: file sizes and latency.

The original is converted only to be weighed and timed, so its file is neither written nor checked. In both files the
sizes that may vary are fixed while they are timed: so the runtime plans both alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx

from prunec.compiler.driver.slow_layers import slow_layers
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.report.report import Change, KeptFindings, OnnxFindings
from prunec.compiler.targets.exporting import TargetReport
from prunec.compiler.targets.onnx.call import Declined
from prunec.compiler.targets.onnx_export import (
    OnnxReport,
    comparable_bytes,
    data_of,
    direct_bytes,
    export_onnx,
    is_too_large,
)
from prunec.compiler.targets.onnx_file import OnnxOptions
from prunec.compiler.targets.ort_session import ort_latency, wall_latency
from prunec.compiler.targets.timing import runs_in_turns

SECONDS: Final = 0.5
"""For about so long each file is timed with two threads."""


def write_onnx(
    before: Program,
    after: Program,
    path: Path,
    export: OnnxOptions,
    progress: Progress = silent,
    *,
    quick: bool = False,
    by_latency: bool = False,
    classes: KeptFindings | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OnnxFindings:
    """Write the slim model's ONNX file, and compare its size and latency with the original's, unless it is `quick`.

    `by_latency` is that of `slow_layers`. `classes` and `metadata` stand in the file's metadata.
    """
    steps = 1 if quick else 3
    progress("onnx", 0, steps)
    kept = {} if classes is None else {"classes": json.dumps(classes.kept), "class_names": json.dumps(classes.names)}
    said = {**{key: text for key, text in kept.items() if text != "[]"}, **(metadata or {})}
    slim = export_onnx(after, path, opset=export.opset, dynamic=export.dynamic, metadata=said, weights=export.weights)
    progress("onnx", 1, steps)
    if quick or is_too_large(before):
        progress("onnx", steps, steps)
        return OnnxFindings(slim)
    original, beside = _alike(before, after, path, slim)
    progress("onnx", 2, steps)
    inputs = before.deployed.inputs
    sizes = _sizes(inputs)
    latency = Change(*ort_latency((original, beside), inputs, sizes=sizes))
    both = Change(*wall_latency((original, beside), inputs, 2, SECONDS))
    files = Change(original, beside if isinstance(beside, bytes) else _whole(beside))
    slow = slow_layers(Change(before, after), files, latency, sizes, by_latency=by_latency)
    progress("onnx", 3, steps)
    return OnnxFindings(slim, len(original), latency, slow, both)


def _whole(path: Path) -> bytes:
    """An ONNX file with its weights in it."""
    return bytes(onnx.load(path).SerializeToString()) if data_of(path).exists() else path.read_bytes()


def _alike(before: Program, after: Program, path: Path, slim: OnnxReport) -> tuple[bytes, bytes | Path]:
    """Models of the original and of the slim program by one writer, so that their times compare: beside the slim file
    one like it, and where the original can't be written so, both by torch's exporter."""
    if slim.writer == "torch":
        (original,) = comparable_bytes([before], slim.opset, writer="torch")
        return original, path
    try:
        return direct_bytes(before, slim.opset), path
    except Declined:
        original, beside = comparable_bytes([before, after], slim.opset, writer="torch")
        return original, beside


def measure_latency(before: Program, after: Program) -> tuple[Change[float], str]:
    """Both programs' latency in onnxruntime, in seconds, where no ONNX file is asked for; and the warning of
    `slow_layers`, for a selection that went by latency."""
    files = Change(*comparable_bytes([before, after]))
    sizes = _sizes(before.deployed.inputs)
    latency = Change(*ort_latency((files.before, files.after), before.deployed.inputs, sizes=sizes))
    return latency, slow_layers(Change(before, after), files, latency, sizes, by_latency=True)


def latency_of(runtime: str, rows: Sequence[TargetReport], before: Program, after: Program) -> Change[float] | None:
    """Both programs' latency in another runtime, with one thread: of its export, where there is one (None where that
    has failed), or measured now."""
    for row in rows:
        if row.target == runtime:
            timed = next((each for each in row.latency if each.threads == 1 and each.dense is not None), None)
            return Change(timed.dense, timed.slim) if timed and timed.dense is not None else None
    return Change(*runs_in_turns(runtime, [before, after]))


def _sizes(inputs: tuple[object, ...]) -> dict[str, int]:
    """The sizes that a file may leave open, as these inputs have them."""
    batch = batch_of(inputs)
    sizes = {} if batch is None else {"batch": batch}
    image = next((tensor.shape for tensor in tensors_in(inputs) if tensor.ndim == 4), None)
    return sizes if image is None else {**sizes, "height": image[2], "width": image[3]}
