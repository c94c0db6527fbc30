"""OpenVINO on the CPU: its IR, `model.xml` with the weights in `model.bin`, made from the ONNX file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import torch.nn.functional as F

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target

TELEMETRY: Final = "openvino_telemetry"
"""The package that sends usage data."""


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
        from prunec.compiler.targets.sources import fixed_batch  # noqa: PLC0415

        openvino = _openvino()
        with TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            report = export_onnx(program, source)
            # `openvino.convert_model` would send usage data; the reader in the runtime doesn't.
            model = openvino.Core().read_model(source)
        _save(model, path)
        return Converted(fixed_batch(program, report), report.static_reason and f"fixed batch: {report.static_reason}")

    def load(self, path: Path, threads: int) -> Session:
        """The IR compiled for this CPU; without a hint it computes in bfloat16 where the processor can."""
        return OpenVinoSession(path, threads)

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.openvino_meter import OpenVinoMeter  # noqa: PLC0415  (imports onnxruntime)

        return OpenVinoMeter(self, _openvino)

    def describe(self) -> str:
        """OpenVINO's version."""
        return f"OpenVINO {version('openvino')}"

    def quantize(
        self, program: Program, path: Path, to: Path, options: OpenVinoOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By NNCF's post-training quantisation, which always has a scale for each channel of a weight."""
        openvino = _openvino()
        with _telling_nobody():
            import nncf  # noqa: PLC0415  (an extra)

        transformer = any(node.target is F.scaled_dot_product_attention for node in program.graph.nodes)
        made = nncf.quantize(
            openvino.Core().read_model(path),
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
        _save(made, to)


def _save(model: Any, path: Path) -> None:
    """Write a model. OpenVINO counts the nodes that it names by itself through the life of a process; here they are
    counted through the model, so that one model gives one file."""
    nodes = model.get_ordered_ops()
    for number, node in enumerate(nodes):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    _openvino().save_model(model, path, compress_to_fp16=False)


def _openvino() -> Any:
    """The package, an extra, imported so that it tells nobody."""
    with _telling_nobody():
        import openvino  # noqa: PLC0415

    return openvino


@contextmanager
def _telling_nobody() -> Iterator[None]:
    """While OpenVINO and NNCF are imported: they would start a process that sends usage data, and count their uses in
    a file of the user's home. Neither insists on the package that does it."""
    modules: dict[str, Any] = sys.modules
    known = {name: module for name, module in modules.items() if name.split(".")[0] == TELEMETRY}
    modules.update({TELEMETRY: None, **dict.fromkeys(known)})  # None: it can't be imported
    with patch.dict(os.environ, NNCF_CI="1"):
        try:
            yield
        finally:
            del modules[TELEMETRY]
            modules.update(known)


class OpenVinoSession:
    """An IR that OpenVINO has compiled."""

    def __init__(self, path: Path, threads: int) -> None:
        openvino = _openvino()
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        self._request: Any = compiled.create_infer_request()
        self._count = len(compiled.outputs)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Inputs by their places."""
        self._request.infer(list(inputs), share_inputs=True)
        return [self._request.get_output_tensor(place).data.copy() for place in range(self._count)]
