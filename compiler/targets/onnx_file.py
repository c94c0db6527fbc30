"""ONNX files, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, StrictInt

from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Int8, Session, Target, yes_or_options
from prunec.compiler.targets.child import in_child, saved

QUANTIZE: Final = "prunec.compiler.targets.ort_int8:quantize_onnx"
"""What quantises an ONNX file, in a process of its own."""


class OrtInt8(Int8):
    """How a file in int8 is made for onnxruntime."""

    mode: Literal["static", "dynamic"] = "static"
    """`static`: weights and activations, whose ranges are calibrated. `dynamic`: the weights of linear layers; ranges
    of activations are taken from each run."""


class OnnxOptions(ExportOptions):
    """Write `model.onnx`."""

    opset: Annotated[StrictInt, Field(ge=18)] = 20
    dynamic: tuple[Literal["batch", "height", "width"], ...] = ("batch",)
    """Sizes that the file leaves open: the batch where the model allows it; height and width, or the export fails."""
    weights: Literal["inside", "beside"] | None = None
    """Whether the weights are in the file, or in `model.onnx.data` beside it; where nothing is said they are there if
    they take over 2 GB, which one file can't hold."""
    int8: Annotated[OrtInt8 | None, BeforeValidator(yes_or_options)] = None


class Onnx(Target):
    """Files that many runtimes read; widths are those that onnxruntime likes, which executes them here."""

    name = "onnx"
    multiple = 16
    runtime = "onnxruntime"
    suffixes = (".onnx",)
    optional = (".onnx.data",)
    alone = True
    Options = OnnxOptions

    def convert(self, program: Program, path: Path, options: OnnxOptions) -> Converted:
        """The file of `export_onnx`, which compares it at several batch sizes on its own as well."""
        from prunec.compiler.targets.onnx_export import export_onnx, write_alike  # noqa: PLC0415  (imports onnxruntime)
        from prunec.compiler.targets.sources import from_onnx  # noqa: PLC0415

        report = export_onnx(program, path, opset=options.opset, dynamic=options.dynamic, weights=options.weights)
        alike = partial(write_alike, program, path, report)
        return replace(from_onnx(program, report), details=report, alike=alike)

    def label(self, path: Path, metadata: Mapping[str, str]) -> None:
        """As the file's own metadata."""
        import onnx  # noqa: PLC0415  (takes time that a plan without exports doesn't need)

        model = onnx.load(path, load_external_data=False)
        onnx.helper.set_model_props(model, dict(metadata))
        path.write_bytes(model.SerializeToString(deterministic=True))

    def load(self, path: Path, threads: int) -> Session:
        """A session of onnxruntime."""
        return OrtSession(path, threads)

    def load_for(self, path: Path, threads: int, inputs: Sequence[Any]) -> Session:
        """With all sizes fixed: so the runtime plans the slim model as it does the original, whose file leaves none
        open."""
        batch = batch_of(inputs)
        sizes = {} if batch is None else {"batch": batch}
        image = next((tensor.shape for tensor in tensors_in(inputs) if tensor.ndim == 4), None)
        sizes |= {} if image is None else {"height": image[2], "width": image[3]}
        return OrtSession(path, threads, sizes=sizes)

    def describe(self) -> str:
        """onnxruntime's version."""
        return f"onnxruntime {version('onnxruntime')}"

    def quantize(
        self, program: Program, path: Path, to: Path, options: OnnxOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By onnxruntime's own tools: pairs of QuantizeLinear and DequantizeLinear, or dynamic ranges."""
        assert options.int8 is not None, "int8 was asked for"
        with TemporaryDirectory() as folder:
            files = saved(samples, Path(folder))
            in_child(QUANTIZE, path, to, options.int8.mode, files, options.int8.per_channel)


class OrtSession:
    """A file that onnxruntime has loaded, in either of its formats."""

    def __init__(
        self,
        path: Path,
        threads: int,
        entries: Mapping[str, str] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """`entries` and `sizes` are those of `ort_session.session`."""
        from prunec.compiler.targets.ort_session import session  # noqa: PLC0415  (imports onnxruntime)

        self._opened: Any = session(path, threads=threads, entries=entries, sizes=sizes)
        self._names = [entry.name for entry in self._opened.get_inputs()]

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Inputs by their places."""
        found: Sequence[Array] = self._opened.run(None, dict(zip(self._names, inputs, strict=True)))
        return found
