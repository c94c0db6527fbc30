"""Data as a compile reads them: whatever a plan's factory or a caller gives, as checked batches with their places.

    data      an object with train(), val() and test(), or some of them; a mapping with these keys; or batches alone,
              such as a DataLoader, which then serve as every split
    split     an iterable of batches that can be read again
    batch     (inputs, labels), or inputs alone; inputs are a tensor, a tuple of arguments, or a mapping of them by name

        x                      inputs alone                  ((x, mask), labels)             two arguments
        (x, labels)            and labels                    ({"x": x, "mask": mask}, None)  by name, and no labels

Reading draws torch's random numbers from a stream of its own: a loader that shuffles gives the same order at every
reading, and the caller's random state is left alone.
"""

from __future__ import annotations

import gc
import inspect
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from types import CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from prunec.compiler.errors import DataError, PrunecError, Span, nearest
from prunec.compiler.ir.inputs import LITERALS, batch_of, called, is_batched, map_tensors, tensors_in
from prunec.compiler.user_code import fault, is_out_of_memory, printable, running

SPLITS: Final = ("train", "val", "test")

PROTOCOL: Final = "data have train(), val() and test(), or some of them; or they are batches, such as a DataLoader"
"""What data are, for hints."""

_BATCH: Final = "a batch is (inputs, labels), or inputs alone"
_SEVERAL: Final = "several inputs are written ((x, y), labels), or ({'x': x, 'y': y}, labels)"


# -- a batch -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a batch comes from: the split (empty where the data have none), its number, and the plan's entry."""

    split: str = ""
    number: int = 0
    at: Span | None = None

    @property
    def source(self) -> str:
        """`the data's test()`."""
        return f"the data's {self.split}()" if self.split else "the data"

    def fault(self, message: str, hint: str | None = None) -> DataError:
        """The error of what is wrong with this batch."""
        return DataError(f"batch {self.number} of {self.source}: {message}", at=self.at, hint=hint)


@dataclass(frozen=True)
class Batch:
    """Some samples: `inputs` is what the model is called with, `labels` is None where the data have none."""

    inputs: Any
    """A tensor, a tuple of arguments, or a mapping of them by name."""
    labels: Any = None
    """A tensor, [samples, ...]; or what else the data give, such as the boxes of a detector."""
    place: Place = field(default_factory=Place)

    @property
    def count(self) -> int:
        """The number of samples."""
        return batch_of(self.inputs) or 0

    @property
    def shapes(self) -> str:
        """The shapes of the inputs, for messages."""
        return " and ".join(str(list(x.shape)) for x in tensors_in(self.inputs))

    def __getitem__(self, where: slice) -> Batch:
        return self.picked(where)

    def picked(self, where: slice | Tensor) -> Batch:
        """The samples of a slice, or those for which `where` [samples] is true."""
        count = self.count
        inputs = map_tensors(lambda x: x[where] if is_batched(x, count) else x, self.inputs)
        labels = map_tensors(lambda x: x[where] if is_batched(x, count) else x, self.labels)
        return replace(self, inputs=inputs, labels=labels)

    def like(self, example: Any, device: torch.device) -> Batch:
        """The batch on a device, its floating-point inputs in the dtype of the example inputs' first ones."""
        floating = (x.dtype for x in tensors_in(example) if x.is_floating_point())
        dtype = next(floating, torch.get_default_dtype())
        inputs = map_tensors(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype), self.inputs)
        labels = map_tensors(lambda x: x.to(device), self.labels)
        return replace(self, inputs=inputs, labels=labels)

    def through(self, module: Callable[..., Any]) -> Any:
        """What the model gives for the batch, which stays as it is, also where the model writes into its inputs: they
        may be the user's own tensors. Raises `DataError` where it can't take it."""
        with running("", DataError, explain=self.refused):
            return called(module, map_tensors(torch.clone, self.inputs))

    def refused(self, error: BaseException) -> PrunecError:
        """The error of a model that can't take the batch, or for which there isn't memory enough."""
        if is_out_of_memory(error):
            message = f"its {self.count} samples, {self.shapes}, don't fit into memory with the model"
            return self.place.fault(message, "give smaller batches")
        what = f"batch {self.place.number}: the model can't take the data's batches, of shape {self.shapes}"
        return fault(what, DataError, error, at=self.place.at, hint=self._hint(error))

    def _hint(self, error: BaseException) -> str | None:
        """What may be meant by a batch that a model can't take; None where nothing is likely."""
        if isinstance(self.inputs, Mapping):
            return f"a mapping gives forward its arguments by name: {', '.join(map(str, self.inputs))}; {_BATCH}"
        if self.labels is None:
            return _BATCH
        return f"a pair is inputs and labels; {_SEVERAL}" if isinstance(error, TypeError) else None

    @property
    def classes(self) -> Tensor | None:
        """The class of every sample, [samples], in int64; None where the labels are something else."""
        labels = self.labels
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            return None
        return labels.reshape(-1).long() if labels.ndim == 1 or labels.shape[1:] == (1,) else None


def told(labels: Any) -> str:
    """What labels are, in words."""
    if labels is None:
        return "the data have no labels"
    if isinstance(labels, Tensor):
        return f"the labels are {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
    return f"the labels are a {type(labels).__name__}"


def checked(found: Any, place: Place) -> Batch:
    """What data gave as a batch, checked. Raises `DataError` where it is none."""
    inputs, labels = found, None
    if isinstance(found, tuple | list):
        if len(found) not in (1, 2):
            hint = _SEVERAL if len(found) else _BATCH
            raise place.fault(f"it must be (inputs, labels), got {len(found)} values", hint)
        inputs, labels = found if len(found) == 2 else (found, None)
    if not isinstance(inputs, Tensor | np.ndarray | tuple | list | Mapping):
        raise place.fault(f"its inputs must be tensors, got {_kind(inputs)}", _BATCH)
    inputs = _inputs(inputs, place)
    if batch_of(inputs) is None:
        raise place.fault(
            "its inputs hold no tensor with a row for each sample", "a DataLoader makes batches of samples"
        )
    return Batch(inputs, _labels(labels, inputs, place), place)


def _inputs(value: Any, place: Place) -> Any:
    """Inputs with plain containers, and tensors for arrays."""
    if isinstance(value, Mapping):
        return {key: _inputs(item, place) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_inputs(item, place) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, np.ndarray):
        return _tensor(value, "inputs", place)
    if isinstance(value, Tensor):
        return _plain(value, "inputs", place)
    if not isinstance(value, LITERALS):
        raise place.fault(
            f"its inputs hold {_kind(value)}", "give tensors, numbers and None, in tuples, lists or dicts"
        )
    return value


def _labels(value: Any, inputs: Any, place: Place) -> Any:
    """Labels as a tensor where they are numbers. Raises `DataError` for texts, and for more or fewer than samples."""
    if _holds_text(value):
        raise place.fault("its labels are text", "give the numbers of classes")
    if isinstance(value, np.ndarray | np.generic) or _is_numbers(value):
        value = _tensor(value, "labels", place)
    if not isinstance(value, Tensor):
        return value
    if not _plain(value, "labels", place).ndim:
        raise place.fault("it has one label, not one for each sample", "a DataLoader makes batches of samples")
    # Of sequences that run along the first dimension, the samples are counted along the second.
    if not any(len(value) in tensor.shape[:2] for tensor in tensors_in(inputs)):
        raise place.fault(f"it has {batch_of(inputs)} inputs and {len(value)} labels")
    return value


def _plain(tensor: Tensor, what: str, place: Place) -> Tensor:
    """A tensor that has values, and rows that can be picked."""
    kinds = {"nested": tensor.is_nested, "quantised": tensor.is_quantized, "meta": tensor.is_meta}
    kind = next((kind for kind, found in kinds.items() if found), "" if tensor.layout == torch.strided else "sparse")
    if kind:
        raise place.fault(f"its {what} hold a {kind} tensor", "give dense tensors with values")
    return tensor


def _is_numbers(value: Any) -> bool:
    """Whether this is a number, or a nest of lists of numbers."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_numbers, value))
    return isinstance(value, bool | int | float | np.generic)


def _holds_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(item, str | bytes) for item in value)
    return isinstance(value, str | bytes)


def _tensor(value: Any, what: str, place: Place) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise place.fault(f"its {what} can't be made a tensor: {error}") from error


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type '{type(value).__name__}'"


# -- the data ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """One reading of a split: its batches, and how many there will be, where that is known."""

    batches: Iterator[Batch]
    total: int | None

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


@dataclass(frozen=True, eq=False)
class Data:
    """Splits of batches. `splits` are those that the data have; of batches alone, each is all of them."""

    given: Any = field(repr=False)
    splits: tuple[str, ...]
    alone: bool
    """Whether the data are batches, and no object with splits."""
    at: Span | None = None
    seed: int = 0
    again: Callable[[], Any] | None = field(default=None, repr=False)
    """Makes anew what was given, for another process; None where nobody knows how."""
    through: Callable[[Iterator[Batch]], Iterator[Batch]] | None = None
    """What every reading goes through: it may leave samples out, change them, and make other batches of them."""
    _read: dict[str, Callable[[], Any]] = field(default_factory=dict, repr=False)
    """Split -> the iterator that it gave last, as long as somebody holds it."""

    @staticmethod
    def of(given: Any, subject: str = "the data are", at: Span | None = None, seed: int = 0) -> Data:
        """The data that somebody gave; data of ours as they are. `subject` is how the error begins.

        Raises `DataError` for what is neither an object with splits nor an iterable of batches.
        """
        if isinstance(given, Data):
            return given
        with running("the data's splits can't be read", DataError, at=at):
            splits = tuple(split for split in SPLITS if _is_split(_member(given, split)))
            wrong = (
                None if splits and not isinstance(given, type | nn.Module) else _no_splits(given) or _no_batches(given)
            )
        if wrong is not None:
            raise DataError(f"{subject} {wrong[0]}", at=at, hint=wrong[1])
        return Data(given, splits or SPLITS, not splits, at, seed)

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: how the data are made, or else the data themselves."""
        given = self.given if self.again is None else None
        return {**self.__dict__, "given": given, "_read": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        again = state["again"]
        self.__dict__.update(state)
        self.__dict__["given"] = state["given"] if again is None else again()

    def first(self, *splits: str) -> str | None:
        """The first of these splits that the data have."""
        return next((split for split in splits if split in self.splits), None)

    def require(self, split: str) -> None:
        """Raise `DataError` where the data have no such split."""
        if split not in self.splits:
            has = " and ".join(f"{name}()" for name in self.splits)
            hint = f"they have {has}; the option 'split' says which is read"
            raise DataError(f"the data have no split '{split}'", at=self.at, hint=hint)

    def read(self, split: str) -> Reading:
        """The batches of a split, from the first one on. Whatever the data raise becomes a `DataError`.

        Raises `DataError` where the data have no such split, or where it can't be read again.
        """
        place, stream = self._place(split), _Stream(self.seed)
        source = self._made(place, stream)
        return self._reading(source, place, stream)

    def epochs(self, split: str, seed: int) -> Epochs:
        """The split, to be read one epoch after the other, each in an order of its own. Raises as `read` does."""
        return Epochs(self, self._place(split), seed)

    def _place(self, split: str) -> Place:
        self.require(split)
        return Place("" if self.alone else split, 0, self.at)

    def _made(self, place: Place, stream: _Stream) -> Any:
        """What the split is: an iterable of batches."""
        with running(f"{place.source} failed", DataError, at=self.at), stream.drawn():
            made = self.given if self.alone else _member(self.given, place.split)
            source = made() if callable(made) and not self.alone else made
            wrong = ("None", PROTOCOL) if source is None else _no_batches(source, made is source)
            if wrong is not None:
                raise DataError(f"{place.source} gave {wrong[0]}", at=self.at, hint=wrong[1])
        return source

    def _reading(self, source: Any, place: Place, stream: _Stream) -> Reading:
        with running(f"{place.source} failed", DataError, at=self.at), stream.drawn():
            items, total = iter(source), _length(source)
        self._refuse_again(items, place)
        batches = self._batches(items, place, stream)
        return Reading(batches, total) if self.through is None else Reading(self.through(batches), None)

    def _refuse_again(self, items: Iterator[Any], place: Place) -> None:
        """Refuse an iterator that an earlier reading has begun already."""
        last = self._read.get(place.split, lambda: None)()
        if last is items and not isinstance(items, _BaseDataLoaderIter):  # which starts anew, where its workers persist
            message = f"{place.source} gave the same '{type(items).__name__}' twice, which can be read once"
            raise DataError(message, at=self.at, hint=_AGAIN)
        try:
            self._read[place.split] = weakref.ref(items)
        except TypeError:  # builtin iterators can't be referred to weakly
            self._read[place.split] = lambda: items

    def _batches(self, items: Iterator[Any], place: Place, stream: _Stream) -> Iterator[Batch]:
        while True:
            with running(f"{place.source} failed at batch {place.number}", DataError, at=self.at), stream.drawn():
                try:
                    found = next(items)
                except StopIteration:
                    return
            yield checked(found, place)
            place = replace(place, number=place.number + 1)


class Epochs:
    """A split that is read again and again. What draws random numbers goes on from one epoch to the next.

    `state` is all that the next epoch depends on: with it, another process reads the same batches. It holds the states
    of the generators that the split's own objects keep (of a DataLoader, its sampler, its data set's augmentation).
    """

    def __init__(self, data: Data, place: Place, seed: int) -> None:
        self._data, self._place, self._stream = data, place, _Stream(seed)
        self._source = data._made(place, self._stream)
        self._again = hasattr(type(self._source), "__next__")
        """Whether the split gives an iterator, which is made anew for each epoch."""
        self._fresh = True
        self._counted = 0

    def __len__(self) -> int:
        """The batches of an epoch. Raises `DataError` where the data don't know."""
        if self._data.through is not None:
            self._counted = self._counted or self._count()
            return self._counted
        found = _length(self._source)
        if found is None:
            message = f"{self._place.source} doesn't know how many batches an epoch has"
            raise DataError(message, at=self._data.at, hint="say 'updates' in place of 'epochs'")
        return found

    def _count(self) -> int:
        """The batches of an epoch, counted in a reading of their own, which what comes after doesn't depend on."""
        before = self.state
        source = self._data._made(self._place, self._stream) if self._again else self._source
        found = sum(1 for _ in self._data._reading(source, self._place, self._stream).batches)
        self.restore(before)
        return found

    def read(self, skip: int = 0) -> Iterator[Batch]:
        """The batches of the next epoch, but for the first `skip`, which are read and left."""
        if self._again and not self._fresh:
            self._source = self._data._made(self._place, self._stream)
        self._fresh = False
        yield from islice(self._data._reading(self._source, self._place, self._stream).batches, skip, None)

    @property
    def state(self) -> dict[str, Any]:
        """What the next epoch depends on, as tensors and plain values."""
        return {"stream": self._stream.state, "generators": [each.get_state() for each in self._generators()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._stream.state = state["stream"]
        for generator, known in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(known)

    def _generators(self) -> list[torch.Generator]:
        """The generators of torch that the split's objects hold, in the order in which they are found."""
        found, seen, waiting = [], {id(self._source)}, [self._source]
        while waiting and len(seen) < _SEARCHED:
            value = waiting.pop()
            if isinstance(value, torch.Generator):
                found.append(value)
                continue
            for inner in _held(value):
                if id(inner) not in seen and not isinstance(inner, _OPAQUE):
                    seen.add(id(inner))
                    waiting.append(inner)
        return found


def _held(value: Any) -> Iterable[Any]:
    """What an object holds; of a function, what it closes over and its defaults: not its module's globals."""
    if not isinstance(value, FunctionType):
        return gc.get_referents(value)
    cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]


def _is_filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


_SEARCHED: Final = 20_000
"""Objects that are looked at for generators."""
_OPAQUE: Final = (type, ModuleType, Tensor, np.ndarray, str, bytes, int, float, nn.Module, FrameType, CodeType)
"""What is not looked into for generators."""


class _Stream:
    """A stream of torch's, numpy's and Python's global random numbers; those that others draw from are left alone."""

    def __init__(self, seed: int) -> None:
        self.state: dict[str, Any] = {
            "torch": torch.Generator().manual_seed(seed).get_state(),
            "numpy": _plain_state(np.random.RandomState(seed % 2**32).get_state()),
            "python": random.Random(seed).getstate(),
        }

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """A context in which the stream's next numbers are drawn."""
        others = np.random.get_state(), random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state["torch"])
            np.random.set_state(self.state["numpy"])
            random.setstate(self.state["python"])
            try:
                yield
                self.state = {
                    "torch": torch.get_rng_state(),
                    "numpy": _plain_state(np.random.get_state()),
                    "python": random.getstate(),
                }
            finally:
                np.random.set_state(others[0])
                random.setstate(others[1])


def _plain_state(state: Any) -> tuple[Any, ...]:
    """numpy's state of its random numbers, in values of Python."""
    kind, keys, *rest = state
    return (kind, keys.tolist(), *rest)


_AGAIN: Final = "data are read several times: give a list, a DataLoader, or a method that makes them anew at each call"


def _member(given: Any, split: str) -> Any:
    return given.get(split) if isinstance(given, Mapping) else getattr(given, split, None)


def _is_split(value: Any) -> bool:
    """Whether an attribute is a split: a method, or batches. (A data set of torchvision has a flag `train`.)"""
    return value is not None and (callable(value) or _no_batches(value, False) is None)


def _no_splits(given: Any) -> tuple[str, str] | None:
    """What is wrong with the splits that a value has, or with a dict that has none; None where it may be batches."""
    if isinstance(given, type | nn.Module):
        return None
    for split in SPLITS:
        value = _member(given, split)
        wrong = None if value is None else _no_batches(value)
        if wrong is not None and not isinstance(value, bool | int | str):
            return f"data whose '{split}' is {wrong[0]}", wrong[1]
    if not isinstance(given, Mapping):
        return None
    none = next((split for split in SPLITS if split in given), None)
    if none is not None:
        return f"data whose '{none}' is None", PROTOCOL
    if not given:
        return "an empty dict", PROTOCOL
    names = [printable(str(key)) for key in given]
    close = next((hint for hint in (nearest(name, SPLITS) for name in names) if hint), PROTOCOL)
    return f"a dict of {', '.join(map(repr, names[:4]))}, none of which is a split", close


def _no_batches(value: Any, kept: bool = True) -> tuple[str, str] | None:
    """Why a value is no iterable of batches, and what would be right; None where it is one.

    `kept` where the value was given itself: an iterator could then be read once.
    """
    if isinstance(value, type):
        return f"the class '{value.__name__}'", "make an object of it"
    if inspect.isroutine(value):
        return f"the function '{value.__name__}'", "give what it returns"
    if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
        what = f"a data set of single samples, of type '{type(value).__name__}'"
        return what, "make batches of them: DataLoader(data_set, batch_size=64)"
    if isinstance(value, Tensor | np.ndarray):
        return _kind(value), "one batch is written [(inputs, labels)]"
    if _is_batch(value):
        return "one batch", "a list of one batch is written [(inputs, labels)]"
    iterable = hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")
    if not iterable or isinstance(value, str | bytes | Mapping | nn.Module):
        return f"{_kind(value)}, which has no batches", PROTOCOL
    if kept and hasattr(type(value), "__next__"):
        return f"a '{type(value).__name__}', which can be read once", _AGAIN
    return None


def _is_batch(value: Any) -> bool:
    """Whether a value is inputs and labels, rather than two batches of inputs."""
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(x, Tensor | np.ndarray) for x in value)
    return pair and value[0].ndim != value[1].ndim


def _length(source: Any) -> int | None:
    """How many batches there will be; None where the source doesn't know."""
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None
