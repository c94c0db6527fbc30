"""How a plan writes amounts: shares, counts with a suffix, bytes, times.

    50%   0.5            a share; a number of at most 1 without a suffix is always one
    1200000   1.2M       a number: k, M, G for thousands, millions, billions
    2MB   512KiB   300B  bytes
    5ms   0.2s   800us   times

and budgets: an amount for each resource; of latency, in a runtime that may be named:

    {macs: 50%, latency: 5ms}    {latency: {ncnn: 5ms}}, which is the resource `latency in ncnn`

and numbers that hold for all groups, or by pattern: `4` or `{"layer1.*": 4, "*": 8}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from prunec.compiler.cost.resource import LATENCY, latency_in, runtime_of
from prunec.compiler.cost.resources import RESOURCES, suffixes
from prunec.compiler.errors import nearest
from prunec.compiler.plan.options import told, wrong
from prunec.compiler.plan.source import Fault
from prunec.compiler.targets.base import TARGETS

_FACTORS: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SUFFIXES: Final[Mapping[str, tuple[float, str]]] = {
    **{prefix: (factor, "") for prefix, factor in _FACTORS.items()},
    **{f"{prefix}B": (factor, "B") for prefix, factor in _FACTORS.items()},
    **{f"{prefix}iB": (float(2**power), "B") for prefix, power in (("K", 10), ("M", 20), ("G", 30))},
    **{f"{prefix}s": (factor, "s") for prefix, factor in (("", 1.0), ("m", 1e-3), ("u", 1e-6))},
}
_SPELLED: Final = {"": "a plain number such as 1.2M", "B": "bytes such as 2MB", "s": "a time such as 5ms"}
_EXAMPLES: Final = "a share such as 50%, or an amount such as 1.2M, 2MB, 5ms"


class Amount(NamedTuple):
    """A number and its unit: 'share', '' for plain numbers, 'B' for bytes, 's' for seconds."""

    value: float
    unit: str


def amount(text: float | str) -> Amount:
    """The amount that a text or number stands for. Raises `ValueError`."""
    if isinstance(text, int | float):
        return Amount(float(text), "share" if text <= 1 else "")
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%|[A-Za-z]*)\s*", text)
    if match is None or (match[2] != "%" and match[2] not in _SUFFIXES):
        raise ValueError(f"'{text}' is no amount")
    if match[2] == "%":
        return Amount(float(match[1]) / 100, "share")
    if not match[2]:
        return amount(float(match[1]))
    factor, unit = _SUFFIXES[match[2]]
    return Amount(float(match[1]) * factor, unit)


def _checked(value: object) -> object:
    """A share or a plain number as a float, which `amount` reads alike; any other amount as it was written."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong(f"must be {_EXAMPLES}")
    try:
        found = amount(value)
    except ValueError:
        raise wrong(f"must be {_EXAMPLES}") from None
    if not 0 < found.value < math.inf:
        raise wrong(f"must be {_EXAMPLES}, more than nothing, and finite")
    if found.unit == "share" and found.value > 1:
        raise wrong("must be a share of at most 100%, or an amount")
    return found.value if amount(found.value) == found else str(value).strip()


def fits(name: str, text: float | str) -> None:
    """Raise a validator's error where the resource `name` isn't measured in the amount's unit."""
    unit = amount(text).unit
    if unit != "share" and unit not in suffixes(name):
        takes = " or ".join(_SPELLED[each] for each in suffixes(name))
        raise wrong(f"must name for {name} a share, or {takes}; it says {text}")


def _resource(value: object) -> object:
    if not isinstance(value, str) or (value not in RESOURCES and runtime_of(value) is None):
        raise wrong(f"must be one of {', '.join(RESOURCES)}", hint=nearest(str(value), RESOURCES))
    return value


Resource = Annotated[str, BeforeValidator(_resource)]
"""The name of a resource."""

Budget = Annotated[
    float | str,
    BeforeValidator(_checked),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}, {"type": "object"}]}),
]
"""A share of what the traced model uses, or an amount; in a plan, of latency also one by the name of a runtime."""


def _flat(value: object) -> object:
    """Budgets or prices with `latency: {ncnn: 5ms}` as one of the resource `latency in ncnn`."""
    if not isinstance(value, Mapping):
        return value
    found: dict[Any, Any] = {}
    for name, said in value.items():
        if name != LATENCY or not isinstance(said, Mapping):
            found[_unnamed(name)] = said
            continue
        if len(said) != 1:
            named = " and ".join(map(str, said)) or "none"
            raise told([Fault((LATENCY,), f"latency must name one runtime, got {named}", "for example: {ncnn: 5ms}")])
        ((runtime, amount_),) = said.items()
        found[_in_runtime(runtime)] = amount_
    return found


def _unnamed(name: Any) -> Any:
    """The key, unless it is spelled as `_flat` spells latency in a runtime, which no plan does."""
    if isinstance(name, str) and name != LATENCY and (runtime := runtime_of(name)) is not None:
        message = f"unknown resource '{name}'"
        raise told([Fault((name,), message, f"latency in a runtime is written {{latency: {{{runtime}: 50%}}}}", True)])
    return name


def _in_runtime(name: object) -> str:
    if not isinstance(name, str) or name not in TARGETS.names():
        message = f"unknown runtime '{name}'; there are {', '.join(TARGETS.names())}"
        raise told([Fault((LATENCY, str(name)), message, nearest(str(name), TARGETS.names()), on_key=True)])
    return latency_in(TARGETS.named(name).runtime or name)


def _by_runtime(value: Mapping[str, Any]) -> dict[str, Any]:
    """What `_flat` was made of."""
    found: dict[str, Any] = {}
    for name, said in value.items():
        runtime = runtime_of(name)
        found |= {name: said} if runtime is None or name == LATENCY else {LATENCY: {runtime: said}}
    return found


Budgets = Annotated[dict[Resource, Budget], BeforeValidator(_flat), PlainSerializer(_by_runtime)]
"""What may be left, by resource."""
Prices = Annotated[dict[Resource, Annotated[float, Field(ge=0)]], BeforeValidator(_flat), PlainSerializer(_by_runtime)]
"""What a unit of a resource costs."""


def _multiple(value: object) -> object:
    if isinstance(value, str) and value not in TARGETS.names():
        names = TARGETS.names()
        raise wrong(f"must be a whole number, at least 1, or a target: {', '.join(names)}", hint=nearest(value, names))
    return value


def multiple(value: int | str) -> int:
    """A number of channels: given, or preferred by the target of that name."""
    return TARGETS.named(value).multiple if isinstance(value, str) else value


Multiple = Annotated[Annotated[int, Field(ge=1)] | str, BeforeValidator(_multiple)]
Channels = Annotated[int, Field(ge=1)]


def each_value(value: Any, change: Any) -> Any:
    """`change` of a value, or of each value of a mapping by pattern."""
    return {k: change(v) for k, v in value.items()} if isinstance(value, Mapping) else change(value)
