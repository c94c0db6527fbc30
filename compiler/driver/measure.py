"""What a compile gained, measured on both models in one process: accuracy, file sizes, latency."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from prunec.compiler.emit.python import save_weights
from prunec.compiler.errors import DataError
from prunec.compiler.ir.inputs import called, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Data, Progress, batches_of, silent
from prunec.compiler.plan.schema import OnnxExport
from prunec.compiler.report.report import Change, OnnxFindings
from prunec.compiler.targets.onnx_export import export_onnx, onnx_bytes
from prunec.compiler.targets.ort_session import ort_latency
from prunec.compiler.user_code import running


def accuracy(module: nn.Module, batches: Iterable[Any], progress: Progress = silent) -> float:
    """The share of samples whose largest output is at their label. Raises `DataError` where the data don't fit."""
    batches, right, total = list(batches), 0, 0
    with torch.no_grad():
        for index, (inputs, labels) in enumerate(batches):
            progress("accuracy", index, len(batches))
            shapes = " and ".join(str(list(x.shape)) for x in tensors_in(inputs))
            with running(f"the model can't take the data's batches, of shape {shapes}", DataError):
                outputs = called(module, inputs)
            if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
                raise DataError("accuracy needs a model with one output [samples, classes]", hint="leave out data")
            right += int((outputs.argmax(1) == labels).sum())
            total += len(labels)
    progress("accuracy", len(batches), len(batches))
    if not total:
        raise DataError("the data's test split is empty")
    return right / total


def compare_accuracy(before: nn.Module, after: nn.Module, data: Data, progress: Progress = silent) -> Change[float]:
    """Both models' accuracy on the test split."""
    return Change(before, after).each(lambda module: accuracy(module, batches_of(data, "test"), progress))


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
