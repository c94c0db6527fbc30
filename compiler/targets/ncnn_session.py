"""A network in ncnn's Python module. No torch is imported here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.compiler.errors import TargetError

_NO_BATCH = 233
"""What ncnn and pnnx call the batch dimension of a value that has none."""
Array = npt.NDArray[Any]


class NcnnSession:
    """A network that ncnn has loaded from the text at `path` and the weights beside it."""

    def __init__(self, path: Path, threads: int) -> None:
        import ncnn  # noqa: PLC0415  (an extra)

        self._ncnn = ncnn
        self._net = ncnn.Net()
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self._net.opt, option, False)
        self._net.opt.num_threads = threads
        if self._net.load_param(str(path)) or self._net.load_model(str(path.with_suffix(".bin"))):
            raise TargetError("ncnn can't load the files")
        self._inputs = sorted(self._net.input_names(), key=place)
        self._outputs = sorted(self._net.output_names(), key=place)
        self._ranks = dict(_ranks(path.read_text(encoding="utf-8")))

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """One sample. Whole numbers are int32 in ncnn, and pixels float32."""
        extractor = self.fed(inputs)
        batch = 0 if all(self._batched(name, inputs) for name in self._inputs[-1:]) else _NO_BATCH
        outputs = []
        for name in self._outputs:
            failed, found = extractor.extract(name)
            if failed:
                raise TargetError(f"ncnn can't compute the output '{name}': it gives the code {failed}")
            outputs.append(np.array(found.numpy(batch_index=batch)))
        return outputs

    def fed(self, inputs: Sequence[Array]) -> Any:
        """A new run, an `ncnn.Extractor`, that has its inputs and has computed nothing yet."""
        kinds = [np.int32 if value.dtype.kind in "ib" else np.float32 for value in inputs]
        held = [np.ascontiguousarray(value, kind) for value, kind in zip(inputs, kinds, strict=True)]
        extractor = self._net.create_extractor()
        for name in self._inputs:
            batch = 0 if self._batched(name, inputs) else _NO_BATCH
            value = self._ncnn.Mat(held[place(name)], batch_index=batch)
            extractor.input(name, value.clone())  # layers may write into what they read
        return extractor

    def _batched(self, name: str, inputs: Sequence[Array]) -> bool:
        return self._ranks[name] < inputs[place(name)].ndim


def _ranks(text: str) -> Iterator[tuple[str, int]]:
    """The rank of each input, by its name, as the export has written it."""
    for line in text.splitlines():
        if line.startswith("Input "):
            _, name, *rest = line.split()
            yield name, sum("=" in word for word in rest)


def place(name: str) -> int:
    """pnnx calls inputs in0, in1, ... and outputs out0, out1, ..."""
    return int(re.sub(r"\D", "", name))
