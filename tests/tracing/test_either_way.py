"""Branches on values don't stop a trace where nothing depends on them."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import ModelError
from prunec.compiler.tracing.either_way import MOST_WAYS
from prunec.compiler.tracing.trace import trace

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
LOG = logging.getLogger("acme")


class Net(nn.Module):
    """Words through two layers; `case` looks at the words."""

    def __init__(self, case):
        super().__init__()
        torch.manual_seed(0)
        self.word, self.a, self.b, self.case = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 4), case
        self.pad, self.seen, self.warned = 0, 0, False

    def forward(self, ids):
        found = self.case(self, ids)
        y = self.b(torch.relu(self.a(self.word(ids))))
        return y if found is None else found(y)


def padding(s, ids):
    if s.pad in ids[:, [-1, 0]]:
        warnings.warn("padding, and no mask", stacklevel=2)


def logged_once(s, ids):
    if not s.warned and (ids == s.pad).any():
        LOG.warning("padding")
        s.warned = True


def printed(s, ids):
    if (ids == s.pad).any().item():
        print("padding", ids.shape)  # noqa: T201


def counted(s, ids):
    s.seen += 1
    if torch.equal(ids, torch.zeros_like(ids)):
        s.seen += 1
    if ids.sum() > 3 and not (ids > 5).all():
        s.seen -= 1


def nested(s, ids):
    if (ids == 0).any():
        if (ids == 1).any():
            warnings.warn("two", stacklevel=2)
        unused = s.word(ids) * 2
        s.seen = len(unused)


def alike(s, ids):
    if (ids == 0).any():
        return lambda y: y + 1
    return lambda y: y + 1


def warned(s, ids):
    if torch.any(ids < 0):
        warnings.warn("less than nothing", stacklevel=2)


def of_sizes(s, ids):
    torch._check(ids.shape[1] > 2, lambda: "too short")


QUIET = (warned, of_sizes, padding, logged_once, printed, counted, nested, alike)


@pytest.mark.parametrize("case", QUIET)
def test_nothing_depends_on_it(case, capsys, caplog):
    torch.manual_seed(0)
    model, ids = Net(case).eval(), torch.randint(1, 9, (2, 6))
    with warnings.catch_warnings(action="error"):
        result = compile(model, PLAN, (ids,))
    assert "padding" not in capsys.readouterr().out + caplog.text
    assert len(result.lock["removed"]["a.weight"]["0"]) == 4
    assert (model.seen, model.warned) == (0, False)
    program, other = trace(model, (ids,)), torch.randint(0, 9, (3, 6))
    with warnings.catch_warnings(action="ignore"):
        assert torch.equal(program.module(other), model(other))
    assert logging.root.manager.disable == 0


def checked(s, ids):
    if (ids > 8).any():
        raise ValueError("no such word")


def asserted(s, ids):
    assert ids.max() < 9


def finite(s, ids):
    if not torch.isfinite(s.word(ids)).all():
        raise FloatingPointError


def two_of_them(s, ids):
    checked(s, ids)
    asserted(s, ids)
    padding(s, ids)


def by_a_helper(s, ids):
    if is_any(ids > 8):
        raise ValueError("no such word")


def is_any(mask):
    return bool(mask.any())


def asserted_by_torch(s, ids):
    torch._assert(ids.min() > 0, "padding")


def checked_by_torch(s, ids):
    torch._check((ids >= 0).all().item(), lambda: "no such word")


def an_index_checked_by_torch(s, ids):
    torch._check_index(bool((ids < 9).all()))


CHECKS = {
    **{checked: 1, asserted: 1, finite: 1, two_of_them: 2, by_a_helper: 1},
    **{asserted_by_torch: 1, checked_by_torch: 1, an_index_checked_by_torch: 1},
}


@pytest.mark.parametrize("case", CHECKS)
def test_checks_that_only_raise_are_left_out_and_told(case):
    model, ids = Net(case).eval(), torch.randint(1, 9, (2, 6))
    result = compile(model, PLAN, (ids,))
    (warning,) = result.findings.warnings
    assert warning.startswith("the slim model goes without the checks of values that raise at ")
    assert warning.count(__file__) == CHECKS[case]
    program, other = trace(model, (ids,)), torch.randint(1, 9, (3, 6))
    assert torch.equal(program.module(other), model(other))


@pytest.mark.parametrize("case", [checked, asserted_by_torch, checked_by_torch])
def test_checks_are_left_out_in_train_mode_too(case):
    model, ids = Net(case).train(), torch.randint(1, 9, (2, 6))
    result = compile(model, {**PLAN, "mode": "train"}, (ids,))
    (warning,) = result.findings.warnings
    assert warning.startswith("the slim model goes without the checks of values that raise at ")
    assert len(result.lock["removed"]["a.weight"]["0"]) == 4


@pytest.mark.parametrize("case", [checked, asserted, asserted_by_torch, checked_by_torch])
def test_a_check_that_the_example_fails_is_told(case):
    model = Net(case).eval()
    model.word = nn.Embedding(20, 8)
    with pytest.raises(ModelError, match="the model doesn't run on the example inputs") as caught:
        compile(model, PLAN, (torch.tensor([[9, 0, -1 if case is checked_by_torch else 3]]),))
    assert caught.value.at.file == __file__


def scaled(s, ids):
    return (lambda y: y * 2) if (ids == 0).any() else None


def other_constant(s, ids):
    row = torch.tensor([1.0, 2.0, 3.0, 4.0]) if (ids == 0).any() else torch.tensor([4.0, 3.0, 2.0, 1.0])
    return lambda y: y * row


def fails_in_torch(s, ids):
    return (lambda y: y.view(7, -1, 99)) if (ids == 0).any() else None


def fails_elsewhere(s, ids):
    if (ids == 0).any():
        refuse()


def refuse():
    raise ValueError("far from the question")


def always(s, ids):
    if (ids == 0).any():
        raise ValueError("some")
    raise ValueError("none")


def told(s, ids):
    found = bool((ids == 0).any())
    return lambda y: (y, found)


def remembered(s, ids):
    if (ids == 0).any():
        s.seen += 1
    if (ids == 1).any():
        s.seen += 1
    return (lambda y: y * 2) if s.seen == 2 else None


def too_many(s, ids):
    for i in range(MOST_WAYS):
        if (ids == i).any():
            s.seen += 1


@pytest.mark.parametrize(
    "case", [scaled, fails_in_torch, fails_elsewhere, always, other_constant, told, remembered, too_many]
)
def test_where_something_depends_on_it_it_is_refused(case):
    with pytest.raises(ModelError, match="a branch depends on the values of a tensor") as caught:
        trace(Net(case).eval(), (torch.randint(1, 9, (2, 6)),))
    assert caught.value.at.file == __file__
