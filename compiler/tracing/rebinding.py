"""Rebinds a copied model's attributes: what refers to the original's modules and parameters refers to the copy's.

    self.blocks = [self.a, self.b]                            a list of the copies
    self.seen = {}; self.a.seen = self.seen                   one dict again, which both copies share
    self.a.register_forward_hook(self.keep)                   a method of the copy
    self.a.register_forward_hook(lambda m, i, o: self.seen.update(a=o))      a function over the copy

A hook that went on writing into the original would leave the copy with what an earlier run had left there.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

from prunec.compiler.tracing.containers import leaves

_DICTS = (dict, OrderedDict)
_LINES = (list, tuple, set)


class Swap:
    """Replaces values by their stand-ins (by id of the original); containers and functions are copied once each."""

    def __init__(self, standins: Mapping[int, Any]) -> None:
        self._standins = standins
        self._made: dict[int, tuple[Any, Any]] = {}

    def one(self, value: Any) -> Any:
        """The stand-in of a module or tensor; anything else unchanged."""
        return self._standins.get(id(value), value)

    def nest(self, value: Any) -> Any:
        """An attribute for the copy: containers and functions anew, modules and parameters swapped, all else shared."""
        if id(value) in self._standins:
            return self._standins[id(value)]
        if id(value) not in self._made:
            self._made[id(value)] = value, value  # for one that holds itself, or is held by what it holds
            self._made[id(value)] = value, self._anew(value)
        return self._made[id(value)][1]

    def _anew(self, value: Any) -> Any:
        if isinstance(value, dict):
            if type(value) not in _DICTS and not any(map(self._leads, leaves(value))):
                return value  # a configuration, which may forbid to be changed
            rebuilt = value.copy()
            rebuilt.update((key, self.nest(item)) for key, item in value.items())
            return rebuilt
        if type(value) in _LINES:
            return type(value)(map(self.nest, value))
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.one(value.__self__))
        if isinstance(value, types.FunctionType) and value.__closure__:
            return self._closed(value, value.__closure__)
        if type(value) is partial:
            return partial(
                value.func, *map(self.nest, value.args), **{k: self.nest(v) for k, v in value.keywords.items()}
            )
        return value

    def _leads(self, leaf: Any) -> bool:
        """Whether a value is one to replace, or a function, which may refer to one."""
        return id(leaf) in self._standins or callable(leaf)

    def _closed(self, function: types.FunctionType, cells: tuple[types.CellType, ...]) -> types.FunctionType:
        """A function whose closure refers to the copies; the function itself where it refers to none of them."""
        swapped = tuple(map(self._cell, cells))
        if all(new is old for new, old in zip(swapped, cells, strict=True)):
            return function
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, swapped
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            value = cell.cell_contents
        except ValueError:  # a name that isn't bound yet
            return cell
        known = id(value) in self._standins or isinstance(value, types.FunctionType | types.MethodType)
        new = self.nest(value) if known or id(value) in self._made else value
        return cell if new is value else types.CellType(new)
