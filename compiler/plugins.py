"""Finds what installed packages add to the compiler, through the entry points of their metadata.

    [project.entry-points."prunec.passes"]         # in any package's pyproject.toml
    halve = "my_package.halve:Halve"

Each kind of extension has a group of entry points of its own. The entry's name is what a plan says, the object a
subclass of the kind's base class with that `name`; of a command, a function. It is imported when it is first asked for,
so that a broken package harms only the plans that use it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from prunec.compiler.errors import PrunecError, nearest
from prunec.compiler.user_code import note_plugin, running

Base = TypeVar("Base")


@dataclass(frozen=True, eq=False)
class EntryPoints:
    """The extensions of one kind (such as `pass`), by name: whatever objects their entry points name."""

    group: str
    kind: str

    def names(self) -> tuple[str, ...]:
        """All names, sorted; nothing is imported."""
        return tuple(sorted(_found(self.group)))

    def load(self, name: str) -> tuple[EntryPoint, Any]:
        """The entry point of that name, and the object that it names.

        Raises `PrunecError` where no package has it, where two have it, and where it can't be imported.
        """
        entries = _found(self.group).get(name, ())
        if not entries:
            raise PrunecError(f"unknown {self.kind} '{name}'", hint=nearest(name, self.names()))
        if len(entries) > 1:
            packages = " and ".join(f"'{_package(entry)}' ({entry.value})" for entry in entries)
            raise PrunecError(f"the {self.kind} '{name}' is registered by {packages}", hint="uninstall one of them")
        return entries[0], _loaded(self.kind, entries[0])


@dataclass(frozen=True, eq=False)
class Registry(EntryPoints, Generic[Base]):
    """The extensions of a kind whose objects are classes with a common base."""

    base: type[Base]

    def all(self) -> Mapping[str, type[Base]]:
        """Every class by its name. Raises `PrunecError` where one can't be loaded."""
        return MappingProxyType({name: self.named(name) for name in self.names()})

    def named(self, name: str) -> type[Base]:
        """The class of that name. Raises `PrunecError` as `load` does, and where the object is no such class."""
        return self._checked(*self.load(name))

    def made(self) -> Mapping[str, Base]:
        """An object of every class, by its name; made once. Raises `PrunecError` where a class can't be loaded."""
        found: Mapping[str, Base] = _made(self)
        return found

    def _checked(self, entry: EntryPoint, loaded: Any) -> type[Base]:
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise PrunecError(
                f"{_where(self.kind, entry)} is no subclass of {self.base.__module__}.{self.base.__name__}"
            )
        said = getattr(loaded, "name", "")
        if said != entry.name:
            raise PrunecError(
                f"{_where(self.kind, entry)} is registered as '{entry.name}', but its class says '{said}'"
            )
        return loaded


def refresh() -> None:
    """Forget what was found, so that packages installed since are seen."""
    for cached in (_found, _loaded, _made):
        cached.cache_clear()


@cache
def _made(registry: Registry[Any]) -> Mapping[str, Any]:
    return MappingProxyType({name: _object(registry, name, cls) for name, cls in registry.all().items()})


def _object(registry: Registry[Any], name: str, cls: type[Any]) -> Any:
    with running(f"the {registry.kind} '{name}' can't be made", PrunecError):
        return cls()


@cache
def _found(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        # One package may be listed twice, by its wheel and by its source folder.
        found.setdefault(entry.name, {})[_package(entry), entry.value] = entry
    return {name: tuple(entries[key] for key in sorted(entries)) for name, entries in found.items()}


@cache
def _loaded(kind: str, entry: EntryPoint) -> Any:
    with running(f"{_where(kind, entry)} can't be imported", PrunecError):
        found = entry.load()
        note_plugin(entry.module)
    return found


def _where(kind: str, entry: EntryPoint) -> str:
    return f"the {kind} '{entry.name}' of the package '{_package(entry)}' ({entry.value})"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]
