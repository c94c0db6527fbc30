"""Optimizers and schedules, as a plan names them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from prunec.compiler.driver.lock import entry
from prunec.compiler.errors import PlanError
from prunec.compiler.plan.plan import Plan
from prunec.passes.finetune import Finetune
from prunec.passes.training.optimizers import OPTIMIZERS, SCHEDULES, OneCycle, Steps, decayed, rate


def finetune(**options: object) -> Finetune:
    (entry,) = Plan.from_dict({"plan": 1, "passes": [{"finetune": options}]}).passes
    assert isinstance(entry.pass_, Finetune)
    return entry.pass_


SAID: list[dict[str, object]] = [
    *({"warmup": warmup} for warmup in (2, 1, "5%", 0.5)),
    *({"schedule": {"steps": {"at": ["50%", 0.75], "factor": 0.2}}}, {"schedule": {"cosine": {"final": "10%"}}}),
    *({"schedule": "constant"}, {"schedule": {"one_cycle": {"peak": 0.2}}}, {"freeze": ["a"]}, {"clip": 1}),
    *({"optimizer": {"adamw": {"betas": [0.9, 0.99]}}}, {"optimizer": "torch.optim:SGD"}, {"decay": "matrices"}),
    *({"distill": {}}, {"distill": {"weight": "70%", "features": 1, "of": "values"}}, {"early_stop": 3}),
    *({"early_stop": {"patience": 2, "min_delta": 0.1}}, {"score": "taylor"}, {"updates": 5, "rounds": [1, None]}),
    {"score": {"criterion": "taylor", "normalize": "none"}},
    {"constraints": {"hold_below": {"a": 0.1}, "candidates": {"threshold": 1}, "clamp": {"a*": [-1, 1]}}},
    {"constraints": {"clamp": [-1, 2], "max_norm": 3}},
]


@pytest.mark.parametrize("said", SAID, ids=str)
def test_a_lock_says_the_same(said):
    written = json.loads(json.dumps(entry(finetune(**said))))["finetune"]
    assert finetune(**written) == finetune(**said)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_torch_is_made_by_its_name(name):
    made = finetune(optimizer=name).optimizer.make([{"params": [nn.Parameter(torch.zeros(2, 2))]}], 0.1)
    assert type(made) is OPTIMIZERS[name]
    assert made.param_groups[0]["lr"] == 0.1


def test_sgd_has_the_momentum_of_the_sources():
    made = finetune().optimizer.make([{"params": [nn.Parameter(torch.zeros(1))]}], 0.1)
    assert made.param_groups[0]["momentum"] == 0.9


def test_an_optimizer_of_the_users_own():
    made = finetune(optimizer={"torch.optim:SGD": {"momentum": 0.5}})
    assert made.model_dump()["optimizer"] == {"torch.optim:SGD": {"momentum": 0.5}}
    assert made.optimizer.make([{"params": [nn.Parameter(torch.zeros(1))]}], 0.1).param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "sdg"}, "did you mean 'sgd'?"),
        ({"optimizer": {"sgd": {"momentun": 0.9}}}, "did you mean 'momentum'?"),
        ({"optimizer": {"sgd": {"lr": 0.9}}}, "'lr' is an option of the pass itself"),
        ({"optimizer": ["sgd"]}, "must be the name of an optimizer"),
        ({"schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"schedule": {"steps": {"att": [0.5]}}}, "unknown key 'att'"),
        ({"schedule": {"steps": {"at": [1.5]}}}, "must be between 0 and 1"),
        ({"epochs": 2, "updates": 3}, "must not say both 'epochs' and 'updates'"),
        ({"early_stop": 2, "keep": "last"}, "must not keep the last weights"),
        ({"warmup": "half"}, "must be between 0 and 1"),
    ],
)
def test_what_is_wrong_is_told(options, said):
    with pytest.raises(PlanError) as error:
        finetune(**options)
    assert said in f"{error.value} {error.value.hint}"


def test_options_are_written_as_a_plan_has_them():
    options = {"epochs": 2, "schedule": {"steps": {"at": [0.5], "factor": 0.2}}, "optimizer": "adamw"}
    made = finetune(**options)
    assert made.model_dump(mode="json", exclude_defaults=True) == options
    assert finetune(**made.model_dump(mode="json", exclude_defaults=True)) == made


def test_cosine_goes_from_the_rate_to_its_final_share():
    cosine = finetune(schedule={"cosine": {"final": "10%"}}).schedule
    assert cosine.factor(0) == 1
    assert cosine.factor(0.5) == pytest.approx(0.55)
    assert cosine.factor(1) == pytest.approx(0.1)


def test_steps_fall_where_they_are_told_to():
    steps = Steps(at=(0.5, 0.75), factor=0.1)
    assert [steps.factor(done) for done in (0, 0.49, 0.5, 0.74, 0.75, 1)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("total", [10, 100])
def test_one_cycle_is_torchs(total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total, cycle_momentum=False)
    peak = (0.3 * total - 1) / (total - 1)  # torch counts from the first update to the last
    ours = OneCycle(peak=peak)
    for update in range(total):
        assert 0.1 * ours.factor(update / (total - 1)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if update < total - 1:
            theirs.step()


def test_a_warmup_grows_in_equal_steps_and_the_schedule_has_the_rest():
    cosine = SCHEDULES["cosine"]()
    found = [rate(cosine, 4.0, update, 12) for update in range(12)]
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4] == 1
    assert found[8] == pytest.approx(0.5)
    assert [rate(cosine, 1 / 3, update, 12) for update in range(12)] == pytest.approx(found)


def test_every_rate_is_a_number():
    for name, made in SCHEDULES.items():
        for update in range(7):
            assert math.isfinite(rate(made(), 0.2, update, 7)), name


def test_only_matrices_decay_where_that_is_wanted():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    groups = decayed(net.named_parameters(), 0.1, True)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0.0)]
    assert decayed(net.named_parameters(), 0.1, False)[0]["weight_decay"] == 0.1
