"""OpenVINO on the CPU: its IR, `model.xml` with the weights in `model.bin`, made from the ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.nn.functional as F

from prunec.compiler.ir.program import Program
from prunec.compiler.targets import openvino_convert
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.child import in_child, saved
from prunec.compiler.targets.openvino_session import OpenVinoSession, openvino_quietly


class OpenVinoOptions(ExportOptions):
    """Write `model.xml` and `model.bin`."""


class OpenVino(Target):
    """Its convolutions are oneDNN's, which keep channels in blocks, as many as a vector register holds: 8 floats with
    AVX2, 16 with AVX-512 (`nChw8c`, `nChw16c`). 16 serves both."""

    name = "openvino"
    multiple = 16
    suffixes = (".xml", ".bin")
    Options = OpenVinoOptions
    extra = "openvino"
    needs = ("openvino>=2026.0",)
    int8_needs = ("nncf>=3.0",)

    def convert(self, program: Program, path: Path, options: OpenVinoOptions) -> Converted:
        """By way of an ONNX file, whose batch stays open where the model allows it."""
        from prunec.compiler.targets.onnx_export import export_onnx  # noqa: PLC0415  (imports onnxruntime)
        from prunec.compiler.targets.sources import from_onnx  # noqa: PLC0415

        with TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            report = export_onnx(program, source)
            in_child(f"{openvino_convert.__name__}:convert", source, path)
        return from_onnx(program, report)

    def load(self, path: Path, threads: int) -> Session:
        """The IR compiled for this CPU; without a hint it computes in bfloat16 where the processor can."""
        return OpenVinoSession(path, threads)

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.openvino_meter import OpenVinoMeter  # noqa: PLC0415  (imports onnxruntime)

        return OpenVinoMeter(self, openvino_quietly)

    def describe(self) -> str:
        """OpenVINO's version."""
        return f"OpenVINO {version('openvino')}"

    def quantize(
        self, program: Program, path: Path, to: Path, options: OpenVinoOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By NNCF's post-training quantisation, which always has a scale for each channel of a weight."""
        transformer = any(node.target is F.scaled_dot_product_attention for node in program.graph.nodes)
        with TemporaryDirectory() as folder:
            in_child(f"{openvino_convert.__name__}:quantize", path, to, saved(samples, Path(folder)), transformer)
