"""Units whose accumulated gradient stays small, against sums spelled out, and what `select` makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.passes.select import Select
from prunec.passes.training.candidates import Candidates, gradient_norms
from prunec.passes.training.unit_slices import UnitSlices

INPUT = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def made():
    torch.manual_seed(0)
    model = Chain()
    return model, trace(model, (INPUT,))


def with_gradients(model, seed, quiet=()):
    """Random gradients; those of what belongs to the units of conv1 in `quiet` are a thousandth."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for unit in quiet:
        for slice_ in (model.conv1.weight.grad[unit], model.conv1.bias.grad[unit], model.conv2.weight.grad[:, unit]):
            slice_ *= 1e-3


def norms_by_hand(model):
    g = {name: p.grad for name, p in model.named_parameters()}
    rows = [
        g["conv1.weight"].reshape(5, -1),
        g["conv1.bias"][:, None],
        g["conv2.weight"].transpose(0, 1).reshape(5, -1),
    ]
    return torch.cat(rows, 1).norm(dim=1)


def test_the_norm_is_over_all_that_belongs_to_a_unit():
    model, program = made()
    units = UnitSlices.of(program, model)
    assert not gradient_norms(units).any()  # nothing has been differentiated
    with_gradients(model, 0)
    assert torch.allclose(gradient_norms(units)[analyse(program).groups["conv1"].where], norms_by_hand(model))


def test_sums_are_taken_over_whole_windows():
    model, program = made()
    update = Candidates(UnitSlices.of(program, model), 1.0, steps=3)
    seen = []
    for step in range(7):
        with_gradients(model, step)
        seen.append(norms_by_hand(model))
        update.before_step()
        assert (update.sums is None) == (step < 2)
        if step < 2:
            assert update.candidates() == {}
            with pytest.raises(PassError, match=f"of 3 updates are summed, and this training has {step + 1}"):
                update.facts()
    where = analyse(program).groups["conv1"].where
    assert torch.allclose(update.sums[where], sum(seen[3:6]))
    assert np.allclose(update.facts()["scores"]["conv1"], sum(seen[3:6]).numpy())


def test_quiet_units_are_candidates_and_select_takes_them_within_its_limits():
    model, program = made()
    update = Candidates(UnitSlices.of(program, model), 0.1, steps=2)
    for step in range(2):
        with_gradients(model, step, quiet=(0, 3, 4))
        update.before_step()
    assert {name: units.tolist() for name, units in update.candidates().items()} == {"conv1": [0, 3, 4]}
    assert update.measures() == {"candidates": 3.0}
    known = program.with_facts(**update.facts())
    for least, gone in ((1, [0, 3, 4]), (3, 2)):
        selected = Select(threshold=0.1, keep_at_least=least).run(known, Context()).program.facts["selection"]
        assert list(selected) == ["conv1"]
        assert selected["conv1"].tolist() == gone if least == 1 else len(selected["conv1"]) == gone


def test_a_unit_that_may_not_go_is_no_candidate():
    model, program = made()
    update = Candidates(UnitSlices.of(program, model), 1e9, steps=1)
    with_gradients(model, 0)
    update.before_step()
    assert set(update.candidates()) == {"conv1", "conv2"}  # not the outputs
    assert "fc" not in update.facts()["scores"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_window_goes_on_where_it_was(stop):
    model, program = made()
    units = UnitSlices.of(program, model)
    whole, first, second = (Candidates(units, 1.0, steps=2) for _ in range(3))
    for step in range(4):
        with_gradients(model, step)
        whole.before_step()
        (first if step < stop else second).before_step()
        if step == stop - 1:
            second.load_state_dict(first.state_dict())
    assert torch.equal(second.sums, whole.sums)
