"""ExecuTorch, PyTorch's runtime for phones and microcontrollers: one file, whose layers XNNPACK computes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.flat import exported_flat


class ExecuTorch(Target):
    """Runs on XNNPACK, whose matrix kernels compute output channels in tiles: of 8 in float32 on ARM (`4x8`, `6x8`), of
    16 in half precision there and with AVX-512 (`7x16`). 16 serves all."""

    name = "executorch"
    multiple = 16
    suffixes = (".pte",)
    extra = "executorch"
    needs = ("executorch>=1.5",)

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """Of the example's sizes: memory is planned ahead, so an open batch would take that of the largest."""
        _lower(exported_flat(program), path)
        return Converted(batch_of(program.inputs))

    def quantize(
        self, program: Program, path: Path, to: Path, options: ExportOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By torchao's quantisation of exported programs: what XNNPACK has in int8, with ranges from samples."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # noqa: PLC0415  (an extra)
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415  (an extra)

        assert options.int8 is not None, "int8 was asked for"
        exported = exported_flat(program)
        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=options.int8.per_channel))
        prepared = prepare_pt2e(exported.module(), quantizer)
        for sample in samples:
            prepared(*map(torch.from_numpy, sample))
        inputs = exported.example_inputs
        assert inputs is not None, "the program has examples"
        _lower(torch.export.export(convert_pt2e(prepared), inputs[0]), to)

    def load(self, path: Path, threads: int) -> Session:
        """The file in ExecuTorch's own interpreter, with the kernels that come with it."""
        return ExecuTorchSession(path, threads)

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.executorch_meter import ExecuTorchMeter  # noqa: PLC0415  (imports onnxruntime)

        return ExecuTorchMeter(self)

    def describe(self) -> str:
        """ExecuTorch's version."""
        return f"ExecuTorch {version('executorch')}"


def _lower(exported: ExportedProgram, path: Path) -> None:
    """Write a program of torch's as one of ExecuTorch's, what XNNPACK can compute delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415  (an extra)

    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


class ExecuTorchSession:
    """A program that ExecuTorch has loaded."""

    def __init__(self, path: Path, threads: int) -> None:
        self._held = path.read_bytes()
        self._threads = threads
        self._load()

    def _load(self) -> None:
        from executorch.runtime import Runtime  # noqa: PLC0415  (an extra)

        self._made = _POOL.of(self._threads)
        method = Runtime.get().load_program(self._held).load_method("forward")
        if method is None:
            raise TargetError("ExecuTorch can't load the program")
        self._method: Any = method

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Tensors of the sizes that the program was made for."""
        if self._made != _POOL.made:
            self._load()
        found = self._method.execute([torch.from_numpy(value) for value in inputs])
        return [value.numpy(force=True).copy() for value in found]


class _Pool:
    """The pool of threads that all programs share. Who was loaded with one that is gone mustn't run any more."""

    def __init__(self) -> None:
        self.made = 0
        """How often a pool was made."""

    def of(self, threads: int) -> int:
        """Make it a pool of so many threads, and give which one it is."""
        from executorch.extension.pybindings import portable_lib  # noqa: PLC0415  (an extra)

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
            self.made += 1
        return self.made


_POOL = _Pool()
