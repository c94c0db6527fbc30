"""MNN, Alibaba's runtime for phones: one file, which its compiled converter writes from ONNX."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import with_batch
from prunec.compiler.targets import mnn_convert
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.child import in_child, tried
from prunec.compiler.targets.mnn_session import MnnSession

if TYPE_CHECKING:
    from prunec.compiler.targets.onnx_export import OnnxReport

_OPSET: Final = 18
"""It has no operator for GELU. Where there is one, MNN approximates it, and a Transformer is off by 3e-4."""
BATCHES: Final = (1, 3)
"""Batch sizes that an open file is tried at, beside the example's."""


class Mnn(Target):
    """Keeps feature maps as NC4HW4: four channels lie together, and the last four are padded."""

    name = "mnn"
    multiple = 4
    suffixes = (".mnn",)
    extra = "mnn"
    needs = ("MNN>=3.6",)
    tolerance = 1e-4
    """Its convolutions by Winograd's algorithm are off by several 1e-5."""

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """By way of an ONNX file, whose batch stays open where the model, and MNN, allow it."""
        return self._written(program, path)

    def quantize(
        self, program: Program, path: Path, to: Path, options: ExportOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """The weights alone, with a scale for each channel: MNN takes the ranges of activations from each run."""
        self._written(program, to, "--weightQuantBits", "8")

    def _written(self, program: Program, path: Path, *more: str) -> Converted:
        """Write the file with an open batch, or with a fixed one where it doesn't run with others."""
        report = self._convert(program, path, ("batch",), *more)
        why = report.static_reason
        if report.dynamic_batch:
            own = batch_of(program.inputs) or 1
            try:
                tried(MnnSession, path, [_arrays(with_batch(program, size)) for size in (own, *BATCHES, own)])
                return Converted(None)
            except TargetError:
                why = "its runtime crashes when the batch changes"
                self._convert(program, path, (), *more)
        tried(MnnSession, path, [_arrays(program.inputs)])
        return Converted(batch_of(program.inputs), f"fixed batch: {why}")

    def _convert(self, program: Program, path: Path, dynamic: Sequence[str], *more: str) -> OnnxReport:
        """Write the file with these sizes open. The converter has a process of its own: it crashes on some models."""
        from prunec.compiler.targets.onnx_export import export_onnx  # noqa: PLC0415  (imports onnxruntime)

        with TemporaryDirectory() as folder:
            source, written = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
            report = export_onnx(program, source, opset=_OPSET, dynamic=dynamic)
            log = in_child(f"{mnn_convert.__name__}:convert", source, written, *more, once=True).log
            lacking = re.search(r"These Op Not Support: (.*)", log)
            if lacking:
                raise TargetError(f"MNN has no form of the operation '{lacking[1].strip()}'", log=log)
            if not written.exists() or not written.stat().st_size:
                raise TargetError("its converter writes no file", log=log)
            path.write_bytes(_without_chance(written))
        return report

    def load(self, path: Path, threads: int) -> Session:
        """The file in MNN, with all arithmetic in float32."""
        return MnnSession(path, threads)

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.mnn_meter import MnnMeter  # noqa: PLC0415  (imports onnxruntime)

        return MnnMeter(self)

    def describe(self) -> str:
        """MNN's version."""
        return f"MNN {version('MNN')}"


def _arrays(inputs: Any) -> list[Array]:
    return [value.detach().numpy(force=True) for value in tensors_in(inputs)]


def _without_chance(written: Path) -> bytes:
    """The file's bytes; a random identity that the converter puts in becomes one that follows from the rest."""
    import MNN  # noqa: PLC0415  (an extra)

    found = MNN.get_model_uuid(str(written)).encode()
    held = written.read_bytes()
    if not found or held.count(found) != 1:
        return held
    rest = hashlib.sha256(held.replace(found, b"")).digest()
    return held.replace(found, str(uuid.UUID(bytes=rest[:16], version=4)).encode())
