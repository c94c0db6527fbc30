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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    InstanceOf,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SerializationInfo,
    StrictInt,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, models_json_schema
from pydantic_core import CoreSchema

from prunec.compiler import registry
from prunec.compiler.base import Pass
from prunec.compiler.errors import PlanError, Span, nearest
from prunec.compiler.options import faults, label, wrong
from prunec.compiler.source import Fault, Keys, Source, plain, read, shown

VERSIONS: Final = (1,)
"""The versions of the plan language that this compiler reads."""

_Made = TypeVar("_Made", bound=BaseModel)


@dataclass(frozen=True)
class Ref:
    """A name in a module, or in a Python file: `package.module:name`, `path/to/file.py:name`."""

    module: str | Path
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def _path(text: str, info: ValidationInfo) -> Path:
    """A path as written, absolute: from the plan's folder."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return Path(os.path.normpath(folder / Path(text).expanduser()))


def _parse_ref(value: object, info: ValidationInfo) -> Ref:
    usage = "must be package.module:name or path/to/file.py:name"
    module, colon, name = str(value).rpartition(":")
    if not isinstance(value, str) or not colon or not all(part.isidentifier() for part in name.split(".")):
        raise wrong(usage)
    if not module.endswith(".py"):
        if all(part.isidentifier() for part in module.split(".")):
            return Ref(module, name)
        raise wrong(usage)
    path = _path(module, info)
    if not path.is_file():
        raise wrong(f"no file {path}", hint=_neighbours(path))
    return Ref(path, name)


def _parse_path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise wrong("must be a path")
    path = _path(value, info)
    if not path.exists():
        raise wrong(f"no file {path}", hint=_neighbours(path))
    return path


def _neighbours(path: Path) -> str | None:
    """A hint at a file of nearly that name in the same folder."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    hint = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return hint if hint and hint.startswith("did") else None


def _relative(value: Path, info: SerializationInfo) -> str:
    base = (info.context or {}).get("relative_to")
    return Path(os.path.relpath(value, base)).as_posix() if base else str(value)


def _ref_text(ref: Ref, info: SerializationInfo) -> str:
    return f"{_relative(ref.module, info)}:{ref.name}" if isinstance(ref.module, Path) else str(ref)


PlanRef = Annotated[
    Ref, PlainValidator(_parse_ref), PlainSerializer(_ref_text), WithJsonSchema({"type": "string", "pattern": ":"})
]
PlanPath = Annotated[
    Path, PlainValidator(_parse_path), PlainSerializer(_relative), WithJsonSchema({"type": "string", "minLength": 1})
]


class _Part(BaseModel):
    """A mapping in a plan; a part with a `shorthand` may be written as the bare value of that key."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shorthand: ClassVar[str | None] = None
    short_types: ClassVar[tuple[type, ...]] = (str,)
    usage: ClassVar[str] = "a mapping"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if cls.shorthand and isinstance(value, cls.short_types):
            return {cls.shorthand: value}
        if not isinstance(value, dict | cls):
            raise wrong(f"must be {cls.usage}")
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        if not cls.shorthand:
            return schema
        return {"anyOf": [schema, handler.resolve_ref_schema(schema)["properties"][cls.shorthand]]}


class Factory(_Part):
    """Something that a plan has made by calling a function."""

    shorthand = "factory"
    usage = "package.module:name or a mapping with the key 'factory'"

    factory: PlanRef = Field(examples=["package.module:name"])
    args: dict[str, JsonValue] = {}


class ModelSpec(_Part):
    """Where the model comes from: a factory, with weights or with its own; or a folder that `prunec compile` wrote."""

    shorthand = "factory"
    usage = "package.module:name or a mapping with the key 'factory' or 'saved'"

    factory: PlanRef | None = None
    args: dict[str, JsonValue] = {}
    weights: PlanPath | None = None
    saved: PlanPath | None = None

    @field_validator("weights")
    @classmethod
    def _is_file(cls, path: Path | None) -> Path | None:
        if path and not path.is_file():
            raise wrong(f"{path} is a folder, expected a file of weights")
        return path

    @field_validator("saved")
    @classmethod
    def _is_saved(cls, path: Path | None) -> Path | None:
        if path and not (path / "model.py").is_file():
            raise wrong(f"no model.py in {path}", hint="'saved' takes a folder that `prunec compile` wrote")
        return path

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.factory is None) == (self.saved is None):
            raise wrong("must have either the key 'factory' or the key 'saved'")
        if self.saved and (self.args or self.weights):
            raise wrong("must not have 'args' or 'weights' beside 'saved': a saved model holds its own")
        return self


Dtype = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]


class InputSpec(_Part):
    """One example input. Whole numbers are drawn from 0 to `high - 1`, others are normally distributed."""

    shorthand = "shape"
    short_types = (list,)
    usage = "a shape such as [1, 3, 32, 32] or a mapping with the key 'shape'"

    shape: tuple[Annotated[StrictInt, Field(ge=1)], ...] = Field(min_length=1, examples=["[1, 3, 32, 32]"])
    dtype: Dtype = "float32"
    high: Annotated[StrictInt, Field(ge=1)] | None = None

    @property
    def whole(self) -> bool:
        """True where the input is of whole numbers: tokens, categories."""
        return "int" in self.dtype

    @model_validator(mode="after")
    def _high_fits(self) -> Self:
        if self.whole and self.high is None:
            raise wrong(f"must have the key 'high' beside dtype {self.dtype}", hint="for example: high: 1000")
        if not self.whole and self.high is not None:
            raise wrong(f"must not have the key 'high' beside dtype {self.dtype}", hint="for example: dtype: int64")
        return self


class OnnxExport(BaseModel):
    """Write `model.onnx`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "onnx"
    shorthand: ClassVar[str | None] = None

    opset: Annotated[StrictInt, Field(ge=18)] = 20


EXPORTS: Final[Mapping[str, type[OnnxExport]]] = {OnnxExport.name: OnnxExport}


@dataclass(frozen=True)
class PlanPass:
    """One entry of `passes`: the options as the plan has them, and the pass made from them."""

    name: str
    options: Mapping[str, Any]
    pass_: Pass
    at: Span | None = field(default=None, compare=False)


def _is_list_of_shapes(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(size, int) for size in value):
        raise wrong("must be a list of shapes, one for each input", hint=f"write inputs: [{value}]")
    return value


class Plan(BaseModel):
    """A valid plan; see the module's text. `model`, `inputs` and `data` may be left to the caller of `compile`."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="a prunec plan")

    plan: Literal[1]
    model: ModelSpec | None = None
    inputs: Annotated[tuple[InputSpec, ...], BeforeValidator(_is_list_of_shapes)] = ()
    data: Factory | None = None
    passes: Annotated[tuple[InstanceOf[PlanPass], ...], WithJsonSchema({})] = ()
    export: Annotated[tuple[InstanceOf[OnnxExport], ...], WithJsonSchema({})] = ()
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    _source: Source = PrivateAttr(default_factory=lambda: plain({}))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Plan:
        """Read a plan file, with `KEY=VALUE` overrides laid over it. Raises `PlanError`."""
        source = read(Path(path))
        for override in overrides:
            source = source.with_override(override)
        return _build(source, Path(path).resolve().parent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: str | Path = ".") -> Plan:
        """A plan from plain values; relative paths are meant from `folder`. Raises `PlanError`."""
        return _build(plain(data), Path(folder).resolve())

    @classmethod
    def of(cls, plan: Plan | Mapping[str, Any] | str | Path) -> Plan:
        """A plan from whatever names one: itself, a mapping, or a file's path."""
        if isinstance(plan, Plan):
            return plan
        return cls.from_dict(plan) if isinstance(plan, Mapping) else cls.load(plan)

    def at(self, *keys: str | int) -> Span | None:
        """Where a value stands in the plan's file, for messages; `None` where the plan came from no file."""
        return self._source.locate(keys)

    def to_dict(self, relative_to: str | Path | None = None) -> dict[str, Any]:
        """Plain JSON values that load again to the same plan, with all defaults of the plan itself spelled out.

        Paths are absolute, or relative to the folder that the result will be read from.
        """
        context = {"relative_to": Path(relative_to).resolve() if relative_to else None}
        body = self.model_dump(mode="json", exclude={"passes", "export"}, exclude_none=True, context=context)
        entries = [{entry.name: plain(entry.options).data} if entry.options else entry.name for entry in self.passes]
        return {**body, "passes": entries, "export": [{export.name: export.model_dump()} for export in self.export]}

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Plan) else NotImplemented


def _build(source: Source, folder: Path) -> Plan:
    data = source.data
    _check_version(source)
    found: list[Fault] = []
    passes = _entries(source, "passes", registry.names(), registry.pass_class, found)
    exports = _entries(source, "export", EXPORTS, EXPORTS.__getitem__, found)
    made = {
        "passes": [PlanPass(name, options, pass_, source.locate(keys)) for name, options, pass_, keys in passes],
        "export": [export for _, _, export, _ in exports],
    }
    try:
        plan = Plan.model_validate({**data, **made}, context={"folder": folder})
    except ValidationError as error:
        found += faults(error, data, (), Plan)
    if found:
        raise source.errors(found)
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


_Entry = tuple[str, Mapping[str, Any], _Made, Keys]


def _entries(
    source: Source,
    key: str,
    names: Sequence[str] | Mapping[str, Any],
    find: Callable[[str], type[_Made]],
    found: list[Fault],
) -> list[_Entry[_Made]]:
    """Make what the list at `key` names. What can't be made is left out, and its faults are added to `found`."""
    entries = source.data.get(key, [])
    if not isinstance(entries, list):
        found.append(Fault((key,), f"{key} must be a list, got {shown(entries)}"))
        return []
    made = []
    for i, entry in enumerate(entries):
        try:
            name, value = _named(entry, (key, i))
            if name not in names:
                raise _Refused([Fault((key, i, name), f"unknown {_KINDS[key]} '{name}'", nearest(name, names), True)])
            made.append(_make(find(name), name, value, (key, i, name)))
        except _Refused as refused:
            found += refused.faults
    return made


_KINDS: Final = {"passes": "pass", "export": "export"}


class _Refused(Exception):
    """Carries the faults of one entry out of its making; never leaves this module."""

    def __init__(self, found: list[Fault]) -> None:
        super().__init__(found)
        self.faults = found


def _named(entry: Any, keys: Keys) -> tuple[str, Any]:
    """The name of a list's entry and the value beside it."""
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and len(entry) == 1:
        return next(iter(entry.items()))
    if not isinstance(entry, dict) or not entry:
        message = f"{label(keys)} must be a name, or a name with its options; got {shown(entry)}"
        raise _Refused([Fault(keys, message)])
    first, second = list(entry)[:2]
    message = f"one entry names one {_KINDS[str(keys[0])]}, this one has the keys " + ", ".join(map(repr, entry))
    indent = f"indent the options of '{first}' deeper than its name" if entry[first] is None else None
    raise _Refused([Fault((*keys, second), message, indent or nearest(second, [first]), on_key=True)])


def _make(made: type[_Made], name: str, value: Any, keys: Keys) -> _Entry[_Made]:
    short: str | None = getattr(made, "shorthand", None)
    options = {} if value is None else value
    if not isinstance(options, dict):
        if short is None:
            valid = ", ".join(made.model_fields)
            hint = f"options of {name}: {valid}" if valid else f"{name} has no options"
            raise _Refused([Fault(keys, f"{name} must be followed by a mapping of options, got {shown(value)}", hint)])
        options = {short: value}
    try:
        return name, options, made.model_validate(options), keys
    except ValidationError as error:
        raise _Refused(faults(error, options, keys, made)) from error


def schema() -> dict[str, Any]:
    """The JSON schema of a plan, with the options of every pass that is installed."""
    passes = registry.passes()
    models = [(model, "validation") for model in (Plan, *passes.values(), *EXPORTS.values())]
    refs, table = models_json_schema(models, ref_template="#/$defs/{model}")
    definitions = table["$defs"]
    plan = definitions.pop(refs[Plan, "validation"]["$ref"].rpartition("/")[2])
    for key, classes in (("passes", passes), ("export", EXPORTS)):
        forms = [
            form for name, made in classes.items() for form in _forms(name, made, refs[made, "validation"], definitions)
        ]
        plan["properties"][key] = {"type": "array", "items": {"anyOf": forms}, "default": []}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **plan, "$defs": definitions}


def _forms(name: str, made: type[BaseModel], ref: JsonSchemaValue, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The spellings of one entry: a name with options, with the value of its main option, or bare."""
    short: str | None = getattr(made, "shorthand", None)
    values = [ref]
    if short:
        values.append(definitions[ref["$ref"].rpartition("/")[2]]["properties"][short])
    bare = not any(option.is_required() for option in made.model_fields.values())
    if bare:
        values.append({"type": "null"})
    mapping = {
        "type": "object",
        "properties": {name: {"anyOf": values}},
        "required": [name],
        "additionalProperties": False,
    }
    return [mapping, {"const": name}] if bare else [mapping]
