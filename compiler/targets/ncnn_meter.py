"""Times in ncnn, layer by layer: it computes only what an output needs, so the outputs of its layers are asked for in
their order, and each then takes what its own layer takes.

Asked for as they lie in memory, they aren't put into another layout for that. Nor are the inputs of the layer that
reads them first, which an app hands over plain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, NodeTime, Profile
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.metering import OneThread, Origins, Times, converted, fed, turns
from prunec.compiler.targets.ncnn_session import NcnnSession, place
from prunec.compiler.targets.onnx_export import input_names

_AS_IT_IS: Final = 1
"""The type of what is extracted: not put into the plain layout."""
_ONNX: Final[Mapping[str, str]] = {
    **dict.fromkeys(("Convolution", "ConvolutionDepthWise", "Convolution1D", "ConvolutionDepthWise1D"), "Conv"),
    **dict.fromkeys(("Convolution3D", "ConvolutionDepthWise3D"), "Conv"),
    **dict.fromkeys(("Deconvolution", "DeconvolutionDepthWise", "Deconvolution1D", "Deconvolution3D"), "ConvTranspose"),
    **dict.fromkeys(("InnerProduct", "Gemm"), "Gemm"),
    **{"MultiHeadAttention": "MultiHeadAttention", "SDPA": "Attention", "MatMul": "MatMul", "Einsum": "Einsum"},
}
"""ncnn's name of a layer -> ONNX's, of what multiplies."""


class NcnnMeter(OneThread):
    """Measures in ncnn on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset({"Packing", "Split"})

    def profile(self, program: Program, seconds: float) -> Profile:
        """Each layer; its name is that of the input that it hangs on, where that is one."""
        with TemporaryDirectory() as folder, captured():
            path = converted(self.target, program, Path(folder))
            layers = list(_layers(path.read_text(encoding="utf-8"), input_names(program)))
            before = _laid_out(path, program)
            opened, inputs, times, sizes = NcnnSession(path, 1), fed(program), Times(), dict[int, int]()
            for _ in turns(seconds):
                for number, (took, size) in enumerate(_run(opened, inputs, before, layers)):
                    times.add(number, took)
                    sizes[number] = size
        low = times.low()
        return tuple(
            NodeTime(_ONNX.get(layer.kind, layer.kind), sizes[number], low[number], layer.name)
            for number, layer in enumerate(layers)
        )


@dataclass(frozen=True)
class _Layer:
    kind: str
    output: str
    name: str


def _layers(text: str, inputs: Sequence[str]) -> Iterator[_Layer]:
    """The layers that compute something, in order."""
    origins = Origins()
    for line in text.splitlines()[2:]:
        kind, name, reads, writes, *words = line.split()
        read, written = words[: int(reads)], words[int(reads) : int(reads) + int(writes)]
        if kind == "Input":
            origins.starts(written[0], inputs[int(name.removeprefix("in"))])
            continue
        yield _Layer(kind, written[0], origins.name(name, read, written))


def _laid_out(path: Path, program: Program) -> list[str]:
    """Put a layer behind each input of floats that takes no time that counts, and lays it out as the others do; the
    names of what these write."""
    inputs, made = fed(program), list[str]()
    head, size, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines]
    floats = {row[4] for row in rows if row[0] == "Input" and inputs[place(row[1])].dtype == np.float32}
    layers: list[list[str]] = []
    for row in rows:
        for spot in range(4, 4 + int(row[2])):
            if row[spot] in floats:
                made.append(f"{row[spot]}_relu")
                layers.append(["ReLU", made[-1], "1", "1", row[spot], made[-1]])
                row[spot] = made[-1]
        layers.append(row)
    counts = " ".join(str(int(count) + len(made)) for count in size.split())
    path.write_text("\n".join([head, counts, *map(" ".join, layers), ""]), encoding="utf-8")
    return made


def _run(
    opened: NcnnSession, inputs: Sequence[Array], before: Sequence[str], layers: Sequence[_Layer]
) -> Iterator[tuple[float, int]]:
    """One run: of each layer its seconds, and how many elements it writes."""
    extractor = opened.fed(inputs)
    for name in before:
        extractor.extract(name, _AS_IT_IS)
    for layer in layers:
        start = time.perf_counter()
        _, found = extractor.extract(layer.output, _AS_IT_IS)
        took = time.perf_counter() - start
        yield took, _elements(found)
        del found  # a layer that works in place would copy what someone else holds


def _elements(found: Any) -> int:
    return int(found.w * found.h * found.d * found.c * found.elempack)
