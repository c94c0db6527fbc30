"""A resource is rows of terms over widths, of which the worst counts."""

from __future__ import annotations

import numpy as np
import pytest
from nets import program_of
from scipy.sparse import csr_matrix

from prunec.compiler.cost.model import cost_model
from prunec.compiler.cost.resource import Resource


class Double:
    """Twice each width."""

    factors = np.zeros((0, 1), dtype=np.int64)

    def each(self, widths, which=None):
        return 2.0 * (widths if which is None else widths[which])


def made(rows: list[list[float]], **options) -> Resource:
    return Resource("made", cost_model(program_of("chain")), Double(), csr_matrix(np.array(rows)), **options)


WIDTHS = np.array([1.0, 2.2, 3.0])
TABLE = {
    "a sum": ([[1, 1, 1]], {}, 12.0),
    "the worst row": ([[1, 0, 0], [0, 0, 1]], {}, 6.0),
    "as it is": ([[1, 1, 1]], {"whole": False}, 12.4),
    "with what stays": ([[1, 0, 0]], {"fixed": 5.4}, 7.0),
    "nothing less than none": ([[-1, 0, 0]], {"whole": False, "fixed": 1.0}, 1.0),
}


@pytest.mark.parametrize(("rows", "options", "value"), TABLE.values(), ids=TABLE)
def test_what_is_used_at_some_widths(rows, options, value):
    assert made(rows, **options).value(WIDTHS) == pytest.approx(value)


def test_now_is_with_all_units_kept():
    model = cost_model(program_of("chain"))
    widths = model.widths(model.everything)
    found = made([[1.0] * widths.size], whole=False)
    assert found.now == found.of(model.everything) == pytest.approx(2 * widths.sum())
    fewer = model.everything.copy()
    fewer[0] = False
    assert found.of(fewer) < found.now
    assert (found.columns != found.rows).nnz == 0
