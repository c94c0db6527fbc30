"""ExecuTorch, PyTorch's runtime for phones and microcontrollers: one file, whose layers XNNPACK computes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.child import in_child, saved
from prunec.compiler.targets.flat import saved_flat

_LOWER: Final = "prunec.compiler.targets.executorch_lower:lower"
_QUANTIZE: Final = "prunec.compiler.targets.executorch_lower:quantize"


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
        with TemporaryDirectory() as folder:
            in_child(_LOWER, saved_flat(program, Path(folder)), path)
        return Converted(batch_of(program.inputs))

    def quantize(
        self, program: Program, path: Path, to: Path, options: ExportOptions, samples: Sequence[Sequence[Array]]
    ) -> None:
        """By torchao's quantisation of exported programs: what XNNPACK has in int8, with ranges from samples."""
        assert options.int8 is not None, "int8 was asked for"
        with TemporaryDirectory() as folder:
            source, files = saved_flat(program, Path(folder)), saved(samples, Path(folder))
            in_child(_QUANTIZE, source, to, files, options.int8.per_channel)

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
