"""A weights file as plain values: whatever it is called, it is read by what is in it, and nothing in it is run.

    small.safetensors              read by safetensors
    small.pt  .pth.tar  .ckpt ...  a pickle: read by torch's loader with `weights_only=True`, which refuses foreign code

That loader also refuses harmless objects that training scripts leave beside the weights, such as an
`argparse.Namespace`. For a fixed list of names, `_STAND_INS`, it builds an empty object of ours instead: neither the
class of that name nor what the pickle holds for it is looked at. Every other name is refused.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import stat
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch

from prunec.compiler.errors import ModelError, Span

SAFETENSORS: Final = ".safetensors"
KEYS: Final = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "model_ema",
)
"""Under these keys a checkpoint often keeps its weights; for hints alone."""

_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"
_OTHERS: Final = {
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "packed by gzip: unpack it first",
    b"BZh": "packed by bzip2: unpack it first",
    b"\xfd7zXZ": "packed by xz: unpack it first",
    b"<!DO": "a page of HTML: was the download refused?",
    b"<htm": "a page of HTML: was the download refused?",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
}
"""How files begin that are often taken for weights."""
_TORCH_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
_LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""A file of torch before version 1.6: three pickles about the file stand before that of the object."""
_LONGEST_HEADER: Final = 10**8
"""Bytes that safetensors takes for a header."""
_NO_VALUES: Final = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}
_PROTOCOL: Final = 2
"""The one that torch writes, and that its safe loader reads."""
_SCANNED: Final = 2**24
"""Bytes of a pickle that are looked at for a hint."""


# -- what stands for objects beside the weights ----------------------------------------------------------------------


class _Inert:
    """Takes whatever a pickle builds it from, and keeps nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Items:
    """A mapping of whatever class, as a plain one."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Series:
    """A sequence of whatever class, as a list."""

    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


_INERT: Final = """
    argparse.Namespace types.SimpleNamespace
    builtins.int builtins.float builtins.bool builtins.str builtins.list builtins.dict builtins.tuple typing.Any
    datetime.datetime datetime.date datetime.timedelta datetime.timezone uuid.UUID
    pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.PurePosixPath pathlib._local.WindowsPath
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    torch.torch_version.TorchVersion
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode
    omegaconf.nodes.BooleanNode omegaconf.nodes.StringNode
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping
""".split()
_MAPPINGS: Final = """
    collections.defaultdict easydict.EasyDict yacs.config.CfgNode addict.addict.Dict mmcv.utils.config.ConfigDict
    mmengine.config.config.ConfigDict pytorch_lightning.utilities.parsing.AttributeDict
    lightning.pytorch.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict
    lightning.fabric.utilities.data.AttributeDict
""".split()
_STAND_INS: Final[list[Any]] = [
    *((_Inert, name) for name in _INERT),
    *((_Items, name) for name in _MAPPINGS),
    (_Series, "collections.deque"),
]


# -- reading ---------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, at: Span | None = None) -> Any:
    """What a weights file holds, as plain values and tensors. Raises `ModelError`; nothing in the file is run."""
    try:
        head = _head(path)
    except OSError as error:
        raise ModelError(f"{_cant_read(path)}: {error.strerror}", at=at) from error
    if not head:
        raise ModelError(f"{_cant_read(path)}: the file is empty", at=at)
    other = next((what for start, what in _OTHERS.items() if head.startswith(start)), None)
    if other:
        raise ModelError(f"{path.name} holds no weights: it is {other}", at=at)
    if head.startswith(_ZIP) or _ZIP.startswith(head):
        _check_zip(path, at)
    elif head[8:9] == b"{" or (path.suffix.lower() == SAFETENSORS and not head.startswith(_PICKLE)):
        return _read_safetensors(path, at)
    elif not head.startswith(_PICKLE) and path.suffix.lower() not in _TORCH_SUFFIXES:
        kinds = "safetensors, and what torch.save wrote"
        raise ModelError(f"{path.name} is no known kind of weights file", at=at, hint=f"known kinds: {kinds}")
    return _unpickle(path, at)


def _head(path: Path) -> bytes:
    """The first bytes of a file; of a device or a pipe, which might never end, an `OSError`."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(0, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    with path.open("rb") as file:
        return file.read(64)


def _read_safetensors(path: Path, at: Span | None) -> dict[str, torch.Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = _shortage(path) or str(error)
        raise ModelError(f"can't read {path.name} as safetensors: {reason}", at=at) from error


def _shortage(path: Path) -> str | None:
    """Where a safetensors file is shorter or longer than it says, by how much; None where that isn't its fault."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            return None
        if length > size - 8:
            return "it is cut short"
        try:
            header = json.loads(file.read(length))
            end = 8 + length + max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None
    return f"it has {size:,} bytes where its header promises {end:,}: is it whole?" if end != size else None


def _check_zip(path: Path, at: Span | None) -> None:
    """Refuse archives that torch's loader doesn't take, in words that say what they are. Raises `ModelError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        message = f"{_cant_read(path)}: it is damaged, or cut short"
        raise ModelError(message, at=at, hint="was it downloaded or copied whole?") from error
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        made = _beside(path)
        raise ModelError(
            f"{path.name} is a TorchScript program, not a checkpoint",
            at=at,
            hint="take its weights out, and name the new file in the plan:\n"
            f"    scripted = torch.jit.load({str(path)!r})\n    torch.save(scripted.state_dict(), {made!r})",
        )
    if "data.pkl" not in names:
        numpys = any(entry.filename.endswith(".npy") for entry in entries)
        what = "an archive of NumPy arrays" if numpys else "a zip archive"
        raise ModelError(f"{path.name} is {what}, not a PyTorch checkpoint", at=at)
    if sum(entry.file_size for entry in entries) > os.path.getsize(path):
        message = f"{_cant_read(path)}: it claims to hold more bytes than it has"
        raise ModelError(message, at=at)


def _unpickle(path: Path, at: Span | None) -> Any:
    try:
        # torch doubts rare pickle protocols: that they load says all
        quiet, allowed = warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_STAND_INS)
        with quiet, allowed, path.open("rb") as file:  # of a path, torch would go by the name's ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file leads the loader to
        raise _refused(path, error, at) from error


def _refused(path: Path, error: Exception, at: Span | None) -> ModelError:
    scanned = _scanned(path)
    ended = isinstance(error, EOFError | IndexError | struct.error) or "unexpected EOF" in str(error)
    if not scanned.whole or (ended and scanned.opcodes):
        return ModelError(f"{_cant_read(path)}: it is cut short", at=at)
    if scanned.opcodes and not isinstance(error, pickle.UnpicklingError):
        reason = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
        return ModelError(f"{_cant_read(path)}: {reason}", at=at)
    name = re.search(r"GLOBAL (\S+)", str(error))
    if name:
        what = f"it names {name[1]}"
    elif scanned.by_torch and scanned.protocol != _PROTOCOL:
        what = f"it is a pickle of protocol {scanned.protocol}, which torch's safe loader doesn't read"
    else:
        what = "it isn't plain tensors"
    message = f"refused to load {path.name}: {what}, and loading it could run code"
    return ModelError(message, at=at, hint=_conversion(path, scanned))


def _cant_read(path: Path) -> str:
    kind = "safetensors" if path.suffix.lower() == SAFETENSORS else "a PyTorch checkpoint"
    return f"can't read {path.name} as {kind}"


# -- how to convert what is refused ----------------------------------------------------------------------------------


def _beside(path: Path) -> str:
    return str(path.with_name(f"{path.name.partition('.')[0]}_weights.pt"))


@dataclass(frozen=True)
class _Scan:
    """What a pickle says without being run."""

    opcodes: list[tuple[str, Any]]
    """The instructions that make values, with their arguments."""
    protocol: int
    whole: bool
    """Whether it has an end."""
    by_torch: bool
    """Whether torch wrote the file around it."""


def _conversion(path: Path, scanned: _Scan) -> str:
    """The two lines that make plain tensors of a file, by what it seems to hold."""
    if not scanned.opcodes:
        return "does it hold weights at all?"
    read = f"torch.load({str(path)!r}, weights_only=False)"
    found = f"loaded{_inner(scanned.opcodes)}"
    if not scanned.by_torch:
        read = f"pickle.loads(pathlib.Path({str(path)!r}).read_bytes())"
        if not found.endswith(")"):
            found = f"{{name: torch.as_tensor(value) for name, value in {found}.items()}}"
    return (
        "where you trust the file, convert it once, and name the new file in the plan:\n"
        f"    loaded = {read}\n"
        f"    torch.save({found}, {_beside(path)!r})"
    )


def _inner(opcodes: Sequence[tuple[str, Any]]) -> str:
    """Where in the loaded object the state seems to be: an object's own, or under a key, as a state or an object."""
    if opcodes[0][0] != "EMPTY_DICT" and not str(opcodes[0][1]).startswith("collections"):
        return ".state_dict()"
    places = {argument: i for i, (name, argument) in reversed(list(enumerate(opcodes))) if "UNICODE" in name}
    key = next((key for key in KEYS if key in places), None)
    if key is None:
        return ""
    first, second = [*opcodes, ("", ""), ("", "")][places[key] + 1 : places[key] + 3]
    # a module's class, as a name or, by an early torch, after the word `module`
    is_module = ("GLOBAL" in first[0] and not str(first[1]).startswith("collections")) or second[1] == "module"
    return f"[{key!r}]{'.state_dict()' if is_module else ''}"


def _scanned(path: Path) -> _Scan:
    content = _pickle_in(path)
    if not content.startswith(_PICKLE):
        return _Scan([], 0, True, False)
    data, legacy = io.BytesIO(content), content.startswith(_LEGACY)
    whole = len(content) == _SCANNED
    found: list[tuple[str, Any]] = []
    try:
        for _ in range(3 if legacy else 0):
            list(pickletools.genops(data))
        for opcode, argument, _ in pickletools.genops(data):
            found.append((opcode.name, argument))
        whole = True
    except ValueError:  # it has no end, or is no pickle
        pass
    protocol = next((argument for name, argument in found if name == "PROTO"), 0)
    values = [(name, argument) for name, argument in found if name not in _NO_VALUES]
    return _Scan(values, protocol, whole, legacy or zipfile.is_zipfile(path))


def _pickle_in(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(_SCANNED)
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if name is None:
            return b""
        with archive.open(name) as file:
            return file.read(_SCANNED)
