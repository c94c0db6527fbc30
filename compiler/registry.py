"""The passes that are installed: the entry-point group `prunec.passes`; see `plugins`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prunec.compiler import plugins
from prunec.compiler.pass_base import Pass
from prunec.compiler.plugins import Registry

PASSES: Final = Registry("prunec.passes", "pass", Pass)  # type: ignore[type-abstract]


def names() -> tuple[str, ...]:
    """The names of all passes, sorted; nothing is imported."""
    return PASSES.names()


def passes() -> Mapping[str, type[Pass]]:
    """Every pass by its name. Raises `PrunecError` where one can't be had."""
    return PASSES.all()


def pass_class(name: str) -> type[Pass]:
    """The class of one pass.

    Raises `PrunecError` where no package has it, two have it, or the package that has it is broken.
    """
    return PASSES.named(name)


def refresh() -> None:
    """Look again at what is installed."""
    plugins.refresh()
