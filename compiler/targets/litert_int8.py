"""LiteRT files in int8, by LiteRT's own quantiser, which works on the float32 file; in a process of its own.

A bias is an int32 in steps of input scale times weight scale, so it overflows where a channel's weights are next to
nothing beside its bias: network slimming and folded batch norms leave such channels. The quantiser lets it overflow;
here the steps of such a channel are made wide enough first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ai_edge_quantizer import qtyping, quantizer, recipe
from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files

from prunec.compiler.targets.child import arrays_in

SIGNATURE: Final = "serving_default"
"""What the converter calls the one function of a file."""
LARGEST_BIAS: Final = 2.0**30
"""In steps: the products that are added to it need the rest of an int32."""

Array = npt.NDArray[Any]
Ranges = Mapping[str, Any]
"""Tensor -> its `min` and `max`, as calibration finds them."""


def quantize_litert(path: str, to: str, names: Sequence[str], samples: Sequence[str], per_channel: bool) -> None:
    """Write the file at `path` in int8 at `to`; its inputs and outputs stay as they are. `samples` are files of what
    the inputs of these names are fed in one run each."""
    rows = recipe.static_wi8_ai8()
    if not per_channel:
        rows[0]["op_config"]["weight_tensor_config"]["granularity"] = qtyping.QuantGranularity.TENSORWISE
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        left = recipe.AlgorithmName.NO_QUANTIZE
        rows.append({"regex": ".*", "operation": edge, "algorithm_key": left, "op_config": {}})
    made = quantizer.Quantizer(path, rows)
    fed = [dict(zip(names, arrays, strict=True)) for arrays in arrays_in(samples)]
    ranges = made.calibrate({SIGNATURE: fed})
    if per_channel:
        ranges = {**ranges, **_widened(path, ranges)}
    made.quantize(ranges).export_model(to, overwrite=True)


def _widened(path: str, ranges: Ranges) -> dict[str, dict[str, Array]]:
    """Weight -> its range for each channel, wide enough for the biases, where its own isn't."""
    model = files.read_model(path)
    found: dict[str, Array] = {}
    for graph in model.subgraphs:
        for operation in graph.operators:
            kind = files.TFL_OP_CODE_TO_NAME.get(model.operatorCodes[operation.opcodeIndex].builtinCode)
            places = [operation.inputs[place] for place in _BIASED.get(kind, ()) if place < len(operation.inputs)]
            if len(places) < 3 or -1 in places:
                continue
            given, weight, bias = (graph.tensors[place] for place in places)
            weights, biases = (files.get_tensor_data(tensor, model.buffers) for tensor in (weight, bias))
            known = ranges.get(files.get_tensor_name(given))
            if weights is None or biases is None or known is None:
                continue
            channels = files.TFL_OP_TO_WEIGHT_QUANTIZED_DIM[kind]
            others = tuple(axis for axis in range(weights.ndim) if axis != channels)
            largest = np.abs(weights).max(axis=others, keepdims=True)
            needed = np.abs(biases).reshape(largest.shape) * (127 / (LARGEST_BIAS * _step(known)))
            if (needed > largest).any():
                name = files.get_tensor_name(weight)
                found[name] = np.maximum.reduce([largest, needed, found.get(name, largest)]).astype(np.float32)
    return {name: {"min": -wide, "max": wide} for name, wide in found.items()}


def _step(known: Mapping[str, Any]) -> float:
    """What one step of a value of this range is worth; it has 256 steps, and zero is one of them."""
    high, low = float(np.max(known["max"])), float(np.min(known["min"]))
    return max((max(high, 0.0) - min(low, 0.0)) / 255, float(np.finfo(np.float32).tiny))


_BIASED: Final[Mapping[Any, tuple[int, ...]]] = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "CONV_2D_TRANSPOSE": (2, 1, 3),
}
"""Operation -> the places of its input, weight and bias."""
