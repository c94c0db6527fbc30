"""A leaf module as the call that makes it: `Conv2d(3, 8, kernel_size=(3, 3), padding=(1, 1))`.

    constructor(module)       module -> Constructor, from the class's signature and the attributes of the same names
    parse_constructor(text)   text -> Constructor, literals only: nothing in the text is evaluated
    check_constructor(module) the same, and sure that the call gives the same tensors and attributes back

A slimmed module carries its new sizes in its attributes, so its call is the slim one. Defaults are left out: what the
class makes of its required arguments alone needs no words. So are `device` and `dtype`, which belong to the tensors.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from prunec.compiler.errors import ModelError, nearest
from prunec.compiler.ir.modules import is_scripted, module_tensors
from prunec.compiler.ir.operations import module_classes as registered
from prunec.compiler.text.lexer import Fragment
from prunec.compiler.text.literals import Reader, literal

POSITIONAL = 2
"""So many required arguments are written without their names: `Conv2d(3, 8, ...)`, `GroupNorm(4, 16)`."""

MOST = 1000
"""So many layers a module of a text may have (`num_layers`): each is made."""

_PLACE = frozenset({"device", "dtype"})
_PLAIN = (type(None), bool, int, float, str, torch.dtype)


@dataclass(frozen=True, slots=True)
class Constructor:
    """A class of `torch.nn`, or one that a package has registered, and the arguments that differ from its defaults, in
    the order of its signature."""

    cls: type[nn.Module]
    args: tuple[tuple[str, Any], ...]

    def source(self, prefix: str = "nn.") -> str:
        """The call as Python source, where `prefix` leads to `torch.nn`."""
        required = [
            name for name, p in signature(self.cls).items() if p.default is p.empty and p.kind != p.KEYWORD_ONLY
        ]
        given = dict(self.args)
        leading = [literal(given.pop(name)) for name in required[:POSITIONAL] if name in given]
        named = [f"{name}={literal(value)}" for name, value in given.items()]
        return f"{self.path(prefix)}({', '.join(leading + named)})"

    def path(self, prefix: str = "nn.") -> str:
        """How the class is written: a registered one of another package by its full name."""
        return (
            f"{prefix}{self.cls.__name__}" if _is_torchs(self.cls) else f"{self.cls.__module__}.{self.cls.__qualname__}"
        )

    def build(self, device: torch.device | str | None = None) -> nn.Module:
        """The module; on the meta device it costs nothing. Raises what the class raises of impossible arguments."""
        given = dict(self.args)
        if "dtype" in signature(self.cls):
            given.setdefault("dtype", torch.float32)
        with torch.device(device or "cpu"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # says nothing: a width may be 0
            return self.cls(**given)

    def with_dtype(self, dtype: torch.dtype) -> Constructor:
        """The call that makes parameters of that type; it stays as it is for the default one."""
        if dtype == torch.float32 or "dtype" not in signature(self.cls):
            return self
        return Constructor(self.cls, (*self.args, ("dtype", dtype)))


def _is_torchs(cls: type[nn.Module]) -> bool:
    return getattr(nn, cls.__name__, None) is cls


def signature(cls: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    """The named parameters of a class's constructor, without `self`."""
    own = _named(cls)
    if issubclass(cls, nn.RNNBase) and cls is not nn.RNNBase:  # these take *args and hand them on
        shared = {name: parameter for name, parameter in _named(nn.RNNBase).items() if name != "mode"}
        extra = {"nonlinearity": "tanh"} if cls is nn.RNN else {}
        added = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=d) for name, d in extra.items()}
        return {**shared, **added, **own}
    return own


def _named(cls: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {parameter.name: parameter for parameter in parameters if parameter.kind not in stars}


def constructor(module: nn.Module) -> Constructor:
    """The call that makes a module like this one; `ModelError` where it isn't of `torch.nn` or holds no literals."""
    cls = type(module)
    if not _is_torchs(cls) and cls not in registered().values():
        hint = "it is TorchScript: give the module that was scripted, or use `result.module` as it is"
        message = f"expected a module of torch.nn, got '{cls.__module__}.{cls.__qualname__}'"
        raise ModelError(message, hint=hint if is_scripted(module) else None)
    wanted = {name: p.default for name, p in signature(cls).items() if name not in _PLACE}
    found = {name: _plain(module, name, value) for name, value in _arguments(module, wanted)}
    probe = _defaults(cls, {name: found[name] for name in found if wanted[name] is inspect.Parameter.empty})
    implied = wanted if probe is None else dict(_arguments(probe, wanted))
    return Constructor(
        cls, tuple((n, v) for n, v in found.items() if _is_required(wanted[n]) or not _same(v, implied[n]))
    )


def check_constructor(module: nn.Module) -> Constructor:
    """`constructor`, or `ModelError` where the call would give other tensors, attributes or behaviour."""
    made = constructor(module)
    title = type(module).__name__
    try:
        built = made.with_dtype(parameter_dtype(module)).build("meta")
    except (TypeError, ValueError, RuntimeError, AssertionError) as fault:
        raise ModelError(f"{title} can't be made by {made.source('')}: {fault}") from fault
    for what, ours, theirs in _differences(module, built):
        raise ModelError(f"{title} can't be made by {made.source('')}: '{what}' would be {theirs}, and is {ours}")
    return made


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """The type of the module's floating parameters and buffers; `float32` where there are none."""
    dtypes = sorted({t.dtype for _, t in module_tensors("", module) if t.is_floating_point()}, key=str)
    if len(dtypes) > 1:
        raise ModelError(f"{type(module).__name__} mixes the types {', '.join(map(str, dtypes))}")
    return dtypes[0] if dtypes else torch.float32


def parse_constructor(text: str) -> Constructor:
    """The call that `Constructor.source` wrote, with or without `nn.` before it; `TextError` on anything else."""
    return read_constructor(Fragment.of(text))


def read_constructor(fragment: Fragment) -> Constructor:
    """`parse_constructor` of a stretch of a file, for errors that know their place."""
    call = fragment.expression()
    if not isinstance(call, ast.Call):
        raise fragment.error(f"expected a module such as Linear(8, 4), got {fragment.code!r}")
    cls = _module_class(fragment.at(call.func))
    parameters = signature(cls)
    positional = [name for name, p in parameters.items() if p.kind != p.KEYWORD_ONLY]
    if len(call.args) > len(positional):
        place = fragment.at(call.args[len(positional)])
        raise place.error(f"expected at most {len(positional)} arguments of {cls.__name__}, got {len(call.args)}")
    reader = Reader(fragment, {})
    given = {name: reader.value(item) for name, item in zip(positional, call.args, strict=False)}
    for word in call.keywords:
        given[_keyword(fragment.at(word), word.arg, cls, given)] = reader.value(word.value)
    long = next(
        (name for name, value in given.items() if "layers" in name and type(value) is int and value > MOST), None
    )
    if long is not None:
        raise fragment.error(f"expected at most {MOST:,} layers in one module, got {given[long]:,}")
    missing = [name for name, p in parameters.items() if _is_required(p.default) and name not in given]
    if missing:
        raise fragment.error(f"expected an argument '{missing[0]}' of {cls.__name__}, got none")
    return Constructor(cls, tuple((name, given[name]) for name in parameters if name in given))


def _keyword(place: Fragment, name: str | None, cls: type[nn.Module], given: Mapping[str, Any]) -> str:
    parameters = signature(cls)
    if name is None or name not in parameters:
        hint = nearest(name, parameters) if name else None
        raise place.error(f"expected an argument of {cls.__name__}, got '{name or place.code}'", hint)
    if name in given:
        raise place.error(f"expected one value for '{name}', got two")
    return name


@cache
def module_classes() -> Mapping[str, type[nn.Module]]:
    """Every module class of `torch.nn` by its name."""
    return {n: c for n, c in vars(nn).items() if inspect.isclass(c) and issubclass(c, nn.Module)}


def _module_class(place: Fragment) -> type[nn.Module]:
    if place.code in registered():
        return registered()[place.code]
    name = place.code.removeprefix("torch.").removeprefix("nn.")
    if name not in module_classes():
        raise place.error(f"expected a class of torch.nn, got '{place.code}'", nearest(name, module_classes()))
    return module_classes()[name]


# --- a parameter of the constructor -> what the module holds of it ----------------------------------------------------


def _bias(module: nn.Module) -> bool:
    """A norm without affine parameters has no bias whatever its `bias` argument was, so it counts as the default."""
    affine = getattr(module, "affine", getattr(module, "elementwise_affine", True))
    return not affine or getattr(module, "bias", None) is not None


_SPECIAL: Mapping[tuple[type[nn.Module], str], Callable[[Any], Any]] = {
    (nn.MultiheadAttention, "bias"): lambda m: m.in_proj_bias is not None,
    (nn.MultiheadAttention, "add_bias_kv"): lambda m: m.bias_k is not None,
    (nn.AdaptiveLogSoftmaxWithLoss, "cutoffs"): lambda m: m.cutoffs[:-1],
    (nn.PairwiseDistance, "p"): lambda m: m.norm,
    (nn.Module, "bias"): lambda m: m.bias if isinstance(getattr(m, "bias", None), bool) else _bias(m),
}
"""Arguments that the module keeps under another name or in another form than it was given; the nearest class wins."""


def _arguments(module: nn.Module, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, default in wanted.items():
        read = next((_SPECIAL[cls, name] for cls in type(module).__mro__ if (cls, name) in _SPECIAL), None)
        if read is not None:
            yield name, read(module)
        elif hasattr(module, name):
            yield name, getattr(module, name)
        elif _is_required(default):
            raise ModelError(f"{type(module).__name__} has no attribute '{name}', which its constructor requires")


def _is_required(default: Any) -> bool:
    return default is inspect.Parameter.empty


def _plain(module: nn.Module, name: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        items = [_plain(module, name, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if not isinstance(value, _PLAIN):
        kind = type(value).__name__
        raise ModelError(f"{type(module).__name__}: expected a literal in the attribute '{name}', got a {kind}")
    return value


def _defaults(cls: type[nn.Module], required: Mapping[str, Any]) -> nn.Module | None:
    """What the class makes of its required arguments alone; `None` where it refuses to.

    A fractional pool needs one of two optional arguments, and a window larger than a default is refused too: then the
    defaults of the signature decide what is left out.
    """
    try:
        return Constructor(cls, tuple(required.items())).build("meta")
    except (ValueError, AssertionError):
        return None


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same kinds: `True` isn't 1 here, nor `(1, 1)` the list `[1, 1]`."""
    return type(one) is type(other) and (
        len(one) == len(other) and all(map(_same, one, other)) if isinstance(one, tuple | list) else one == other
    )


def _differences(module: nn.Module, built: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """What differs between a module and its rebuilt twin: `(name, ours, theirs)`."""
    ours, theirs = (
        {name: f"{t.dtype}{list(t.shape)}" for name, t in module_tensors("", each)} for each in (module, built)
    )
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            yield name, ours.get(name, "absent"), theirs.get(name, "absent")
    twins = dict(built.named_modules())
    for path, child in module.named_modules():
        prefix = f"{path}." if path else ""
        yield from ((prefix + name, *values) for name, *values in _own_differences(child, twins.get(path)))


def _own_differences(module: nn.Module, built: nn.Module | None) -> Iterator[tuple[str, Any, Any]]:
    if type(module) is not type(built):
        yield "class", type(module).__name__, type(built).__name__
        return
    if "forward" in vars(module):
        yield "forward", "a function of its own", "the class's"
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        if vars(module)[name]:
            yield name, "not", "empty"
    for name, value in vars(built).items():
        ours = vars(module).get(name)
        if name != "training" and _is_plain(value) and _is_plain(ours) and ours != value:
            yield name, repr(ours), repr(value)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, _PLAIN)
