"""onnxruntime on the CPU: executes ONNX files (`onnx_file.py`) and ORT files (`ort.py`), and measures models."""

from __future__ import annotations

from functools import partial

import onnxruntime

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Meter, Profile, Target
from prunec.compiler.targets.interleaved import Run
from prunec.compiler.targets.onnx_export import onnx_bytes, onnx_feed
from prunec.compiler.targets.ort_session import THREADS, profile, session
from prunec.compiler.targets.processor import processor


class OnnxRuntimeMeter:
    """Measures in onnxruntime on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset({"ReorderInput", "ReorderOutput"})

    def __init__(self) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__}, {processor()}, {THREADS} thread"

    def profile(self, program: Program, seconds: float) -> Profile:
        """The nodes, as onnxruntime's own profiler counts their time."""
        model = onnx_bytes(program)
        (found,) = profile([model], [onnx_feed(model, program)], rounds=1, block=seconds)
        return found

    def loaded(self, program: Program) -> Run:
        """A session of the program's ONNX file."""
        model = onnx_bytes(program)
        return partial(session(model).run, None, onnx_feed(model, program))


class OnnxRuntime(Target):
    """Its CPU kernels, MLAS, keep channels in blocks (NCHWc) and pad the last: of 8 with AVX, of 16 with AVX-512
    (`MlasNchwcGetBlockSize`). A grouped convolution with less than a block to a group isn't blocked at all."""

    name = "onnxruntime"
    multiple = 16

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        return OnnxRuntimeMeter()
