"""`slim_train`: each penalty through the engine, against its definition; the recipe of network slimming as a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from training_nets import Killed, Killer, Residual

from prunec.compiler import compile, trace
from prunec.compiler.data import Data
from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context, Round
from prunec.compiler.task.losses import GivenLoss
from prunec.models.data import digits
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.slim_train import SlimTrain
from prunec.passes.training.loop import Job, fit
from prunec.passes.training.penalties import unit_norms
from prunec.passes.training.unit_slices import UnitSlices

X = torch.zeros(2, 3, 6, 6)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        for norm in (model.bn0, model.bn1, model.bn2):
            norm.weight.uniform_(-1, 1)
            norm.weight[0] = 0
    return model


def batches(count: int = 6, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 6, 6, generator=generator)
    return list(zip(images, torch.randint(0, 3, (count, size), generator=generator), strict=True))


def zero(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 0 * outputs.sum(1)


PLAIN = {"schedule": "constant", "weight_decay": 0, "lr": 0.5, "batch_norm": "freeze"}


def trained(model: nn.Module, facts: dict[str, Any] | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """The tensors behind a training on a loss of zero: what moves is the penalty's."""
    program = trace(model, (X,)).with_facts(**(facts or {}))
    context = Context(data=Data.of(batches()), traced=program, loss=GivenLoss("zero", function=zero))
    made = SlimTrain.model_validate({**PLAIN, **options})
    made.check(program)
    made.ready(program, context)
    return dict(made.run(program, context).program.tensors)


# -- the penalties ---------------------------------------------------------------------------------------------------


def test_on_a_loss_of_zero_scales_move_by_the_rate_times_the_strength():
    model = network()
    found = trained(model, updates=1, strength=0.125)
    for name, old in model.named_parameters():
        moved = 0.5 * 0.125 * old.sign() if name.startswith("bn") and name.endswith("weight") else 0
        assert torch.equal(found[name], old - moved), name
    assert found["bn0.weight"][0] == 0


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_that_float16_has_scaled_are_the_loss_s_own_again(clip):
    model = network()
    program = trace(model, (X,))
    context = Context(data=Data.of(batches()), traced=program, loss=GivenLoss("zero", function=zero))
    made = SlimTrain.model_validate({**PLAIN, "updates": 1, "strength": 0.125, "seed": 0, "clip": clip})
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    found = fit(Fabric(accelerator="cpu", devices=1, plugins=[half]), Job.of(made, program, context)).values
    assert torch.equal(found["bn1.weight"], model.bn1.weight - 0.5 * 0.125 * model.bn1.weight.sign())


def test_with_a_loss_it_is_the_loop_of_the_paper():
    model, data = network(), batches()
    program = trace(model, (X,))
    context = Context(data=Data.of(data), traced=program)
    options = {"epochs": 1, "lr": 0.1, "schedule": "constant", "weight_decay": 1e-4, "strength": 0.01}
    found = SlimTrain.model_validate(options).run(program, context).program.tensors
    by_hand = network().train()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        for norm in (by_hand.bn0, by_hand.bn1, by_hand.bn2):
            norm.weight.grad.add_(0.01 * torch.sign(norm.weight.data))
        optimizer.step()
    for name, tensor in by_hand.state_dict().items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_coupled_scales_fade_together():
    model = network()
    found = trained(model, method="coupled_scales", updates=1, strength=0.1)
    joint = torch.stack([model.bn0.weight, model.bn2.weight]).norm(dim=0)
    shrunk = torch.where(joint > 0, 1 - 0.5 * 0.1 / joint, 1.0)
    assert torch.allclose(found["bn0.weight"], model.bn0.weight * shrunk, atol=1e-6)
    assert torch.allclose(found["bn2.weight"], model.bn2.weight * shrunk, atol=1e-6)
    assert all(torch.equal(found[n], p) for n, p in model.named_parameters() if not n.startswith("bn"))


def test_units_shrink_by_their_norm():
    model = network()
    program = trace(model, (X,))
    units = UnitSlices.of(program, model)
    norms = unit_norms(units)[analyse(program).groups["stem"].where]
    found = trained(model, method="group_norm", updates=1, strength=0.1)
    shrunk = (1 - 0.5 * 0.1 / norms)[:, None, None, None]
    assert torch.allclose(found["stem.weight"], model.stem.weight * shrunk, atol=1e-6)


def test_chosen_units_fade_ever_faster():
    model = network()
    facts = {"selection": {"stem": np.array([1, 4])}}
    found = trained(model, facts, method="growing", updates=3, strength=0.2, every=1, ceiling=0.5, optimizer="sgd")
    faded, velocity = 1.0, 0.0
    for strength in (0.2, 0.4, 0.5):  # momentum of 0.9, the optimizer's default
        velocity = 0.9 * velocity + strength * faded
        faded -= 0.5 * velocity
    assert torch.allclose(found["stem.weight"][[1, 4]], faded * model.stem.weight[[1, 4]], atol=1e-6)
    assert torch.equal(found["stem.weight"][[0, 2, 3, 5]], model.stem.weight[[0, 2, 3, 5]])
    assert torch.allclose(found["fc.weight"][:, [1, 4]], faded * model.fc.weight[:, [1, 4]], atol=1e-6)


@pytest.mark.parametrize(("index", "start"), [(None, 0.5), (0, 0.5), (1, None)])
def test_scales_begin_where_a_plan_says_before_the_first_round(index, start):
    model = network()
    program = trace(model, (X,))
    context = Context(
        data=Data.of(batches()),
        traced=program,
        loss=GivenLoss("zero", function=zero),
        round=None if index is None else Round(index, 3),
    )
    options = {**PLAIN, "updates": 1, "strength": 0.0, "init_scales": 0.5}
    found = SlimTrain.model_validate(options).run(program, context).program.tensors
    wanted = model.bn0.weight if start is None else torch.full((6,), start)
    assert torch.equal(found["bn0.weight"], wanted)
    assert not (model.bn0.weight == 0.5).any()


def test_its_own_figures_are_told():
    program = trace(network(), (X,))
    context = Context(data=Data.of(batches()), traced=program)
    for method, name in {
        "bn_scale": "small_scales",
        "coupled_scales": "small_units",
        "group_norm": "small_units",
    }.items():
        result = SlimTrain.model_validate({"method": method, "lr": 1e-6}).run(program, context)
        assert name in result.history[-1]
        assert result.details[name] == result.history[-1][name]
    assert SlimTrain.model_validate({"lr": 1e-6}).run(program, context).details["small_scales"] == 3 / 17


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_network_slimming_is_a_plan():
    model = network()
    plan = {
        "plan": 1,
        "passes": [
            {"slim_train": {"epochs": 3, "lr": 0.05, "strength": 0.01}},
            {"score": {"criterion": "bn_scale", "normalize": "none"}},
            {"select": {"ratio": "40%", "scope": "global", "take_at_most": "50%"}},
            "shrink",
            {"finetune": {"epochs": 1, "lr": 0.01}},
        ],
    }
    result = compile(model, plan, (X,), batches())
    widths = {
        name: part.num_features for name, part in result.module.named_modules() if isinstance(part, nn.BatchNorm2d)
    }
    assert widths["bn0"] == widths["bn2"] <= 6
    assert widths["bn0"] >= 3
    assert 3 <= widths["bn1"] <= 5
    assert sum(widths.values()) < 17
    again = compile(network(), result.lock, (X,), batches())
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def test_in_rounds_a_layer_loses_at_most_half_at_a_time_and_the_lock_gives_the_same():
    rounds = {
        "steps": 2,
        "to": {"params": "30%"},
        "passes": [
            {"slim_train": {"updates": 4, "lr": 0.05, "strength": 0.01, "init_scales": 0.5}},
            {"score": {"criterion": "bn_scale", "normalize": "none"}},
            {"select": {"take_at_most": "50%", "multiple_of": 1}},
            "shrink",
        ],
    }
    result = compile(network(), {"plan": 1, "passes": [{"repeat": rounds}]}, (X,), batches())
    widths = [p["details"]["widths"] for p in result.report["passes"] if p["pass"] == "select"]
    assert len(widths) == 2
    for each in widths:
        assert all(now >= before - before // 2 for before, now in each.values())
    assert widths[-1]["stem"][1] < 6
    again = compile(network(), result.lock, (X,), batches())
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def test_the_threshold_keeps_what_is_strictly_above_it():
    model = network()
    program = trace(model, (X,))
    scored = Score.model_validate({"criterion": "bn_scale", "normalize": "none"}).run(program, Context()).program
    means = (model.bn0.weight.abs() + model.bn2.weight.abs()).div(2), model.bn1.weight.abs()
    gammas = torch.cat(means).detach().double()
    threshold = gammas.sort().values[int(11 * 0.4)]
    chosen = Select(ratio=0.4, scope="global").run(scored, Context()).program.facts["selection"]
    assert sum(map(len, chosen.values())) == int((gammas <= threshold).sum())
    assert chosen["stem"].tolist() == np.flatnonzero(means[0].detach() <= threshold).tolist()


def test_channels_without_scale_and_shift_go_without_a_change():
    model = network()
    with torch.no_grad():
        for norm in (model.bn0, model.bn1, model.bn2):
            norm.weight[[0, 3]] = 0
            norm.bias[[0, 3]] = 0
    passes = [
        {"score": {"criterion": "bn_scale", "normalize": "none"}},
        {"select": {"ratio": "30%", "scope": "global"}},  # position 3 of 11: the four that are zero
        "shrink",
    ]
    slim = compile(model, {"plan": 1, "passes": passes}, (X,)).module
    x = batches(1)[0][0]
    assert (slim.bn0.num_features, slim.bn1.num_features) == (4, 3)
    assert torch.allclose(slim(x), model(x), atol=1e-6)


@pytest.mark.parametrize("method", ["bn_scale", "coupled_scales", "group_norm"])
def test_a_stronger_penalty_leaves_less_behind(method):
    """Of the units that training made smallest: under a penalty they hold a smaller share of all that there is."""

    def left(strength):
        program = trace(network(), (X,))
        context = Context(data=Data.of(batches()), traced=program)
        options = {"epochs": 12, "lr": 0.05, "strength": strength, "method": method}
        after = SlimTrain.model_validate(options).run(program, context).program
        of = [after.tensors[f"bn{i}.weight"].abs() for i in range(3)]
        return float(torch.cat(of).detach().sum())

    assert left(0.05) < 0.8 * left(0.0)


def wide() -> nn.Module:
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    down = [nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*block(1, 32), *block(32, 32), *down)


def pruned_only(training: dict[str, Any]) -> float:
    """The accuracy on digits after half of all channels went at once, without training on."""
    score = {"score": {"criterion": "bn_scale", "normalize": "none"}}
    passes = [training, score, {"select": {"ratio": "50%", "scope": "global"}}, "shrink"]
    report = compile(wide(), {"plan": 1, "passes": passes}, (torch.zeros(1, 1, 8, 8),), digits(batch_size=64)).report
    return report["metric"]["after"]


def test_what_slimming_has_trained_loses_half_its_channels_and_keeps_its_accuracy():
    options = {"epochs": 20, "lr": 0.1, "evaluate": False}
    assert pruned_only({"finetune": options}) < 0.6
    assert pruned_only({"slim_train": {**options, "strength": 0.02, "init_scales": 0.5}}) > 0.95
    assert pruned_only({"slim_train": {**options, "strength": 0.02, "method": "group_norm"}}) > 0.95


def test_growing_needs_a_selection_which_then_goes_without_a_change():
    passes = [
        {"score": "l1"},
        {"select": "30%"},
        {"slim_train": {"method": "growing", "strength": 0.5, "every": 1, "ceiling": 4, "epochs": 20, "lr": 0.1}},
        "shrink",
        {"fold_constants": "none"},
    ]
    with pytest.raises(PlanError, match="'slim_train' needs selection"):
        compile(network(), {"plan": 1, "passes": passes[2:]}, (X,), batches())
    result = compile(network(), {"plan": 1, "passes": passes}, (X,), batches())
    grown = next(record for record in result.report["passes"] if record["pass"] == "slim_train")
    assert grown["details"]["left"] < 1e-3
    assert result.module.bn0.num_features == 4


def test_candidates_of_a_training_are_what_a_threshold_takes():
    constraints = {"candidates": {"threshold": 1e3, "steps": 3}}
    passes = [
        {"finetune": {"updates": 4, "constraints": constraints}},
        {"select": {"threshold": 1e3, "keep_at_least": 4}},
        "shrink",
    ]
    result = compile(network(), {"plan": 1, "passes": passes}, (X,), batches())
    assert (result.module.bn0.num_features, result.module.bn1.num_features) == (4, 4)
    passes[0] = {"finetune": {"updates": 2, "constraints": constraints}}
    with pytest.raises(PassError, match="of 3 updates are summed, and this training has 2") as error:
        compile(network(), {"plan": 1, "passes": passes}, (X,), batches())
    assert error.value.keys == ("constraints", "candidates", "steps")
    with pytest.raises(PlanError, match="'select' needs scores"):
        compile(network(), {"plan": 1, "passes": [{"finetune": {"updates": 4}}, *passes[1:]]}, (X,), batches())


def test_constraints_hold_in_any_training():
    constraints = {"clamp": {"fc": [-0.01, 0.01]}, "max_norm": {"conv1": 0.2}, "hold_below": {"stem": 1e3}}
    passes = [{"slim_train": {"updates": 3, "lr": 0.1, "weight_decay": 0.1, "constraints": constraints}}]
    passes.append({"fold_constants": "none"})
    found = compile(network(), {"plan": 1, "passes": passes}, (X,), batches()).module.state_dict()
    assert found["fc.weight"].abs().max() <= 0.01
    assert found["conv1.weight"].flatten(1).norm(dim=1).max() <= 0.2 * (1 + 1e-6)
    assert torch.equal(found["stem.weight"], network().stem.weight)
    assert not torch.equal(found["conv2.weight"], network().conv2.weight)


def test_what_updates_remember_goes_on_after_a_kill(tmp_path, monkeypatch):
    """A penalty that grows, a window of gradients, momentum of held entries: to the same weights, bit for bit."""
    monkeypatch.setattr("prunec.passes.training.loop.TOLD", 0.0)
    constraints = {"candidates": {"threshold": 1e3, "steps": 4}, "hold_below": 0.01}
    passes = [
        {"slim_train": {"epochs": 1, "strength": 0.01, "init_scales": 0.5, "constraints": constraints}},
        {"select": {"threshold": 1e3, "keep_at_least": 4}},
        {"slim_train": {"method": "growing", "strength": 0.1, "every": 2, "epochs": 2}},
        "shrink",
    ]
    plan = {"plan": 1, "train": {"checkpoint_seconds": 0}, "passes": passes}
    whole, folder, kills = compile(network(), plan, (X,), batches()).module.state_dict(), tmp_path / "made", 0
    for step in range(2, 200, 3):
        try:
            found = compile(network(), plan, (X,), batches(), checkpoints=folder, progress=Killer(step)).module
        except Killed:
            kills += 1
            continue
        break
    assert kills > 4
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in whole.items())


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_without_batch_norm_there_are_no_scales():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    for method in ("bn_scale", "coupled_scales"):
        with pytest.raises(PassError, match="is of batch norm scales, and this model has none") as error:
            compile(model, {"plan": 1, "passes": [{"slim_train": {"method": method}}]}, (X,), batches())
        assert error.value.hint == "method: group_norm needs no batch norm"
    compile(model, {"plan": 1, "passes": [{"slim_train": {"method": "group_norm", "updates": 1}}]}, (X,), batches())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "group_norm", "init_scales": 0.5}, "must not name 'init_scales' for the method group_norm"),
        ({"every": 5}, "must not name 'every' for a method other than growing"),
        (
            {"score": "taylor", "constraints": {"candidates": {"threshold": 1}}},
            "must not have both 'score' and 'candid",
        ),
        ({"strength": -1}, "greater than or equal to 0"),
        ({"method": "lasso"}, "Input should be 'bn_scale'"),
        ({"constraints": {"clip": 1}}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_plan_may_not_say(options, said):
    with pytest.raises(ValueError, match=said):
        SlimTrain.model_validate(options)


def test_a_pattern_that_names_nothing_is_told_with_its_place():
    passes = [{"finetune": {"constraints": {"clamp": {"con1": [-1, 1]}}}}]
    with pytest.raises(PassError, match="clamp: no parameter is called 'con1'") as error:
        compile(network(), {"plan": 1, "passes": passes}, (X,), batches())
    assert error.value.hint == "did you mean 'conv1'?"
