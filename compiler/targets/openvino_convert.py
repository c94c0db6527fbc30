"""OpenVINO's IR from an ONNX file, and in int8, in a process of its own. No torch is imported here, but by NNCF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prunec.compiler.targets.child import arrays_in
from prunec.compiler.targets.openvino_session import openvino_quietly, telling_nobody


def convert(source: str, path: str) -> None:
    """Write an ONNX file as an IR, in float32."""
    openvino = openvino_quietly()
    # `openvino.convert_model` would send usage data; the reader in the runtime doesn't.
    _save(openvino.Core().read_model(source), path)


def quantize(path: str, to: str, samples: Sequence[str], transformer: bool) -> None:
    """Write the IR at `path` in int8 at `to`, by NNCF's post-training quantisation, which always has a scale for each
    channel of a weight. `samples` are files with the inputs of one run each."""
    openvino = openvino_quietly()
    with telling_nobody():
        import nncf  # noqa: PLC0415  (an extra)

    made = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset(arrays_in(samples)),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    _save(made, to)


def _save(model: Any, path: str) -> None:
    """Write a model. OpenVINO counts the nodes that it names by itself through the life of a process; here they are
    counted through the model, so that one model gives one file."""
    for number, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    openvino_quietly().save_model(model, path, compress_to_fp16=False)
