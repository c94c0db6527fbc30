"""Models in wrappers: what is in them is compiled, and the wrapper goes on working."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from prunec.compiler import compile
from prunec.compiler.ir.wrappers import uncompiled, unwrapped, wrapped

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    store = tmp_path_factory.mktemp("ddp") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": compiled,
    "DistributedDataParallel": DistributedDataParallel,
    "AveragedModel": AveragedModel,
}
quiet = pytest.mark.filterwarnings("ignore")
"""torch warns of its own parts while it compiles."""


@quiet
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_in_a_wrapper_is_compiled(name):
    model = WRAPPERS[name](net()).eval()
    before = model(X)
    result = compile(model, PLAN, (X,))
    bare = compile(net(), PLAN, (X,))
    assert result.report["notes"] == [f"the model is wrapped by {name}: the Sequential in it is compiled"]
    assert result.lock["removed"] == bare.lock["removed"]
    assert result.lock["hashes"] == bare.lock["hashes"]
    assert "notes" not in bare.report
    assert torch.equal(model(X), before)


@quiet
def test_wrappers_in_wrappers():
    model, notes = net(), list[str]()
    assert unwrapped(compiled(nn.DataParallel(compiled(model))), notes.append) is model
    assert [note.split(":")[0] for note in notes] == [
        "the model is wrapped by torch.compile",
        "the model is wrapped by DataParallel",
        "the model is wrapped by torch.compile",
    ]


class Whole(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


@quiet
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_part_is_traced_through(name):
    model = Whole(WRAPPERS[name](net())).eval()
    before = model(X)
    removed = compile(model, PLAN, (X,)).lock["removed"]
    inner = "body._orig_mod" if name == "torch.compile" else "body.module"
    bare = compile(Whole(net()).eval(), PLAN, (X,)).lock["removed"]
    assert removed == {key.replace("body", inner): gone for key, gone in bare.items()}
    assert torch.equal(model(X), before)


@quiet
@pytest.mark.parametrize("part", ["", "0", "1"], ids=["the model", "a layer", "a norm"])
def test_a_module_that_was_compiled_in_place(part):
    model = net()
    model.get_submodule(part).compile(backend="eager")
    before = model(X)
    result = compile(model, PLAN, (X,))
    assert result.lock["hashes"] == compile(net(), PLAN, (X,)).lock["hashes"]
    assert all(module._compiled_call_impl is None for module in result.module.modules())
    assert model.get_submodule(part)._compiled_call_impl is not None
    assert torch.equal(model(X), before)


class Calls(nn.Module):
    """Calls a function that was compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.f = torch.compile(lambda x: torch.relu(x) * 2, backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.f(self.a(x)))


@quiet
def test_a_compiled_function_runs_as_it_was_written():
    model = Calls().eval()
    before = model(X)
    assert compile(model, PLAN, (X,)).lock["removed"].keys() == {"a.weight", "a.bias", "b.weight"}
    assert torch.equal(model(X), before)


def test_nothing_is_imported_for_models_that_are_not_compiled(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch._dynamo")]:
        monkeypatch.delitem(sys.modules, name)
    model = net()
    with uncompiled():
        assert wrapped(model) is None
        assert unwrapped(model) is model
    assert "torch._dynamo" not in sys.modules
