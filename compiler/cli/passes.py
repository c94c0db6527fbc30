"""`prunec passes`: the passes and their options, in words that are read off the passes' own fields."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from prunec.compiler.pass_base import PASSES, Pass
from prunec.compiler.plan.entries import PlanPass
from prunec.compiler.plan.options import Fraction01, OneOf
from prunec.compiler.report.console import say, table


def show_passes() -> None:
    """Print a line for each pass."""
    rows = [[name, _facts(made.needs), _facts(made.gives), _summary(made)] for name, made in PASSES.all().items()]
    table("", ("pass", "needs", "gives", "what it does"), rows)


def show_pass(name: str) -> None:
    """Print what a pass does, and its options. Raises `PrunecError` where there is no such pass."""
    made = PASSES.named(name)
    say(f"{name}: {_summary(made)}")
    text = inspect.getdoc(inspect.getmodule(made))
    if text:
        say(f"\n{text}")
    if made.shorthand:
        say(f"\n`- {name}: VALUE` is short for `- {name}: {{{made.shorthand}: VALUE}}`")
    if made.model_fields:
        say("")
        table("", ("option", "type", "default", "meaning"), list(_options(made)))
    for field in made.model_fields.values():
        for choice in (item for item in field.metadata if isinstance(item, OneOf)):
            _show_choices(choice)


def _show_choices(choice: OneOf) -> None:
    """Print what an option may name, and the options of each."""
    known = choice.choices()
    say("")
    table("", (choice.kind, "what it does"), [[name, _summary(made)] for name, made in known.items()])
    say("")
    options = [[name, *option] for name, made in known.items() for option in _options(made)]
    table("", (choice.kind, "option", "type", "default", "meaning"), options)


def _options(made: type[BaseModel], before: str = "") -> Iterator[list[str]]:
    """A row for each option, and behind one that is a mapping for each of its keys: `distill.weight`."""
    for name, field in made.model_fields.items():
        called = before + (field.alias or name)
        example = f" e.g. {plain(field.examples[0])}" if field.examples else ""
        yield [called, option_type(field), _default(field), (field.description or "") + example]
        for inner in _mappings(field.annotation):
            yield from _options(inner, f"{called}.")


def _mappings(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of a type that stand for mappings with keys of their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not issubclass(annotation, Pass) and not _as_written(annotation):
            yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for part in get_args(annotation):
            yield from _mappings(part)


def _as_written(made: type) -> str:
    """How a class says that it is written in a plan; empty where it doesn't."""
    words: str = getattr(made, "as_written", "")
    return words


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, str):
        return plain(value)
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return plain(TypeAdapter(annotation).dump_python(value, mode="json", exclude_defaults=True))


def plain(value: Any) -> str:
    """A value as a plan spells it."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def option_type(field: FieldInfo) -> str:
    """The type of an option, in words: `0 to 1 or %, or mapping of pattern to whole number, at least 1`."""
    named = next((item for item in field.metadata if isinstance(item, OneOf)), None)
    if named is not None:
        return f"{named.kind}, see below"
    limits = [found for item in field.metadata if (found := _limit(item))]
    annotation = Annotated[field.annotation, *field.metadata] if _is_share(field) else field.annotation
    return ", ".join([type_words(annotation), *limits])


def _is_share(field: FieldInfo) -> bool:
    return any(item in get_args(Fraction01)[1:] for item in field.metadata)


def type_words(annotation: Any) -> str:
    """A type in a plan author's words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if any(item in get_args(Fraction01)[1:] for item in parts[1:]):
            return "0 to 1 or %"
        limits = [found for item in parts[1:] for found in _limits(item)]
        return ", ".join([type_words(parts[0]), *limits])
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(part) for part in parts if part is not type(None))
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is dict:
        return f"mapping of {type_words(parts[0])} to {type_words(parts[1])}"
    if origin in (list, tuple):
        return f"list of {type_words(parts[0])}"
    if isinstance(annotation, type) and (words := _as_written(annotation)):
        return words
    if isinstance(annotation, type) and issubclass(annotation, Pass):
        return f"what `{annotation.name}` says"
    if next(_mappings(annotation), None):
        return "mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


_WORDS = {Path: "path", PlanPass: "pass", int: "whole number", float: "number", str: "text", bool: "true or false"}


def _limits(item: Any) -> Iterator[str]:
    for inner in getattr(item, "metadata", [item]):
        if found := _limit(inner):
            yield found


def _limit(item: Any) -> str:
    """`at least 1` of pydantic's `Ge(1)`."""
    for name, words in (("ge", "at least"), ("gt", "greater than"), ("le", "at most"), ("lt", "less than")):
        if hasattr(item, name):
            return f"{words} {getattr(item, name)}"
    return ""


def _facts(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _summary(made: type[BaseModel]) -> str:
    """The first sentence of the class's text."""
    return re.split(r"\n\s*\n", inspect.cleandoc(made.__doc__ or ""))[0].replace("\n", " ")
