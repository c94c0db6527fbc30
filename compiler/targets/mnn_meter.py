"""Times in MNN: its interpreter calls back before each operation and behind it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import NodeTime, Profile
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.metering import OneThread, Times, converted, turns

_ONNX: Final[Mapping[str, str]] = {
    **{"Convolution": "Conv", "ConvolutionDepthwise": "Conv", "Convolution3D": "Conv"},
    **{"Deconvolution": "ConvTranspose", "DeconvolutionDepthwise": "ConvTranspose"},
    **{"BatchMatMul": "MatMul", "InnerProduct": "Gemm"},
}
"""MNN's type of an operation -> ONNX's name, of what multiplies."""


class MnnMeter(OneThread):
    """Measures in MNN on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset({"ConvertTensor", "Raster"})

    def profile(self, program: Program, seconds: float) -> Profile:
        """The operations; inputs hold what MNN puts there, since times don't depend on it."""
        with TemporaryDirectory() as folder, captured():
            path = converted(self.target, program, Path(folder))
            import MNN  # noqa: PLC0415  (an extra)

            found = _Found()
            interpreter = MNN.Interpreter(str(path))
            session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": 1})
            interpreter.getSessionInputAll(session)  # so that MNN knows its own class of tensors
            for _ in turns(seconds):
                interpreter.runSessionWithCallBackInfo(session, found.before, found.behind)
        return tuple(NodeTime(*found.kinds[name], took, name) for name, took in found.times.low().items())


class _Found:
    """What the callbacks have seen."""

    def __init__(self) -> None:
        self.times = Times()
        self.kinds: dict[str, tuple[str, int]] = {}
        self._start = 0.0

    def before(self, tensors: Sequence[Any], operation: Any) -> bool:
        """An operation is about to run."""
        self._start = time.perf_counter()
        return True

    def behind(self, tensors: Sequence[Any], operation: Any) -> bool:
        """An operation has run; the tensors are its outputs."""
        took, name, kind = time.perf_counter() - self._start, operation.getName(), operation.getType()
        self.times.add(name, took)
        if name not in self.kinds:
            self.kinds[name] = _ONNX.get(kind, kind), sum(math.prod(tensor.getShape()) for tensor in tensors)
        return True
