"""The classes that a plan keeps, and the data with these classes alone.

    KeptClasses(kept=(1, 4), of=10)      old labels   1  0  4  4  7       samples of other classes are left out,
                                         new labels   0     1  1          the others are numbered anew
    batches   64 samples, 12 of which are kept; 64, 9; 64, 15; ...  ->  64 samples, 64, ...

A data set of many classes has few samples of those that are kept, so these are gathered to batches as large as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch, Data, Place, told
from prunec.compiler.errors import DataError
from prunec.compiler.ir.inputs import is_batched


@dataclass(frozen=True)
class KeptClasses:
    """Some classes of a model: class `kept[i]` of `of` is now class i."""

    kept: tuple[int, ...]
    of: int
    names: tuple[str, ...] = ()
    """The names of the kept ones; empty where nobody knows them."""
    ignored: frozenset[int] = frozenset()
    """Labels that stand for no class."""

    @property
    def titles(self) -> tuple[str, ...]:
        """What to call each in messages: `cat (3)`, or `3`."""
        if not self.names:
            return tuple(map(str, self.kept))
        return tuple(f"{name} ({old})" for name, old in zip(self.names, self.kept, strict=True))

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The kept samples, in batches of the size of the largest so far.

        Raises `DataError` where samples have no class, or one that the model doesn't know, and at the end where some
        class has no sample.
        """
        waiting: list[Batch] = []
        size, counts = 0, torch.zeros(len(self.kept), dtype=torch.int64)
        place = None
        for batch in batches:
            size, place = max(size, batch.count), batch.place
            mine = self.pick(batch)
            if mine is None:
                continue
            assert mine.classes is not None, "it was picked by them"
            counts += torch.bincount(mine.classes.cpu(), minlength=len(self.kept))
            if waiting and not _alike(waiting[0], mine):
                yield from _in_parts(_joined(waiting), size)
                waiting = []
            waiting.append(mine)
            if sum(each.count for each in waiting) >= size:
                *full, rest = _in_parts(_joined(waiting), size)
                yield from full
                waiting = [rest]
                if rest.count == size:
                    yield rest
                    waiting = []
        if waiting:
            yield from _in_parts(_joined(waiting), size)
        self._tell_missing(counts, place)

    def require(self, data: Data, split: str) -> None:
        """Raise `DataError` where a split has no sample of some kept class.

        It is read until each has come, before long work; what is read later doesn't depend on that.
        """
        epochs = replace(data, through=None).epochs(split, data.seed)
        before, counts, place = epochs.state, torch.zeros(len(self.kept), dtype=torch.int64), None
        for batch in epochs.read():
            mine, place = self.pick(batch), batch.place
            if mine is not None and mine.classes is not None:
                counts += torch.bincount(mine.classes.cpu(), minlength=len(self.kept))
            if counts.all():
                break
        epochs.restore(before)
        self._tell_missing(counts, place)

    def _tell_missing(self, counts: Tensor, place: Place | None) -> None:
        missing = [title for title, count in zip(self.titles, counts.tolist(), strict=True) if not count]
        if place is not None and missing:
            message = f"{place.source} has no sample of class {', '.join(missing)}"
            raise DataError(message, at=place.at, hint="take it out of the plan's 'classes', or give data that have it")

    def pick(self, batch: Batch) -> Batch | None:
        """The samples of the kept classes, with their new labels; None where there are none. Raises `DataError`."""
        classes = batch.classes
        if classes is None or len(classes) != batch.count:
            message = f"keeping some classes needs one class for each sample, as a whole number; {told(batch.labels)}"
            raise batch.place.fault(message)
        known = (classes >= 0) & (classes < self.of)
        unknown = set(classes[~known].tolist()) - self.ignored
        if any(label >= self.of for label in unknown):
            label = max(unknown)
            raise batch.place.fault(f"it has a sample of class {label}; the model knows {self.of} classes, from 0")
        new = torch.full((self.of,), -1, dtype=torch.int64, device=classes.device)
        new[list(self.kept)] = torch.arange(len(self.kept), device=classes.device)
        found = torch.where(known, new[classes.clamp(0, self.of - 1)], -1)
        for label in self.ignored:
            found[classes == label] = -1
        where = torch.nonzero(found >= 0).reshape(-1)
        if not where.numel():
            return None
        labels: Tensor = batch.labels
        picked = found[where].reshape(-1, *labels.shape[1:]).to(labels.dtype)
        return replace(batch, inputs=_rows(batch.inputs, where, batch.count), labels=picked)


def _rows(value: Any, where: Tensor, count: int) -> Any:
    return pytree.tree_map(
        lambda x: x[where.to(x.device)] if isinstance(x, Tensor) and is_batched(x, count) else x, value
    )


def _alike(first: Batch, other: Batch) -> bool:
    """Whether two batches can be one: all that they hold are rows for samples, of the same shapes."""
    (one, spec), (two, other_spec) = (pytree.tree_flatten((batch.inputs, batch.labels)) for batch in (first, other))
    return spec == other_spec and all(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and is_batched(a, first.count)
        and is_batched(b, other.count)
        and (a.shape[1:], a.dtype, a.device) == (b.shape[1:], b.dtype, b.device)
        for a, b in zip(one, two, strict=True)
    )


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    flat = [pytree.tree_flatten((batch.inputs, batch.labels)) for batch in batches]
    leaves = [torch.cat(rows) for rows in zip(*(leaves for leaves, _ in flat), strict=True)]
    inputs, labels = pytree.tree_unflatten(leaves, flat[0][1])
    return replace(batches[-1], inputs=inputs, labels=labels)


def _in_parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, batch.count, size):
        yield batch[start : start + size]
