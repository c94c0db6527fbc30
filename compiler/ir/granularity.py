"""How blocks of channels are divided into units, where a plan has a say in it.

A value whose channels lie in a grid [rows, positions] can lose whole rows, or positions of each row:

    kind        what the grid is                              choices
    attention   heads and head widths of a product            heads, head_width
    grouped     groups and channels of a grouped layer, or    whole, same, equal, free
                of a view that splits channels
    incoming    what one reader reads of a shared value       own, shared

    whole, heads         rows are units
    same, head_width     the same positions of every row are one unit
    equal                every row loses the same number of positions, chosen freely in each
    free                 every row loses what it likes: a shuffle alone can be divided so, by becoming a gather
    own                  the reader selects what it reads: a channel may go for it alone (`groups/incoming.py`)
    shared               a channel goes for all of its readers, or for none

The granularity is part of a program: it survives rewrites, so that units mean the same in every round of pruning. A
choice is made by glob patterns over names: a grouped layer's own, or those of the layers that write the block, or of
the operation's node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "attention": ("heads", "head_width"),
    "grouped": ("same", "equal", "free", "whole"),
    "incoming": ("own", "shared"),
}
"""What may be chosen, by kind."""

Patterns = tuple[tuple[str, str], ...]
"""(pattern, choice) pairs."""


@dataclass(frozen=True, slots=True)
class Granularity:
    """The choices of a plan; the first pattern that fits counts. Empty: the compiler chooses."""

    attention: Patterns = ()
    grouped: Patterns = ()
    incoming: Patterns = ()

    def of(self, kind: str) -> Patterns:
        """The pairs of one kind."""
        found: Patterns = getattr(self, kind)
        return found

    def choice(self, kind: str, names: Iterable[str]) -> str:
        """What the plan says of a block that goes by these names; '' where it says nothing."""
        return self.decided(kind, names)[1]

    def decided(self, kind: str, names: Iterable[str]) -> tuple[str, str]:
        """`choice`, and the pattern that decides, before it."""
        known = tuple(names)
        return next((pair for pair in self.of(kind) if _fits(pair[0], known)), ("", ""))

    def __bool__(self) -> bool:
        return bool(self.attention or self.grouped or self.incoming)


def misread(kind: str, said: object) -> str:
    """What is wrong with the choices that a program's text gives for a kind; '' where nothing is."""
    if kind not in CHOICES:
        return f"expected one of {', '.join(CHOICES)}, got '{kind}'"
    legal = isinstance(said, dict) and all(isinstance(p, str) and c in CHOICES[kind] for p, c in said.items())
    return "" if legal else f"expected patterns, each with one of {', '.join(CHOICES[kind])}, got {said!r}"


def _fits(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


@dataclass(frozen=True, slots=True)
class Block:
    """One place where the granularity is decided: its node, the shape of its grid in words (`4 heads of 16`), the names
    that a pattern may match, and the choice in force; '' where the compiler takes the one that leaves more units."""

    kind: str
    node: str
    shape: str
    names: tuple[str, ...]
    choice: str

    def answers(self, pattern: str) -> bool:
        """Whether a pattern names this block."""
        return _fits(pattern, self.names)
