"""`finetune`: the loop against loops written by hand, what stays as it is, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_nets import small

from prunec.compiler import compile, trace
from prunec.compiler.data import Data
from prunec.compiler.driver.trained import check_trained
from prunec.compiler.errors import DataError, PassError, PlanError, VerifyError
from prunec.compiler.pass_base import Context
from prunec.passes.finetune import Finetune
from prunec.passes.score import Score


def batches(count: int = 6, size: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, size, 3, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (count, size), generator=generator)
    return list(zip(images, labels, strict=True))


X = torch.zeros(2, 3, 6, 6)


def trained(net: nn.Module, data: Any, seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    """The tensors behind a fine-tuning of a network."""
    program = trace(net, (X,))
    context = Context(seed=seed, data=Data.of(data), traced=program)
    made = Finetune.model_validate(options)
    made.check(program)
    made.ready(program, context)
    return dict(made.run(program, context).program.tensors)


def by_hand(net: nn.Module, data: Any, updates: int, lr: Any, **options: Any) -> dict[str, torch.Tensor]:
    """The same by a plain loop of torch."""
    net = net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, **options)
    for update in range(updates):
        images, labels = data[update % len(data)]
        optimizer.param_groups[0]["lr"] = lr(update)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.state_dict()


def test_it_is_a_plain_loop():
    found = trained(small(), batches(), epochs=2, lr=0.1, schedule="constant", weight_decay=0.01)
    wanted = by_hand(small(), batches(), 12, lambda update: 0.1, weight_decay=0.01)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_the_schedule_runs_over_all_updates():
    options = {"updates": 9, "lr": 0.1, "schedule": {"steps": {"at": [1 / 3, 2 / 3], "factor": 0.1}}, "weight_decay": 0}
    found = trained(small(), batches(), **options)
    wanted = by_hand(small(), batches(), 9, lambda update: 0.1 * 0.1 ** (update // 3))
    for name, tensor in wanted.items():
        assert torch.allclose(found[name].float(), tensor.float(), atol=1e-7), name


def test_accumulated_batches_are_one_large_batch():
    small_batches = batches()
    pairs = [small_batches[i : i + 2] for i in range(0, 6, 2)]
    large = [(torch.cat([x for x, _ in pair]), torch.cat([y for _, y in pair])) for pair in pairs]
    options = {"epochs": 2, "lr": 0.1, "batch_norm": "freeze", "clip": 1.0}
    found = trained(small(), small_batches, accumulate=2, **options)
    wanted = trained(small(), large, **options)
    for name, tensor in wanted.items():
        assert torch.allclose(found[name].float(), tensor.float(), atol=1e-6), name


def test_parts_of_different_size_count_by_their_samples():
    (x, y), (u, v) = batches(2)
    uneven = [(x, y), (u[:2], v[:2])]
    whole = [(torch.cat([x, u[:2]]), torch.cat([y, v[:2]]))]
    found = trained(small(), uneven, accumulate=2, lr=0.1, batch_norm="freeze")
    wanted = trained(small(), whole, lr=0.1, batch_norm="freeze")
    for name, tensor in wanted.items():
        assert torch.allclose(found[name].float(), tensor.float(), atol=1e-6), name


def test_the_users_model_stays_as_it_was():
    net = small()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = trained(net, batches(), lr=0.1)
    assert not torch.equal(found["0.weight"], before["0.weight"])
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert not net.training


def test_frozen_layers_stay_bit_for_bit_with_their_statistics():
    before = small().state_dict()
    found = trained(small(), batches(), lr=0.1, freeze=["0", "1.*"], weight_decay=0.1)
    for name, tensor in before.items():
        assert torch.equal(found[name], tensor) == name.startswith(("0.", "1.")), name


def test_parameters_that_their_owner_froze_stay():
    net = small()
    net[0].requires_grad_(False)
    found = trained(net, batches(), lr=0.1)
    assert torch.equal(found["0.weight"], net[0].weight)
    assert not torch.equal(found["4.weight"], net[4].weight)


def test_statistics_that_stay_and_statistics_that_are_found_anew():
    data = batches()
    kept = trained(small(), data, lr=0.1, batch_norm="freeze")
    assert torch.equal(kept["1.running_mean"], torch.zeros(8))
    anew = trained(small(), data, lr=0.1, batch_norm="reestimate")
    convolved = [F.conv2d(x, anew["0.weight"], anew["0.bias"], padding=1).mean((0, 2, 3)) for x, _ in data]
    assert torch.allclose(anew["1.running_mean"], torch.stack(convolved).mean(0), atol=1e-6)
    assert int(anew["1.num_batches_tracked"]) == len(data)


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (trained(small(0.5), batches(), seed=seed, lr=0.1) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_the_callers_random_numbers_go_on():
    net = small(0.5)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    trained(net, batches())
    assert torch.equal(torch.rand(2), wanted)


def test_a_teacher_needs_no_labels():
    dense, data = small(), [x for x, _ in batches()]
    slim = small()
    with torch.no_grad():
        slim[7].weight.mul_(0.3)
    program, context = trace(slim, (X,)), Context(data=Data.of(data), traced=trace(dense, (X,)))
    made = Finetune.model_validate({"epochs": 40, "lr": 0.05, "distill": {"weight": 1.0}})
    made.ready(program, context)
    after = made.run(program, context).program.module.eval()

    def apart(module: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(module(data[0]), dense(data[0])))

    assert apart(after) < 0.1 * apart(slim)


def test_features_of_the_teacher_are_matched_at_the_channels_that_are_left():
    plan = {
        "plan": 1,
        "seed": 1,
        "passes": [
            {"select": {"units": {"0": [0, 5]}}},
            "shrink",
            {"finetune": {"epochs": 3, "lr": 0.01, "distill": {"weight": 0.5, "features": 1.0}}},
        ],
    }
    with_features = compile(small(), plan, (X,), batches()).module.state_dict()
    plan["passes"][2]["finetune"]["distill"]["features"] = 0
    without = compile(small(), plan, (X,), batches()).module.state_dict()
    assert with_features["0.weight"].shape == (6, 3, 3, 3)
    assert not torch.equal(with_features["0.weight"], without["0.weight"])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_momentum_and_the_schedule_go_on_in_the_next_round_and_begin_anew_where_that_is_wanted(schedule):
    net = small()
    program = trace(net, (X,))
    context = Context(data=Data.of(batches()), traced=program)
    options = {"updates": 6, "lr": 0.1, "schedule": schedule, "weight_decay": 0.0, "batch_norm": "freeze"}
    first = Finetune.model_validate({**options, "rounds": (0, 2), "seed": 1}).run(program, context).program
    second = Finetune.model_validate({**options, "rounds": (1, 2), "seed": 1}).run(first, context).program
    whole = Finetune.model_validate({**options, "updates": 12, "seed": 1}).run(program, context).program
    for name, tensor in whole.tensors.items():
        assert torch.allclose(second.tensors[name].float(), tensor.float(), atol=1e-6), name
    anew = Finetune.model_validate({**options, "seed": 1}).run(first, context).program
    assert not torch.allclose(anew.tensors["0.weight"], whole.tensors["0.weight"], atol=1e-4)


def test_the_lock_trains_again_to_the_same_weights():
    plan = {
        "plan": 1,
        "passes": [{"score": "l1"}, {"select": "30%"}, "shrink", {"finetune": {"epochs": 2, "lr": 0.05}}, "fold_bn"],
    }
    first = compile(small(0.3), plan, (X,), batches())
    again = compile(small(0.3), first.lock, (X,), batches())
    assert [next(iter(p)) if isinstance(p, dict) else p for p in first.lock["passes"]] == [
        "select",
        "shrink",
        "finetune",
        "fold_bn",
    ]
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name
    assert not [warning for warning in again.report["warnings"] if "differ" in warning]


def test_scores_have_to_be_found_again_behind_it():
    passes = [{"score": "l1"}, "finetune", {"select": "30%"}, "shrink"]
    with pytest.raises(PlanError, match="'select' needs scores") as error:
        compile(small(), {"plan": 1, "passes": passes}, (X,), batches())
    assert "'finetune' changes the program" in str(error.value.hint)


def test_a_selection_holds_behind_it():
    passes = [{"score": "l1"}, {"select": "30%"}, {"finetune": {"updates": 2}}, "shrink"]
    result = compile(small(), {"plan": 1, "passes": passes}, (X,), batches())
    assert result.module.get_submodule("0").out_channels == 5


@pytest.mark.parametrize(
    ("options", "data", "error", "said"),
    [
        ({}, None, PassError, "training needs data, and the plan has none"),
        ({}, [x for x, _ in batches()], DataError, "the loss cross_entropy needs labels"),
        ({}, [(torch.zeros(2, 4), torch.zeros(2))], DataError, "the model can't take the data's batches"),
        ({"split": "train"}, {"val": batches()}, DataError, "the data have no split 'train'"),
        ({"freeze": ["conv*"]}, batches(), PassError, "the pattern 'conv\\*' means no parameter"),
        ({"freeze": ["*"]}, batches(), PassError, "no parameter is left to train"),
        ({"early_stop": 2}, {"train": batches()}, PassError, "the best epoch is found on the split 'val'"),
        (
            {"optimizer": {"sgd": {"nesterov": True, "momentum": 0}}},
            batches(),
            PassError,
            "optimizer sgd can't be made",
        ),
    ],
)
def test_what_is_missing_is_told_before_any_work(options, data, error, said):
    begun = []
    with pytest.raises(error, match=said):
        compile(
            small(),
            {"plan": 1, "passes": ["score", {"finetune": options}]},
            (X,),
            data,
            progress=lambda what, done, total, note="": begun.append(what),
        )
    assert not [what for what in begun if what.startswith("pass")]


def test_a_loss_that_is_no_number_stops_it_with_the_place():
    with pytest.raises(PassError, match=r"the loss is (nan|inf) in epoch \d+, update \d+ of 60") as error:
        trained(small(), batches(), epochs=10, lr=1e9)
    assert "a smaller rate than lr: 1e+09" in str(error.value.hint)


def test_data_that_are_no_numbers_are_told_with_their_batch():
    data = batches()
    data[2][0][3, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"batch 2 of the data: it holds NaN .* in epoch 1, update 3 of 6"):
        trained(small(), data)


def test_a_loss_without_gradient_is_told_before_any_work(monkeypatch):
    def cut(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs.detach(), labels)

    monkeypatch.setattr("__main__.cut", cut, raising=False)
    plan = {"plan": 1, "loss": "__main__:cut", "passes": ["finetune"]}
    with pytest.raises(PassError, match="the loss __main__:cut has no gradient") as error:
        compile(small(), plan, (X,), batches())
    assert "without detach()" in str(error.value.hint)


def test_a_batch_of_one_sample_that_batch_norm_can_t_take():
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)).eval()

    x, y = batches()[0]
    data = [(x, y), (x[:1], y[:1])]
    with pytest.raises(DataError, match="batch 1 of the data: it has one sample, and batch norm") as error:
        trained(net(), data)
    assert "drop_last=True" in str(error.value.hint)
    assert not torch.equal(trained(net(), data, batch_norm="freeze")["1.weight"], net()[1].weight)


class Tied(nn.Module):
    """Embeds numbers, and gives them back by the same weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.out = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.mix(self.embed(ids)).relu().mean(1))


def words() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 9, (3, 8, 4), generator=generator)
    return [(each, each[:, 0]) for each in ids]


@pytest.mark.filterwarnings("error")
def test_a_tied_weight_is_stepped_once_and_stays_tied():
    program = trace(Tied().eval(), (words()[0][0],))
    options = {"epochs": 2, "lr": 0.1, "schedule": "constant", "weight_decay": 0}
    pass_ = Finetune.model_validate({**options, "seed": 0})
    context = Context(data=Data.of(words()), traced=program)
    found = pass_.run(program, context).program
    wanted = by_hand(Tied(), words(), 6, lambda update: 0.1)
    assert found.tensors["embed.weight"] is found.tensors["out.weight"]
    for name, tensor in wanted.items():
        assert torch.equal(found.tensors[name], tensor), name
    still = Finetune.model_validate({**options, "seed": 0, "freeze": ["out"]}).run(program, context).program
    assert torch.equal(still.tensors["embed.weight"], program.tensors["embed.weight"])
    assert not torch.equal(still.tensors["mix.weight"], program.tensors["mix.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sparse_gradients_of_embeddings_are_dense_ones(optimizer):
    def net(sparse: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 6, sparse=sparse), nn.Flatten(), nn.Linear(24, 9)).eval()

    def found(sparse: bool) -> dict[str, torch.Tensor]:
        program = trace(net(sparse), (words()[0][0],))
        pass_ = Finetune.model_validate({"optimizer": optimizer, "clip": 1.0, "seed": 0})
        return dict(pass_.run(program, Context(data=Data.of(words()), traced=program)).program.tensors)

    assert all(torch.equal(found(True)[name], tensor) for name, tensor in found(False).items())


class Hungry(nn.Module):
    """Is out of memory from some call on."""

    calls = 0
    enough = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Hungry.calls += 1
        if Hungry.calls > Hungry.enough:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return x


@pytest.mark.parametrize("enough", [0, 4])
def test_too_large_a_batch_is_told_with_what_to_set(monkeypatch, enough):
    net = nn.Sequential(*small(), nn.Linear(5, 5)).eval()
    program = trace(net, (X,))
    context = Context(data=Data.of(batches()), traced=program)
    pass_ = Finetune.model_validate({"accumulate": 2, "evaluate": False, "seed": 0})
    hungry = Hungry()
    original = nn.Linear.forward
    monkeypatch.setattr(Hungry, "calls", 0)
    monkeypatch.setattr(Hungry, "enough", enough)
    monkeypatch.setattr(nn.Linear, "forward", lambda linear, x: original(linear, hungry(x)))

    def train() -> None:
        pass_.ready(program, context)
        pass_.run(program, context)

    wanted = r"a batch of 8 samples, \[8, 3, 6, 6\], doesn't fit into the memory of cpu"
    with pytest.raises(PassError, match=wanted) as error:
        train()
    assert "batches of 4 with 'accumulate: 4'" in str(error.value.hint)


def test_too_large_a_batch_is_told_where_the_metric_is_measured(monkeypatch):
    net, original = small(), nn.Linear.forward
    large = [(torch.cat([x, x]), torch.cat([y, y])) for x, y in batches(1)]

    def forward(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 bytes")
        return original(linear, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    data = {"train": batches(), "val": large, "test": batches()}
    with pytest.raises(
        DataError, match=r"batch 0 of the data's val\(\): its 16 samples, .* don't fit into memory"
    ) as error:
        compile(net, {"plan": 1, "passes": ["finetune"]}, (X,), data)
    assert str(error.value.hint) == "give smaller batches"


class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("no step today")


def test_an_optimizer_that_fails_is_told_with_its_place(monkeypatch):
    monkeypatch.setattr("__main__.Broken", Broken, raising=False)
    with pytest.raises(PassError, match="the optimizer __main__:Broken failed: RuntimeError: no step today") as error:
        trained(small(), batches(), optimizer="__main__:Broken")
    assert error.value.at.file == __file__


def test_momentum_of_a_tied_weight_goes_on_in_the_next_round():
    program = trace(Tied().eval(), (words()[0][0],))
    context = Context(data=Data.of(words()), traced=program)
    options = {"updates": 3, "lr": 0.1, "schedule": "constant", "weight_decay": 0, "seed": 1}
    first = Finetune.model_validate({**options, "rounds": (0, 2)}).run(program, context).program
    second = Finetune.model_validate({**options, "rounds": (1, 2)}).run(first, context).program
    whole = Finetune.model_validate({**options, "updates": 6}).run(program, context).program
    assert torch.allclose(second.tensors["out.weight"], whole.tensors["out.weight"], atol=1e-6)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_the_caller_takes_no_gradients(off):
    plan = {"plan": 1, "passes": [{"score": "taylor"}, {"select": "30%"}, "shrink", "finetune"]}
    wanted = compile(small(), plan, (X,), batches()).module.state_dict()
    net, data = small(), batches()
    with off():
        result = compile(net, plan, (X,), data)
        assert not torch.is_grad_enabled()
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_a_region_is_not_trained_by_itself():
    plan = {"plan": 1, "region": "0", "passes": ["finetune"]}
    with pytest.raises(PassError, match="a region of the model can't be trained by itself"):
        compile(nn.Sequential(small(), nn.Softplus()).eval(), plan, (X,), batches())


def test_data_that_end_are_told():
    class Ends:
        readings = 0

        def train(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
            self.readings += 1
            return batches() if self.readings < 2 else []

    with pytest.raises(DataError, match="the data's split 'train' is empty"):
        trained(small(), Ends(), epochs=1)


def test_a_stream_of_unknown_length_needs_updates():
    class Stream:
        def __iter__(self):
            return iter(batches())

    with pytest.raises(DataError, match="doesn't know how many batches an epoch has"):
        trained(small(), Stream(), epochs=1)
    found = trained(small(), Stream(), updates=8, lr=0.1)
    assert not torch.equal(found["0.weight"], small()[0].weight)


def test_a_training_pass_that_changes_structure_is_a_bug():
    before, after = trace(small(), (X,)), trace(small(), (X,))
    with pytest.raises(VerifyError, match="has changed the graph"):
        check_trained(before, after, "finetune")
    odd = before.derive(state={**before.state, "0": _wider(before.state["0"])})
    with pytest.raises(VerifyError, match=r"has changed the tensor '0\.bias'"):
        check_trained(before, odd, "finetune")


def _wider(conv: Any) -> nn.Module:
    made = nn.Conv2d(3, 8, 3, padding=1)
    made.weight = conv.weight
    made.bias = nn.Parameter(torch.zeros(9))
    return made


# -- the metric of an epoch --------------------------------------------------------------------------------------------


def learnable(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches whose labels say which of five patches is bright."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 16, 3, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (4, 16), generator=generator)
    for batch in range(4):
        images[batch, torch.arange(16), :, labels[batch]] += 2
    return list(zip(images, labels, strict=True))


SPLITS = {"train": learnable(1), "val": learnable(2)}


def history(**options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    result = compile(small(), {"plan": 1, "passes": [{"finetune": options}]}, (X,), SPLITS)
    (record,) = result.report["passes"]
    return record["history"], record["details"]


def test_each_epoch_is_a_line_with_its_metric():
    rows, details = history(epochs=4, lr=0.05)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["update"] for row in rows] == [4, 8, 12, 16]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]
    assert details["updates"] == 16
    assert "accuracy" not in history(epochs=1, evaluate=False)[0][0]


def test_the_metric_is_that_of_the_weights_that_are_kept():
    plan = {"plan": 1, "passes": [{"finetune": {"epochs": 3, "lr": 0.05}}]}
    result = compile(small(), plan, (X,), SPLITS)
    assert result.report["accuracy"]["after"] == result.report["passes"][0]["history"][-1]["accuracy"]


def test_the_best_epoch_is_kept_and_the_lock_goes_there_at_once():
    options = {"epochs": 12, "lr": 0.3, "early_stop": {"patience": 3}, "schedule": "constant"}
    plan = {"plan": 1, "passes": [{"finetune": options}]}
    result = compile(small(), plan, (X,), SPLITS)
    (record,) = result.report["passes"]
    best = max(record["history"], key=lambda row: row["accuracy"])
    assert result.report["accuracy"]["after"] == best["accuracy"]
    assert record["details"]["best"] == {"value": best["accuracy"], "epoch": best["epoch"], "update": best["update"]}
    assert record["details"]["updates"] == best["update"]
    again = compile(small(), result.lock, (X,), SPLITS)
    assert len(again.report["passes"][0]["history"]) == best["epoch"]
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def test_it_stops_where_nothing_becomes_better():
    _, details = history(epochs=30, lr=1e-12, early_stop=2)
    assert details["stopped"] == "no better accuracy for 2 epochs"
    assert details["epochs"] == 3
    assert details["best"]["epoch"] == 1


# -- learning from the original, on some samples without labels ------------------------------------------------------


def cut_net() -> nn.Module:
    """A network whose batch norms are folded, and of whose channels some are gone; and the same whole."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)]
    return nn.Sequential(*parts).eval()


CUT = [{"score": "l1"}, {"select": 0.25}, "shrink", {"repair": {"method": "least_squares", "samples": 96}}]
UNLABELLED = [x for x, _ in batches(12)]
BY_TEACHER = {"samples": 80, "distill": {"weight": 1}, "early_stop": {"patience": 3, "by": "teacher"}}


def distilled(cut: Any = CUT, **options: Any) -> tuple[Any, Any, float, float]:
    """The pass's record, the result, and how far the network before and behind it is from the original on samples that
    were held out."""
    finetune = {"epochs": 8, "optimizer": "adam", "weight_decay": 0, **BY_TEACHER, **options}
    slim, found = (
        compile(cut_net(), {"plan": 1, "passes": passes}, (X,), {"train": UNLABELLED})
        for passes in (cut, [*cut, {"finetune": finetune}])
    )
    whole = torch.cat(UNLABELLED)[:80]
    held = whole[torch.arange(80) % 5 == 4]
    with torch.no_grad():
        wanted = cut_net()(held)
        before, behind = (distance(net(held), wanted) for net in (slim.module, found.module))
    return found.report["passes"][-1], found, before, behind


def distance(given: torch.Tensor, wanted: torch.Tensor, heat: float = 4.0) -> float:
    given, wanted = (F.log_softmax(each / heat, 1) for each in (given, wanted))
    return heat**2 * float(F.kl_div(given, wanted, reduction="batchmean", log_target=True))


def test_it_comes_nearer_to_the_original_without_labels():
    record, _, before, behind = distilled(CUT[:-1], lr=0.003)
    assert behind < 0.9 * before
    assert behind == pytest.approx(record["details"]["best"]["value"], rel=1e-3)
    assert behind == pytest.approx(min(row["distance"] for row in record["history"]), rel=1e-3)
    assert len(record["history"][0].keys() & {"accuracy"}) == 0


@pytest.mark.parametrize("lr", [0.1, 1e6])
def test_it_never_ends_farther_away_than_it_began(lr: float):
    record, found, before, behind = distilled(lr=lr, schedule="constant")
    assert behind == pytest.approx(before, rel=1e-5)
    best = record["details"]["best"]
    assert best["epoch"] == best["update"] == 0
    assert best["value"] == pytest.approx(before, rel=1e-3)
    assert record["details"]["updates"] == 0
    assert record["details"]["stopped"] == "no nearer to the original for 3 epochs"
    again = compile(cut_net(), found.lock, (X,), {"train": UNLABELLED})
    assert again.lock["hashes"] == found.lock["hashes"]


def test_without_samples_it_goes_by_val():
    plan = {"plan": 1, "passes": [*CUT, {"finetune": {"lr": 0.003, **BY_TEACHER, "samples": None, "epochs": 2}}]}
    data = {"train": UNLABELLED[:8], "val": UNLABELLED[8:]}
    (*_, record) = compile(cut_net(), plan, (X,), data).report["passes"]
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    assert all(row["distance"] > 0 for row in record["history"])
    with pytest.raises(PassError, match="the best epoch is found on the split 'val'"):
        compile(cut_net(), plan, (X,), {"train": UNLABELLED})


def test_some_samples_are_the_first_ones():
    few = trained(small(), batches(), samples=12, epochs=2, lr=0.1, schedule="constant", distill={"weight": 1})
    changed = [(x + 9, y) for x, y in batches()[2:]]
    again = trained(
        small(), [*batches()[:2], *changed], samples=12, epochs=2, lr=0.1, schedule="constant", distill={"weight": 1}
    )
    assert all(torch.equal(again[name], tensor) for name, tensor in few.items())
    other = trained(small(), batches(), samples=16, epochs=2, lr=0.1, schedule="constant", distill={"weight": 1})
    assert not all(torch.equal(other[name], tensor) for name, tensor in few.items())


def test_the_distance_from_a_teacher_needs_one():
    plan = {"plan": 1, "passes": [{"finetune": {"early_stop": {"by": "teacher"}}}]}
    with pytest.raises(PlanError, match="must have 'distill' where 'early_stop' goes by the distance from the teacher"):
        compile(small(), plan, (X,), batches())


def test_a_metric_of_which_less_is_better_is_followed_down():
    options = {"epochs": 5, "lr": 0.05, "keep": "best"}
    plan = {"plan": 1, "metric": "loss", "passes": [{"finetune": options}]}
    result = compile(small(), plan, (X,), SPLITS)
    (record,) = result.report["passes"]
    assert record["details"]["best"]["value"] == min(row["val_loss"] for row in record["history"])


# -- scores on the way -------------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize("criterion", ["taylor", "taylor_signed", "gate", "fisher_gate"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_scores_of_a_training_that_stands_still_are_those_of_a_pass_over_the_data(criterion, accumulate):
    program, data = trace(plain(), (X,)), batches()
    context = Context(data=Data.of(data), traced=program)
    options = {"epochs": 1, "lr": 1e-30, "weight_decay": 0, "score": criterion, "accumulate": accumulate}
    found = Finetune.model_validate(options).run(program, context).program.facts["scores"]
    wanted = Score.model_validate({"criterion": criterion}).run(program, context).program.facts["scores"]
    assert found.keys() == wanted.keys()
    for name, scores in wanted.items():
        assert found[name] == pytest.approx(scores, rel=1e-4), name
    assert (found.losses is None) == (wanted.losses is None)


def test_watching_changes_nothing_of_the_training():
    watched = trained(small(0.3), batches(), epochs=2, lr=0.1, score="taylor")
    alone = trained(small(0.3), batches(), epochs=2, lr=0.1)
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[name], tensor) for name, tensor in alone.items())


def test_rounds_are_cut_by_the_scores_of_their_training():
    inside = [{"finetune": {"updates": 4, "lr": 0.05, "score": "taylor"}}, "select", "shrink"]
    repeat = {"each": 3, "to": {"macs": "50%"}, "passes": inside}
    plan = {"plan": 1, "passes": [{"repeat": repeat}, {"finetune": {"updates": 4}}]}
    result = compile(small(), plan, (X,), batches())
    macs = result.report["cost"]
    assert macs["after"]["macs"] <= 0.5 * macs["before"]["macs"]
    again = compile(small(), result.lock, (X,), batches())
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("l1", "score must be a criterion that gradients give: .*taylor"),
        ({"criterion": "taylor", "samples": 10}, "score must not have 'samples'"),
        ("tailor", "did you mean 'taylor'"),
    ],
)
def test_what_can_t_be_scored_on_the_way(score, said):
    with pytest.raises(PlanError, match=said):
        compile(small(), {"plan": 1, "passes": [{"finetune": {"score": score}}]}, (X,), batches())
