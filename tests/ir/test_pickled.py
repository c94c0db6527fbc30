"""Pickles of slim modules and of programs: their graph comes through as it is; of modules, with torch alone."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.trace import trace

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


class Sliced(nn.Module):
    """Adds as many rows of a table as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("table", torch.rand(32, 8))

    def forward(self, x):
        return self.b(self.a(x) * self.table[: x.shape[1]])


class Made(Sliced):
    """Writes what a layer gives into zeros that are made by sizes."""

    def forward(self, x):
        y = torch.zeros(x.shape[0], x.shape[1], 8, dtype=x.dtype)
        y[:, : x.shape[1]] = self.a(x)
        return {"out": F.max_pool1d(self.b(y), kernel_size=2), "width": [x.size(1) // 2]}


class Dropping(Sliced):
    """Drops elements in train mode."""

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.training))


class Shared(Sliced):
    """Reads a layer, and the weight of another, that lies in numbered parts, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Sequential(self.a), nn.ReLU())

    def forward(self, x):
        return F.linear(self.parts(x) + self.parts[0](x), self.b.weight.abs(), self.b.bias)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def both(model: nn.Module) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The slim module, the module that its pickle gives, and an input."""
    x = torch.rand(2, 5, 6)
    slim = compile(model, PLAN, example_inputs=(x,)).module
    return slim, pickle.loads(pickle.dumps(slim)), x


@pytest.mark.parametrize("kind", [Sliced, Made, Dropping, Shared])
@pytest.mark.parametrize("tokens", [5, 7])
def test_a_pickle_gives_the_same_module(kind, tokens):
    slim, loaded, _ = both(made(kind))
    x = torch.rand(3, tokens, 6)
    torch.testing.assert_close(loaded(x), slim(x), rtol=0, atol=0)
    assert [node.name for node in loaded.graph.nodes] == [node.name for node in slim.graph.nodes]
    assert list(loaded.state_dict()) == list(slim.state_dict())
    assert type(loaded).__name__ == type(slim).__name__ == kind.__name__


def test_the_training_flag_is_read_after_loading():
    slim, loaded, x = both(made(Dropping))
    assert not torch.equal(loaded.train()(x), slim(x))
    assert torch.equal(loaded.eval()(x), slim(x))


def test_modes_hooks_and_attributes_come_along():
    slim, _, x = both(made(Shared))
    slim.parts.train()
    slim.note = "trained on"
    slim.a_weight = slim.b.weight
    loaded = pickle.loads(pickle.dumps(slim))
    assert (loaded.training, loaded.parts.training, loaded.note) == (False, True, "trained on")
    assert loaded.a_weight is loaded.b.weight
    assert torch.equal(loaded(x), slim(x))


def test_what_is_loaded_is_traced_scripted_copied_and_saved():
    slim, loaded, x = both(made(Sliced))
    with warnings.catch_warnings(action="ignore"):  # torch warns of attributes of its own
        scripted = torch.jit.script(loaded)
    for other in (copy.deepcopy(loaded), scripted, trace(loaded, (x,)).module, copy.deepcopy(slim)):
        assert torch.equal(other(x), slim(x))
    file = io.BytesIO()
    torch.save(slim, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), slim(x))


def test_a_pickle_needs_torch_alone(tmp_path):
    slim, _, x = both(made(Sliced))
    (tmp_path / "slim.pickle").write_bytes(pickle.dumps((slim, x, slim(x))))
    code = (
        "import pickle, sys\n"
        "slim, x, y = pickle.load(open('slim.pickle', 'rb'))\n"
        "assert slim(x).equal(y)\n"
        "assert not any(name.partition('.')[0] == 'prunec' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_long_graph_is_pickled_without_recursion():
    slim, loaded, _ = both(nn.Sequential(*(nn.Linear(6, 6) if i % 2 else nn.ReLU() for i in range(2000))).eval())
    assert len(loaded.graph.nodes) == len(slim.graph.nodes)


def test_a_weight_normalised_layer_is_pickled_as_a_plain_one():
    x = torch.rand(2, 5, 6)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 4)).eval()
    slim, loaded, _ = both(model)
    assert torch.equal(loaded(x), slim(x))
    assert len(model[0]._load_state_dict_pre_hooks) == 1


def test_copies_keep_hooks_and_attributes():
    slim, _, x = both(made(Sliced))
    y = slim(x)
    slim.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    slim.register_forward_hook(lambda _, args, y: y + 1)
    slim.note = ["kept"]
    twin = copy.deepcopy(slim)
    assert torch.equal(twin(x), slim(x))
    assert not torch.equal(twin(x), y)
    assert twin.note == ["kept"]
    assert twin.note is not slim.note
    twin.a.weight.data.zero_()
    assert not torch.equal(twin(x), slim(x))


@pytest.mark.parametrize("act", [lambda m: m, copy.copy, copy.deepcopy], ids=["made", "copied", "deeply"])
def test_a_module_that_never_ran_is_printed_with_its_code(act):
    text = str(act(trace(Sliced().eval(), (torch.randn(2, 5, 6),)).module))
    assert "(a): Linear(in_features=6, out_features=8" in text
    assert "def forward(self, x):" in text


def test_the_code_follows_the_graph():
    module = trace(Sliced().eval(), (torch.randn(2, 5, 6),)).module
    assert "self.b(" in module.code
    (output,) = module.graph.find_nodes(op="output")
    output.args = (next(iter(module.graph.find_nodes(op="placeholder"))),)
    module.graph.eliminate_dead_code()
    module.recompile()
    assert "self.b(" not in module.code
    assert "self.b(" not in str(module)


@pytest.mark.parametrize("net", [Sliced(), Made()], ids=lambda net: type(net).__name__)
def test_a_program_comes_through_with_what_its_nodes_know(net):
    program = trace(net.eval(), (torch.randn(2, 5, 6),)).with_facts(scores={"a": 1})
    found = pickle.loads(pickle.dumps(program))
    assert to_text(found) == to_text(program)
    assert found.facts == {"scores": {"a": 1}}
    assert [node.meta.keys() for node in found.graph.nodes] == [node.meta.keys() for node in program.graph.nodes]
    x = torch.randn(3, 7, 6)
    torch.testing.assert_close(found.module(x), program.module(x), rtol=0, atol=0)


def test_the_programs_of_a_compile_come_through():
    result = compile(Sliced().eval(), PLAN, (torch.randn(2, 5, 6),))
    found = pickle.loads(pickle.dumps(result.program))
    assert to_text(found) == to_text(result.program)
    assert {str(axis): kept.tolist() for axis, kept in found.origin.items()} == {
        str(axis): kept.tolist() for axis, kept in result.program.origin.items()
    }
