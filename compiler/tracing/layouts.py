"""Which attributes of a module need a look: most hold numbers, and every module has dozens of tables of hooks.

Modules of a class have the same attributes, of the same types: what follows from names and types alone is found once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

Attributes = tuple[tuple[str, type], ...]
"""Names and types of attributes."""

MOST_LAYOUTS = 2000
"""How many are remembered: more than there are classes of layers."""


def attributes_that(matter: Callable[[str, type], bool]) -> Callable[[Mapping[str, Any]], Attributes]:
    """A function that gives the attributes, of a `__dict__`, whose name and type `matter`."""

    @lru_cache(maxsize=MOST_LAYOUTS)
    def chosen(names: tuple[str, ...], kinds: tuple[type, ...]) -> Attributes:
        return tuple(pair for pair in zip(names, kinds, strict=True) if matter(*pair))

    return lambda own: chosen(tuple(own), tuple(map(type, own.values())))
