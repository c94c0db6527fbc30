"""A model's outputs beside their labels: what a loss or a metric is taken of.

outputs                 labels             output     judged
y                       t                             (y, t)
(y, aux), {"y": y}      t                             (y, t): of several outputs the first, where labels are one tensor
(y, z)                  (t, u)                        (y, t), (z, u)
{"y": y, "z": z}        {"z": u}                      (z, u)
(y, z)                  (t, u)             1          (z, u)
{"y": y, "z": z}        t                  z          (z, t)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch
from prunec.compiler.errors import nearest
from prunec.compiler.ir.train_eval import ByMode, in_eval

Output = str | int
"""Which of several outputs is meant: its name, or its position from 0."""


def first_output(outputs: Any, batch: Batch, *, floats: bool = True) -> Tensor:
    """The first floating-point tensor among a model's outputs; if they needn't be `floats`, the first of any kind where
    there is none. Raises `DataError` where that isn't found either."""
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        return outputs
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    for leaf in tensors:
        if leaf.is_floating_point():
            return leaf
    if tensors and not floats:
        return tensors[0]
    raise batch.place.fault(f"the model gives no tensor{' of floats' if floats else ''} that could be judged")


def paired(
    outputs: Any, batch: Batch, output: Output | None = None, *, floats: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """Outputs with their labels; empty where labels and outputs don't fit each other. Where the labels are one tensor,
    the output is the one that `first_output` finds.

    Raises `DataError` where the model has no such `output`.
    """
    labels, given = batch.labels, in_eval(outputs)
    if output is not None:
        pairs = [chosen(outputs, batch, output)]
    elif isinstance(labels, Tensor):
        return [(each, labels) for each in _alike(outputs, batch, floats)]
    elif isinstance(labels, Mapping) and isinstance(given, Mapping):
        pairs = [(given[name], each) for name, each in labels.items() if name in given]
    elif isinstance(labels, tuple | list) and isinstance(given, tuple | list) and len(labels) == len(given):
        pairs = list(zip(given, labels, strict=True))
    else:
        pairs = []
    return [(each, label) for each, label in pairs if isinstance(each, Tensor) and isinstance(label, Tensor)]


def chosen(outputs: Any, batch: Batch, output: Output | None) -> tuple[Any, Any]:
    """An output and its labels, whatever they are; all outputs and all labels where none is named.

    Raises `DataError` where the model has no such output.
    """
    given, labels = in_eval(outputs), batch.labels
    if output is None:
        return given, labels
    names = _names(given)
    if output not in names:
        message = f"the model has no output '{output}': it gives {_told(given)}"
        raise batch.place.fault(message, nearest(str(output), [str(name) for name in names]))
    position = names.index(output) % max(len(_values(given)), 1)
    mine = _names(labels)
    if isinstance(labels, Tensor) or not mine:
        return _values(given)[position], labels
    if output in mine:
        return _values(given)[position], _values(labels)[mine.index(output) % len(_values(labels))]
    return _values(given)[position], _values(labels)[position] if len(_values(labels)) == len(_values(given)) else None


def _alike(outputs: Any, batch: Batch, floats: bool) -> list[Tensor]:
    """The outputs that one tensor of labels is for: the first one. In both modes, all outputs of train mode with the
    shape of eval mode's first: losses are made for those (eval mode may give shares instead of logits), and auxiliary
    heads count."""
    first = first_output(outputs, batch, floats=floats)
    if not isinstance(outputs, ByMode):
        return [first]
    leaves = (leaf for leaf in pytree.tree_leaves(outputs.train) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.shape == first.shape] or [first]


def _values(given: Any) -> list[Any]:
    """What a container of outputs or labels holds, in its order; nothing of a value that is none."""
    if isinstance(given, Mapping):
        return list(given.values())
    if isinstance(given, tuple | list):
        return list(given)
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return [getattr(given, field.name) for field in dataclasses.fields(given)]
    return []


def _names(given: Any) -> list[Output]:
    """What each of `_values` may be called: its name, if it has one, then its position, all names first."""
    count = len(_values(given))
    if isinstance(given, Mapping):
        names = [str(name) for name in given]
    elif dataclasses.is_dataclass(given):
        names = [field.name for field in dataclasses.fields(given)]
    else:
        names = list(getattr(given, "_fields", ()))
    return [*names, *range(count)]


def _told(given: Any) -> str:
    """A model's outputs, in words."""
    names = [name for name in _names(given) if isinstance(name, str)]
    if names:
        return ", ".join(names)
    return f"{len(_values(given))} outputs, numbered from 0" if _values(given) else "one output"


def named(outputs: Any) -> str:
    """What each of several outputs is called, for messages."""
    return _told(in_eval(outputs))
