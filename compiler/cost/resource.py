"""A resource: what a budget can be set for, as a function of the widths that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from scipy.sparse import csc_matrix, csr_matrix

from prunec.compiler.cost.model import CostModel
from prunec.compiler.groups.analysis import BoolArray, FloatArray
from prunec.compiler.ir.program import IntArray, Program
from prunec.compiler.pass_base import Context


class TermFunctions(Protocol):
    """Functions of widths. `cost.Terms`, sums of products, is one; a measured table is another."""

    @property
    def factors(self) -> IntArray:
        """[terms, k]: the widths that each term looks at; width 0 is always 1 and fills up."""

    def each(self, widths: FloatArray, which: IntArray | None = None) -> FloatArray:
        """The values at `widths` [all widths of the model], of the terms numbered `which`, or of all.

        `widths` may have columns, one for each of many selections; then the values do too.
        """


@dataclass(frozen=True)
class Resource:
    """Something that a budget can be set for.

    `units` are the suffixes that a plan may write behind a number, with what they are worth in the resource's own unit
    ('' for none: `macs: 2M`; `B` and `s` for bytes and seconds: `file_size: 2MB`, `latency: 5ms`). `per` is the amount
    that a `cost_weight` counts in: a million operations, a megabyte, a millisecond.
    """

    name: str
    model: CostModel
    terms: TermFunctions
    rows: csr_matrix
    """[rows, terms]"""
    fixed: float = 0.0
    units: Mapping[str, float] | None = None
    per: float = 1e6
    whole: bool = True
    """Whether values are whole numbers."""
    diminishing: bool = True
    """Whether a removal saves less, never more, as other widths shrink. Products do, where there is one row."""

    @cached_property
    def columns(self) -> csc_matrix:
        """`rows`, for taking terms out."""
        return self.rows.tocsc()

    def value(self, widths: FloatArray) -> float:
        """What is used at these widths, in the resource's own unit."""
        sums = self.rows @ self.terms.each(widths)
        total = float(sums.max(initial=0.0)) + self.fixed
        return float(round(total)) if self.whole else total

    def of(self, keep: BoolArray) -> float:
        """What is used when the units in `keep` stay."""
        return self.value(self.model.widths(keep))

    @property
    def now(self) -> float:
        """What the program uses as it is."""
        return self.of(self.model.everything)


Factory = Callable[[Program, Context], Resource]
