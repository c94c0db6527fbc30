"""The contract of a resource: an amount that a budget can be set for, as a function of the widths that are left.

    value(widths) = max over rows r of  sum over terms t of  rows[r, t] * terms.each(widths)[t]  + fixed

`cost.resources` has those that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

from scipy.sparse import csc_matrix, csr_matrix

from prunec.compiler.cost.model import CostModel
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray, Program
from prunec.compiler.pass_base import Context

LATENCY: Final = "latency"
_IN: Final = f"{LATENCY} in "
RUNTIME: Final = "onnxruntime"
"""The target whose latency counts where a plan names none."""


def latency_in(runtime: str) -> str:
    """The name of the resource that is the latency in a runtime, as messages and reports have it."""
    return LATENCY if runtime == RUNTIME else f"{_IN}{runtime}"


def runtime_of(name: str) -> str | None:
    """The target whose runtime a latency is measured in; None for every other resource."""
    return name.removeprefix(_IN) if name.startswith(_IN) else RUNTIME if name == LATENCY else None


class TermFunctions(Protocol):
    """Functions of widths. `cost.model.Terms`, sums of products, is one; `LatencyTerms`, measured tables, another."""

    @property
    def factors(self) -> IntArray:
        """[terms, k]: the widths that each term looks at; width 0 is always 1 and fills up."""

    def each(self, widths: FloatArray, which: IntArray | None = None) -> FloatArray:
        """[terms]: the terms' values, or of those numbered `which`, at `widths` [all widths of the model].

        `widths` may have columns, one for each of many selections; then the values do too.
        """


@dataclass(frozen=True)
class Resource:
    """Something that a budget can be set for, of one program.

    `units` are the suffixes that a plan may write behind a number, with what they are worth in the resource's own unit
    ('' for none: `macs: 2M`; `B` and `s` for bytes and seconds: `file_size: 2MB`, `latency: 5ms`). `per` is the amount
    that a `cost_weight` counts in: a million operations, a megabyte, a millisecond.
    """

    name: str
    model: CostModel
    terms: TermFunctions
    rows: csr_matrix
    """[rows, terms]: which terms a row adds up, and with what factor."""
    fixed: float = 0.0
    units: Mapping[str, float] | None = None
    per: float = 1e6
    whole: bool = True
    """Whether values are whole numbers."""
    diminishing: bool = True
    """Whether removing a unit saves less, never more, once other widths shrink: true for products in one row."""

    @cached_property
    def columns(self) -> csc_matrix:
        """`rows` by columns, to take out terms fast."""
        return self.rows.tocsc()

    def value(self, widths: FloatArray) -> float:
        """The amount at these widths, in the resource's own unit."""
        sums = self.rows @ self.terms.each(widths)
        total = float(sums.max(initial=0.0)) + self.fixed
        return float(round(total)) if self.whole else total

    def of(self, keep: BoolArray) -> float:
        """The amount when the units in `keep` stay."""
        return self.value(self.model.widths(keep))

    @property
    def now(self) -> float:
        """The amount of the whole program."""
        return self.of(self.model.everything)


Factory = Callable[[Program, Context], Resource]
"""What makes a resource of a program: an entry of `cost.resources.RESOURCES`."""
