"""Trained weights: read from a file as data, and fitted to a model.

    small.safetensors                     read by safetensors
    small.pt  .pth  .bin  .ckpt           a pickle: read with `weights_only=True`, which refuses all but plain values

A checkpoint that keeps its weights under `state_dict`, `model_state_dict` or `model` is unwrapped, and the `module.`
that `nn.DataParallel` puts before every name is taken off. Names and shapes must then fit the model exactly.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import nn

from prunec.compiler.errors import ModelError, Span

State = Mapping[str, torch.Tensor]

PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
_DATA_PARALLEL: Final = "module."
_COUNTER: Final = "num_batches_tracked"
_NAMED: Final = 3
"""How many names of a kind an error lists."""


def load_weights(model: nn.Module, path: Path, at: Span | None = None) -> None:
    """Put the weights of a file into the model. Raises `ModelError`, placed `at`."""
    state = read_weights(path, at)
    complaint = _misfit(model, state)
    if complaint:
        raise ModelError(f"the weights in {path.name} don't fit the model: {complaint}", at=at)
    model.load_state_dict(dict(state), strict=False)


def read_weights(path: Path, at: Span | None = None) -> State:
    """The tensors of a weights file by their names. Raises `ModelError`; nothing in the file is run."""
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(f"can't read {path.name} as safetensors: {error}", at=at) from error
    if path.suffix not in PICKLES:
        kinds = ", ".join((".safetensors", *PICKLES))
        raise ModelError(f"{path.name} is no known kind of weights file", at=at, hint=f"known kinds: {kinds}")
    return _state_of(_unpickle(path, at), path, at)


def _unpickle(path: Path, at: Span | None) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch doubts rare pickle protocols: that they load says all
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {name[1]}" if name else "it isn't plain tensors"
        raise ModelError(
            f"refused to load {path.name}: {what}, and loading it could run code",
            at=at,
            hint="save the weights as safetensors, or as torch.save(model.state_dict(), path)",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise ModelError(f"can't read {path.name} as a PyTorch checkpoint: {reason}", at=at) from error


def _state_of(loaded: Any, path: Path, at: Span | None) -> State:
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path.name} holds an object of type '{type(loaded).__name__}', not a state dict", at=at)
    strange = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if strange:
        hint = f"a checkpoint keeps its weights under one of {', '.join(WRAPPERS)}"
        raise ModelError(f"{path.name} is no state dict: {_some(strange)} hold no tensor", at=at, hint=hint)
    if loaded and all(key.startswith(_DATA_PARALLEL) for key in loaded):
        return {key.removeprefix(_DATA_PARALLEL): value for key, value in loaded.items()}
    return dict(loaded)


def _misfit(model: nn.Module, state: State) -> str:
    """What is missing, unexpected or of another shape; empty where all fits."""
    own: State = model.state_dict(keep_vars=True)
    # A tied tensor is saved under one of its names; and counters of batches are younger than many checkpoints.
    shared = {id(own[key]) for key in own.keys() & state.keys()}
    missing = [key for key in own if key not in state and id(own[key]) not in shared and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
