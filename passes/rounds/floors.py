"""What the metric may not fall below.

floor: -2pt        two points worse than the traced model: 95% where that has 97%
floor: -5%         worse by 5% of what that has: an error of 0.2 may rise to 0.21
floor: 90%         or 0.9: a value of the metric; where less is better, what it may not rise above
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

from prunec.compiler.plan.options import wrong

_NUMBER: Final = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_LOSS: Final = re.compile(rf"\s*-\s*{_NUMBER}\s*(pt|%)\s*")
_VALUE: Final = re.compile(rf"\s*{_NUMBER}\s*(%?)\s*")
_ROUNDING: Final = 1e-9


def _floor(value: object) -> object:
    text = str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    if loss := _LOSS.fullmatch(text):
        return f"-{loss[1]}{loss[2]}"
    if found := _VALUE.fullmatch(text):
        return float(found[1]) / (100 if found[2] else 1)
    hint = "-2pt is two points, as from 97% to 95%; -5% is 5% of what it is; 90% is a value"
    raise wrong("must be a loss such as -2pt or -5%, or a value of the metric such as 0.9", hint=hint)


Floor = Annotated[
    float | str,
    BeforeValidator(_floor),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
"""What may be lost, a text; or a value of the metric, a number."""


@dataclass(frozen=True)
class Bound:
    """What the metric has to hold."""

    value: float
    higher_is_better: bool = True

    def holds(self, value: float) -> bool:
        """Whether the value is no worse; NaN never is."""
        sign = 1 if self.higher_is_better else -1
        return sign * value >= sign * self.value - _ROUNDING


def bound(floor: float | str, whole: float, *, higher_is_better: bool = True) -> Bound:
    """What a floor asks of the metric, where the traced model has `whole`."""
    if not isinstance(floor, str):
        return Bound(floor, higher_is_better)
    match = _LOSS.fullmatch(floor)
    assert match is not None, "a floor is checked when the plan is loaded"
    share = float(match[1]) / 100
    lost = abs(whole) * share if match[2] == "%" else share
    return Bound(whole - lost if higher_is_better else whole + lost, higher_is_better)
