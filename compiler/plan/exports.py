"""Exports of a plan: the targets that write files, and what a plan says of each.

export: [onnx: {opset: 20}, ncnn]
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema
from pydantic_core.core_schema import is_instance_schema

from prunec.compiler.errors import PrunecError, Span
from prunec.compiler.targets.base import TARGETS, ExportOptions, Target


@dataclass(frozen=True)
class PlanExport:
    """One entry of `export`."""

    name: str
    options: ExportOptions
    at: Span | None = field(default=None, compare=False)

    @property
    def target(self) -> type[Target]:
        """The target that the entry names."""
        return TARGETS.named(self.name)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """An instance is taken unchanged: entries are made before pydantic validates what holds them."""
        return is_instance_schema(cls)

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain JSON values, with its defaults spelled out."""
        return {self.name: self.options.model_dump(mode="json", exclude_none=True)}


class Exporting(Collection[str]):
    """The names of the targets that write files. Each is loaded when it is asked for."""

    def __contains__(self, name: object) -> bool:
        return name in TARGETS.names() and bool(TARGETS.named(str(name)).suffixes)

    def __iter__(self) -> Iterator[str]:
        return (name for name in TARGETS.names() if self._has(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _has(self, name: str) -> bool:
        try:
            return name in self
        except PrunecError:  # a package that can't be imported is told to whoever names its target
            return False


EXPORTING = Exporting()


def options_of(name: str) -> type[ExportOptions]:
    """The class of a target's options."""
    return TARGETS.named(name).Options


def all_options() -> Mapping[str, type[ExportOptions]]:
    """Target -> the class of its options."""
    return {name: options_of(name) for name in EXPORTING}
