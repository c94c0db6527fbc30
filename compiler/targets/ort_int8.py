"""ONNX files in int8, by onnxruntime's own tools, in a process of its own.

static      QuantizeLinear and DequantizeLinear around every layer; the ranges of activations come from samples
dynamic     the weights of matrix products alone; ranges of activations are taken from each run
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from prunec.compiler.targets.child import arrays_in


def quantize_onnx(path: str, to: str, mode: str, samples: Sequence[str], per_channel: bool) -> None:
    """Write the ONNX file at `path` in int8 at `to`. `samples` are files with the inputs of one run each, by their
    places."""
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, str(prepared), skip_symbolic_shape=True)
        if mode == "dynamic":
            quantize_dynamic(prepared, to, per_channel=per_channel, weight_type=QuantType.QInt8)
            return
        names = [entry.name for entry in onnx.load(path, load_external_data=False).graph.input]
        quantize_static(
            prepared,
            to,
            _Reader(names, arrays_in(samples)),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the samples to onnxruntime, one run at a time."""

    def __init__(self, names: Sequence[str], samples: Sequence[Sequence[Any]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (dict(zip(names, sample, strict=True)) for sample in samples)

    def get_next(self) -> dict[str, Any] | None:
        """The next run's inputs; None after the last."""
        return next(self._feeds, None)
