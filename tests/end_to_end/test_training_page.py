"""Each example of docs/training.md, and of training in the README, runs as it stands there."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pages import block_of
from torch import nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.driver.pass_manager import check_needs
from prunec.compiler.driver.steps import steps_of
from prunec.compiler.plan.plan import Plan


class Net(nn.Module):
    """A convolution with batch norm, and a classifier in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU()
        )
        self.classifier = self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 8, 3, 8, 8, generator=generator)
    return list(zip(images, torch.randint(0, 4, (count, 8), generator=generator), strict=True))


def ran(page: str, name: str, **more: Any) -> dict[str, Any]:
    """What the lines of a block leave, run on a small network."""
    model, data = net(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = {"model": model, "batches": data, "optimizer": optimizer, "F": F}
    given |= {"images": data[0][0], "labels": data[0][1], **more}
    exec(block_of(page, name), given)
    return given


class Trainer:
    """As much of a trainer as the example needs."""

    def __init__(self, max_epochs: int, callbacks: list[Any]) -> None:
        assert max_epochs == 160
        self.callbacks = callbacks

    def fit(self, model: nn.Module, data: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for index, (x, y) in enumerate(data):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for callback in self.callbacks:
                callback.on_before_optimizer_step(self, model, optimizer)
            optimizer.step()
            for callback in self.callbacks:
                callback.on_train_batch_end(self, model, None, (x, y), index)


def slimmed(strength: float, steps: int = 3) -> Net:
    """The same by hand."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        model.features[1].weight.grad += strength * model.features[1].weight.detach().sign()
        optimizer.step()
    return model


@pytest.mark.parametrize("page", ["docs/training.md", "README.md"])
def test_a_loop_of_one_s_own(page):
    found = ran(page, "loop")["model"]
    wanted = slimmed(1e-4)
    held = torch.isclose(found.features[1].weight, wanted.features[1].weight, atol=1e-5)
    assert held.all()
    assert not torch.equal(found.features[1].weight, slimmed(0.0).features[1].weight)


def test_penalties_on_units():
    found, plain = ran("docs/training.md", "units")["model"], slimmed(0.0)
    assert not torch.equal(found.features[3].weight, plain.features[3].weight)
    assert torch.allclose(found.features[3].weight, plain.features[3].weight, atol=1e-3)


def test_clusters_in_a_loop_of_one_s_own(capsys):
    found = ran("docs/training.md", "clusters")
    assert float(capsys.readouterr().out) > 0
    x = found["images"]
    with torch.no_grad():
        assert torch.allclose(found["slim"](x), found["model"](x), atol=1e-5)
    assert found["slim"].get_submodule("features.0").out_channels == 10


def test_masks_in_a_loop_of_one_s_own():
    found = ran("docs/training.md", "masks")
    for weight, stays in found["masks"]:
        assert not weight[~stays].any()
        assert weight[stays].all()
    plan = {"plan": 1, "passes": ["regroup"]}
    result = compile(found["model"].eval(), plan, (torch.zeros(1, 3, 8, 8),))
    assert result.program.state["features.3"].groups == 4


def test_a_batch_in_parts():
    model = net()
    model.features[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    whole = net()
    whole.features[1].eval()
    (x, y), *_ = batches()
    F.cross_entropy(whole(x), y).backward()
    torch.optim.SGD(whole.parameters(), lr=0.1).step()
    found = ran("docs/training.md", "accumulate", model=model, optimizer=optimizer)["model"]
    for a, b in zip(found.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("page", ["docs/training.md", "README.md"])
def test_the_callback(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(Callback=type("Callback", (), {})))
    found = ran(page, "lightning", Trainer=Trainer)["model"]
    for a, b in zip(found.parameters(), slimmed(1e-4).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["centripetal", "stages"])
def test_plans_that_make_channels_equal(name):
    passes = yaml.safe_load(block_of("docs/training.md", name))
    inside = passes[0]["repeat"]["passes"] if name == "stages" else passes
    inside[1]["centripetal"] |= {"epochs": 150, "strength": 2.0, "lr": 0.05}
    result = compile(net().eval(), {"plan": 1, "passes": passes}, (torch.zeros(1, 3, 8, 8),), batches())
    assert result.module.get_submodule("features.0").out_channels == 10
    merged = [record for record in result.report["passes"] if record["pass"] == "merge"]
    assert all(record["details"]["largest_difference"] == 0 for record in merged)


@pytest.mark.parametrize("name", ["slimming", "growing", "constraints", "block", "into"])
def test_plans(name):
    passes = yaml.safe_load(block_of("docs/training.md", name))
    check_needs(steps_of(Plan.from_dict({"plan": 1, "passes": passes})))
    for entry in passes:
        if isinstance(entry, dict) and isinstance(entry.get("finetune"), int):
            entry["finetune"] = 2
        for options in entry.values() if isinstance(entry, dict) else ():
            if isinstance(options, dict) and "epochs" in options:
                options["epochs"] = 2
                options.pop("schedule", None)
                options["lr"] = 0.05
                if name == "constraints":
                    options["constraints"]["candidates"]["steps"] = 3
    before = sum(p.numel() for p in net().parameters())
    result = compile(net().eval(), {"plan": 1, "passes": passes}, (torch.zeros(1, 3, 8, 8),), batches())
    assert sum(p.numel() for p in result.module.parameters()) < before or name == "constraints"


@pytest.mark.parametrize("name", ["rounds", "each"])
def test_rounds(name):
    (entry,) = yaml.safe_load(block_of("docs/training.md", name))
    options = entry["repeat"]
    options["passes"][-1]["finetune"] = {"updates": 2, "lr": 0.05}
    options.pop("floor", None)  # the labels are drawn, so that there is nothing to hold
    result = compile(net().eval(), {"plan": 1, "passes": [entry]}, (torch.zeros(1, 3, 8, 8),), batches())
    macs = result.report["cost"]
    assert macs["after"]["macs"] <= 0.4 * macs["before"]["macs"]


FINETUNINGS = yaml.safe_load(block_of("docs/training.md", "finetune"))


@pytest.mark.parametrize("number", range(len(FINETUNINGS)))
def test_fine_tunings(number):
    options = FINETUNINGS[number]["finetune"]
    options = {"epochs": options} if isinstance(options, int) else dict(options)
    options = {key: value for key, value in options.items() if key not in ("epochs", "updates")} | {"updates": 3}
    passes = [{"select": {"units": {"features.0": [0, 5]}}}, "shrink", {"finetune": options}]
    result = compile(net().eval(), {"plan": 1, "passes": passes}, (torch.zeros(1, 3, 8, 8),), batches())
    (record,) = (each for each in result.report["passes"] if each["pass"] == "finetune")
    assert record["details"]["updates"] <= 3
    assert record["history"]


def test_scores_on_the_way():
    passes = yaml.safe_load(block_of("docs/training.md", "scoring"))
    inside = passes[0]["repeat"]["passes"][0]["finetune"]
    inside["updates"] = inside.pop("epochs")
    passes[1] = {"finetune": {"updates": 2}}
    result = compile(net().eval(), {"plan": 1, "passes": passes}, (torch.zeros(1, 3, 8, 8),), batches())
    macs = result.report["cost"]
    assert macs["after"]["macs"] <= 0.4 * macs["before"]["macs"]
