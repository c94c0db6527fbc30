"""OpenVINO, imported so that it tells nobody, and an IR that it runs. No torch is imported here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy.typing as npt

TELEMETRY: Final = "openvino_telemetry"
"""The package that sends usage data."""
Array = npt.NDArray[Any]


def openvino_quietly() -> Any:
    """The package, an extra, imported so that it tells nobody."""
    with telling_nobody():
        import openvino  # noqa: PLC0415

    return openvino


@contextmanager
def telling_nobody() -> Iterator[None]:
    """While OpenVINO and NNCF are imported: they would start a process that sends usage data, and count their uses in
    a file of the user's home. Neither insists on the package that does it."""
    modules: dict[str, Any] = sys.modules
    known = {name: module for name, module in modules.items() if name.split(".")[0] == TELEMETRY}
    modules.update({TELEMETRY: None, **dict.fromkeys(known)})  # None: it can't be imported
    with patch.dict(os.environ, NNCF_CI="1"):
        try:
            yield
        finally:
            del modules[TELEMETRY]
            modules.update(known)


class OpenVinoSession:
    """An IR that OpenVINO has compiled."""

    def __init__(self, path: Path, threads: int) -> None:
        openvino = openvino_quietly()
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        self._request: Any = compiled.create_infer_request()
        self._count = len(compiled.outputs)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Inputs by their places."""
        self._request.infer(list(inputs), share_inputs=True)
        return [self._request.get_output_tensor(place).data.copy() for place in range(self._count)]
