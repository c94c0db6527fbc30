"""Passes that are only loaded, and the pretence that just they are installed."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunec.compiler import plugins
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan.options import Fraction01
from prunec.compiler.targets.base import TARGETS


class Idle(Pass):
    """A pass that is only loaded."""

    def run(self, program: Program, context: Context) -> PassResult:
        return PassResult(program)


class Budget(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    macs: Fraction01


class Pick(Idle):
    """Choose what to remove."""

    name = "pick"
    ratio: Fraction01 = 0.5
    budget: Budget | Fraction01 | None = None
    keep: int = Field(1, ge=1)
    norm: Literal["none", "l1", "l2"] = "none"
    protect: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_aim(self) -> Pick:
        if self.budget is not None and "ratio" in self.model_fields_set:
            raise ValueError("must not have both 'ratio' and 'budget'")
        return self


class Trim(Idle):
    """Takes its one option bare."""

    name = "trim"
    shorthand: ClassVar[str | None] = "ratio"
    ratio: Fraction01


class Tidy(Idle):
    """Has no options."""

    name = "tidy"


FAKES = {"pick": "Pick", "trim": "Trim", "tidy": "Tidy"}


def point(name: str, value: str, package: str = "") -> EntryPoint:
    entry = EntryPoint(name, value, "prunec.passes")
    if package:
        vars(entry)["dist"] = SimpleNamespace(name=package)
    return entry


def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that just these entry points are installed, and all targets; to begin with, the three passes above."""
    module = ModuleType("fakes")
    for cls in (Pick, Trim, Tidy, Budget):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "fakes", module)

    real = importlib.metadata.entry_points

    def install(*points: EntryPoint) -> None:
        found = {"prunec.passes": points}
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda *, group: real(group=group) if group == TARGETS.group else found.get(group, ()),
        )
        plugins.refresh()

    install(*(point(name, f"fakes:{cls}") for name, cls in FAKES.items()))
    return install
