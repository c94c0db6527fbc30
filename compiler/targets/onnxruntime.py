"""onnxruntime on the CPU: executes ONNX files (`onnx_file.py`) and ORT files (`ort.py`), and measures models."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime

from prunec.compiler.targets.base import Feed, Meter, Profile, Target
from prunec.compiler.targets.ort_session import THREADS, latency, profile, session
from prunec.compiler.targets.processor import processor


class OnnxRuntimeMeter:
    """Measures in onnxruntime on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset({"ReorderInput", "ReorderOutput"})

    def __init__(self) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__}, {processor()}, {THREADS} thread"

    def profile(self, models: Sequence[bytes], feeds: Sequence[Feed], rounds: int) -> Sequence[Profile]:
        """Every model's nodes, as onnxruntime's own profiler counts their time."""
        return profile(models, feeds, rounds=rounds)

    def seconds(self, model: bytes, feed: Feed) -> float:
        """One run as seen from outside: of many, the lower quartile."""
        (found,) = latency([session(model)], [feed])
        return found


class OnnxRuntime(Target):
    """Its CPU kernels, MLAS, keep channels in blocks (NCHWc) and pad the last: of 8 with AVX, of 16 with AVX-512
    (`MlasNchwcGetBlockSize`). A grouped convolution with less than a block to a group isn't blocked at all."""

    name = "onnxruntime"
    multiple = 16

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        return OnnxRuntimeMeter()
