"""The output folder: written whole or not at all, and never over a user's files.

    write_atomically(out, write)
      1. a fresh sibling `.out.prunec-<host>-<pid>-<n>` is made, `write` fills it, and a manifest of it is added
      2. out doesn't exist, or is empty:  rename(sibling, out)
         out is an earlier output:  the two swap names in one step, and the old one is removed, file by file

Whenever the process is killed, `out` is the old folder or the new one. Where the system can't swap two names in one
step (anything but Linux, some network file systems) there is an instant without `out`; the old folder then waits
under the sibling's name with `-old` after it, and the next run puts it back.

The manifest says what was written, so that nothing else is ever removed:

    .prunec-manifest.json    {"prunec": "0.1.0", "writer": "compile", "files": {"model.py": "<sha256>", ...}}

A folder is an earlier output if each file in it stands in its manifest and still is what was written. Python's own
bytecode of those files may lie beside them. Anything else, be it an edited `model.py`, a link, a folder or an unknown
name, is the user's, and the folder is refused as it is.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn, TypeVar

from prunec.compiler.errors import OutputError
from prunec.compiler.version import __version__

if sys.platform != "win32":
    import fcntl

LOCK: Final = "plan.lock.json"
MANIFEST: Final = ".prunec-manifest.json"
COMPILE: Final = "compile"
"""The command whose outputs `write_atomically` writes unless another is named."""

Given = TypeVar("Given")

_BYTECODE: Final = "__pycache__"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANT_SWAP = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_IN_THE_WAY = {errno.ENOTEMPTY, errno.EEXIST}
_ELSEWHERE: Final = "name a new folder, or empty this one"
_LONG_NAME: Final = 64
"""A folder's name that is longer is shortened in the names of its siblings, which are longer still."""


def check_writable(directory: Path, writer: str = COMPILE) -> None:
    """Refuse a target that can't or mustn't be written, before any work is done.

    Raises `OutputError` where the target is a file, its parent is missing or can't be written, or where it is a
    folder with anything in it that an earlier run of the same `writer` hasn't left there.
    """
    target = _resolved(directory)
    try:
        _check_place(target)
        with _alone(target.parent):
            _recover(target)
            if target.exists():
                _owned(target, writer)
                _check_replaceable(target)
        probe = _sibling(target)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OutputError(f"can't write to '{directory}': {error.strerror}") from error


def write_atomically(directory: Path, write: Callable[[Path], Given], writer: str = COMPILE) -> Given:
    """Have `write` fill a fresh folder, then put it in place of `directory`; see the module's text.

    Gives what `write` gives. An error in `write` leaves everything as it was. Raises `OutputError` where the system
    refuses, and as `check_writable` does.
    """
    check_writable(directory, writer)
    target = _resolved(directory)
    fresh = _sibling(target)
    try:
        fresh.mkdir()
        given = write(fresh)
        _write_manifest(fresh, writer)
        with _alone(target.parent):
            _put_in_place(fresh, target, writer)
    except OSError as error:
        raise OutputError(f"can't write to '{directory}': {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return given


# -- where it is -----------------------------------------------------------------------------------------------------


def _resolved(directory: Path) -> Path:
    """The folder's own path, with all links followed."""
    try:
        return directory.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"can't write to '{directory}': {reason}") from error


def _check_place(directory: Path) -> None:
    """Refuse what can't be replaced by renaming, whatever is in it. Raises `OutputError`, `OSError`."""
    parent = directory.parent
    if not parent.is_dir():
        what = "is no folder" if parent.exists() else "doesn't exist"
        raise OutputError(f"can't write to '{directory}': '{parent}' {what}", hint="make the parent folder first")
    if directory.is_symlink():
        raise OutputError(f"can't write to '{directory}': it is a link that leads to itself")
    if not directory.exists():
        return
    if not directory.is_dir():
        raise OutputError(f"can't write to '{directory}': it is a file, and the output is a folder")


def _check_replaceable(directory: Path) -> None:
    """Refuse a folder that renaming can't replace, or shouldn't. Raises `OutputError`."""
    if not os.access(directory, os.W_OK):
        raise OutputError(f"won't replace '{directory}': it is protected from writing")
    if os.path.ismount(directory):
        what = "a mount point"
    elif directory.samefile(Path.cwd()):
        what = "the current folder"
    else:
        return
    raise OutputError(
        f"can't write to '{directory}': it is {what}, which can't be replaced as a whole",
        hint=f"name a folder in it: {directory / 'out'}",
    )


# -- whose it is -----------------------------------------------------------------------------------------------------


def _write_manifest(folder: Path, writer: str) -> None:
    files = {name: _sha256(folder / name) for name, mode in _entries(folder) if stat.S_ISREG(mode)}
    manifest = {"prunec": __version__, "writer": writer, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _owned(directory: Path, writer: str) -> list[str]:
    """The files of an earlier output, each as it was written. Raises `OutputError` where anything else is there."""
    names = sorted(os.listdir(directory))
    if not names:
        return []
    written, own = _read_manifest(directory, writer, names[0]), []
    for name, mode in _entries(directory):
        if not _is_known(PurePosixPath(name), mode, written) and not _is_bytecode(directory / name, mode, written):
            _refuse(directory, f"it holds '{name}', which no {writer} wrote", _ELSEWHERE)
        if name in written and not (stat.S_ISREG(mode) and _sha256(directory / name) == written[name]):
            hint = "it may hold work of yours: name a new folder, or move it out of this one"
            _refuse(directory, f"'{name}' was changed since the {writer} wrote it", hint)
        if not stat.S_ISDIR(mode):
            own.append(name)
    return own


def _entries(directory: Path) -> Iterator[tuple[str, int]]:
    """All that is below a folder, by its path from there, with its mode: a folder before what is in it; links aren't
    followed."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for root, folders, files in os.walk(directory, onerror=fail):
        for path in sorted(Path(root, name) for name in (*folders, *files)):
            yield path.relative_to(directory).as_posix(), path.lstat().st_mode


def _read_manifest(directory: Path, writer: str, first: str) -> Mapping[str, str]:
    """The names and hashes of what was written. Raises `OutputError` where no manifest of the same writer is there.

    `first` is the name of a file in the folder, for the message.
    """
    if not _is_file(directory / MANIFEST):
        if not _is_file(directory / LOCK):
            _refuse(directory, f"it holds '{first}', which no {writer} wrote", _ELSEWHERE)
        hint = "name a new folder, or remove this one: outputs of earlier versions have no manifest"
        _refuse(directory, f"it holds '{first}', and no manifest says that a {writer} wrote it", hint)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        wrote, files = manifest["writer"], {str(name): str(digest) for name, digest in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _refuse(directory, f"its {MANIFEST} can't be read", "name a new folder")
    if wrote != writer:
        _refuse(directory, f"it is what `prunec {wrote}` wrote, not `prunec {writer}`", "name a new folder")
    return files


def _is_known(name: PurePosixPath, mode: int, written: Mapping[str, str]) -> bool:
    """Whether an entry has the name of a file that was written, or is a folder on the way to one."""
    if stat.S_ISDIR(mode):
        return any(name in PurePosixPath(other).parents for other in written) or str(name) in written
    return str(name) == MANIFEST or str(name) in written


def _is_bytecode(path: Path, mode: int, written: Mapping[str, str]) -> bool:
    """Whether an entry is what Python leaves when a file that was written is imported: `__pycache__/model.*.pyc`."""
    if stat.S_ISDIR(mode):
        return path.name == _BYTECODE
    source = f"{path.name.partition('.')[0]}.py"
    if path.parent.name != _BYTECODE or path.suffix != ".pyc" or not stat.S_ISREG(mode) or source not in written:
        return False
    with path.open("rb") as file:
        return file.read(4)[2:] == b"\r\n"  # every version's magic number ends so


def _is_file(path: Path) -> bool:
    """Whether there is a file, and no link to one."""
    return path.is_file() and not path.is_symlink()


def _refuse(directory: Path, what: str, hint: str) -> NoReturn:
    raise OutputError(f"won't replace '{directory}': {what}", hint=hint)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- one for the other -----------------------------------------------------------------------------------------------


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Wait until no other run looks at a folder here or puts one in place; where the system has no such locks, don't.

    So two runs into one folder take turns: neither sees half of the other's, and the later one's output stays.
    """
    if sys.platform == "win32":
        yield
        return
    directory = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems can't lock a folder
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _put_in_place(fresh: Path, directory: Path, writer: str) -> None:
    """Give the fresh folder the directory's name, and remove what had it.

    What comes into the old folder before it is out of the way stops this: the folders change places again.
    """
    if directory.exists():
        shutil.copymode(directory, fresh)
    if _renamed(fresh, directory):
        return
    _owned(directory, writer)
    old = _old(fresh)
    _exchange(fresh, directory, old)
    try:
        files = _owned(old, writer)
    except OutputError:
        _exchange(old, directory, fresh)
        raise
    try:
        _remove(old, files)
    except OSError as error:
        raise OutputError(
            f"'{directory}' is written, but of the earlier one this is left: '{old}' ({error})"
        ) from error


def _renamed(fresh: Path, directory: Path) -> bool:
    """Rename onto a folder that isn't there or is empty; `False` where it has something in it."""
    try:
        fresh.rename(directory)
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            return False
        raise
    return True


def _exchange(new: Path, directory: Path, old: Path) -> None:
    """`new` becomes `directory`, and what was there becomes `old`."""
    if _swap(new, directory):
        new.rename(old)
        return
    directory.rename(old)
    new.rename(directory)


def _remove(folder: Path, files: list[str]) -> None:
    """Remove these files and the folders that are empty then; whatever else is there stays, with the manifest."""
    for name in files:
        if name != MANIFEST:
            (folder / name).unlink()
    for name, _ in reversed(list(_entries(folder))):
        if name != MANIFEST:
            (folder / name).rmdir()
    (folder / MANIFEST).unlink(missing_ok=True)
    folder.rmdir()


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


# -- its siblings ----------------------------------------------------------------------------------------------------


def _sibling(directory: Path) -> Path:
    """A free name next to the folder that tells which process made it; so is the name for what it replaces."""
    names = (directory.with_name(f"{_stem(directory)}{os.getpid()}-{number}") for number in count())
    return next(path for path in names if not path.exists() and not _old(path).exists())


def _old(fresh: Path) -> Path:
    """Where what a fresh folder replaces waits to be removed."""
    return fresh.with_name(f"{fresh.name}-old")


def _stem(directory: Path) -> str:
    host = re.sub(r"\W", "_", socket.gethostname())
    name = directory.name
    if len(os.fsencode(name)) > _LONG_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}.prunec-{host}-"


def _recover(directory: Path) -> None:
    """Remove what killed compiles of this host have left, or put back the folder that they were replacing.

    That is a whole one: an earlier output with a file of the user's in it stays where it is, unless there is no other.
    """
    for path in sorted(_left_behind(directory), key=_is_owned, reverse=True):
        if path.name.endswith("-old") and not directory.exists():
            path.rename(directory)
        elif _is_file(path / MANIFEST):
            _remove_if_owned(path)
        else:  # it was being written
            shutil.rmtree(path, ignore_errors=True)


def _is_owned(folder: Path) -> bool:
    return _own_files(folder) is not None


def _remove_if_owned(folder: Path) -> None:
    """Remove a whole output, which may have stood in its place; one that holds anything else stays."""
    files = _own_files(folder)
    if files is not None:
        with suppress(OSError):
            _remove(folder, files)


def _own_files(folder: Path) -> list[str] | None:
    """The files of an output of any command; None where anything else is there."""
    try:
        writer = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["writer"]
        return _owned(folder, writer)
    except (OSError, OutputError, ValueError, KeyError, TypeError):
        return None


def _left_behind(directory: Path) -> Iterator[Path]:
    pattern = re.compile(re.escape(_stem(directory)) + r"(\d{1,9})-\d+(-old)?")
    for path in directory.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not path.is_symlink() and not _is_alive(int(match[1])):
            yield path


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
