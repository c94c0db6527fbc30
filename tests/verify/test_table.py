"""The verifier's table of operations: one row for each, for all that the analysis knows."""

from __future__ import annotations

from prunec.compiler.labels.registry import OP_ROWS
from prunec.compiler.verify.table import RULES

SPELLINGS = {"and": "and_", "or": "or_"}


NO_DATA = {"_assert", "element_size", "get_device", "is_complex", "is_contiguous", "isqrt", "len", "sym_sqrt"}


def test_the_verifier_knows_every_operation_that_passes_removed_channels_on():
    """Else a right rewrite would be called a bug."""
    plain = {name for name in OP_ROWS if not name.startswith("__")} - NO_DATA
    assert {SPELLINGS.get(name, name) for name in plain} - {"ifloordiv"} <= set(RULES)
