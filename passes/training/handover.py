"""What goes to another process and comes back: written to a file by one process of ours, and read by another.

    functions and classes of files that a plan names, or of the script that runs     by file and name
    everything else                                                                  as pickle has it

Such files are run again where they are read: no process knows the modules that another one has made of them.
"""

from __future__ import annotations

import pickle
import sys
from functools import reduce
from io import BytesIO
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import IO, Any, Final

import torch

from prunec.compiler.driver.load import FILES, import_file, module_name


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """How a function or a class is written."""
        if not isinstance(value, type | FunctionType) or "<" in value.__qualname__:
            return NotImplemented
        if value.__module__ != "__main__" and not value.__module__.startswith(FILES):
            return NotImplemented
        file = getattr(sys.modules.get(value.__module__), "__file__", None)
        if file is None or not Path(file).is_file():
            raise pickle.PicklingError(f"'{value.__qualname__}' is defined in no file")
        return _of_file, (file, value.__qualname__)


_PICKLING: Final = SimpleNamespace(**{**vars(pickle), "Pickler": _Pickler})
"""`pickle` for torch, with a pickler of ours."""


def _of_file(file: str, name: str) -> Any:
    path = Path(file)
    module = sys.modules.get(module_name(path)) or import_file(path)
    return reduce(getattr, name.split("."), module)


class CantGo(Exception):
    """A value, or a part of it, can't be written; the cause says why."""


def write(value: Any, file: Path) -> None:
    """Write any value. Raises `CantGo`."""
    try:
        _write(value, file)
    except Exception as error:  # whatever a user's class raises that can't be pickled
        raise CantGo from error


def _write(value: Any, file: Path | IO[bytes]) -> None:
    torch.save(value, file, pickle_module=_PICKLING)


def read(file: Path) -> Any:
    """What `write` has written, with all tensors on the CPU."""
    return torch.load(file, map_location="cpu", weights_only=False)


def check(value: Any) -> None:
    """Raise why a value can't be written; nothing where it can."""
    _write(value, BytesIO())
