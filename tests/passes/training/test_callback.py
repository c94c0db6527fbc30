"""Updates called by an engine: the same weights as a loop of one's own gives."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from prunec.passes.training.callback import PruneCallback
from prunec.passes.training.updates import L1, Clamp, HoldBelow, Update, accumulate, batch_norm_scales, in_order


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def updates(module):
    """In another order than that in which they are called."""
    return [
        Clamp([module[4].weight], -0.1, 0.1),
        HoldBelow([(p, 1e-3) for p in module.parameters()]),
        L1(batch_norm_scales(module), 1e-2),
    ]


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def by_hand(size):
    """A loop of one's own, `size` batches a step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    beside = in_order(updates(model))
    for update in beside:
        update.attach(optimizer)
    data = batches()
    for start in range(0, len(data), size):
        optimizer.zero_grad()
        for x, y in data[start : start + size]:
            accumulate(F.cross_entropy(model(x), y), size)
        for update in beside:
            update.before_step()
        optimizer.step()
        for update in beside:
            update.after_step()
    return model


class Hooks:
    """The base of callbacks: every hook is there, and does nothing."""

    def on_train_start(self, trainer, pl_module):
        return

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        raise AssertionError("overridden")


class Trainer:
    """A trainer's order of hooks; it takes only instances of `Hooks`."""

    def __init__(self, callback, accumulate_grad_batches):
        assert isinstance(callback, Hooks)
        self.callback, self.size = callback, accumulate_grad_batches

    def fit(self, model, data):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        self.callback.on_train_start(self, model)
        for index, (x, y) in enumerate(data):
            accumulate(F.cross_entropy(model(x), y), self.size)
            if (index + 1) % self.size == 0:
                self.callback.on_before_optimizer_step(self, model, optimizer)
                optimizer.step()
                optimizer.zero_grad()
            self.callback.on_train_batch_end(self, model, None, (x, y), index)
        self.callback.on_train_epoch_end(self, model)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_trainer_takes_it_and_gives_the_weights_of_one_s_own_loop(monkeypatch, name, size):
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(Callback=Hooks))
    model, callback = network(), PruneCallback(updates)
    assert isinstance(callback, PruneCallback)
    Trainer(callback, size).fit(model, batches())
    assert same(model, by_hand(size))
    assert model[4].weight.abs().max() <= 0.1


def test_fabric_calls_it():
    callback = PruneCallback(updates)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    model = network()
    engine, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3))
    for number, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(engine(x), y))
        fabric.call("on_before_optimizer_step", None, model, optimizer)
        optimizer.step()
        fabric.call("on_train_batch_end", None, model, None, (x, y), number)
    assert same(model, by_hand(1))


def test_figures_are_logged_where_a_module_can():
    model, callback = network(), PruneCallback(updates)
    callback.on_before_optimizer_step(None, model, torch.optim.SGD(model.parameters(), 0.1))
    callback.on_train_epoch_end(None, model)
    logged = {}
    model.log_dict = logged.update
    callback.on_train_epoch_end(None, model)
    assert set(logged) == {"small_scales", "held"}


class Counting(Update):
    def __init__(self):
        self.count = 0

    def before_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_what_updates_remember_goes_with_a_checkpoint():
    model, callback = network(), PruneCallback(lambda module: [Counting()])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        callback.on_before_optimizer_step(None, model, optimizer)
    later = PruneCallback(lambda module: [Counting()])
    later.load_state_dict(callback.state_dict())
    later.on_before_optimizer_step(None, model, optimizer)
    assert later.state_dict() == {"updates": [{"count": 4}]}
    early = PruneCallback(lambda module: [Counting()])
    early.load_state_dict(PruneCallback(updates).state_dict())  # of before the first step
    early.on_before_optimizer_step(None, model, optimizer)
    assert early.state_dict() == {"updates": [{"count": 1}]}


class Done(Update):
    """Says after its second step that the training may end, and notes that it has."""

    def __init__(self):
        self.steps, self.finished = 0, False

    def before_step(self):
        self.steps += 1

    def figures(self):
        return {"steps": float(self.steps)}

    def ends(self):
        return "two are enough" if self.steps >= 2 else ""

    def finish(self):
        self.finished = True


def test_a_trainer_stops_where_an_update_says_so_and_tells_it_of_the_end():
    update, logged = Done(), []
    callback = PruneCallback(lambda module: [update])
    trainer = SimpleNamespace(should_stop=False)
    model = network()
    model.log_dict = logged.append
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        assert not trainer.should_stop
        callback.on_before_optimizer_step(trainer, model, optimizer)
        callback.on_train_batch_end(trainer, model, None, None, epoch)
        callback.on_train_epoch_end(trainer, model)
    assert trainer.should_stop
    assert logged == [{"steps": 1.0}, {"steps": 2.0}]
    assert not update.finished
    callback.on_train_end(trainer, model)
    assert update.finished
