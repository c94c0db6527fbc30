"""Keeps what a forward remembers from a trace: afterwards it is as it was before.

    @lru_cache                                     a cache, wherever it hides: during a trace it hands out what it
    def positions(n): ...                          remembers, and remembers nothing new; asked with sizes of the trace,
                                                   the function runs anew (else the batch would be frozen)
    table = {}                                     a global, a class attribute, a closure, a default argument, an object
    if n not in table: table[n] = arange(n)        that the module holds: put back
    self.ids = itertools.count()                   replaced by a copy for the time of the trace

A tensor of the trace has no data, so that a forward that finds one in its cache fails. What to put back is found before
the trace: all that the code of the forward can reach through attributes, closures, globals that it names, and the
methods that it may call (by name, as the types aren't known). What objects of other packages hold is put back only
where a value of the trace stands in it: other threads may be at work there, whose changes aren't ours to undo.

A run on real values (`untouched`) may write into tensors as well. It works on copies of them: what it counts up in a
buffer, or replaces by `.data =`, isn't in the model afterwards.
"""

from __future__ import annotations

import copy
import itertools
import operator
import random
import sys
import threading
import types
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper as Cache
from functools import cached_property, lru_cache, partial, partialmethod, wraps
from gc import get_referents
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import nn

from prunec.compiler.ir.modules import lent_copies, named_modules
from prunec.compiler.tracing.containers import leaves
from prunec.compiler.tracing.layouts import attributes_that
from prunec.compiler.tracing.symbolic_numbers import Number

_Function = Callable[..., Any]
_Restore = Callable[[], None]

KNOWN = frozenset({*sys.stdlib_module_names, *("torch", "numpy", "sympy", "prunec", "pytest", "_pytest")}) - {
    "__main__"
}
"""Packages whose code and classes keep nothing of a model. (pytest writes itself into each `assert` of a test.)"""

_HOLDERS = (
    types.SimpleNamespace,
    threading.local,
    UserDict,
    UserList,
    WeakKeyDictionary,
    WeakValueDictionary,
    nn.Module,
)
"""Classes of known packages whose instances may hold anything."""

_LITERALS = (int, float, bool, str, bytes, complex, type(None), type(...), range, slice)
_TENSORS = (torch.dtype, torch.device, torch.Size)
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_ATOMS = frozenset((*_LITERALS, *_TENSORS, *_BUILTIN, types.GetSetDescriptorType))
"""Types of values that hold nothing that a trace may change."""
_ITERATORS: tuple[type, ...] = (itertools.count, itertools.cycle, type(iter([])), type(iter(())), type(iter(range(0))))
"""Iterators that can be copied; a forward that asks one for its next item moves it."""
_SUBSTITUTED = frozenset((Cache, *_ITERATORS))

MOST_ENTRIES = 10_000
"""Larger containers are put back, but what their entries hold isn't looked at."""
MOST_OBJECTS = 100_000
"""The search ends here: a forward that reaches more holds data sets rather than caches."""
MOST_ELEMENTS = 10_000_000
"""Larger tensors, but for parameters and buffers, hold data rather than counters: a run may write into them."""
_MISSING = object()


@contextmanager
def undisturbed(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """A context that leaves everything that the model's forward can reach as it found it, memoised results included.

    `modules` are all that the model has, where these are known.
    """
    with _restoring(named_modules(model).values() if modules is None else modules, _Reach()):
        yield


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """`undisturbed` for a run of the model itself: its parameters, buffers and other tensors stay as they are."""
    reach = _Reach()
    with _restoring(named_modules(model).values(), reach), lent_copies(reach.tensors_of(model)):
        yield


@contextmanager
def _restoring(modules: Iterable[nn.Module], reach: _Reach) -> Iterator[None]:
    reach.search(modules)
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        reach.substitute()
        yield
    finally:
        reach.restore()
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])


def is_users_module(name: object) -> bool:
    """Whether a module (of Python) is the user's, or of a library that models come from.

    Some classes of C have a descriptor in the place of the name.
    """
    return isinstance(name, str) and name.partition(".")[0] not in KNOWN


class _Reach:
    """The objects that a forward can reach, how to put them back, and which to replace during a trace."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._kept: list[Any] = []
        """What is in `_seen`, so that no id is used twice."""
        self._waiting: list[tuple[Any, bool]] = []
        self._packages: set[str] = set()
        """The packages that the model's own classes come from."""
        self._own = True
        """Whether what is looked at now is held by the model's own code, and not by another package's objects."""
        self._copied: set[int] = set()
        """The model's own modules: a trace runs copies of these, with tables of their own."""
        self._restore: list[_Restore] = []
        self._usual: list[tuple[dict[str, Any], dict[str, Any]]] = []
        """The attributes of the model's modules that are of torch's own classes, and what they were."""
        self._names: set[str] = set()
        """All names that the reached code mentions."""
        self._classes: dict[type, set[str]] = {}
        self._modules: dict[int, tuple[dict[str, Any], set[str]]] = {}
        """The namespaces of modules -> the names in them that reached code may mean."""
        self._imported: list[dict[str, Any]] = []
        self._swaps: list[tuple[Callable[[Any], None], Any]] = []
        self._caches: dict[int, tuple[Any, int]] = {}
        self._tensors: dict[int, torch.Tensor] = {}
        """Tensors of the model's own code beside its parameters and buffers."""

    # ---- the search ---------------------------------------------------------------------------------------------

    def enter(self, value: Any) -> None:
        """Look at a value later, unless it was seen."""
        if type(value) in _ATOMS or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._kept.append(value)
        self._waiting.append((value, self._own))

    def search(self, modules: Iterable[nn.Module]) -> None:
        """Follow the modules of a model, and all that these lead to."""
        kinds: dict[type, bool] = {}
        for module in modules:
            kind = type(module)
            self._copied.add(id(module))
            if kind not in kinds:
                self._packages.update(_package(base) for base in kind.__mro__)
                kinds[kind] = not any(is_users_module(base.__module__) for base in kind.__mro__)
            if kinds[kind]:
                self._torchs(module)
            else:
                self.enter(module)
        self._names |= {"forward", "__call__"}
        while self._waiting and len(self._kept) < MOST_OBJECTS:
            value, own = self._waiting.pop()
            self._own = self._is_own(type(value), own)
            self._visit(value)
            if not self._waiting:
                self._own = True
                self._look_up()
        for namespace, names in self._modules.values():
            self._keep_names(namespace, names)

    def _is_own(self, kind: type, held: bool) -> bool:
        """Whether an object's changes are the model's: of another package's objects, and what they hold, they aren't
        sure to be."""
        if issubclass(kind, nn.Module) or kind in (types.FunctionType, types.MethodType, types.ModuleType):
            return held
        return _package(kind) in self._packages if is_users_module(kind.__module__) else held

    def _put_back(self, restore: _Restore, now: Callable[[], Any]) -> None:
        """Note how something is put back. `now` gives what it holds: of what isn't the model's own that decides."""
        self._restore.append(restore if self._own else partial(_if_traced, restore, now))

    def _look_up(self) -> None:
        """Enter what the names that are known by now mean in the classes and modules that were reached."""
        for cls, done in self._classes.items():
            for name in (vars(cls).keys() & self._names) - done:
                done.add(name)
                self.enter(vars(cls)[name])
        for namespace in self._imported:
            self._look_up_in(namespace, self._names)

    def _look_up_in(self, namespace: dict[str, Any], names: Iterable[str]) -> None:
        _, known = self._modules.setdefault(id(namespace), (namespace, set()))
        new = set(names) - known
        known |= new
        for name in new & namespace.keys():
            self.enter(namespace[name])

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind is types.FunctionType:
            self._function(value)
        elif kind is types.MethodType:
            self.enter(value.__func__)
            self.enter(value.__self__)
        elif kind in (tuple, frozenset):
            self._each(value)
        elif kind is Cache:
            self._caches[id(value)] = value, value.cache_info().misses
            self.enter(value.__wrapped__)
            self._namespace(vars(value))
        elif kind in _PARTS:
            for name in _PARTS[kind]:
                self.enter(getattr(value, name))
        elif issubclass(kind, np.ndarray):
            self._array(value)
        elif issubclass(kind, type):
            self._class(value)
        elif kind is types.ModuleType or issubclass(kind, types.ModuleType):
            if is_users_module(value.__name__):
                self._imported.append(vars(value))
        elif issubclass(kind, torch.Tensor):
            self._namespace(value.__dict__)
            if self._own and value.numel() <= MOST_ELEMENTS:
                self._tensors[id(value)] = value
        elif kind is types.MappingProxyType:
            self._each(value.values())
        else:
            self._container(value, kind)
            if is_users_module(kind.__module__) or issubclass(kind, _HOLDERS):
                self._instance(value, kind)

    def _each(self, values: Iterable[Any]) -> None:
        for value in values:
            if type(value) not in _ATOMS:
                self.enter(value)

    def _function(self, function: types.FunctionType) -> None:
        """A function's closure, defaults, attributes and the globals that its code names."""
        for cell in function.__closure__ or ():
            self._cell(cell)
        self._each(function.__defaults__ or ())
        if function.__kwdefaults__:
            self.enter(function.__kwdefaults__)
        self._namespace(function.__dict__)
        space = function.__globals__
        if not is_users_module(space.get("__name__")):
            return
        names = set(_names_in(function.__code__))
        self._names |= names
        self._look_up_in(space, names)
        package = str(space.get("__package__") or "")
        for name in names:
            for imported in (name, f"{package}.{name}"):
                if imported in sys.modules and name not in space:
                    self.enter(sys.modules[imported])

    def _cell(self, cell: types.CellType) -> None:
        if id(cell) in self._seen:
            return
        self._seen.add(id(cell))
        self._kept.append(cell)
        before = _content(cell)
        if before is not _MISSING:
            self._hold(partial(setattr, cell, "cell_contents"), before)
            self.enter(before)
        self._put_back(partial(_restore_cell, cell, before), lambda: [_content(cell)])

    def _class(self, cls: type) -> None:
        """A class's attributes, and its own class. Of its functions, those are followed whose names are mentioned."""
        if type(cls) is not type:
            self.enter(type(cls))
        for base in cls.__mro__:
            if base in self._classes or not is_users_module(base.__module__):
                continue
            members = dict(vars(base))
            self._classes[base] = {name for name in members if name.startswith("__") and name.endswith("__")}
            for name, value in members.items():
                if type(value) in _ATOMS:
                    continue
                if name in self._classes[base] and type(value) is not types.FunctionType:
                    continue
                self._member(base, name, value)
            self._restore.append(partial(_restore_class, base, members))

    def _member(self, cls: type, name: str, value: Any) -> None:
        put = partial(type.__setattr__, cls, name)
        cache = _cache_in(value)
        if cache is not None:
            self._swaps.append((lambda made: put(_wrapped_as(value, made)), cache))
            self.enter(cache)
        elif type(value) in _ITERATORS:
            self._hold(put, value)
        elif type(value) not in _CODE or name in self._classes[cls]:
            self.enter(value)

    def _instance(self, value: Any, kind: type) -> None:
        """An object's attributes and its class."""
        self.enter(kind)
        own = vars(value) if issubclass(kind, threading.local) else _own_namespace(value)
        if id(value) in self._copied and own:
            before = own.copy()
            self._put_back(partial(_restore_dict, own, before), lambda: list(own.values()))
            self._attributes(own, before)
        elif own is not None:
            self._namespace(own)
            if issubclass(kind, nn.Module):
                self._each(own[key] for key in ("_parameters", "_buffers", "_modules") if key in own)
        for base in kind.__mro__[:-1]:
            for member in vars(base).values() if "__slots__" in vars(base) else ():
                if type(member) is types.MemberDescriptorType:
                    self._slot(value, member)

    def _slot(self, value: Any, member: types.MemberDescriptorType) -> None:
        try:
            before = member.__get__(value)
        except AttributeError:
            before = _MISSING
        else:
            self._hold(partial(member.__set__, value), before)
            self.enter(before)
        self._put_back(partial(_restore_slot, member, value, before), lambda: [getattr(value, member.__name__, None)])

    def _namespace(self, own: dict[str, Any]) -> None:
        if own or id(own) not in self._seen:
            self._entries(own)

    def _container(self, value: Any, kind: type) -> None:
        if not issubclass(kind, _WITH_CONTENTS):
            return
        if issubclass(kind, dict):
            self._entries(value)
        elif issubclass(kind, list):
            before = list.copy(value)
            self._put_back(partial(_restore_list, value, before), lambda: list.copy(value))
            for i, item in enumerate(before if len(before) <= MOST_ENTRIES else ()):
                if type(item) not in _ATOMS:
                    self._hold(partial(list.__setitem__, value, i), item)
                    self.enter(item)
        elif issubclass(kind, set):
            self._put_back(partial(_restore_set, value, set.copy(value)), lambda: list(value))
            self._each(tuple(value) if len(value) <= MOST_ENTRIES else ())
        elif issubclass(kind, deque):
            self._put_back(partial(_restore_deque, value, tuple(value)), lambda: list(value))
            self._each(tuple(value) if len(value) <= MOST_ENTRIES else ())
        elif issubclass(kind, bytearray):
            self._put_back(partial(bytearray.__setitem__, value, slice(None), bytes(value)), list)
        elif issubclass(kind, tuple | frozenset):
            self._each(value)
        elif issubclass(kind, random.Random):
            self._put_back(partial(value.setstate, value.getstate()), list)
        elif issubclass(kind, np.random.Generator):
            self._put_back(partial(setattr, value.bit_generator, "state", value.bit_generator.state), list)
        elif issubclass(kind, torch.Generator):
            self._put_back(partial(value.set_state, value.get_state()), list)

    def _entries(self, value: dict[Any, Any]) -> None:
        """A dict's values, or the attributes of an object."""
        before = dict(value)
        self._put_back(partial(_restore_dict, value, before), lambda: list(dict.values(value)))
        self._held_in(value, before)

    def _torchs(self, module: nn.Module) -> None:
        """A module of the model that is of a class of torch's, which keeps nothing: its attributes alone. Most are."""
        self._seen.add(id(module))
        self._kept.append(module)
        own = module.__dict__
        self._usual.append((own, before := own.copy()))
        self._attributes(own, before)

    def _attributes(self, own: dict[str, Any], before: dict[str, Any]) -> None:
        """What a module's attributes lead to, but for its tensors and children, which are copied for a trace."""
        for key, kind in _leads_on(own):
            item = before[key]
            if kind is tuple and _ATOMS.issuperset(map(type, item)):
                continue
            if key not in _TABLES or item:
                self._held_at(own, key, kind, item)

    def _held_in(self, value: dict[Any, Any], before: dict[Any, Any]) -> None:
        for key, item in before.items() if len(before) <= MOST_ENTRIES else ():
            kind = type(item)
            if kind in _ATOMS or (key in _TABLES and (not item or kind is not OrderedDict)):
                continue
            if kind is tuple and _ATOMS.issuperset(map(type, item)):
                continue
            self._held_at(value, key, kind, item)

    def _held_at(self, value: dict[Any, Any], key: Any, kind: type, item: Any) -> None:
        if kind in _SUBSTITUTED:
            self._hold(partial(dict.__setitem__, value, key), item)
        self.enter(item)

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        if value.size <= MOST_ENTRIES and value.flags.writeable and not value.dtype.hasobject:
            self._put_back(partial(np.copyto, value, value.copy()), list)

    def _keep_names(self, namespace: dict[str, Any], names: Iterable[str]) -> None:
        before = {name: namespace.get(name, _MISSING) for name in names}
        for name, value in before.items():
            self._hold(partial(namespace.__setitem__, name), value)
        self._restore.append(partial(_restore_names, namespace, before))

    def _hold(self, put: Callable[[Any], None], value: Any) -> None:
        """Note where a cache or an iterator is held, so that another may stand in its place."""
        if type(value) in _SUBSTITUTED:
            self._swaps.append((put, value))

    # ---- before and after the trace -----------------------------------------------------------------------------

    def substitute(self) -> None:
        """Put caches that don't learn, and copies of iterators, in the places of the user's."""
        made: dict[int, Any] = {}
        for put, value in self._swaps:
            if id(value) not in made:
                made[id(value)] = not_learning(value) if type(value) is Cache else copy.copy(value)
            put(made[id(value)])

    def tensors_of(self, model: nn.Module) -> Iterable[torch.Tensor]:
        """The tensors that a run of the model itself may write into; the tables that it may put others in are kept."""
        tables = [part.__dict__[key] for part in named_modules(model).values() for key in _OWN if key in part.__dict__]
        self._restore += [partial(_restore_dict, table, dict(table)) for table in tables if isinstance(table, dict)]
        named = (*model.parameters(), *model.buffers())
        return {**self._tensors, **{id(tensor): tensor for tensor in named}}.values()

    def restore(self) -> None:
        """Put everything back. A cache that stood where it couldn't be replaced forgets what it has learnt."""
        for restore in reversed(self._restore):
            restore()
        for own, before in self._usual:
            if not (_same(own.values(), before.values()) and list(own) == list(before)):
                _restore_dict(own, before)
        for cache, misses in self._caches.values():
            if cache.cache_info().misses != misses:
                cache.cache_clear()


_WITH_CONTENTS = (
    *(dict, list, set, deque, bytearray, tuple, frozenset),
    *(random.Random, np.random.Generator, torch.Generator),
)
_TABLES = frozenset(vars(nn.Module()))
"""What every module has: its tensors and children, which are copied for a trace, and tables of hooks, most of them
empty."""
_leads_on = attributes_that(lambda key, kind: kind not in _ATOMS and (key not in _TABLES or kind is OrderedDict))
"""Attributes of a module that may hold anything: neither plain values nor tensors and children."""
_OWN = ("_parameters", "_buffers", "_modules")
_PARTS: dict[type, tuple[str, ...]] = {
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    cached_property: ("func",),
    partial: ("func", "args", "keywords", "__dict__"),
    partialmethod: ("func", "args", "keywords"),
}
"""What wraps functions -> its attributes that lead on."""
_CODE = frozenset((types.FunctionType, staticmethod, classmethod, property, cached_property))
"""Members of classes that are followed where their names are mentioned."""


def not_learning(cache: Any) -> _Function:
    """A function in the place of a cached one: it gives what the cache remembers, and leaves it as it is.

    What it computes, it remembers for itself; asked with numbers or tensors of a trace, it computes each time.
    """
    own = lru_cache(maxsize=None)(cache.__wrapped__)

    @wraps(cache.__wrapped__)
    def asked(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, Number | torch.Tensor) for leaf in leaves((args, kwargs))):
            return cache.__wrapped__(*args, **kwargs)
        return (cache if _remembers(cache, args, kwargs) else own)(*args, **kwargs)

    asked.cache_info, asked.cache_clear = cache.cache_info, own.cache_clear  # type: ignore[attr-defined]
    asked.cache_parameters = cache.cache_parameters  # type: ignore[attr-defined]
    return asked


def _remembers(cache: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a cache has the result of a call. Asking it would make it compute and keep what it hasn't: the garbage
    collector tells its table, whose keys are made as CPython makes them. False where that can't be told."""
    if not cache.cache_info().currsize or cache.cache_parameters()["typed"]:
        return False
    held = get_referents(cache)
    tables = [item for item in held if type(item) is dict and item is not vars(cache)]
    marks = [item for item in held if type(item) is object]
    if kwargs and not marks:
        return False
    key = (*args, marks[0], *itertools.chain(*kwargs.items())) if kwargs else args
    alone = args[0] if len(args) == 1 and not kwargs and type(args[0]) in (int, str) else key
    try:
        return any(alone in table for table in tables)
    except TypeError:  # unhashable: the call itself will say so
        return False


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The names that code mentions: globals, attributes, and texts that may be names (`getattr(self, "memo")`)."""
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is types.CodeType:
            yield from _names_in(constant)
        elif type(constant) is str and constant.isidentifier():
            yield constant


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that isn't bound yet
        return _MISSING


def _own_namespace(value: Any) -> dict[str, Any] | None:
    """An object's `__dict__`, without asking code of its class."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own if isinstance(own, dict) else None


def _cache_in(member: Any) -> Any:
    """The cache that a class's member is, or wraps; None where it has none."""
    if type(member) in (staticmethod, classmethod):
        member = member.__func__
    elif type(member) is property:
        member = member.fget
    return member if type(member) is Cache else None


def _wrapped_as(member: Any, function: _Function) -> Any:
    """A function in the wrapper that a class's member is."""
    if type(member) is property:
        return property(function, member.fset, member.fdel)
    return type(member)(function) if type(member) in (staticmethod, classmethod) else function


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


def _if_traced(restore: _Restore, now: Callable[[], Any]) -> None:
    """Put something back if a value of a trace stands in it."""
    if any(isinstance(x, Number) or (isinstance(x, torch.Tensor) and x.is_meta) for x in leaves(now())):
        restore()


def _same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    return all(map(operator.is_, now, before))


def _restore_dict(value: dict[Any, Any], before: dict[Any, Any]) -> None:
    if len(value) == len(before) and _same(value, before) and _same(value.values(), before.values()):
        return
    kind = OrderedDict if isinstance(value, OrderedDict) else dict
    kind.clear(value)
    for key, item in before.items():
        kind.__setitem__(value, key, item)


def _restore_list(value: list[Any], before: list[Any]) -> None:
    if len(value) != len(before) or not _same(value, before):
        list.__setitem__(value, slice(None), before)


def _restore_set(value: set[Any], before: set[Any]) -> None:
    if value ^ before:
        set.clear(value)
        set.update(value, before)


def _restore_deque(value: deque[Any], before: tuple[Any, ...]) -> None:
    if len(value) != len(before) or not _same(value, before):
        deque.clear(value)
        deque.extend(value, before)


def _restore_cell(cell: types.CellType, before: Any) -> None:
    if _content(cell) is before:
        return
    if before is _MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = before


def _restore_slot(member: types.MemberDescriptorType, value: Any, before: Any) -> None:
    if before is not _MISSING:
        member.__set__(value, before)
        return
    try:
        member.__delete__(value)
    except AttributeError:
        return  # still empty


def _restore_class(cls: type, before: dict[str, Any]) -> None:
    now = dict(vars(cls))
    for name in now.keys() | before.keys():
        old = before.get(name, _MISSING)
        if now.get(name, _MISSING) is old or (name.startswith("__") and name.endswith("__")):
            continue
        if old is _MISSING:
            type.__delattr__(cls, name)
        else:
            type.__setattr__(cls, name, old)


def _restore_names(namespace: dict[str, Any], before: dict[str, Any]) -> None:
    """Put globals back. What an import statement has bound stays: modules are loaded once."""
    for name, old in before.items():
        now = namespace.get(name, _MISSING)
        if now is old or isinstance(now, types.ModuleType):
            continue
        if old is _MISSING:
            del namespace[name]
        else:
            namespace[name] = old
