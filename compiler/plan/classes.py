"""The classes that a plan keeps of a classifier's, and where their names come from.

classes: [1, 4, 7]                                        by their positions in the output, from 0
classes: [cat, dog]                                       by name: the data's attribute `classes` lists all names
classes: {keep: [cat, dog], names: classes.txt}           a file with a name on each line
classes: {keep: [cat, dog], names: {"3": cat, "5": dog}}  the names of some
classes: {keep: [0, 1], outputs: [kind]}                  of several outputs, those that are meant
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, SerializationInfo, WithJsonSchema
from pydantic_core.core_schema import ValidationInfo

from prunec.compiler.plan.options import wrong
from prunec.compiler.plan.schema import Part, parse_path, relative

_INDEX: Final = {"type": "integer", "minimum": 0}
_NAME: Final = {"type": "string", "minLength": 1}


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _class(value: object) -> Any:
    if not _is_index(value) and not _is_name(value):
        hint = (
            "a name that YAML takes for something else is quoted: 'true'" if isinstance(value, bool | float) else None
        )
        raise wrong("must be a class's name, or its position from 0", hint=hint)
    return value


def _several(value: tuple[int | str, ...]) -> tuple[int | str, ...]:
    if len(value) < 2:
        raise wrong("must list at least two classes")
    twice = next((each for index, each in enumerate(value) if each in value[:index]), None)
    if twice is not None:
        raise wrong(f"must not list {twice!r} twice")
    return value


Names = tuple[str, ...] | dict[int, str] | Path


def _names(value: object, info: ValidationInfo) -> Names:
    if isinstance(value, list | tuple) and value and all(map(_is_name, value)):
        return tuple(value)
    if isinstance(value, dict) and value and all(map(_is_name, value.values())):
        keys = [int(key) if isinstance(key, str) and key.isdecimal() else key for key in value]
        if all(map(_is_index, keys)):
            return dict(zip(keys, value.values(), strict=True))
    if _is_name(value):
        path = parse_path(value, info)
        if not os.path.isfile(path):
            raise wrong("must be a file with a name on each line")
        return path
    raise wrong("must be a list of all names, a mapping {'0': name}, or a text file with a name on each line")


def _written(value: Names, info: SerializationInfo) -> Any:
    if isinstance(value, Path):
        return relative(value, info)
    return {str(key): name for key, name in value.items()} if isinstance(value, dict) else list(value)


ClassNames = Annotated[
    Names,
    PlainValidator(_names),
    PlainSerializer(_written),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": _NAME},
                {"type": "object", "additionalProperties": _NAME},
                _NAME,
            ]
        }
    ),
]
"""The names of classes: all in order, some by position, or a file."""
Class = Annotated[int | str, PlainValidator(_class), WithJsonSchema({"anyOf": [_INDEX, _NAME]})]


class ClassSpec(Part):
    """The classes that are kept."""

    shorthand = "keep"
    short_types = (list,)
    usage = "a list of classes or a mapping with the key 'keep'"

    keep: Annotated[tuple[Class, ...], AfterValidator(_several)] = Field(examples=["[cat, dog]"])
    names: ClassNames | None = None
    """The names of all classes in the order of the output, of some by position, or a file with one on each line; the
    data's own where nothing is said."""
    outputs: Annotated[tuple[Class, ...], Field(min_length=1)] | None = None
    """Of several outputs those that lose classes, by name or position; where nothing is said, the judged one and others
    of as many classes."""
