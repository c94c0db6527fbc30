"""The parts of a plan, each as a checked value: names of factories, paths, the model, inputs, data and exports.

A part that is mostly one value may be written as that value: `model: nets:small` for `model: {factory: nets:small}`,
`[1, 3, 32, 32]` for `{shape: [1, 3, 32, 32]}`. Validation is where relative paths become absolute: its context holds
the plan's `folder`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from prunec.compiler.errors import nearest
from prunec.compiler.plan.options import wrong
from prunec.compiler.plan.source import shown
from prunec.compiler.task.losses import ARGUMENTS
from prunec.compiler.task.metrics import NAMES
from prunec.compiler.train_spec import TrainSpec


@dataclass(frozen=True)
class Ref:
    """A name in a module, or in a Python file: `package.module:name`, `path/to/file.py:name`."""

    module: str | Path
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def _path(text: str, info: ValidationInfo) -> Path:
    """A path of the plan, made absolute from the plan's folder."""
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
    if not os.path.isfile(path):
        raise wrong(f"no file {_shown(path)}", hint=_neighbours(path))
    return Ref(path, name)


def _parse_name(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise wrong("must be a path")
    return _path(str(value), info)


def parse_path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise wrong("must be a path")
    path = _path(value, info)
    if not os.path.exists(path):  # unlike `Path.exists`, it takes a name that no file can have
        raise wrong(f"no file {_shown(path)}", hint=_neighbours(path))
    return path


def _shown(path: Path) -> str:
    return shown(str(path), 200)[1:-1]


def _neighbours(path: Path) -> str | None:
    """A hint at a file of nearly that name in the same folder; None where there is none."""
    if os.path.islink(path):
        return "it is a link that leads nowhere"
    if not os.path.isdir(path.parent):
        return f"there is no folder {_shown(path.parent)}"
    if not os.access(path.parent, os.R_OK):
        return f"the folder {_shown(path.parent)} can't be read"
    hint = nearest(path.name, os.listdir(path.parent))
    return hint if hint and hint.startswith("did") else None


def relative(value: Path, info: SerializationInfo) -> str:
    base = (info.context or {}).get("relative_to")
    return Path(os.path.relpath(value, base)).as_posix() if base else str(value)


def _ref_text(ref: Ref, info: SerializationInfo) -> str:
    return f"{relative(ref.module, info)}:{ref.name}" if isinstance(ref.module, Path) else str(ref)


def _name_text(name: str | Ref, info: SerializationInfo) -> str:
    return _ref_text(name, info) if isinstance(name, Ref) else name


PlanRef = Annotated[
    Ref, PlainValidator(_parse_ref), PlainSerializer(_ref_text), WithJsonSchema({"type": "string", "pattern": ":"})
]
AnyPath = Annotated[
    Path,
    PlainValidator(_parse_name),
    PlainSerializer(relative),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A path from the plan's folder, of a file that may be written after the plan is loaded."""
PlanPath = Annotated[
    Path, PlainValidator(parse_path), PlainSerializer(relative), WithJsonSchema({"type": "string", "minLength": 1})
]


class PlanTrain(TrainSpec):
    """`train` of a plan, whose paths are meant from the plan's folder."""

    tensorboard: AnyPath | None = None


class Part(BaseModel):
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


class Factory(Part):
    """A function that makes what the plan needs, with its arguments."""

    shorthand = "factory"
    usage = "package.module:name or a mapping with the key 'factory'"

    factory: PlanRef = Field(examples=["package.module:name"])
    args: dict[str, JsonValue] = {}


def _check_is_file(path: Path) -> Path:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise wrong(f"{path} is {what}, expected a file of weights")
    return path


class WeightsSpec(Part):
    """A file of weights, and which of what is in it are meant, where the model alone doesn't tell."""

    shorthand = "file"
    usage = "a path or a mapping with the key 'file'"

    file: Annotated[PlanPath, AfterValidator(_check_is_file)] = Field(examples=["small.safetensors"])
    key: Annotated[str, Field(min_length=1)] | None = None
    """Where in a checkpoint the weights are: `ema`, or `ema.module` for a key within another's value."""
    prefix: str | None = None
    """What stands before the model's names in the file and is taken off; names without it aren't read."""
    strict: StrictBool = True
    """Whether every name must be in the model and in the file."""

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        """The path alone, where no more is said."""
        found = {key: value for key, value in handler(self).items() if value is not None}
        if found.get("strict"):
            del found["strict"]
        return found["file"] if found.keys() == {"file"} else found


class ModelSpec(Part):
    """Where the model comes from: a factory, with weights or with its own; or a folder that `prunec compile` wrote."""

    shorthand = "factory"
    usage = "package.module:name or a mapping with the key 'factory' or 'saved'"

    factory: PlanRef | None = None
    args: dict[str, JsonValue] = {}
    weights: WeightsSpec | None = None
    saved: PlanPath | None = None

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


def _loss_name(value: object, info: ValidationInfo) -> str | Ref:
    if isinstance(value, str) and ":" in value:
        return _parse_ref(value, info)
    if isinstance(value, str) and value in ARGUMENTS:
        return value
    hint = nearest(value, ARGUMENTS) if isinstance(value, str) else None
    raise wrong("must be the name of a loss, or package.module:callable", hint=hint)


def _metric_name(value: object, info: ValidationInfo) -> str | Ref:
    if isinstance(value, str) and ":" in value:
        return _parse_ref(value, info)
    if isinstance(value, str) and (value in NAMES or re.fullmatch(r"[A-Z]\w*", value)):
        return value
    hint = nearest(value, NAMES) if isinstance(value, str) else None
    raise wrong("must be the name of a metric, a class of torchmetrics, or package.module:callable", hint=hint)


_Output = Annotated[str, Field(min_length=1)] | Annotated[StrictInt, Field(ge=0)]


_Weights = tuple[Annotated[StrictInt, Field(ge=0)] | Annotated[StrictFloat, Field(ge=0)], ...]
_ARGUMENT: Final[Mapping[str, tuple[TypeAdapter[Any], str]]] = {
    "label_smoothing": (TypeAdapter(Annotated[float, Field(ge=0, le=1, strict=True)]), "a number from 0 to 1"),
    "ignore_index": (TypeAdapter(StrictInt), "the number of a class"),
    "weight": (TypeAdapter(_Weights), "a list of numbers"),
    "pos_weight": (TypeAdapter(_Weights), "a list of numbers"),
}
"""The arguments of losses and metrics that are known by name: what they may be, and that in words."""


def _fits(value: JsonValue, argument: str) -> bool:
    try:
        _ARGUMENT[argument][0].validate_python(value)
    except ValidationError:
        return False
    return True


class _Judge(Part):
    """A loss or a metric: one that is known by name, or somebody's own, called with outputs and labels."""

    shorthand = "name"

    name: str | Ref
    args: dict[str, JsonValue] = {}
    """Of a class, what it is made with; of a function, what it is called with besides outputs and labels."""
    output: _Output | None = None
    """Of several outputs the one that is meant: its name, or its position from 0."""

    @classmethod
    def takes(cls, name: str | Ref) -> tuple[str, ...] | None:
        """The arguments of one that is known by name; None of others."""
        return None

    @model_validator(mode="after")
    def _takes_the_arguments(self) -> Self:
        known = self.takes(self.name)
        unknown = next((key for key in self.args if known is not None and key not in known), None)
        if unknown is not None:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise wrong(f"must not have the argument '{unknown}': {self.name} {takes}")
        for key in known or ():
            if key in self.args and not _fits(self.args[key], key):
                raise wrong(f"must have {_ARGUMENT[key][1]} for '{key}', not {shown(self.args[key])}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        """The name alone, where no more is said."""
        found = {key: value for key, value in handler(self).items() if value not in (None, {})}
        return found["name"] if found.keys() == {"name"} else found


class LossSpec(_Judge):
    """The loss that a model was trained by."""

    usage = "the name of a loss, package.module:callable, or a mapping with the key 'name'"

    name: Annotated[
        str | Ref,
        PlainValidator(_loss_name),
        PlainSerializer(_name_text),
        WithJsonSchema({"anyOf": [{"enum": list(ARGUMENTS)}, {"type": "string", "pattern": ":"}]}),
    ] = Field(examples=["cross_entropy"])

    @classmethod
    def takes(cls, name: str | Ref) -> tuple[str, ...] | None:
        """The arguments of one that is known by name; None of others."""
        return ARGUMENTS.get(str(name))


class MetricSpec(_Judge):
    """What a model is judged by."""

    usage = "the name of a metric, a class of torchmetrics, package.module:callable, or a mapping with the key 'name'"

    name: Annotated[
        str | Ref,
        PlainValidator(_metric_name),
        PlainSerializer(_name_text),
        WithJsonSchema({"anyOf": [{"enum": list(NAMES)}, {"type": "string", "pattern": "^[A-Z]|:"}]}),
    ] = Field(examples=["accuracy"])
    better: Literal["higher", "lower"] | None = None
    """Which way is up, where the metric itself doesn't say."""
    key: str | None = None
    """Of several numbers that it gives by name, the one that counts."""

    @classmethod
    def takes(cls, name: str | Ref) -> tuple[str, ...] | None:
        """The arguments of one that is known by name; None of others."""
        return NAMES.get(str(name))

    @model_validator(mode="after")
    def _known_ones_say_it_themselves(self) -> Self:
        for key in ("better", "key"):
            if self.name in NAMES and getattr(self, key) is not None:
                raise wrong(f"must not have the key '{key}' beside the metric {self.name}")
        if self.name == "loss" and self.output is not None:
            raise wrong("must not have the key 'output' beside the metric loss: it is the loss's to say")
        return self


Dtype = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
_HIGHEST: Final = {"int64": 2**63 - 1, "int32": 2**31, "int16": 2**15, "int8": 2**7, "uint8": 2**8}


class InputSpec(Part):
    """One example tensor. Whole numbers are drawn from `low` to `high - 1`, truth values are as often true as false,
    others are normally distributed."""

    shorthand = "shape"
    short_types = (list,)
    usage = "a shape such as [1, 3, 32, 32] or a mapping with the key 'shape'"

    shape: tuple[Annotated[StrictInt, Field(ge=1)], ...] = Field(min_length=1, examples=["[1, 3, 32, 32]"])
    dtype: Dtype = "float32"
    low: StrictInt | None = None
    high: Annotated[StrictInt, Field(ge=1)] | None = None

    @property
    def whole(self) -> bool:
        """True where the input is of whole numbers: tokens, categories."""
        return self.dtype in _HIGHEST

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        if self.whole and self.high is None:
            raise wrong(f"must have the key 'high' beside dtype {self.dtype}", hint="for example: high: 1000")
        for key in ("high", "low"):
            if not self.whole and getattr(self, key) is not None:
                raise wrong(
                    f"must not have the key '{key}' beside dtype {self.dtype}", hint="for example: dtype: int64"
                )
        if self.high is not None and self.high > _HIGHEST[self.dtype]:
            raise wrong(f"must have 'high' at most {_HIGHEST[self.dtype]} beside dtype {self.dtype}")
        if self.high is not None and (self.low or 0) >= self.high:
            raise wrong(f"must have 'low' below 'high', which is {self.high}")
        if self.low is not None and self.low < self._lowest:
            raise wrong(f"must have 'low' at least {self._lowest} beside dtype {self.dtype}")
        return self

    @property
    def _lowest(self) -> int:
        return 0 if self.dtype == "uint8" else -_HIGHEST[self.dtype]


class InputItems(Part):
    """Several inputs in one argument: a list of tensors, or a mapping of them."""

    shorthand = "items"
    short_types = (list,)

    items: tuple[PlanInput, ...] | dict[str, PlanInput] = Field(examples=["[[3, 32, 32], [3, 40, 40]]"])


class InputValue(Part):
    """An argument that isn't a tensor: it is fixed when the model is traced."""

    value: bool | StrictInt | float | str | None

    @model_serializer
    def _kept(self) -> dict[str, Any]:
        """Keep a value of None, which `exclude_none` would drop."""
        return {"value": self.value}


def _input_kind(value: Any) -> str:
    """Which class of input is meant, for pydantic's union; a tag is the name of its class."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    if isinstance(value, list):
        return "InputItems" if any(isinstance(item, list | dict) for item in value) else "InputSpec"
    keys = value if isinstance(value, dict) else ()
    kinds = {"items": "InputItems", "value": "InputValue"}
    return next((kind for key, kind in kinds.items() if key in keys and "shape" not in keys), "InputSpec")


PlanInput = Annotated[
    Annotated[InputSpec, Tag("InputSpec")]
    | Annotated[InputItems, Tag("InputItems")]
    | Annotated[InputValue, Tag("InputValue")],
    Discriminator(_input_kind),
]
"""One argument of a model's forward."""
InputItems.model_rebuild()
