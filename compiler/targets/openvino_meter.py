"""Times in OpenVINO: of each node of the compiled model, as its own counters tell them.

They tell the mean of all runs, the first one, which allocates, among them; each run and the mean are rounded down to
whole microseconds. So the whole run is timed in the same runs, by the same clock, and what it takes beyond its nodes
goes by between them. Next to times of other runs, in which other programs took less, it would be nothing, or far too
much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import BETWEEN, NodeTime, Profile, Target
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.metering import ROUNDED, OneThread, Times, fed, turns
from prunec.compiler.targets.onnx_export import onnx_bytes

_ONNX: Final[Mapping[str, str]] = {
    **{"Convolution": "Conv", "GroupConvolution": "Conv", "Deconvolution": "ConvTranspose", "FullyConnected": "Gemm"},
    **{"ScaledDotProductAttention": "Attention", "RNNSeq": "RNN", "RNNCell": "RNN"},
}
"""OpenVINO's type of a node -> ONNX's name, of what multiplies."""


_OPTIONS: Final = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERF_COUNT": True,
}
COMPILED: Final = 5
"""So often the model is compiled: its counters begin anew then, and a pause spoils the mean of one of them only."""
WARM: Final = 2
"""Runs that don't count."""


class OpenVinoMeter(OneThread):
    """Measures in OpenVINO on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset({"Reorder"})

    def __init__(self, target: Target, package: Callable[[], Any]) -> None:
        super().__init__(target)
        self._package = package

    def profile(self, program: Program, seconds: float) -> Profile:
        """The nodes that were executed."""
        with captured():
            core, inputs, times, kinds = self._package().Core(), fed(program), Times(), dict[str, str]()
            model, between = core.read_model(onnx_bytes(program)), list[float]()
            for _ in range(COMPILED):
                compiled = core.compile_model(model, "CPU", _OPTIONS)
                request = compiled.create_infer_request()
                for _ in range(WARM):
                    request.infer(inputs, share_inputs=True)
                before = _totals(request, WARM)
                count, start = 0, time.perf_counter()
                for _ in turns(seconds / COMPILED):
                    request.infer(inputs, share_inputs=True)
                    count += 1
                whole = time.perf_counter() - start
                after = _totals(request, WARM + count)
                for node in _executed(request):
                    kinds[node.node_name] = _ONNX.get(node.node_type, node.node_type)
                    took = max(after[node.node_name] - before[node.node_name], 0.0) / count + 2 * ROUNDED
                    times.add(node.node_name, took)
                    whole -= took * count
                between.append(max(whole, 0.0) / count)
            sizes = {op.get_friendly_name(): _elements(op) for op in compiled.get_runtime_model().get_ops()}
        nodes = [NodeTime(kinds[name], sizes.get(name, 0), took, name) for name, took in times.least().items()]
        return (*nodes, NodeTime(BETWEEN, 0, min(between)))


def _totals(request: Any, runs: int) -> dict[str, float]:
    """The seconds of each node in all of so many runs, of which OpenVINO tells the mean."""
    return {node.node_name: node.real_time.total_seconds() * runs for node in _executed(request)}


def _executed(request: Any) -> list[Any]:
    """The nodes that have a kernel: one that takes less than a microsecond is said not to have run."""
    return [
        node
        for node in request.profiling_info
        if node.status.name == "EXECUTED" or not node.exec_type.startswith(("undef", "unknown"))
    ]


def _elements(op: Any) -> int:
    return sum(math.prod(port.get_shape()) for port in op.outputs() if port.get_partial_shape().is_static)
