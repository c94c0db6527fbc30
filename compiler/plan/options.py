"""Types for what a plan may say, and its complaints in the plan's own words.

    class Select(Pass):
        name = "select"
        ratio: Fraction01                                  # 0.5 or 50%
        normalize: Literal["none", "l2"] = "none"

    plan.yaml:4:16: ratio must be between 0 and 1, or a percentage; got 1.5
        - select: {ratio: 1.5}
                          ^^^

A validator of a pass raises `ValueError("must ...")`; the key before and `got ...` behind are added here. A validator
that also knows the way out raises `wrong("must ...", hint="...")`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, get_args

from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from prunec.compiler.errors import nearest
from prunec.compiler.plan.source import MAX_FAULTS, MAX_TOLD, Fault, Keys, holds, shown

_CUSTOM: Final = "plan"
_NESTED: Final = "nested"


def wrong(message: str, *, hint: str | None = None) -> PydanticCustomError:
    """The error that a validator raises: `message` begins with "must"; the hint, where there is one, is the way out."""
    return PydanticCustomError(_CUSTOM, "{message}", {"message": message, "hint": hint})


def nested(error: ValidationError, data: Any, place: Keys, model: type[BaseModel]) -> PydanticCustomError:
    """The error of a validator that checked part of its value against a model which only that value names.

    `data`, which the model refused, stands at `place` within the value.
    """
    return told(faults(error, data, place, model))


def told(found: Sequence[Fault]) -> PydanticCustomError:
    """The error of a validator that found faults within its value; their keys lead on from there."""
    return PydanticCustomError(_NESTED, "must fit", {"faults": tuple(found)})


def _fraction(value: object) -> float:
    number = _number(value)
    if number is not None and 0 <= number <= 1:
        return number
    whole = isinstance(value, int) and 1 < value <= 100
    raise wrong("must be between 0 and 1, or a percentage", hint=f"did you mean '{value}%'?" if whole else None)


def _number(value: object) -> float | None:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*%\s*", value)
        return float(match[1]) / 100 if match else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


Fraction01 = Annotated[
    float,
    BeforeValidator(_fraction),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*%\s*$"},
            ]
        }
    ),
]
"""A number from 0 to 1, which a plan may also write as a percentage: `0.5` or `50%`."""


class OneOf(ABC):
    """Stands in an option's type where it names one of several things, each with options of its own.

    A subclass is used as `criterion: Annotated[Criterion, Named()]`; `prunec passes` lists what may be named.
    """

    kind: ClassVar[str]

    @abstractmethod
    def choices(self) -> Mapping[str, type[BaseModel]]:
        """A class for each name; its fields are the options."""


_WHOLE, _NUMBER, _BOOL, _TEXT = "a whole number", "a number", "true or false", "text"
_LIST, _MAPPING = "a list", "a mapping"
_EXPECTED: Final[Mapping[str, str]] = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "a finite number",
    "bool_type": _BOOL,
    "bool_parsing": _BOOL,
    "string_type": _TEXT,
    "string_pattern_mismatch": "text that matches {pattern}",
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "frozen_set_type": _LIST,
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}
"""pydantic's kind of error -> what would be right; other kinds keep pydantic's words."""


def faults(error: ValidationError, data: Any, keys: Keys = (), model: type[BaseModel] | None = None) -> list[Fault]:
    """Every complaint of pydantic about `data`, which stands at `keys` in the plan.

    `model` is what `data` were checked against: from it come the valid names near an unknown key.
    """
    found: dict[tuple[Keys, bool], list[ErrorDetails]] = {}
    items = error.errors(include_url=False)[:MAX_FAULTS]
    inside = [fault for item in items if item["type"] == _NESTED for fault in _nested_faults(item, data, keys)]
    for item in (item for item in items if item["type"] != _NESTED):
        found.setdefault((_real(item, data), item["type"] == "extra_forbidden"), []).append(item)
    # Of a union, each member complains: those that got further down know better what was meant.
    outer = {place[:depth] for place, _ in found for depth in range(len(place))}
    best = [(place, items) for (place, _), items in found.items() if place not in outer]
    # Looking for the valid name near a wrong one takes long; of very many faults only the first are told.
    return [
        *inside,
        *(_fault(place, items, keys, model if i < MAX_TOLD else None) for i, (place, items) in enumerate(best)),
    ]


def _nested_faults(item: ErrorDetails, data: Any, keys: Keys) -> list[Fault]:
    place = (*keys, *_real(item, data))
    return [replace(fault, keys=(*place, *fault.keys)) for fault in item["ctx"]["faults"]]


def _fault(place: Keys, items: list[ErrorDetails], keys: Keys, model: type[BaseModel] | None) -> Fault:
    item, where = items[0], (*keys, *place)
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(model, item["loc"][:-1])
        return Fault(where, f"unknown key {shown(str(place[-1]))}", nearest(str(place[-1]), valid), on_key=True)
    if item["type"] == "missing":
        return Fault(where, f"missing key '{place[-1]}'", _example(model, item["loc"]), on_key=True)
    message = _message(label(where), items)
    return Fault(where, message, _hint(item), on_key=not place)


def _message(name: str, items: list[ErrorDetails]) -> str:
    value, kind = items[0]["input"], items[0]["type"]
    expected = dict.fromkeys(text for item in items if (text := _expected(item)))
    words = f"must be {' or '.join(expected)}" if expected else _own_words(items[0])
    if not words.startswith("must "):
        return f"{name}: {words}"
    if isinstance(value, dict) and kind not in _EXPECTED:  # about several keys at once: the value says nothing
        return f"{name} {words}"
    return f"{name} {words}{'; ' if ',' in words else ', '}got {shown(value)}"


def _expected(item: ErrorDetails) -> str | None:
    """What would be right, to stand behind "must be"; None where the message is a sentence of its own."""
    if item["type"] in _EXPECTED:
        return _EXPECTED[item["type"]].format_map(item.get("ctx", {}))
    words = _own_words(item)
    start = next((start for start in ("Input should be ", "must be ") if words.startswith(start)), None)
    return words.removeprefix(start) if start else None


def _own_words(item: ErrorDetails) -> str:
    cause = item.get("ctx", {}).get("error")
    return str(cause) if isinstance(cause, Exception) else item["msg"]


def _hint(item: ErrorDetails) -> str | None:
    context = item.get("ctx", {})
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        hint = nearest(item["input"], re.findall(r"'([^']*)'", context["expected"]))
        return hint if hint and hint.startswith("did") else None  # the message lists the valid ones already
    return context.get("hint") if item["type"] == _CUSTOM else None


def label(keys: Keys) -> str:
    """The short name of a place: the last key and the indices behind it, `shape[1]`."""
    last = max((i for i, key in enumerate(keys) if isinstance(key, str)), default=-1)
    return (str(keys[last]) if last >= 0 else "the plan") + "".join(f"[{key}]" for key in keys[last + 1 :])


def _real(item: ErrorDetails, data: Any) -> Keys:
    """pydantic's place without what isn't in the data (tags of unions, steps of validators); a missing key stays."""
    real: list[str | int] = []
    for key in item["loc"]:
        if holds(data, key):
            data = data[key]
            real.append(key)
    return (*real, item["loc"][-1]) if item["type"] == "missing" else tuple(real)


def _valid_keys(model: type[BaseModel] | None, loc: tuple[str | int, ...]) -> list[str]:
    inner = _model_at(model, loc)
    return [field.alias or name for name, field in inner.model_fields.items()] if inner else []


def _example(model: type[BaseModel] | None, loc: tuple[str | int, ...]) -> str | None:
    inner = _model_at(model, loc[:-1])
    field = inner.model_fields.get(str(loc[-1])) if inner else None
    return f"for example: {loc[-1]}: {field.examples[0]}" if field and field.examples else None


def _model_at(model: type[BaseModel] | None, loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that pydantic's place leads to; a union's tag is the name of the member's class."""
    members = [model] if model else []
    for key in loc:
        tagged = [member for member in members if member.__name__ == key]
        members = (
            tagged
            or [
                inner
                for member in members
                if key in member.model_fields
                for inner in _models(member.model_fields[str(key)].annotation)
            ]
            or members
        )
    return members[0] if members else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation mentions: `dict[str, Budget] | None` mentions `Budget`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
