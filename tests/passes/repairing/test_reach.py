"""How far changed weights reach: on which samples, and as a share of what."""

from __future__ import annotations

import pytest
import torch
from calibrating import Samples, images, program_of
from torch import Tensor, nn

from prunec.compiler.data import Batch
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.repairing import reach as reaching
from prunec.passes.repairing.reach import reach
from prunec.passes.repairing.refit import HELD_OUT
from prunec.passes.repairing.walk import numbers_of

DATA = images(60, shape=(4,))


def _shares(count: int, *, hold: bool, data: Samples = DATA) -> list[float]:
    """Of a linear layer without a bias whose weights grow by a quarter."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False)).double().eval()
    program = program_of(net, data)
    others = [{"0.weight": 1.25 * program.tensors["0.weight"].detach()}] * count
    return list(reach(program, others, Calibration(samples=60), Context(data=data), hold=hold))


def _by_hand(which: Tensor) -> float:
    torch.manual_seed(0)
    given = nn.Linear(4, 3, bias=False).double()(DATA.inputs[which]).detach()
    return float(given.square().sum() / 16 / (given - given.mean(0)).square().sum())


NUMBERS = torch.tensor(numbers_of(Batch(DATA.inputs)))
HELD = NUMBERS % HELD_OUT == 0


@pytest.mark.parametrize("hold", [False, True])
def test_samples_that_are_held_out_tell_where_some_are(hold):
    assert 3 < int(HELD.sum()) < 30
    want = _by_hand(HELD if hold else torch.ones(60, dtype=torch.bool))
    for size in (60, 7):
        assert _shares(1, hold=hold, data=DATA.in_batches_of(size))[0] == pytest.approx(want, rel=1e-9)


def test_of_many_changes_fewer_samples_tell_the_same_in_any_order(monkeypatch):
    monkeypatch.setattr(reaching, "FEWEST", 2)
    monkeypatch.setattr(reaching, "RUNS", 60)
    fewer = _shares(4, hold=False)  # 60 / 4 samples: about each fourth
    assert fewer == pytest.approx([_by_hand(NUMBERS // HELD_OUT % 4 == 0)] * 4, rel=1e-9)
    assert _shares(4, hold=False, data=Samples(DATA.inputs.flip(0), DATA.labels.flip(0))) == pytest.approx(fewer)
