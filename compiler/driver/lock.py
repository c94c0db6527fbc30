"""The lock: the resolved plan, which compiles again to the same weights, bit for bit.

A lock is itself a plan. Its passes are resolved (a selection is spelled out unit by unit), its paths lead to the same
files, and beside them stands what a compile of it must reproduce:

    removed    parameter -> dimension -> removed positions, numbered as in the original; dimension 1 of a grouped
               convolution is numbered by input channel (`kept_indices` makes indices of them)
    grouped    parameter -> groups, for those that are numbered so; and `numbering` says how, for a person
    classes    where not all are kept: `keep` holds the original's position of each class of the slim model
    versions   of everything that computes
    hashes     of the original's weights, of the result's, and of the samples that the accuracy was measured on
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from prunec.compiler.errors import ModelError, Span
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.pass_base import PASSES, Pass
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import KeptFindings
from prunec.compiler.version import __version__

_NUMBERING: Final = (
    "dimension 1 of a tensor under 'grouped' counts the input channels of all groups (of a transposed convolution, the "
    "output channels): position p is column p % columns in the rows of group p // columns, where columns is the "
    "tensor's size along dimension 1; prunec.compiler.kept_indices makes indices of it"
)
_COUNTED: Final = ("torch", "numpy", "scipy", "scikit-learn", "onnx", "onnxruntime")


def versions() -> dict[str, str]:
    """The versions of everything that a compile's result depends on."""
    own = {"prunec": __version__, "python": platform.python_version()}
    return {**own, **{name: version(name) for name in _COUNTED}}


def removed(before: Program, after: Program) -> dict[str, dict[str, list[int]]]:
    """Every removed position of every parameter and buffer that the original has, by name and dimension."""
    found: dict[str, dict[str, list[int]]] = {}
    for axis, left in sorted(after.origin.items()):
        if axis.tensor not in before.tensors:
            continue
        gone = np.setdiff1d(np.arange(before.size(axis)), left)
        if gone.size:
            found.setdefault(axis.tensor, {})[str(axis.dim)] = [int(position) for position in gone]
    return found


def make_lock(
    plan: Plan,
    passes: Sequence[Pass],
    before: Program,
    after: Program,
    data: str | None = None,
    classes: KeptFindings | None = None,
) -> dict[str, Any]:
    """The lock of a compile, as plain JSON values; its paths are absolute. `data` is a hash of the samples, where the
    accuracy was measured on some; `classes` are those that are kept, if not all."""
    hashes = {"model": sha256_of(before.tensors), "result": sha256_of(after.tensors)}
    gone = removed(before, after)
    groups = {name: before.groups_along(Axis(name, 1)) for name, dims in gone.items() if "1" in dims}
    grouped = {name: count for name, count in groups.items() if count > 1}
    said = {key: value for key, value in plan.to_dict().items() if key not in ("grouped", "numbering")}
    return {
        **said,
        **({"classes": _classes(classes, said["classes"])} if classes else {}),
        "passes": [entry(pass_) for pass_ in passes],
        "removed": gone,
        **({"grouped": grouped, "numbering": _NUMBERING} if grouped else {}),
        "versions": versions(),
        "hashes": {**hashes, **({"data": data} if data else {})},
    }


def _classes(found: KeptFindings, said: Mapping[str, Any]) -> dict[str, Any]:
    """The kept classes as a plan would have them: by position, in the order of the slim model's output."""
    names = {str(old): name for old, name in zip(found.kept, found.names, strict=True)} if found.names else None
    outputs = said.get("outputs")
    return {
        "keep": list(found.kept),
        **({"names": names} if names else {}),
        **({"outputs": outputs} if outputs else {}),
    }


def entry(pass_: Pass, relative_to: Path | None = None) -> str | dict[str, Any]:
    """A pass as a plan would have it, without options that stand at their defaults; paths are absolute, or relative to
    the folder that it will be read from."""
    options = pass_.model_dump(mode="json", exclude_defaults=True, context={"relative_to": relative_to})
    return {pass_.name: options} if options else pass_.name


def moved(said: str | dict[str, Any], folder: Path) -> str | dict[str, Any]:
    """An entry as it is written in that folder; passes that train may name files, such as that of an optimizer."""
    name = said if isinstance(said, str) else next(iter(said))
    return entry(pass_of(said), folder) if PASSES.named(name).trains else said


def pass_of(said: str | Mapping[str, Any]) -> Pass:
    """The pass that an entry was made of."""
    name, options = (said, {}) if isinstance(said, str) else next(iter(said.items()))
    return PASSES.named(name).model_validate(options)


def check_model(hashes: Mapping[str, str] | None, program: Program, at: Span | None) -> None:
    """Raise `ModelError` where the model's weights aren't those that the lock was made of."""
    if hashes and hashes.get("model") != sha256_of(program.tensors):
        raise ModelError(
            "the model's weights are not those that the lock was made of",
            at=at,
            hint="compile the plan itself, not its lock, for other weights or another seed",
        )


def check_result(hashes: Mapping[str, str] | None, program: Program) -> str | None:
    """A warning where a lock gives other weights than it promises; None where it gives the same."""
    if not hashes or hashes.get("result") == sha256_of(program.tensors):
        return None
    return "the result's weights differ from the lock's: other versions of the libraries may round differently"


def check_removed(plan: Plan, gone: Mapping[str, Mapping[str, Sequence[int]]]) -> str | None:
    """A warning where what a lock says of removed positions isn't what its passes remove; None where it is."""
    said = plan.removed
    if said is None or said == gone:
        return None
    name = next(name for name in sorted({*said, *gone}) if said.get(name) != gone.get(name))
    at = plan.at("removed", name) or plan.at("removed")
    where = f"{at.file}:{at.line}: " if at else ""
    return (
        f"{where}'removed' says other positions of {name} than the lock's passes remove: the passes count; to remove "
        "others, change their units"
    )


def check_data(hashes: Mapping[str, str] | None, data: str | None) -> str | None:
    """A warning where the data aren't those that the lock was made with; None where they are, or it had none."""
    if not hashes or data is None or hashes.get("data", data) == data:
        return None
    return "the data have changed since the lock was made: what is measured is of other samples than the lock's"


def sha256_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and values, independent of the mapping's order and of the tensors' strides."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy(force=True).data)
    return digest.hexdigest()
