"""The plan: what to compile, and the passes in order. Loading one runs nothing and imports nothing but its passes.

    plan: 1
    model: {factory: my_package.nets:small, args: {classes: 10}, weights: small.safetensors}
    inputs: [[1, 3, 32, 32]]
    passes:
      - score: {criterion: l2}             # a name with options,
      - prune: 50%                         # a name with the value of the pass's main option,
      - shrink                             # or a bare name
    export: [onnx]

A loaded plan is valid: its passes are made, its files exist, its paths are absolute (a relative path is meant from the
folder of the plan). Everything that is wrong is reported at once, each fault where it stands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from prunec.compiler.errors import PlanError, Span
from prunec.compiler.ir.train_eval import Mode
from prunec.compiler.pass_base import PASSES
from prunec.compiler.plan.classes import ClassSpec
from prunec.compiler.plan.entries import PASS, Kind, PlanPass, forms, made_entries, passes_of
from prunec.compiler.plan.exports import EXPORTING, PlanExport, all_options, options_of
from prunec.compiler.plan.options import faults, wrong
from prunec.compiler.plan.pixels import Postprocess, Preprocess
from prunec.compiler.plan.schema import (
    Factory,
    InputSpec,
    LossSpec,
    MetricSpec,
    ModelSpec,
    PlanInput,
    PlanTrain,
)
from prunec.compiler.plan.source import Fault, Source, plain, read, shown

VERSIONS: Final = (1,)
"""The versions of the plan language that this compiler reads."""


def _is_list_of_shapes(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(size, int) for size in value):
        raise wrong("must be a list of shapes, one for each input", hint=f"write inputs: [{value}]")
    if (
        isinstance(value, dict)
        and isinstance(value.get("shape"), list)
        and value.keys() <= InputSpec.model_fields.keys()
    ):
        raise wrong("must be a list of inputs or a mapping of them by name", hint="write inputs: [{shape: ...}]")
    return value


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _goes_together(spec: PlanTrain | None) -> PlanTrain | None:
    if spec is not None and spec.misfit:
        raise wrong(spec.misfit)
    return spec


def _is_device(name: str) -> str:
    try:
        kind = "cpu" if name == "auto" else torch.device(name).type
    except (RuntimeError, ValueError):
        kind = ""
    if not kind or kind == "meta":
        raise wrong("must be auto, cpu, cuda, or another device of torch such as cuda:1")
    return name


_Name = Annotated[str, Field(min_length=1)]
Regions = tuple[_Name, ...] | dict[_Name, dict[str, bool | StrictInt | float | str | None]]


class Plan(BaseModel):
    """A valid plan; see the module's text. `model`, `inputs` and `data` may be left to the caller of `compile`."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="a prunec plan")

    plan: Literal[1]
    model: ModelSpec | None = None
    inputs: Annotated[tuple[PlanInput, ...] | dict[str, PlanInput], BeforeValidator(_is_list_of_shapes)] = ()
    region: Annotated[Regions | None, BeforeValidator(_one_or_several)] = None
    """Parts of the model that are compiled in their place, by their dotted names; None for all of it. A mapping says
    what a part is called with, whatever the model gives: `{decoder: {past: null}}`."""
    mode: Mode = "eval"
    """`train` compiles the branches of train mode along, such as those of auxiliary heads: the slim module gives in
    each mode what the original gives in that mode. Costs, exports and accuracy are those of eval mode. For deployment
    alone, compile in mode `eval`, where these branches aren't traced."""
    data: Factory | None = None
    loss: LossSpec | None = None
    """What the model was trained by; cross entropy where nobody says."""
    classes: ClassSpec | None = None
    """The classes that are kept of a classifier's; all where nothing is said. The model loses the others before the
    first pass, and the data their samples."""
    metric: MetricSpec | None = None
    """What it is judged by; accuracy where nobody says and the outputs are classes, else the loss that is named."""
    device: Annotated[str, AfterValidator(_is_device)] = "auto"
    """What the compile runs on, but for training: `cpu`, `cuda`, `cuda:1`. With `auto` that is where the model is; with
    data, a CUDA device if there is one. The model and the artifacts stay where they are."""
    train: Annotated[PlanTrain | None, AfterValidator(_goes_together)] = None
    """What training passes run on."""
    passes: tuple[Annotated[PlanPass, WithJsonSchema({})], ...] = ()
    export: tuple[Annotated[PlanExport, WithJsonSchema({})], ...] = ()
    preprocess: Preprocess | None = None
    """What exported files do to pixels before the model, so that an app feeds them as they are."""
    postprocess: Postprocess | None = None
    """What exported files do to outputs, and the names of classes."""
    allow_nonfinite: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None, BeforeValidator(_one_or_several)
    ] = None
    """Names or patterns of tensors that may hold NaN or infinite values (`driver.finite`)."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    removed: dict[str, dict[str, list[int]]] | None = None
    grouped: dict[str, int] | None = None
    numbering: str | None = None
    versions: dict[str, str] | None = None
    hashes: dict[str, str] | None = None
    """Keys of a lock (`driver.lock`); a plan that a person writes has none of them."""
    _source: Source = PrivateAttr(default_factory=lambda: plain({}))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Plan:
        """Read a plan file, with `KEY=VALUE` overrides laid over it. Raises `PlanError`."""
        source = read(Path(path))
        for override in overrides:
            source = source.with_override(override)
        return _build(source, Path(os.path.realpath(path)).parent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: str | Path = ".", overrides: Sequence[str] = ()) -> Plan:
        """A plan from plain values, with overrides; relative paths are meant from `folder`. Raises `PlanError`."""
        source = plain(data)
        for override in overrides:
            source = source.with_override(override)
        return _build(source, Path(folder).resolve())

    @classmethod
    def of(cls, plan: Plan | Mapping[str, Any] | str | Path) -> Plan:
        """A plan from whatever names one: itself, a mapping, or a file's path."""
        if isinstance(plan, Plan):
            return plan
        given: Any = plan
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if isinstance(given, str | os.PathLike):
            return cls.load(Path(given))
        message = f"a plan must be a mapping or the path of a file, got an object of type '{type(given).__name__}'"
        raise PlanError(
            message, hint="for example: {'plan': 1, 'passes': [{'score': 'l1'}, {'select': '50%'}, 'shrink']}"
        )

    @property
    def file(self) -> str | None:
        """The file that the plan was read from; None where it came from Python."""
        return self._source.file or None

    @property
    def runtime(self) -> str:
        """The target that the slim model is meant for: that of the first export, or torch where there is none."""
        return (self.export[0].target.runtime or self.export[0].name) if self.export else "torch"

    def at(self, *keys: str | int, on_key: bool = False) -> Span | None:
        """Where a value (or its key) stands in the plan's file, for messages; `None` where it came from no file."""
        return self._source.locate(keys, on_key=on_key)

    def to_dict(self, relative_to: str | Path | None = None) -> dict[str, Any]:
        """Plain JSON values that load again to the same plan, with all defaults of the plan itself spelled out.

        Paths are absolute, or relative to the folder that the result will be read from.
        """
        context = {"relative_to": Path(relative_to).resolve() if relative_to else None}
        body = self.model_dump(mode="json", exclude={"passes", "export"}, exclude_none=True, context=context)
        return {
            **body,
            "passes": [entry.written(context) for entry in self.passes],
            "export": [export.to_dict() for export in self.export],
        }

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Plan) else NotImplemented


def _build(source: Source, folder: Path) -> Plan:
    data = source.data
    _check_version(source)
    found: list[Fault] = []
    context = {"folder": folder}
    passes = made_entries(data.get("passes", []), "passes", passes_of(context), found)
    exporting = Kind("export", EXPORTING, options_of, context)
    exports = made_entries(data.get("export", []), "export", exporting, found)
    made = {
        "passes": [
            PlanPass(name, options, pass_, source.locate(keys, on_key=True)) for name, options, pass_, keys in passes
        ],
        "export": [PlanExport(name, made, source.locate(keys, on_key=True)) for name, _, made, keys in exports],
    }
    try:
        plan = Plan.model_validate({**data, **made}, context=context)
    except ValidationError as error:
        found += faults(error, data, (), Plan)
    if found:
        raise source.errors(found)
    if plan.train is not None:
        plan = plan.model_copy(update={"train": plan.train.placed(source.locate(("train",), on_key=True))})
    plan._source = source
    return plan


def _check_version(source: Source) -> None:
    """Refuse what this compiler can't read, before it complains of words that a later version may know."""
    data, known = source.data, ", ".join(map(str, VERSIONS))
    if not isinstance(data, dict):
        got = "nothing" if data is None else shown(data)
        raise source.error(Fault((), f"a plan must be a mapping, got {got}", f"it begins with plan: {known}"))
    if "plan" not in data:
        fault = Fault(("plan",), "missing key 'plan', the version of the plan language", f"write plan: {known}")
        raise source.error(fault)
    version = data["plan"]
    if type(version) is not int or version not in VERSIONS:
        raise source.error(Fault(("plan",), f"unknown plan version {shown(version)}", f"known versions: {known}"))


def schema() -> dict[str, Any]:
    """The JSON schema of a plan, with the options of every pass that is installed."""
    passes, exports = PASSES.all(), all_options()
    mode: JsonSchemaMode = "validation"
    models: list[type[BaseModel]] = [Plan, *passes.values(), *dict.fromkeys(exports.values())]
    refs, table = models_json_schema([(model, mode) for model in models], ref_template="#/$defs/{model}")
    definitions = table["$defs"]
    plan = definitions.pop(refs[Plan, mode]["$ref"].rpartition("/")[2])
    for key, classes in (("passes", passes), ("export", exports)):
        entry = [form for name, made in classes.items() for form in forms(name, made, refs[made, mode], definitions)]
        plan["properties"][key] = {"type": "array", "items": {"anyOf": entry}, "default": []}
    definitions[PASS] = plan["properties"]["passes"]["items"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **plan, "$defs": definitions}
