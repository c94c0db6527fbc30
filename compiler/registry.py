"""Finds the passes that are installed: the entry-point group `prunec.passes`.

    [project.entry-points."prunec.passes"]         # in any package's pyproject.toml
    halve = "my_package.halve:Halve"

The name is what a plan says, the object a subclass of `Pass` with that `name`. A pass is imported when it is first
asked for, so that a broken package harms only the plans that use it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Final

from prunec.compiler.base import Pass
from prunec.compiler.errors import PrunecError, nearest

GROUP: Final = "prunec.passes"


def names() -> tuple[str, ...]:
    """The names of all passes, sorted; nothing is imported."""
    return tuple(sorted(_found()))


def passes() -> Mapping[str, type[Pass]]:
    """Every pass by its name. Raises `PrunecError` where one can't be had."""
    return MappingProxyType({name: pass_class(name) for name in names()})


@cache
def pass_class(name: str) -> type[Pass]:
    """The class of one pass.

    Raises `PrunecError` where no package has it, two have it, or the package that has it is broken.
    """
    entries = _found().get(name, ())
    if not entries:
        raise PrunecError(f"unknown pass '{name}'", hint=nearest(name, names()))
    if len(entries) > 1:
        packages = " and ".join(f"'{_package(entry)}' ({entry.value})" for entry in entries)
        raise PrunecError(f"the pass '{name}' is registered by {packages}", hint="uninstall one of them")
    return _load(entries[0])


def refresh() -> None:
    """Look again at what is installed."""
    _found.cache_clear()
    pass_class.cache_clear()


@cache
def _found() -> Mapping[str, tuple[EntryPoint, ...]]:
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        # One package may be listed twice, by its wheel and by its source folder.
        found.setdefault(entry.name, {})[_package(entry), entry.value] = entry
    return {name: tuple(entries[key] for key in sorted(entries)) for name, entries in found.items()}


def _load(entry: EntryPoint) -> type[Pass]:
    where = f"the pass '{entry.name}' of the package '{_package(entry)}' ({entry.value})"
    try:
        loaded = entry.load()
    except Exception as error:  # importing runs the package's code: anything may come out of it
        raise PrunecError(f"{where} can't be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise PrunecError(f"{where} is no subclass of prunec.compiler.base.Pass")
    if getattr(loaded, "name", None) != entry.name:
        raise PrunecError(
            f"{where} is registered as '{entry.name}', but its class says '{getattr(loaded, 'name', '')}'"
        )
    return loaded


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]
