"""ORT files: onnxruntime's own format, which its minimal builds for phones read, with the operators that it needs.

model.ort                                 the graph, optimised for any processor
model.required_operators.config           for `build.sh --minimal_build --include_ops_by_config`
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Session, Target, yes_or_options
from prunec.compiler.targets.child import in_child, saved
from prunec.compiler.targets.onnx_file import QUANTIZE, OrtInt8, OrtSession

_CONVERT: Final = "prunec.compiler.targets.ort_convert:convert"


class OrtOptions(ExportOptions):
    """Write `model.ort` and the operators that it needs."""

    opset: Annotated[StrictInt, Field(ge=18)] = 20
    dynamic: tuple[Literal["batch", "height", "width"], ...] = ("batch",)
    """As of an ONNX file."""
    style: Literal["fixed", "runtime"] = "fixed"
    """`fixed`: optimised once and for all. `runtime`: some optimisations are left to the device, which suits NNAPI and
    Core ML."""
    type_reduction: StrictBool = False
    """Whether the operators are listed with the types that they need: a build by such a list is smaller."""
    int8: Annotated[OrtInt8 | None, BeforeValidator(yes_or_options)] = None


class Ort(Target):
    """onnxruntime on phones: MLAS packs channels in blocks of 16 bytes with NEON, so multiples of 8 do.

    The files are for any processor, so they aren't laid out in the blocks (NCHWc) that kernels of x86 alone have. There
    an ONNX file, which gets them when it is loaded, is twice as fast.
    """

    name = "ort"
    multiple = 8
    runtime = "onnxruntime"
    suffixes = (".ort", ".required_operators.config")
    alone = True
    aside = (".required_operators.config",)
    Options = OrtOptions

    def convert(self, program: Program, path: Path, options: OrtOptions) -> Converted:
        """By way of an ONNX file."""
        from prunec.compiler.targets.onnx_export import export_onnx  # noqa: PLC0415  (imports onnxruntime)
        from prunec.compiler.targets.sources import from_onnx  # noqa: PLC0415

        with TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            report = export_onnx(program, source, opset=options.opset, dynamic=options.dynamic)
            self._convert(source, path, options)
        return from_onnx(program, report)

    def _convert(self, source: Path, path: Path, options: OrtOptions) -> None:
        """An ONNX file as an ORT file, by onnxruntime's own converter."""
        in_child(_CONVERT, source, self.beside(path), options.style, options.type_reduction)

    def load(self, path: Path, threads: int) -> Session:
        """A session of onnxruntime, which tells the format by the file's name, and does what `style: runtime` left."""
        return OrtSession(path, threads, {"session.enable_saved_runtime_optimizations": "1"})

    def describe(self) -> str:
        """onnxruntime's version."""
        return f"onnxruntime {version('onnxruntime')}"

    def quantize(
        self, program: Program, path: Path, to: Path, options: OrtOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """An ONNX file in int8, converted."""
        from prunec.compiler.targets.onnx_export import export_onnx  # noqa: PLC0415  (imports onnxruntime)

        assert options.int8 is not None, "int8 was asked for"
        with TemporaryDirectory() as folder:
            source, made = Path(folder) / "source.onnx", Path(folder) / "model.onnx"
            export_onnx(program, source, opset=options.opset, dynamic=options.dynamic)
            files = saved(samples, Path(folder))
            in_child(QUANTIZE, source, made, options.int8.mode, files, options.int8.per_channel)
            self._convert(made, to, options)
