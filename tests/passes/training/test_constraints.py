"""Constraints as options: which parameters patterns mean, that bounds hold after every step, and what is refused."""

from __future__ import annotations

import pytest
import torch
from nets import NETS
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from prunec.compiler.errors import PassError
from prunec.compiler.tracing.trace import trace
from prunec.passes.training.constraints import Constraints
from prunec.passes.training.updates import Clamp, Filters, HoldBelow, MaxNorm, in_order


class Mixed(nn.Module):
    """Norms as layers and as a function, a transposed convolution, an embedding of places, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.place = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.up(self.bn1(self.conv1(x)).relu()) + self.place
        x = F.layer_norm(x.mean((2, 3)), (6,), self.scale, self.shift)
        return self.fc(x)


INPUT = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def made():
    torch.manual_seed(0)
    model = Mixed()
    return model, trace(model, (INPUT,))


def names_of(model, parameters):
    known = {id(p): name for name, p in model.named_parameters()}
    return [known[id(p)] for p in parameters]


def only(updates, kind):
    return [update for update in updates if isinstance(update, kind)]


NOT_NORMS = {"conv1.weight", "conv1.bias", "up.weight", "up.bias", "place", "fc.weight", "fc.bias"}
NORMS = {"bn1.weight", "bn1.bias", "scale", "shift"}


def test_without_patterns_norms_are_left_out_and_filters_are_those_of_layers():
    model, program = made()
    updates = Constraints(clamp=(-1, 1), max_norm=2, hold_below=1e-5).updates(model, program)
    hold, clamp, norms = updates
    assert set(names_of(model, (p for p, _ in hold.thresholds))) == NOT_NORMS | NORMS
    assert set(names_of(model, clamp.parameters)) == NOT_NORMS
    assert {name: (f.dim, f.groups) for f in norms.filters for name in names_of(model, [f.weight])} == {
        "conv1.weight": (0, 1),
        "up.weight": (1, 2),
        "fc.weight": (0, 1),
    }


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*", NOT_NORMS),
        ("conv1", {"conv1.weight", "conv1.bias"}),
        ("*.bias", {"conv1.bias", "up.bias", "fc.bias"}),
        ("bn1", {"bn1.weight", "bn1.bias"}),
        ("bn*.weight", {"bn1.weight"}),
        ("s*", {"scale", "shift"}),
    ],
)
def test_patterns_mean_parameters_or_modules_and_norms_when_they_name_norms_alone(pattern, meant):
    model, program = made()
    (clamp,) = Constraints(clamp={pattern: (0, 1)}).updates(model, program)
    assert set(names_of(model, clamp.parameters)) == meant


def test_the_first_pattern_counts():
    model, program = made()
    updates = Constraints(clamp={"fc.weight": (-1, 1), "fc": (-2, 2)}, hold_below={"fc.bias": 0.1, "*": 0.2}).updates(
        model, program
    )
    assert [(names_of(model, u.parameters), u.low) for u in only(updates, Clamp)] == [
        (["fc.weight"], -1.0),
        (["fc.bias"], -2.0),
    ]
    (hold,) = only(updates, HoldBelow)
    told = dict(zip(names_of(model, (p for p, _ in hold.thresholds)), (t for _, t in hold.thresholds), strict=True))
    assert told["fc.bias"] == 0.1
    assert set(told.values()) == {0.1, 0.2}


def test_a_weight_is_limited_along_the_channels_that_it_writes():
    model, program = made()
    (norms,) = only(Constraints(max_norm={"place": 1.0}).updates(model, program), MaxNorm)
    assert norms.filters == [Filters(model.place, 1)]


def test_tied_weights_are_taken_once():
    model = NETS["tied_weights"].build()
    program = trace(model, NETS["tied_weights"].inputs())
    (clamp,) = Constraints(clamp={"*.weight": (-1, 1)}).updates(model, program)
    assert len(clamp.parameters) == len({id(p) for p in clamp.parameters})
    assert any(p is model.a.weight for p in clamp.parameters)


def test_all_constraints_hold_after_every_step_of_training():
    model, program = made()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, weight_decay=0.01)
    chosen = Constraints(
        clamp={"conv1.weight": (-0.1, 0.1)},
        max_norm={"fc": 0.4},
        hold_below={"up": 0.02},
        candidates={"threshold": 1.0, "steps": 2},
    )
    assert chosen.gives() == {"scores"}
    updates = in_order(chosen.updates(model, program))
    for update in updates:
        update.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(INPUT), torch.tensor([0, 1, 2, 0])).backward()
        held, before = model.up.weight.grad.abs() < 0.02, model.up.weight.detach().clone()
        assert held.any()
        for update in updates:
            update.before_step()
        optimizer.step()
        for update in updates:
            update.after_step()
        assert model.conv1.weight.abs().max() <= 0.1
        assert model.fc.weight.norm(dim=1).max() <= 0.4 * (1 + 1e-6)
        assert torch.equal(model.up.weight[held], before[held])
    assert set(updates[0].facts()["scores"]) == {"conv1", "up"}


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_unknown_pattern_is_told_with_the_nearest():
    model, program = made()
    for constraints in (Constraints(clamp={"con1.weight": (-1, 1)}), Constraints(hold_below={"con1.weight": 1e-3})):
        for refused in (lambda c=constraints: c.check(program), lambda c=constraints: c.updates(model, program)):
            with pytest.raises(PassError, match=r"no parameter is called 'con1\.weight'") as found:
                refused()
            assert found.value.keys[0] == "constraints"
            assert found.value.keys[2] == "con1.weight"
            assert found.value.hint == "did you mean 'conv1.weight'?"


def test_a_module_s_name_is_near_too():
    _, program = made()
    with pytest.raises(PassError) as found:
        Constraints(max_norm={"convv1": 1.0}).check(program)
    assert found.value.hint == "did you mean 'conv1'?"


def test_vectors_have_no_filters():
    _, program = made()
    with pytest.raises(PassError, match=r"max_norm: '\*\.bias' names vectors alone, which have no filters"):
        Constraints(max_norm={"*.bias": 1.0}).check(program)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clamp": (1, -1)},
        {"clamp": {"fc": (1, -1)}},
        {"clamp": (0, float("inf"))},
        {"clamp": (0, 1, 2)},
        {"max_norm": 0},
        {"hold_below": -1e-3},
        {"candidates": {"steps": 10}},
        {"candidates": {"threshold": 0.1, "steps": 0}},
        {"clip": 1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        Constraints(**wrong)
