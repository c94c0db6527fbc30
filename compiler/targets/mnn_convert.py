"""MNN's converter, in a process of its own.

The compiled converter is called. Its wrappers, the command `mnnconvert` and all of `MNN.tools`, would install a package
and send usage data; here nothing may start a process or open a connection, whatever is called.
"""

from __future__ import annotations

import sys
from typing import Any, Final

FORBIDDEN: Final = (
    "subprocess.",
    "socket.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "urllib.",
)
"""How the names of Python's audit events begin that tell of processes and connections."""


def convert(source: str, written: str, *more: str) -> None:
    """Convert an ONNX file, with `more` options of the converter's."""
    sys.addaudithook(_refuse)
    import _tools  # noqa: PLC0415  (MNN's compiled tools)

    files = ["--modelFile", source, "--MNNModel", written]
    plain = "--useOriginRNNImpl"  # an LSTM stays one layer: written out as a loop, it crashes the converter
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "prunec", plain, *more])


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"a converter of models has no business with {event}")
