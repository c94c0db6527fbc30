"""The verifier's table of operations: one row for each, for all that the analysis knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunec.compiler import ops as families
from prunec.compiler.errors import VerifyError
from prunec.compiler.labels.registry import OP_ROWS
from prunec.compiler.verify import ops
from prunec.compiler.verify.masks import FREE, KEPT, REMOVED, Call, Marked, constant
from prunec.compiler.verify.table import MARKING, RULES, apply, row

SPELLINGS = {"and": "and_", "or": "or_"}


NO_DATA = {"_assert", "element_size", "get_device", "is_complex", "is_contiguous", "isqrt", "len", "sym_sqrt"}


def test_the_verifier_knows_every_operation_that_passes_removed_channels_on():
    """Else a right rewrite would be called a bug."""
    plain = {name for name in OP_ROWS if not name.startswith("__")} - NO_DATA
    assert {SPELLINGS.get(name, name) for name in plain} - {"ifloordiv"} <= set(RULES)


def test_a_second_row_for_one_name_is_refused():
    before, marking = dict(RULES), set(MARKING)
    with pytest.raises(AssertionError, match="relu has a row already"):
        row("relu", marking=True)(lambda call: None)
    assert (before, marking) == (RULES, MARKING)


def test_the_files_of_rows_bear_the_names_of_those_of_the_analysis():
    ours, theirs = ({path.stem for path in Path(package.__file__).parent.glob("*.py")} for package in (ops, families))
    assert len(ours) > 10
    assert ours <= theirs
    assert {name for name in ours if name in vars(ops)} == ours - {"__init__"}, "a file that nobody imports has no rows"


def call(name: str, run, *args, in_place: bool = False) -> Call:
    return Call("node 'x'", name, run, args, {}, in_place=in_place)


LOST = Marked(torch.ones(2, 3), torch.tensor([[KEPT, REMOVED, KEPT]], dtype=torch.uint8))


def test_an_operation_without_a_row_may_meet_what_is_kept_alone():
    assert torch.equal(apply(call("unheard_of", torch.neg, torch.ones(2))), -torch.ones(2))
    with pytest.raises(VerifyError, match="doesn't know at node 'x'"):
        apply(call("unheard_of", torch.neg, LOST))


def test_what_is_made_of_constants_is_one():
    found = apply(call("relu", torch.relu, constant(torch.ones(2))))
    assert isinstance(found, Marked)
    assert found.marks.tolist() == [FREE]
    assert isinstance(apply(call("zeros", lambda: torch.zeros(2))), Marked), "what reads nothing is a constant"


def test_an_operation_in_place_writes_the_marks_along():
    value = constant(torch.zeros(2, 3))
    found = apply(call("add", torch.Tensor.add_, value, LOST, in_place=True))
    assert found is value
    assert value.marks.tolist() == [[KEPT, REMOVED, KEPT]]
