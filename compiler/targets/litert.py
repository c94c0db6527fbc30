"""LiteRT, once TensorFlow Lite: one file, which `litert_torch` writes from what torch exports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.child import in_child, saved
from prunec.compiler.targets.flat import saved_flat


class LiteRT(Target):
    """Runs on XNNPACK by default, as ExecuTorch does: output channels in tiles of 8 or 16."""

    name = "litert"
    multiple = 16
    suffixes = (".tflite",)
    extra = "litert"
    needs = ("ai-edge-litert>=2.3", "litert-torch>=0.10")

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """Of the example's sizes: with an open batch the converter can't flatten."""
        with TemporaryDirectory() as folder:
            in_child("prunec.compiler.targets.litert_convert:convert", saved_flat(program, Path(folder)), path)
        return Converted(batch_of(program.inputs))

    def quantize(
        self, program: Program, path: Path, to: Path, options: ExportOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By LiteRT's quantiser, which works on the float32 file. Inputs and outputs stay float32."""
        assert options.int8 is not None, "int8 was asked for"
        names = sorted(LiteRTSession(path, 1).types, key=_place)
        places = [_place(name) for name in names]
        with TemporaryDirectory() as folder:
            files = saved([[sample[place] for place in places] for sample in samples], Path(folder))
            function = "prunec.compiler.targets.litert_int8:quantize_litert"
            in_child(function, path, to, names, files, options.int8.per_channel)

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
