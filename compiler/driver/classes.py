"""Class-adaptive compiles: the model and the data with the classes that a plan keeps, before the first pass.

    plan        classes: [cat, dog]
    program     its outputs lose the other classes: the first rewrite, checked as every one is
    data        samples of other classes are left out, the others are numbered anew
    losses      weights of classes, and the class that is ignored, follow

All that comes after (scores, training, what is measured before and after) sees a classifier of these classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.cost.model import cost
from prunec.compiler.data import Data
from prunec.compiler.driver.pass_manager import seconds_since
from prunec.compiler.errors import DataError, ModelError, PlanError, Span, nearest
from prunec.compiler.groups.classes import ClassAxis, class_axis
from prunec.compiler.groups.patterns import names_by_axis
from prunec.compiler.ir.devices import device_of, on_device
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.program import Note, Program, shape_of
from prunec.compiler.ir.train_eval import ByMode, in_eval
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import KeptFindings, Record
from prunec.compiler.rewrite.classes import keep_classes
from prunec.compiler.task.kept_classes import KeptClasses
from prunec.compiler.user_code import running
from prunec.compiler.verify.picked import Picked
from prunec.compiler.verify.verify import verify

STEP: Final = "classes"
"""What the rewrite is called in the report."""


@dataclass(frozen=True)
class Adapted:
    """A compile's subject, with the classes that the plan keeps alone; as it was where it keeps all."""

    program: Program
    data: Data | None
    plan: Plan
    """The plan, its loss and metric for these classes."""
    kept: KeptClasses | None = None
    findings: KeptFindings | None = None
    records: tuple[Record, ...] = ()
    complete: Program | None = None
    """The program with all classes, where the plan keeps some."""

    def whole(self, model: nn.Module) -> nn.Module:
        """What is run on the data: `model`, or that of the kept classes alone."""
        return model if self.kept is None else self.program.module

    def told(self, context: Context) -> Context:
        """What passes may use, with the classes that are kept and the model that has all of them, on the device that
        the program is on."""
        complete = self.complete
        if complete is not None and context.traced is not None:
            complete = on_device(complete, device_of(context.traced))
        return replace(context, kept=self.kept, complete=complete)


def refuse_region(plan: Plan) -> None:
    """Raise `PlanError` for a plan that keeps some classes and compiles a region."""
    if plan.classes is not None:
        hint = "leave out region: the whole model has to be compiled for its outputs to lose classes"
        raise PlanError("a plan with a region can't keep some classes alone", at=plan.at("classes"), hint=hint)


def adapt(plan: Plan, program: Program, data: Data | None) -> Adapted:
    """The subject of a compile for the classes that the plan keeps.

    Raises `PlanError` for classes that there aren't, `ModelError` where the output can't lose classes, `DataError`
    where the names that the data have aren't those of the model's classes, and `VerifyError` if the check fails.
    """
    spec = plan.classes
    if spec is None:
        return Adapted(program, data, plan)
    start = time.perf_counter()
    outputs = _outputs(plan, program)
    try:
        axis = class_axis(program, [leaf for _, leaf in outputs.all], outputs.needed)
        kept = _resolved(plan, axis.count, data)
        slim = keep_classes(program, axis, kept.kept)
    except ModelError as error:
        error.at = error.at or plan.at("classes", on_key=True)
        raise
    slim = replace(slim, names=names_by_axis(program))
    seconds, start = seconds_since(start), time.perf_counter()
    places = [place for place, leaf in outputs.all if leaf in axis.outputs]
    softmaxes = {node.name: dim for node, dim in axis.softmaxes.items()}
    found = verify(slim, Picked(program, places, kept.kept, softmaxes), pass_name=STEP, seed=plan.seed)
    checked = seconds_since(start)
    notes = tuple(
        Note(leaf.name, "is left as it is: what it holds isn't classes alone")
        for _, leaf in outputs.all
        if leaf not in axis.outputs
    )
    gone = _gone(axis, kept.kept)
    record = Record(STEP, seconds, checked, cost(program), cost(slim), notes, {"removed_units": gone}, found)
    data = None if data is None else replace(data, through=kept)
    findings = KeptFindings(kept.kept, kept.of, kept.names, bool(axis.softmaxes))
    return Adapted(slim, data, _fitted(plan, kept), kept, findings, (record,), program)


def _gone(axis: ClassAxis, kept: Sequence[int]) -> dict[str, int]:
    """Group -> how many of its units go with the classes."""
    left = axis.without(kept)
    lost = {group.name: int((~left[group.where]).sum()) for group in axis.analysis.groups.values()}
    return {name: count for name, count in lost.items() if count}


# -- which outputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outputs:
    all: Sequence[tuple[int, fx.Node]]
    """Place among the leaves of what the model returns, and the node, of those that may hold classes."""
    needed: Sequence[fx.Node]
    """Those that have to."""


def _outputs(plan: Plan, program: Program) -> _Outputs:
    """The outputs that hold classes: those that the plan names, or the judged one and those of as many classes."""
    spec, at = plan.classes, plan.at("classes", on_key=True)
    assert spec is not None, "the plan keeps some classes"
    returned = output_of(program.graph).args[0]
    leaves = pytree.tree_leaves(returned)
    named: Sequence[str | int] = spec.outputs or ()
    judged = plan.metric.output if plan.metric else None
    judged = plan.loss.output if judged is None and plan.loss else judged
    if named:
        meant = [leaf for index, name in enumerate(named) for leaf in _called(returned, name, plan, index)]
    elif judged is not None:
        meant = _called(returned, judged, plan, None)
    else:
        meant = pytree.tree_leaves(in_eval(returned))
    first = next((leaf for leaf in meant if _is_real(leaf)), None)
    if first is None:
        raise ModelError("the model gives no tensor of numbers whose classes could go", at=at)
    shape = shape_of(first)
    if len(shape) < 2 or shape[1] < 2:
        message = f"the model's output {list(shape)} has no classes: these stand along dimension 1 of at least two"
        raise ModelError(message, at=at, hint=_other_output(returned))
    all_ = [
        (place, leaf)
        for place, leaf in enumerate(leaves)
        if _is_real(leaf)
        and len(shape_of(leaf)) >= 2
        and shape_of(leaf)[1] == shape[1]
        and (not named or leaf in meant)
    ]
    return _Outputs(all_, [leaf for _, leaf in all_] if named else [first])


def _is_real(leaf: object) -> bool:
    value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _called(returned: Any, name: str | int, plan: Plan, index: int | None) -> list[Any]:
    """The leaves of the output of this name or position, in each mode that has it."""
    found = []
    for part in (returned.eval, returned.train) if isinstance(returned, ByMode) else (returned,):
        values = _by_name(part)
        if name in values:
            found += pytree.tree_leaves(values[name])
    if not found:
        names = [str(known) for known in _by_name(in_eval(returned))]
        at = plan.at("classes", *(() if index is None else ("outputs", index)))
        raise PlanError(f"the model has no output '{name}'", at=at, hint=nearest(str(name), names))
    return found


def _by_name(returned: Any) -> Mapping[str | int, Any]:
    if isinstance(returned, Mapping):
        return {**{str(key): value for key, value in returned.items()}, **dict(enumerate(returned.values()))}
    if isinstance(returned, tuple | list):
        fields = getattr(returned, "_fields", ())
        return {**dict(zip(fields, returned, strict=False)), **dict(enumerate(returned))}
    return {0: returned}


def _other_output(returned: Any) -> str | None:
    several = len(pytree.tree_leaves(in_eval(returned))) > 1
    return "say which of its outputs holds classes: classes: {keep: [...], outputs: [...]}" if several else None


# -- which classes -------------------------------------------------------------------------------------------------


def _resolved(plan: Plan, count: int, data: Data | None) -> KeptClasses:
    """The kept classes, in the order of the output. Raises `PlanError` for one that there isn't."""
    spec = plan.classes
    assert spec is not None, "the plan keeps some classes"
    names = _names(plan, count, data, asked=any(isinstance(each, str) for each in spec.keep))
    found = {_index(plan, place, each, count, names): place for place, each in enumerate(spec.keep)}
    if len(found) < len(spec.keep):
        raise PlanError("'classes' names one class twice, by its name and its position", at=plan.at("classes", "keep"))
    if len(found) == count:
        message = f"'classes' lists all {count} classes of the model"
        raise PlanError(message, at=plan.at("classes", "keep"), hint="leave it out, and all of them are kept")
    kept = tuple(sorted(found))
    known = tuple(names[each] for each in kept) if all(each in names for each in kept) else ()
    return KeptClasses(kept, count, known, _ignored(plan))


def _index(plan: Plan, place: int, said: int | str, count: int, names: Mapping[int, str]) -> int:
    at = plan.at("classes", "keep", place)
    if isinstance(said, int):
        if said >= count:
            raise PlanError(f"there is no class {said}: the model has {count}, from 0 to {count - 1}", at=at)
        return said
    if not names:
        hint = "give them: classes: {keep: [...], names: names.txt}; or say positions; or give data with 'classes'"
        raise PlanError(f"nobody knows the names of classes, such as '{said}'", at=at, hint=hint)
    found = [index for index, name in names.items() if name == said]
    if not found:
        near = f"a position stands without quotes: {said}" if said.isdecimal() else nearest(said, names.values())
        raise PlanError(f"there is no class '{said}'", at=at, hint=near)
    if len(found) > 1:
        hint = "say which is meant by its position"
        raise PlanError(f"classes {', '.join(map(str, found))} are all called '{said}'", at=at, hint=hint)
    return found[0]


def _names(plan: Plan, count: int, data: Data | None, *, asked: bool) -> Mapping[int, str]:
    """Position -> name, as the plan says, or else the data; empty where nobody knows.

    Raises `PlanError` where there are more or fewer than the model's classes, where the names are needed.
    """
    spec = plan.classes
    assert spec is not None, "the plan keeps some classes"
    given, source, at = spec.names, "'names' lists", plan.at("classes", "names")
    if isinstance(given, dict):
        beyond = next((position for position in given if position >= count), None)
        if beyond is not None:
            raise PlanError(f"'names' has a class {beyond}: the model has {count}, from 0 to {count - 1}", at=at)
        return given
    if isinstance(given, Path):
        source, given = f"{given.name} has", _lines(given, at)
    if given is None and data is not None:
        given, source = _names_of_data(data, asked=asked), "the data's 'classes' lists"
        if given is not None and len(given) != count and not asked:
            return {}
    if given is None:
        return {}
    if len(given) != count:
        message = f"{source} {len(given)} names, and the model has {count} classes"
        if spec.names is None:
            raise DataError(message, at=data.at if data else None, hint="list them in the plan, under classes: names")
        raise PlanError(message, at=at)
    return dict(enumerate(given))


def _lines(file: Path, at: Span | None) -> tuple[str, ...]:
    """The lines of a text file, but for empty ones and the mark that some editors begin one with."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file.name} can't be read as text: {error}", at=at) from error
    return tuple(line.strip() for line in lines if line.strip())


def _names_of_data(data: Data, *, asked: bool) -> tuple[str, ...] | None:
    """The names that the data list: their attribute `classes`, or that of a split's data set. Splits are only made
    where names are `asked` for."""
    with running("the names of the data's classes can't be read", DataError, at=data.at):
        for source in chain([data.given], _splits(data) if asked and not data.alone else ()):
            for value in _within(source):
                names = getattr(value, "classes", None)
                if isinstance(names, Sequence | np.ndarray) and not isinstance(names, str) and len(names):
                    return tuple(each if isinstance(each, str) else _joined(each) for each in names)
    return None


def _joined(name: object) -> str:
    """A name; of several words for the same, as ImageNet's, all of them."""
    return ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)


def _splits(data: Data) -> Iterator[Any]:
    for split in data.splits:
        made = data.given[split] if isinstance(data.given, Mapping) else getattr(data.given, split)
        yield made() if callable(made) and not isinstance(made, nn.Module) else made


def _within(source: Any) -> Iterator[Any]:
    """A loader, its data set, and what that is a part of."""
    for _ in range(_DEEPEST):
        yield source
        inner = getattr(source, "dataset", None)
        if inner is None:
            inner = next(iter(getattr(source, "datasets", None) or ()), None)
        if inner is None:
            return
        source = inner


_DEEPEST: Final = 8
"""How many data sets within each other are looked at."""


# -- losses and metrics --------------------------------------------------------------------------------------------


def _ignored(plan: Plan) -> frozenset[int]:
    specs = [spec for spec in (plan.loss, plan.metric) if spec is not None and isinstance(spec.name, str)]
    found = (spec.args.get("ignore_index") for spec in specs)
    return frozenset(value for value in found if isinstance(value, int))


def _fitted(plan: Plan, kept: KeptClasses) -> Plan:
    """The plan with a loss and a metric of these classes: no class is ignored any more, and each has its weight."""
    changed = {}
    for key in ("loss", "metric"):
        spec = getattr(plan, key)
        if spec is None or spec.takes(spec.name) is None:
            continue
        args = {name: value for name, value in spec.args.items() if name != "ignore_index"}
        weight = args.get("weight")
        if isinstance(weight, list) and spec.name in ("cross_entropy", "nll") and len(weight) == kept.of:
            args["weight"] = [weight[old] for old in kept.kept]
        changed[key] = spec.model_copy(update={"args": args})
    return plan.model_copy(update=changed)
