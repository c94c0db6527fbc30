"""A file in MNN's Python module. No torch is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.compiler.errors import TargetError

Array = npt.NDArray[Any]


class MnnSession:
    """A file that MNN has loaded."""

    def __init__(self, path: Path, threads: int) -> None:
        import MNN  # noqa: PLC0415  (an extra)

        self._expr: Any = MNN.expr
        runtime = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": threads},))
        self._net: Any = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)
        if self._net is None:
            raise TargetError("MNN can't load the file")
        self._runtime = runtime

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Whole numbers are int32 in MNN."""
        expr = self._expr
        values = []
        for given in inputs:
            whole = given.dtype.kind in "iub"
            held = np.ascontiguousarray(given, np.int32 if whole else np.float32)
            values.append(expr.const(held, list(held.shape), expr.NCHW, expr.int if whole else expr.float))
        found = self._net.forward(values)
        if not found:
            raise TargetError(f"MNN can't run the file on inputs of {[list(given.shape) for given in inputs]}")
        return [np.array(self._plain(value).read()) for value in found]

    def _plain(self, value: Any) -> Any:
        """A value in the order of its dimensions."""
        expr = self._expr
        return expr.convert(value, expr.NCHW) if value.data_format == expr.NC4HW4 else value
