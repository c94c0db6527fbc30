"""Trained weights, put into a model: which of a checkpoint's states they are, and which names they have in the model.

    {"epoch": 3, "model_state": {"module.conv.weight": ...}, "optimizer": {...}}   is read as   {"conv.weight": ...}

What is taken is decided by the model: the one state in the file whose names and shapes are the model's, as they are or
without what a wrapper has put before them or between them (`module.` by DataParallel, `_orig_mod.` by torch.compile,
the attribute's name by a LightningModule). What was unwrapped is told; where several states fit, or none, the choice is
the user's, by a key and a prefix. Names and shapes must fit the model exactly, unless `strict` is False.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunec.compiler.driver.checkpoint import read_checkpoint
from prunec.compiler.errors import ModelError, Span, nearest
from prunec.compiler.ir.wrappers import Tell, untold

State = Mapping[str, torch.Tensor]
Keys = tuple[str, ...]

_COUNTER: Final = "num_batches_tracked"
_BETWEEN: Final = ("_orig_mod", "module")
"""Parts of a name that torch.compile and DataParallel leave where they wrap a part of a model."""
_DEPTH: Final = 4
"""How deep in a checkpoint states are looked for."""
_TRIED: Final = 8
"""How many prefixes are tried."""
_NAMED: Final = 3
"""How many names of a kind an error lists."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file, and what its user says of it: see `plan.schema.WeightsSpec`."""

    path: Path
    key: str | None = None
    prefix: str | None = None
    strict: bool = True
    place: Callable[..., Span | None] = field(default=lambda *keys: None)
    """Where these stand in the plan, by key."""

    def error(self, message: str, *keys: str, hint: str | None = None) -> ModelError:
        """An error about the file, or about what the plan says of it under `keys`."""
        return ModelError(message, at=self.place(*keys), hint=hint)


@dataclass(frozen=True)
class _Fit:
    """A state of the file under the model's names, and what is wrong with it."""

    keys: Keys
    """Where in the file it is."""
    prefix: str
    """What was taken off its names."""
    between: tuple[str, ...]
    """What was taken out of them."""
    state: Mapping[str, Any]
    left_out: tuple[str, ...]
    """Names in the file that aren't taken."""
    faults: Mapping[str, list[str]]
    """Kind of fault -> names."""

    matched: int
    """How many of its names are the model's."""

    @property
    def complaint(self) -> str:
        """The faults in words, empty where there are none."""
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in self.faults.items() if names)


def load_weights(model: nn.Module, file: WeightsFile, tell: Tell = untold) -> None:
    """Put the weights of a file into the model, and `tell` what of the file was taken, where that isn't all.

    Raises `ModelError`.
    """
    target = _Target(model)
    fit = _chosen(file, target)
    state = {name: _dense(value) for name, value in fit.state.items()}
    if any(tensor.is_meta for tensor in target.own.values()):  # it was made without values, to be given these
        state = {name: value.to(target.own[name].dtype) for name, value in state.items() if name in target.own}
        model.load_state_dict(state, strict=False, assign=True)
    else:
        model.load_state_dict(state, strict=False)
    for note in _notes(file, fit, target):
        tell(note)


# -- what a model asks for -------------------------------------------------------------------------------------------


class _Target:
    """The tensors of a model by the names that they are saved under."""

    def __init__(self, model: nn.Module) -> None:
        saved = model.state_dict(keep_vars=True)
        if not isinstance(saved, Mapping):
            raise ModelError(f"the model's state_dict() gave an object of type '{type(saved).__name__}'")
        self.model = model
        self.own: State = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
        self.extra = saved.keys() - self.own.keys()
        """Names of what modules save beside tensors."""

    def missing(self, names: Iterable[str]) -> list[str]:
        """What must be there and isn't. A tied tensor is saved under one of its names; and counters of batches are
        younger than many checkpoints."""
        there = set(names)
        shared = {id(self.own[name]) for name in self.own.keys() & there}
        return [
            name
            for name, tensor in self.own.items()
            if name not in there and id(tensor) not in shared and not name.endswith(_COUNTER)
        ]

    def faults(self, state: Mapping[str, Any]) -> dict[str, list[str]]:
        """What is missing, unexpected or otherwise wrong, by kind."""
        named = [(name, state[name], own) for name, own in self.own.items() if name in state]
        found: dict[str, list[str]] = {
            "missing": self.missing(state),
            "unexpected": [str(name) for name in state if name not in self.own and name not in self.extra],
        }
        for name, value, own in named:
            fault = _fault(value, own)
            if fault:
                found.setdefault(fault[0], []).append(f"{name} {fault[1]}".strip())
        return found


def _fault(value: Any, own: torch.Tensor) -> tuple[str, str] | None:
    """A kind of fault, and what of the value is at fault, in words."""
    if not isinstance(value, torch.Tensor):
        return "without a tensor", ""
    if value.is_meta:
        return "without values", "was saved from the meta device"
    if value.is_nested or value.is_quantized:
        return "of a kind that can't be taken", "is quantised" if value.is_quantized else "is a nested tensor"
    if is_lazy(own):
        return None
    if value.shape != own.shape:
        return "of another shape", f"is {list(value.shape)} in the file, {list(own.shape)} in the model"
    if _kind(value) != _kind(own) and not _are_truths(value, own):
        kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, own)]
        return "of another type", f"is {kinds[0]} in the file, {kinds[1]} in the model"
    return None


def _kind(tensor: torch.Tensor) -> str:
    """Kinds of numbers that aren't taken for each other."""
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "real"
    return "truth" if tensor.dtype == torch.bool else "whole"


def _are_truths(value: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a mask was saved as zeros and ones: torch had no truth values once."""
    return own.dtype == torch.bool and value.dtype == torch.uint8 and bool((value <= 1).all())


def _dense(value: Any) -> Any:
    return value.to_dense() if isinstance(value, torch.Tensor) and value.layout != torch.strided else value


# -- which state of the file it is -----------------------------------------------------------------------------------


def _chosen(file: WeightsFile, target: _Target) -> _Fit:
    """The one state that fits the model. Raises `ModelError` where there is none, or more than one."""
    fits = [fit for keys, state in _states_in(file) for fit in _fits(file, target, keys, state)]
    right = [fit for fit in fits if not _at_fault(fit, file)]
    most = max((fit.matched for fit in right), default=0)
    different = _different([fit for fit in right if fit.matched == most])
    if len(different) > 1:
        raise _ambiguous(file, different)
    if different:
        return different[0]
    best = max(fits, key=lambda fit: fit.matched)
    if file.strict and _as_the_model_reads(target, best):
        return best
    where = f" under '{'.'.join(best.keys)}'" if best.keys else ""
    raise file.error(
        f"the weights in {file.path.name}{where} don't fit the model: {best.complaint}", hint=_hint(file, best)
    )


def _hint(file: WeightsFile, best: _Fit) -> str | None:
    kinds = {kind for kind, names in best.faults.items() if names}
    if kinds <= {"missing", "unexpected"} and best.matched:
        return f"weights: {{file: {file.path.name}, strict: false}} takes those that fit"
    if best.state and not best.matched:
        firsts = sorted({name.partition(".")[0] for name in best.state})
        return f"the names in the file begin with {_some(firsts)}"
    return None


def _states_in(file: WeightsFile) -> list[tuple[Keys, Mapping[str, Any]]]:
    """Every mapping of names to tensors in the file, or in what its key leads to. Raises `ModelError`."""
    loaded = read_checkpoint(file.path, file.place())
    keys: Keys = ()
    if file.key is not None:
        keys, loaded = _at_key(file, loaded)
    if not isinstance(loaded, Mapping):
        what = f"{file.path.name} holds an object of type '{type(loaded).__name__}', not a state dict"
        raise file.error(what, *(["key"] if keys else []))
    if not loaded:
        return [(keys, {})]
    found = list(_states(loaded, keys))
    if not found:
        names = [str(name) for name in loaded]
        where = f" under '{file.key}'" if keys else ""
        raise file.error(f"{file.path.name} is no state dict{where}: {_some(names)} hold no tensor")
    odd = next((name for _, state in found for name in state if not isinstance(name, str)), None)
    if odd is not None and len(found) == 1:
        what = f"{file.path.name} is no state dict: a tensor's name must be text, got {odd!r}"
        raise file.error(what)
    return [(path, {str(name): value for name, value in state.items()}) for path, state in found]


def _states(value: Any, keys: Keys) -> Iterator[tuple[Keys, Mapping[Any, Any]]]:
    if not isinstance(value, Mapping) or len(keys) > _DEPTH:
        return
    if any(isinstance(item, torch.Tensor) for item in value.values()):
        yield keys, value
    for key, item in value.items():
        if isinstance(key, str):
            yield from _states(item, (*keys, key))


def _at_key(file: WeightsFile, loaded: Any) -> tuple[Keys, Any]:
    """What the key leads to: a key of the file, or several with dots between them. Raises `ModelError`."""
    assert file.key is not None, "there is a key"
    keys: Keys = ()
    rest = file.key
    while rest:
        names = [key for key in loaded if isinstance(key, str)] if isinstance(loaded, Mapping) else []
        fitting = [name for name in names if rest == name or rest.startswith(f"{name}.")]
        if not fitting:
            where = f" under '{'.'.join(keys)}'" if keys else ""
            raise file.error(f"{file.path.name} has no key '{rest}'{where}", "key", hint=nearest(rest, names))
        name = max(fitting, key=len)
        keys, loaded, rest = (*keys, name), loaded[name], rest[len(name) + 1 :]
    return keys, loaded


def _different(fits: list[_Fit]) -> list[_Fit]:
    """One of those that hold the same values; where a whole file fits, that alone."""
    whole = [fit for fit in fits if not fit.keys]
    kept: list[_Fit] = []
    for fit in whole or fits:
        if not any(_equal(fit.state, other.state) for other in kept):
            kept.append(fit)
    return kept


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        value is other[name] or (isinstance(value, torch.Tensor) and torch.equal(_dense(value), _dense(other[name])))
        for name, value in one.items()
    )


def _ambiguous(file: WeightsFile, right: list[_Fit]) -> ModelError:
    places = sorted({".".join(fit.keys) for fit in right})
    if len(places) > 1:
        what, key, names = "several states", "key", places
    else:
        what, key, names = "several prefixes whose names", "prefix", [fit.prefix for fit in right]
    hint = f"say which: weights: {{file: {file.path.name}, {key}: {names[0]}}}"
    listed = ", ".join(f"'{name}'" for name in names)
    verb = "that fit" if key == "key" else "fit"
    return file.error(f"{file.path.name} holds {what} {verb} the model: {listed}", hint=hint)


# -- which names it has ----------------------------------------------------------------------------------------------


def _fits(file: WeightsFile, target: _Target, keys: Keys, state: Mapping[str, Any]) -> Iterator[_Fit]:
    """The state under the model's names, in each way that makes all of them fit; as it is where none does."""
    if file.prefix is not None:
        yield _without(target, keys, state, _spelled(file, state))
        return
    plain = _without(target, keys, state, "")
    yield plain
    if not any(plain.faults.values()) or (file.strict and not plain.faults["missing"]):
        return
    for between, variant in _variants(state):
        for prefix in _prefixes(target, variant):
            if prefix or between:
                yield _without(target, keys, variant, prefix, between)


def _without(target: _Target, keys: Keys, state: Mapping[str, Any], prefix: str, between: Keys = ()) -> _Fit:
    """The part of a state whose names begin with the prefix, without it. Entries that hold no tensor, and that the
    model doesn't ask for, are figures of the training, and left out."""
    mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    taken = {
        name: value
        for name, value in mine.items()
        if isinstance(value, torch.Tensor) or name in target.own or name in target.extra
    }
    left_out = tuple(name for name in state if name.removeprefix(prefix) not in taken or not name.startswith(prefix))
    matched = len(taken.keys() & target.own.keys())
    return _Fit(keys, prefix, between, taken, left_out, target.faults(taken), matched)


def _at_fault(fit: _Fit, file: WeightsFile) -> bool:
    """Whether a fit has faults; with `strict: false`, names that are missing or unexpected are none, if some fit."""
    loose = () if file.strict or not fit.matched else ("missing", "unexpected")
    return any(names for kind, names in fit.faults.items() if kind not in loose)


def _spelled(file: WeightsFile, state: Mapping[str, Any]) -> str:
    """The prefix that a plan names, with the dot behind it. Raises `ModelError` where no name has it."""
    prefix = file.prefix or ""
    if prefix and not prefix.endswith(".") and any(name.startswith(f"{prefix}.") for name in state):
        prefix += "."
    if not any(name.startswith(prefix) for name in state):
        firsts = {f"{name.partition('.')[0]}." for name in state if "." in name}
        raise file.error(f"no name in {file.path.name} begins with '{prefix}'", "prefix", hint=nearest(prefix, firsts))
    return prefix


def _variants(state: Mapping[str, Any]) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """The state as it is, and without the parts of names that wrappers of a model's parts leave in them."""
    yield (), state
    for parts in (*((each,) for each in _BETWEEN), _BETWEEN):
        names = {name: ".".join(each for each in name.split(".") if each not in parts) for name in state}
        if len(set(names.values())) == len(state) and any(name != new for name, new in names.items()):
            yield parts, {new: state[name] for name, new in names.items()}


def _prefixes(target: _Target, state: Mapping[str, Any]) -> list[str]:
    """What may stand before the model's names: what stands before most of them."""
    found: Counter[str] = Counter()
    for name in state:
        cuts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        found.update(name[:cut] for cut in cuts if name[cut:] in target.own)
    return [prefix for prefix, _ in found.most_common(_TRIED)]


# -- what torch makes of it, and what is told ------------------------------------------------------------------------


def _as_the_model_reads(target: _Target, fit: _Fit) -> bool:
    """Whether the model itself takes the state: its modules may read names of earlier versions."""
    if not fit.matched or any(n for kind, n in fit.faults.items() if kind not in ("missing", "unexpected")):
        return False
    result = target.model.load_state_dict({name: _dense(value) for name, value in fit.state.items()}, strict=False)
    return not result.unexpected_keys and not target.missing(target.own.keys() - set(result.missing_keys))


def _notes(file: WeightsFile, fit: _Fit, target: _Target) -> Iterator[str]:
    """What of the file was taken, and what wasn't."""
    told = []
    if fit.keys:
        told.append(f"taken from '{'.'.join(fit.keys)}'")
    if fit.prefix:
        told.append(f"without '{fit.prefix}' before their names")
    if fit.between:
        told.append(f"without {' and '.join(map(repr, fit.between))} in their names")
    if fit.left_out:
        told.append(f"not read: {_some(fit.left_out)}")
    if not file.strict:
        told += [f"{kind}: {_some(fit.faults[kind])}" for kind in ("missing", "unexpected") if fit.faults[kind]]
    sparse = [name for name, value in fit.state.items() if _dense(value) is not value]
    if sparse:
        told.append(f"sparse, made dense: {_some(sparse)}")
    rounded = [name for name, value in fit.state.items() if name in target.own and _is_rounded(value, target.own[name])]
    if rounded:
        told.append(f"rounded to the model's type: {_some(rounded)}")
    if told:
        yield f"weights of {file.path.name}: {'; '.join(told)}"


def _is_rounded(value: torch.Tensor, own: torch.Tensor) -> bool:
    if not value.is_floating_point():
        return False
    try:
        return torch.promote_types(value.dtype, own.dtype) != own.dtype
    except RuntimeError:  # types of eight bits and less, which torch promotes to none
        return value.element_size() >= own.element_size() and value.dtype != own.dtype


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
