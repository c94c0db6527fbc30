"""The output folder: written whole or not at all, and never over a user's files.

    write_atomically(out, write)
      1. a fresh sibling `.out.prunec-<host>-<pid>-<n>` is made, and `write` fills it
      2. out doesn't exist:  rename(sibling, out)
         out is an earlier output:  the two swap names in one step, and the old one is removed under the sibling's name

Whenever the process is killed, `out` is the old folder or the new one. Where the system can't swap two names in one
step (anything but Linux, some network file systems) there is an instant without `out`; the old folder then waits
under the sibling's name with `-old` after it, and the next run puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from prunec.compiler.errors import OutputError

LOCK = "plan.lock.json"

Given = TypeVar("Given")


@dataclass(frozen=True)
class Kind:
    """What writes a folder, and how such a folder is recognised: one with any other file in it isn't replaced."""

    writer: str
    files: tuple[str, ...]
    """Patterns of the file names that such a folder may hold."""
    proof: str
    """A file that every such folder has."""


COMPILED = Kind("compile", ("model.*", "model_*", "report.*", LOCK, "__pycache__"), LOCK)
"""What `prunec compile` writes."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANT_SWAP = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def check_writable(directory: Path, kind: Kind = COMPILED) -> None:
    """Refuse a target that can't or mustn't be written, before any work is done.

    Raises `OutputError` where the target is a file, its parent is missing or can't be written, or where it is a
    folder with files in it that aren't an earlier output's, of the same kind.
    """
    directory = directory.resolve()
    parent = directory.parent
    if not parent.is_dir():
        what = "is no folder" if parent.exists() else "doesn't exist"
        raise OutputError(f"can't write to '{directory}': '{parent}' {what}", hint="make the parent folder first")
    _recover(directory)
    _check_owned(directory, kind)
    probe = _sibling(directory)
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OutputError(f"can't write to '{directory}': {error.strerror}") from error


def write_atomically(directory: Path, write: Callable[[Path], Given], kind: Kind = COMPILED) -> Given:
    """Have `write` fill a fresh folder, then put it in place of `directory`; see the module's text.

    Gives what `write` gives. An error in `write` leaves everything as it was. Raises `OutputError` where the system
    refuses, and as `check_writable` does.
    """
    check_writable(directory, kind)
    directory = directory.resolve()
    fresh = _sibling(directory)
    try:
        fresh.mkdir()
        given = write(fresh)
        _put_in_place(fresh, directory, kind)
    except OSError as error:
        raise OutputError(f"can't write to '{directory}': {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return given


def _check_owned(directory: Path, kind: Kind) -> None:
    """Refuse to replace what an earlier run didn't write."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise OutputError(f"can't write to '{directory}': it is a file, and the output is a folder")
    names = sorted(entry.name for entry in directory.iterdir())
    foreign = [name for name in names if not any(fnmatch.fnmatchcase(name, own) for own in kind.files)]
    if foreign:
        what = f"it holds '{foreign[0]}', which no {kind.writer} wrote"
    elif names and kind.proof not in names:
        what = f"it has files in it, but no '{kind.proof}' of an earlier {kind.writer}"
    else:
        return
    raise OutputError(f"won't replace '{directory}': {what}", hint="name a new folder, or empty this one")


def _put_in_place(fresh: Path, directory: Path, kind: Kind) -> None:
    """Give the fresh folder the directory's name; what had that name gets the fresh one's, to be removed."""
    if not directory.exists():
        fresh.rename(directory)
        return
    _check_owned(directory, kind)
    if _swap(fresh, directory):
        return
    old = fresh.with_name(f"{fresh.name}-old")
    directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old)


def _swap(one: Path, other: Path) -> bool:
    """Let two folders swap names in one step; `False` where the system can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANT_SWAP:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sibling(directory: Path) -> Path:
    """A free name next to the folder that tells which process made it."""
    names = (directory.with_name(f"{_stem(directory)}{os.getpid()}-{number}") for number in count())
    return next(path for path in names if not path.exists())


def _stem(directory: Path) -> str:
    host = re.sub(r"\W", "_", socket.gethostname())
    return f".{directory.name}.prunec-{host}-"


def _recover(directory: Path) -> None:
    """Remove what killed compiles of this host have left, or put back the folder that they were replacing."""
    for path in list(_left_behind(directory)):
        if path.name.endswith("-old") and not directory.exists():
            path.rename(directory)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _left_behind(directory: Path) -> Iterator[Path]:
    pattern = re.compile(re.escape(_stem(directory)) + r"(\d+)-\d+(-old)?")
    for path in sorted(directory.parent.iterdir(), reverse=True):
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            yield path


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
