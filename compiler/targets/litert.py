"""LiteRT, once TensorFlow Lite: one file, which `litert_torch` writes from what torch exports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.flat import flat


class LiteRT(Target):
    """Runs on XNNPACK by default, as ExecuTorch does: output channels in tiles of 8 or 16."""

    name = "litert"
    multiple = 16
    suffixes = (".tflite",)
    extra = "litert"
    needs = ("ai-edge-litert>=2.3", "litert-torch>=0.10")

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """Of the example's sizes: with an open batch the converter can't flatten."""
        import litert_torch  # noqa: PLC0415  (an extra)

        module, inputs = flat(program)
        litert_torch.convert(module, inputs, strict_export=False).export(str(path))
        return Converted(batch_of(program.inputs))

    def quantize(
        self, program: Program, path: Path, to: Path, options: ExportOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By LiteRT's quantiser, which works on the float32 file. Inputs and outputs stay float32."""
        from prunec.compiler.targets.litert_int8 import quantize_litert  # noqa: PLC0415  (imports an extra)

        assert options.int8 is not None, "int8 was asked for"
        names = sorted(LiteRTSession(path, 1).types, key=_place)
        quantize_litert(path, to, options.int8, [{name: sample[_place(name)] for name in names} for sample in samples])

    def load(self, path: Path, threads: int) -> Session:
        """The file in LiteRT's interpreter."""
        return LiteRTSession(path, threads)

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.litert_meter import LiteRTMeter  # noqa: PLC0415  (imports onnxruntime)

        return LiteRTMeter(self)

    def describe(self) -> str:
        """LiteRT's version."""
        return f"LiteRT {version('ai-edge-litert')}"


class LiteRTSession:
    """A file that LiteRT has loaded."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  (an extra)

        self._interpreter: Any = Interpreter(str(path), num_threads=threads)
        self._run: Any = self._interpreter.get_signature_runner()
        self.types = {name: found["dtype"] for name, found in self._run.get_input_details().items()}

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Inputs and outputs by the numbers in their names: args_0, output_0."""
        fed = {name: np.ascontiguousarray(inputs[_place(name)], kind) for name, kind in self.types.items()}
        found = self._run(**fed)
        return [found[name] for name in sorted(found, key=_place)]


def _place(name: str) -> int:
    return int(re.findall(r"\d+", name)[-1])
