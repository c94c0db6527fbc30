"""Times in LiteRT: its Python interpreter has no profiler, so each operation of the file is taken out and run alone.

XNNPACK, which computes them, runs a network's operations one after the other as well.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import NodeTime, Profile
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.metering import OneThread, Origins, Times, converted, turns
from prunec.compiler.targets.onnx_export import input_names

_ONNX: Final[Mapping[str, str]] = {
    **{"CONV_2D": "Conv", "DEPTHWISE_CONV_2D": "Conv", "CONV_3D": "Conv", "TRANSPOSE_CONV": "ConvTranspose"},
    **{"FULLY_CONNECTED": "Gemm", "BATCH_MATMUL": "MatMul"},
}
"""LiteRT's name of an operation -> ONNX's, of what multiplies."""


class LiteRTMeter(OneThread):
    """Measures in LiteRT on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset({"TRANSPOSE", "RESHAPE"})

    def profile(self, program: Program, seconds: float) -> Profile:
        """The operations of the file; a name is that of the input that an operation hangs on, where that is one."""
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  (an extra)

        with TemporaryDirectory() as folder, captured():
            held = self._last.of(program, lambda: converted(self.target, program, Path(folder)).read_bytes())
            nodes, runs, times = [], [], Times()
            for node, model in _alone(held, input_names(program)):
                opened: Any = Interpreter(model_content=model, num_threads=1)
                opened.allocate_tensors()
                nodes.append(node)
                runs.append(opened)
            for _ in turns(seconds):
                for number, opened in enumerate(runs):
                    start = time.perf_counter()
                    opened.invoke()
                    times.add(number, time.perf_counter() - start)
        low = times.low()
        return tuple(NodeTime(op, elements, low[number], name) for number, (op, elements, name) in enumerate(nodes))


def _alone(held: bytes, inputs: Sequence[str]) -> Iterator[tuple[tuple[str, int, str], bytes]]:
    """Of each operation in a file what it is, how many elements it writes and its name, and a file of it alone."""
    import flatbuffers  # noqa: PLC0415  (comes with the extra)
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415  (an extra)

    kinds = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromPackedBuf(held, 0)
    (graph,) = model.subgraphs
    (signature,) = model.signatureDefs
    origins = Origins()
    for each in signature.inputs:
        origins.starts(each.tensorIndex, inputs[_place(each.name.decode())])
    for operation in graph.operators:
        code = model.operatorCodes[operation.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        used = [int(index) for index in (*operation.inputs, *operation.outputs) if index >= 0]
        places = {index: place for place, index in enumerate(dict.fromkeys(used))}
        tensors = [copy.copy(graph.tensors[index]) for index in places]
        buffers = [model.buffers[0], *(model.buffers[tensor.buffer] for tensor in tensors)]
        for number, tensor in enumerate(tensors, start=1):
            tensor.buffer = number
        alone = copy.copy(operation)
        alone.opcodeIndex = 0
        alone.inputs = [places.get(int(index), -1) for index in operation.inputs]
        alone.outputs = [places[int(index)] for index in operation.outputs]
        part = copy.copy(graph)
        part.operators, part.tensors, part.outputs = [alone], tensors, alone.outputs
        part.inputs = [place for place in dict.fromkeys(alone.inputs) if place >= 0 and _empty(buffers[place + 1])]
        whole = copy.copy(model)
        whole.operatorCodes, whole.subgraphs, whole.buffers = [code], [part], buffers
        whole.signatureDefs, whole.metadata, whole.metadataBuffer = [], [], []
        builder = flatbuffers.Builder(1024)
        builder.Finish(whole.Pack(builder), b"TFL3")
        written = [graph.tensors[index] for index in operation.outputs]
        elements = sum(math.prod(map(int, tensor.shape)) for tensor in written)
        name = origins.name(written[0].name.decode(), map(int, operation.inputs), map(int, operation.outputs))
        yield (_ONNX.get(kind, kind), elements, name), bytes(builder.Output())


def _place(name: str) -> int:
    """The number of an input: the converter calls them args_0, args_1, ..."""
    return int(name.rpartition("_")[2])


def _empty(buffer: Any) -> bool:
    return buffer.data is None or len(buffer.data) == 0
