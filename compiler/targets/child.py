"""Runs in a process of their own what may crash: a converter, or a file's first runs in a runtime.

    in_child("prunec.compiler.targets.mnn_convert", source, written)      what it prints; a crash is a `TargetError`
    tried(MnnSession, path, [[x], [y]])                                   a file that is loaded, and run on these inputs

A session's module imports no torch, so that a trial starts in a fifth of a second.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prunec.compiler.errors import TargetError


def in_child(module: str, *args: str, what: str) -> str:
    """Run a module as a program, and give what it prints. Raises `TargetError` where it crashes; `what` names it."""
    command = [sys.executable, "-P", "-m", module, *args]  # -P: no module of the folder that the user is in
    found = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    log = found.stdout + found.stderr
    if found.returncode < 0:
        raise TargetError(f"{what} crashes ({signal.Signals(-found.returncode).name})", log=log)
    return log


def tried(session: Callable[[Path, int], Any], path: Path, runs: Sequence[Sequence[Any]]) -> None:
    """Load the file at `path` and run it on the input arrays of each run, elsewhere. Raises `TargetError` where that
    crashes; what fails in another way will fail here as well, and is told then."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npz" for number in range(len(runs))]
        for file, arrays in zip(files, runs, strict=True):
            np.savez(file, *arrays)
        name = f"{session.__module__}:{session.__qualname__}"
        in_child(__name__, name, str(path), *map(str, files), what="its runtime")


def main(name: str, path: str, *files: str) -> None:
    """The child's side of `tried`."""
    module, _, member = name.partition(":")
    opened = getattr(import_module(module), member)(Path(path), 1)
    for file in files:
        with np.load(file) as held:
            opened.run([held[key] for key in held.files])


if __name__ == "__main__":
    main(*sys.argv[1:])
