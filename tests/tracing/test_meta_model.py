"""What a model keeps beside its parameters: features that hooks catch, containers that modules share, functions that
see the model. An earlier run must leave no trace in the program. And what nothing can look into: TorchScript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import compile
from prunec.compiler.errors import ModelError
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.trace import trace


class Catching(nn.Module):
    """A classifier of features that hooks have caught."""

    def __init__(self, catch: Callable[[Catching], None], normed: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.fc = normed(nn.Linear(9, 2))
        self.seen: dict[str, Tensor] = {}
        self.kept: list[Tensor] = []
        catch(self)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """A hook that is a method."""
        self.kept.append(output)

    def forward(self, x: Tensor) -> Any:
        self.kept.clear()
        self.b(self.a(x))
        return self.fc(torch.cat(self.kept or list(self.seen.values()), 1))


def _by_closure(model: Catching) -> None:
    def named(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            model.seen[name] = output

        return hook

    model.a.register_forward_hook(named("a"))
    model.b.register_forward_hook(named("b"))


def _by_method(model: Catching) -> None:
    model.a.register_forward_hook(model.keep)
    model.b.register_forward_hook(model.keep)


def _by_container(model: Catching) -> None:
    seen = model.seen
    model.a.register_forward_hook(lambda module, inputs, output: seen.update(a=output))
    model.b.register_forward_hook(lambda module, inputs, output: seen.update(b=output))


CATCH = {"closure": _by_closure, "method": _by_method, "container": _by_container}
NORMED = {"plain": lambda fc: fc, "weight norm": nn.utils.parametrizations.weight_norm}


@pytest.mark.parametrize("catch", CATCH)
@pytest.mark.parametrize("normed", NORMED)
def test_what_hooks_catch_is_of_this_run(catch, normed):
    model = Catching(CATCH[catch], NORMED[normed]).eval()
    old, new = torch.randn(2, 4, 3)
    with torch.no_grad():
        model(old)
        program = trace(model, (old,))
        assert torch.equal(program.module(new), model(new))


class Sharing(nn.Module):
    """Two modules that pass a value on through a dict that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Part("left"), Part("right")
        self.first.store = self.second.store = {}

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        return self.second(self.first.store["left"]) + self.first.store["right"]


class Part(nn.Module):
    """Writes what it gives into a dict."""

    store: dict[str, Tensor]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.fc = name, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.store[self.name] = self.fc(x)
        return self.store[self.name]


def test_a_shared_container_stays_shared():
    model, x = Sharing().eval(), torch.randn(2, 3)
    program = trace(model, (x,))
    assert torch.equal(program.module(x), model(x))


class Stale(nn.Module):
    """Reads what an earlier run has left."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.last: Tensor | None = torch.ones(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last)


def test_a_model_that_reads_no_input_is_refused():
    with pytest.raises(ModelError, match="nothing that the model gives depends on its inputs"):
        trace(Stale().eval(), (torch.randn(1, 3),))


class Typed(nn.Module):
    """Spells types in the old ways."""

    def forward(self, x: Tensor) -> Tensor:
        if x.type() != "torch.FloatTensor":
            raise TypeError(x.type())
        mask = (x > 0).type(torch.FloatTensor) + (x < 1).type(x.type()) + (x < 2).type("torch.cuda.FloatTensor")
        return torch.mm(mask, x.mT)


def test_types_by_name_are_types():
    x = torch.randn(2, 3)
    program = trace(Typed(), (x,))
    assert torch.equal(program.module(x), ((x > 0).float() + (x < 1).float() + (x < 2).float()) @ x.mT)
    assert to_text(from_text(to_text(program))) == to_text(program)


# -- TorchScript in a model is a leaf that nothing looks into: it pins what it reads and gives

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


class Branches(nn.Module):
    """A branch on values, which only TorchScript can hold."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8), nn.Dropout(0.5)

    def forward(self, x):
        if bool(x.sum() > 0):
            return self.drop(self.bn(self.conv(x)))
        return self.conv(x)


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.inner, self.b, self.c = nn.Conv1d(3, 8, 1), inner, nn.Conv1d(8, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.inner(torch.relu(self.a(x)))))))


SCRIPTED = {
    "script": lambda: torch.jit.script(Branches()),
    "trace": lambda: torch.jit.trace(nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)).eval(), torch.rand(2, 8, 7)),
    "in a Sequential": lambda: nn.Sequential(torch.jit.script(nn.Conv1d(8, 8, 1)), nn.ReLU()),
    "of ModuleList": lambda: nn.Sequential(*(torch.jit.script(Branches()) for _ in range(2))),
    "without weights": lambda: torch.jit.script(nn.ReLU()),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", SCRIPTED)
def test_it_is_a_leaf_that_pins(name, train):
    model, x = Holder(SCRIPTED[name]()).train(train), torch.rand(2, 3, 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = compile(model, PLAN, (x,))
    removed = {key: dims.get("0", []) for key, dims in result.lock["removed"].items()}
    assert len(removed["b.weight"]) == 4
    assert not removed.get("a.weight")
    assert all(part.training == train for part in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    program, other = trace(model, (x,)), torch.rand(3, 3, 9)
    assert torch.equal(program.module(other), model.eval()(other))
    assert result.module.eval()(other).shape == (3, 4, 9)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_its_source_cannot_be_written(tmp_path):
    result = compile(Holder(SCRIPTED["script"]()).eval(), PLAN, (torch.rand(2, 3, 7),))
    with pytest.raises(ModelError, match="'inner' can't be written as source") as caught:
        result.save(tmp_path / "out")
    assert "give the module that was scripted" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_that_is_scripted_as_a_whole_is_refused():
    with pytest.raises(ModelError, match="the model is a scripted module"):
        trace(torch.jit.script(Branches()), (torch.rand(2, 8, 7),))
