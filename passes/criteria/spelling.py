"""How a plan names a criterion: `l1`, or a mapping with its options, `{taylor: {joint: false}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from prunec.compiler.errors import PrunecError, nearest
from prunec.compiler.plan.options import OneOf, nested, wrong
from prunec.compiler.plugins import Registry
from prunec.passes.criteria.base import Criterion

CRITERIA: Final = Registry("prunec.criteria", "criterion", Criterion)  # type: ignore[type-abstract]
"""The criteria that are installed."""


def criterion(value: Any) -> Criterion:
    """The criterion that a plan's value names. Raises pydantic's errors, in the plan's words."""
    if isinstance(value, Criterion):
        return value
    name, options = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else (value, {})
    names = CRITERIA.names()
    if not isinstance(name, str):
        raise wrong("must be the name of a criterion, or one name with a mapping of its options")
    if name not in names:
        raise wrong("must be the name of a criterion", hint=nearest(name, names) or "valid: " + ", ".join(names))
    try:
        made = CRITERIA.named(name)
    except PrunecError as error:
        raise wrong(f"can't be had: {error.message}", hint=error.hint) from error
    try:
        return made.model_validate({} if options is None else options)
    except ValidationError as error:
        raise nested(error, {} if options is None else options, (name,), made) from error


def spelled(made: Criterion) -> Any:
    """A criterion as a plan has it."""
    options = made.model_dump(mode="json", exclude_defaults=True)
    return {made.name: options} if options else made.name


class Named(OneOf):
    """The type of an option that holds a criterion: `criterion: Annotated[Criterion, Named()]`."""

    kind = "criterion"

    def choices(self) -> Mapping[str, type[BaseModel]]:
        """Every criterion that is installed."""
        return CRITERIA.all()

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """`criterion` makes the value; pydantic checks nothing further."""
        written = core_schema.plain_serializer_function_ser_schema(spelled)
        return core_schema.no_info_plain_validator_function(criterion, serialization=written)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A name, or a name with its options, for every criterion that is installed."""
        made = CRITERIA.all()
        options = [
            {
                "type": "object",
                "properties": {name: {"anyOf": [found.model_json_schema(), {"type": "null"}]}},
                "required": [name],
                "additionalProperties": False,
            }
            for name, found in made.items()
        ]
        return {"anyOf": [{"enum": list(made)}, *options]}
