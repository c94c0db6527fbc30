"""Core ML, the runtime of Apple's devices: a package, which `coremltools` writes from what torch exports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Session, Target
from prunec.compiler.targets.child import in_child
from prunec.compiler.targets.flat import pixels_as_floats, saved_flat

_TYPES = (torch.float32, torch.float16, torch.int32, torch.int64, torch.bool)
"""Types of inputs that it can be handed; truth values as float32, and whole numbers as int32."""
_CONVERT: Final = "prunec.compiler.targets.coreml_convert:convert"
_QUANTIZE: Final = "prunec.compiler.targets.coreml_convert:quantize"
_MACOS = sys.platform == "darwin"


class CoreML(Target):
    """Apple names no number of channels that its neural engine prefers. 16 is two SIMD vectors in half precision."""

    name = "coreml"
    multiple = 16
    suffixes = (".mlpackage",)
    extra = "coreml"
    needs = ("coremltools>=9.0",)

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """An ML program of the example's sizes for iOS 16 and macOS 13, in float32."""
        from prunec.compiler.targets.onnx_export import input_names, output_names  # noqa: PLC0415

        inputs = pixels_as_floats(tuple(tensors_in(program.inputs)))
        strange = [value.dtype for value in inputs if value.dtype not in _TYPES]
        if strange:
            raise TargetError(f"Core ML takes no input of {strange[0]}", hint="make it float32")
        inputs = tuple(value.float() if value.dtype == torch.bool else value for value in inputs)
        with TemporaryDirectory() as folder:
            source = saved_flat(program, Path(folder), inputs)
            names = input_names(program), output_names(program.graph)
            in_child(_CONVERT, source, path, *names)
        return Converted(batch_of(program.inputs))

    def quantize(
        self, program: Program, path: Path, to: Path, options: ExportOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """The weights alone, by Core ML's own tools: values stay as they are, and so samples change nothing."""
        assert options.int8 is not None, "int8 was asked for"
        in_child(_QUANTIZE, path, to, options.int8.per_channel)

    def load(self, path: Path, threads: int) -> Session:
        """The package on the CPU; Core ML decides on the threads itself."""
        return CoreMLSession(path)

    def unrunnable(self) -> str:
        """Off macOS there is no Core ML."""
        return "" if _MACOS else "Core ML runs on macOS alone; the structure of the package was checked"

    def describe(self) -> str:
        """The version of the tools; the runtime has that of the system."""
        return f"Core ML by coremltools {version('coremltools')}"


class CoreMLSession:
    """A package that Core ML has loaded."""

    def __init__(self, path: Path) -> None:
        import coremltools  # noqa: PLC0415  (an extra)

        self._model: Any = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        described = self._model.get_spec().description
        self._inputs = [entry.name for entry in described.input]
        self._outputs = [entry.name for entry in described.output]

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Inputs and outputs by their names; pixels and truth values are float32."""
        fed = [value.astype(np.float32) if value.dtype in (np.uint8, np.bool_) else value for value in inputs]
        found = self._model.predict(dict(zip(self._inputs, fed, strict=True)))
        return [np.asarray(found[name]) for name in self._outputs]
