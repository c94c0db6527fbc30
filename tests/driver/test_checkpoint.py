"""Weights files of every kind, whole and damaged; nothing in them is run."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from prunec.compiler.driver import checkpoint
from prunec.compiler.driver.checkpoint import read_checkpoint
from prunec.compiler.errors import ModelError


def saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


STATE = {"weight": torch.arange(6.0).reshape(2, 3)}
READ = "can't read {} as a PyTorch checkpoint: "
DAMAGED = "it is damaged, or cut short"
CUT = "it is cut short"
OF = {
    "zip": (saved(STATE), "w.pth"),
    "legacy": (saved(STATE, _use_new_zipfile_serialization=False), "w.pth"),
    "safetensors": (safetensors.torch.save(STATE), "w.safetensors"),
}


def refusal(path: Path, data: bytes) -> ModelError:
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    return caught.value


@pytest.mark.parametrize("kind", OF)
@pytest.mark.parametrize("name", ["w", "w.pth", "w.safetensors", "w.PTH.TAR", "w.bin"])
def test_a_file_is_read_by_what_is_in_it(tmp_path, kind, name):
    (tmp_path / name).write_bytes(OF[kind][0])
    assert torch.equal(read_checkpoint(tmp_path / name)["weight"], STATE["weight"])


@pytest.mark.parametrize("kind", OF)
def test_a_file_that_is_cut_short_says_so_wherever_it_is_cut(tmp_path, kind):
    data, name = OF[kind]
    for length in range(1, len(data), 7):
        message = refusal(tmp_path / name, data[:length]).message
        assert "cut short" in message or "is it whole?" in message, (length, message)


OTHERS = {
    "empty.pth": (b"", READ + "the file is empty"),
    "empty.safetensors": (b"", "can't read {} as safetensors: the file is empty"),
    "junk.pth": (b"junk" * 99, "refused to load {}: it isn't plain tensors, and loading it could run code"),
    "junk.npy": (b"\x93NUMPY\x01\x00", "{} holds no weights: it is a NumPy array"),
    "junk.h5": (b"\x89HDF\r\n", "{} holds no weights: it is an HDF5 file"),
    "junk.xyz": (b"no weights at all", "{} is no known kind of weights file"),
    "page.pt": (b"<!DOCTYPE html>", "{} holds no weights: it is a page of HTML: was the download refused?"),
    "lfs.pt": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "{} holds no weights: it is a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    ),
    "packed.pt.gz": (b"\x1f\x8b\x08", "{} holds no weights: it is packed by gzip: unpack it first"),
    "a.npz": (arrays(), "{} is an archive of NumPy arrays, not a PyTorch checkpoint"),
    "a.zip": (zipped(a__notes=b"x"), "{} is a zip archive, not a PyTorch checkpoint"),
    "bomb.pt": (
        zipped(a__data_pkl=b"\x80\x02}.", a__data__0=bytes(10**6)),
        READ + "it claims to hold more bytes than it has",
    ),
    "long.safetensors": (
        OF["safetensors"][0] + b"xx",
        f"can't read {{}} as safetensors: it has {len(OF['safetensors'][0]) + 2} bytes where its header promises "
        f"{len(OF['safetensors'][0])}: is it whole?",
    ),
    "four.pt": (
        saved(STATE, pickle_protocol=4),
        "refused to load {}: it is a pickle of protocol 4, which torch's safe loader doesn't read, and loading it "
        "could run code",
    ),
    "scripted.pt": (scripted(), "{} is a TorchScript program, not a checkpoint"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_holds_no_weights_is_called_what_it_is(tmp_path, name):
    data, message = OTHERS[name]
    assert refusal(tmp_path / name, data).message == message.format(name)


def test_a_vast_file_without_content_is_refused_at_once(tmp_path):
    for name in ("w.pth", "w.safetensors", "w.xyz"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**12)
        with pytest.raises(ModelError, match=f"{name}"):
            read_checkpoint(tmp_path / name)


def test_folders_devices_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path, what in (
        (tmp_path, "it is a folder"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path / "pipe.pt", "it is no regular file"),
        (tmp_path / "none.pt", "No such file or directory"),
    ):
        with pytest.raises(ModelError, match=what):
            read_checkpoint(path)


# -- objects beside the weights --------------------------------------------------------------------------------------


def run_as(name: str) -> type:
    """A class of that full name that must never be built."""
    module, _, last = name.rpartition(".")

    def fail(*args: object) -> None:
        pytest.fail(f"{name} was built")

    return type(last, (), {"__module__": module, "__new__": fail, "__setstate__": fail, "__init__": fail})


def _put_in_place(patched: pytest.MonkeyPatch, name: str, kind: type) -> None:
    """Let a name lead to a class, whether or not its package is installed."""
    module, _, last = name.rpartition(".")
    if importlib.util.find_spec(module.partition(".")[0]) is None or "_local" in module:
        parts = module.split(".")
        for end in range(2 if "_local" in module else 1, len(parts) + 1):
            patched.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    else:
        importlib.import_module(module)
    patched.setattr(sys.modules[module], last, kind, raising=False)


class Built:
    """Is pickled as a call of a class, followed by a state."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __reduce__(self):
        return self.kind, (1, "two"), {"three": 3}


INERT = [name for name in checkpoint._INERT if not name.startswith(("builtins.", "numpy.", "typing."))]


@pytest.mark.parametrize("name", [*INERT, *checkpoint._MAPPINGS])
def test_what_stands_for_an_object_is_ours(tmp_path, monkeypatch, name):
    """A class of a known name, whatever it does when it is built, isn't built."""
    kind = run_as(name)
    with monkeypatch.context() as patched:
        _put_in_place(patched, name, kind)
        data = saved({"beside": Built(kind), "weight": STATE["weight"]})
        (tmp_path / "w.pt").write_bytes(data)
        found = read_checkpoint(tmp_path / "w.pt")
    assert torch.equal(found["weight"], STATE["weight"])
    assert not isinstance(found["beside"], kind)


class Runs:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


HOSTILE = {
    "a call": Runs(),
    "in a list": [1, [Runs()]],
    "beside the weights": {"weight": STATE["weight"], "extra": Runs()},
    "a function": {"f": os.system},
    "eval": {"f": eval},
    "a class of the test": {"c": Runs},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_no_other_name_is_followed(tmp_path, monkeypatch, payload, legacy):
    monkeypatch.chdir(tmp_path)
    data = saved(payload, _use_new_zipfile_serialization=not legacy)
    error = refusal(tmp_path / "w.pt", data)
    assert error.message.startswith("refused to load w.pt: it names ")
    assert not (tmp_path / "owned").exists()


def test_what_the_caller_has_allowed_torch_is_left_as_it_was(tmp_path):
    before = torch.serialization.get_safe_globals()
    refusal(tmp_path / "w.pt", saved({"f": eval}))
    (tmp_path / "w.pt").write_bytes(saved(STATE))
    read_checkpoint(tmp_path / "w.pt")
    assert torch.serialization.get_safe_globals() == before


def test_an_environment_that_asks_for_unsafe_loading_is_not_heeded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    refusal(tmp_path / "w.pt", saved(Runs()))
    assert not (tmp_path / "owned").exists()


# -- the two lines ---------------------------------------------------------------------------------------------------


CONVERTED = {
    "a module": saved(nn.Linear(3, 2)),
    "a module in a checkpoint": saved({"epoch": 3, "model": nn.Linear(3, 2)}),
    "a state in a checkpoint": saved({"f": print, "state_dict": nn.Linear(3, 2).state_dict()}),
    "an ordered state": saved(nn.Linear(3, 2).state_dict(), pickle_protocol=4),
    "a plain pickle of arrays": pickle.dumps(
        {"model": {k: v.numpy() for k, v in nn.Linear(3, 2).state_dict().items()}}
    ),
    "TorchScript": scripted(),
}


@pytest.mark.parametrize("data", CONVERTED.values(), ids=CONVERTED)
def test_the_two_lines_convert_a_trusted_file(tmp_path, data):
    hint = refusal(tmp_path / "w.pth.tar", data).hint
    assert hint is not None
    lines = [line.strip() for line in hint.splitlines()[1:]]
    assert len(lines) == 2
    exec("\n".join(lines), {"torch": torch, "pickle": pickle, "pathlib": pathlib})
    assert read_checkpoint(tmp_path / "w_weights.pt").keys() == {"weight", "bias"}
