"""Tables of rows that refuse a second row for one key: what operations mean is written down once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Key = TypeVar("Key")
Row = TypeVar("Row")


class Table(dict[Key, Row]):
    """A mapping that is filled row by row while modules are imported."""

    def add(self, keys: Iterable[Key], row: Row) -> None:
        """Enter one row for several keys. A key that has a row already is a mistake of ours, and nothing is entered."""
        keys = tuple(keys)
        known = [str(getattr(key, "__name__", key)) for key in keys if key in self]
        assert not known, f"{known[0]} has a row already"
        assert len(set(keys)) == len(keys), f"one of {keys} is named twice"
        self.update(dict.fromkeys(keys, row))

    def register(self, *keys: Key) -> Callable[[Row], Row]:
        """A decorator that enters what it stands before as the row of these keys."""

        def registered(row: Row) -> Row:
            self.add(keys, row)
            return row

        return registered
