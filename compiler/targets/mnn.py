"""MNN, Alibaba's runtime for phones: one file, which its compiled converter writes from ONNX."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Session, Target


class Mnn(Target):
    """Keeps feature maps as NC4HW4: four channels lie together, and the last four are padded."""

    name = "mnn"
    multiple = 4
    suffixes = (".mnn",)
    extra = "mnn"
    needs = ("MNN>=3.6",)
    tolerance = 1e-4
    """Its exponential, and all that is made of it, is an approximation."""

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """By way of an ONNX file, whose batch stays open where the model allows it. The converter has a process of its
        own, for it crashes on some models."""
        from prunec.compiler.targets.onnx_export import export_onnx  # noqa: PLC0415  (imports onnxruntime)
        from prunec.compiler.targets.sources import fixed_batch  # noqa: PLC0415

        with TemporaryDirectory() as folder:
            source, written = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
            report = export_onnx(program, source)
            command = [sys.executable, "-m", "prunec.compiler.targets.mnn_convert", str(source), str(written)]
            found = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            log = found.stdout + found.stderr
            if found.returncode < 0:
                raise TargetError(f"its converter crashes: {signal.Signals(-found.returncode).name}", log=log)
            lacking = re.search(r"These Op Not Support: (.*)", log)
            if lacking:
                raise TargetError(f"MNN has no form of the operation '{lacking[1].strip()}'", log=log)
            if not written.exists() or not written.stat().st_size:
                raise TargetError("its converter writes no file", log=log)
            path.write_bytes(_without_chance(written))
        return Converted(fixed_batch(program, report), report.static_reason and f"fixed batch: {report.static_reason}")

    def load(self, path: Path, threads: int) -> Session:
        """The file in MNN, with all arithmetic in float32."""
        return MnnSession(path, threads)

    def describe(self) -> str:
        """MNN's version."""
        return f"MNN {version('MNN')}"


class MnnSession:
    """A file that MNN has loaded."""

    def __init__(self, path: Path, threads: int) -> None:
        import MNN  # noqa: PLC0415  (an extra)

        self._expr: Any = MNN.expr
        runtime = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": threads},))
        self._net: Any = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)
        if self._net is None:
            raise TargetError("MNN can't load the file")
        self._runtime = runtime

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Whole numbers are int32 in MNN."""
        expr = self._expr
        values = []
        for given in inputs:
            whole = given.dtype.kind in "iub"
            held = np.ascontiguousarray(given, np.int32 if whole else np.float32)
            values.append(expr.const(held, list(held.shape), expr.NCHW, expr.int if whole else expr.float))
        found = self._net.forward(values)
        return [np.array(self._plain(value).read()) for value in found]

    def _plain(self, value: Any) -> Any:
        """A value in the order of its dimensions."""
        expr = self._expr
        return expr.convert(value, expr.NCHW) if value.data_format == expr.NC4HW4 else value


def _without_chance(written: Path) -> bytes:
    """The file's bytes; a random identity that the converter puts in becomes one that follows from the rest."""
    import MNN  # noqa: PLC0415  (an extra)

    found = MNN.get_model_uuid(str(written)).encode()
    held = written.read_bytes()
    if not found or held.count(found) != 1:
        return held
    rest = hashlib.sha256(held.replace(found, b"")).digest()
    return held.replace(found, str(uuid.UUID(bytes=rest[:16], version=4)).encode())
