"""A model that fails when it is run is told as such, with its module and line, and is as it was afterwards."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cli import main as cli
from prunec.compiler.errors import ModelError
from prunec.compiler.ir.inputs import arguments
from prunec.compiler.tracing.real_run import check_runs

PASSES = ["score", {"select": "50%"}, "shrink"]


class Net(nn.Module):
    """Two layers; `ask` is called with the model and what is between them, and gives what goes on."""

    def __init__(self, ask, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.ask = nn.Linear(8, 16), nn.Linear(16, 4), ask
        self.register_buffer("whole", torch.ones(16, dtype=torch.int64))
        self.register_buffer("calls", torch.zeros(()))
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.b(self.ask(self, torch.relu(self.a(x))))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.a, self.b = nn.Embedding(10, 8), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, ids):
        return self.b(torch.relu(self.a(self.word(ids))))


def doubled(s, y):
    return s.wide(y)


def whole_numbers(s, y):
    return y @ torch.diag(s.whole)


def checked(s, y):
    if (y > 1e-9).any():
        raise ValueError("values that no one wants")
    return y


def asserted(s, y):
    assert y.max() < 0
    return y


def beyond(s, y):
    return y + torch.arange(16.0)[s.whole * 16]


def gone(s, y):
    if (y > 1e-9).any():
        raise SystemExit(0)
    return y


FAILING = {
    "a layer in double precision": (
        lambda: Net(doubled, wide=nn.Linear(16, 16).double()),
        "wide (Linear): mat1 and mat2 must have the same dtype, but got Float and Double",
        "return s.wide(y)",
    ),
    "whole numbers": (
        lambda: Net(whole_numbers),
        "Net: expected m1 and m2 to have the same dtype, but got: float != long int",
        "return y @ torch.diag(s.whole)",
    ),
    "a check of values": (lambda: Net(checked), "Net: values that no one wants", "raise ValueError("),
    "an assertion": (lambda: Net(asserted), "Net: AssertionError", "assert y.max() < 0"),
    "an index beyond": (lambda: Net(beyond), "Net: IndexError: index 16 is out of bounds", "return y + torch.arange"),
    "the end of the program": (lambda: Net(gone), "Net: SystemExit: 0", "raise SystemExit(0)"),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_in_the_model_is_told_with_module_and_line(name):
    make, message, line = FAILING[name]
    model, x = make(), torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ModelError) as caught:
        compile(model, {"plan": 1, "passes": PASSES}, (x,))
    assert caught.value.message.startswith(f"the model doesn't run on the example inputs: {message}")
    assert caught.value.exit_code == 1
    assert caught.value.at.file == __file__
    assert caught.value.at.text.strip().startswith(line)
    if name != "the end of the program":
        assert caught.value.hint.startswith("they are x float32 [2, 8] from -")


@pytest.mark.parametrize("command", [["compile"], ["check"], ["ir", "--after", "shrink"]])
def test_an_index_beyond_a_table(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(
        f"plan: 1\nmodel: {__file__}:Words\ninputs: [{{shape: [1, 40], dtype: int64, high: 30}}]\n"
        "passes: [score, {select: 50%}, shrink]\n"
    )
    assert cli.run([command[0], "plan.yaml", *command[1:]]) == 1
    told = capsys.readouterr().err
    assert "word (Embedding): IndexError: index out of range in self" in told
    assert "self.b(torch.relu(self.a(self.word(ids))))" in told
    assert "hint: they are ids int64 [1, 40] from 0 to 29" in told


def test_a_region_that_fails_is_told_likewise():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Net(doubled, wide=nn.Linear(16, 16).double())

        def forward(self, x):
            return self.body(x) if x.sum().item() else x

    with pytest.raises(ModelError, match=r"example inputs: body\.wide \(Linear\): mat1 and mat2") as caught:
        compile(Whole(), {"plan": 1, "region": ["body"], "passes": PASSES}, (torch.ones(2, 8),))
    assert caught.value.at.text.strip() == "return s.wide(y)"


# --- as it was ------------------------------------------------------------------------------------------------------


def counts(s, y):
    s.calls += 1
    s.seen = s.seen + 1
    s.plain.add_(1)
    s.table["n"] = s.table.get("n", 0) + 1
    s.last = y
    y = y + s.calls + s.seen
    return y if torch.compiler.is_exporting() else y + 0 * random.random()


def counting(training):
    model = Net(counts).train(training)
    model.register_buffer("seen", torch.zeros(3, 1)[0])
    model.plain, model.table = torch.zeros(2), {}
    model.b.eval()
    return model


def state_of(model):
    held = {name: (tensor, tensor.data_ptr(), tensor.tolist()) for name, tensor in model.state_dict().items()}
    flags = [part.training for part in model.modules()]
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    tables = [sorted(vars(part)) for part in model.modules()]
    return {k: v[1:] for k, v in held.items()}, model.plain.tolist(), dict(model.table), flags, numbers, tables


class Loader(list):
    """Batches of one sample and its class."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        super().__init__((torch.randn(1, 8, generator=generator), torch.tensor([i % 4])) for i in range(4))


@pytest.mark.parametrize("data", [None, Loader], ids=["no data", "data"])
@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_counts_its_calls_is_as_it_was(training, data, tmp_path):
    model, x = counting(training), torch.randn(2, 8)
    right = counting(False)(x)
    before = state_of(model)
    score = {"score": {"criterion": "taylor", "split": "test", "batches": 2}} if data else "score"
    plan = {"plan": 1, "passes": [score, *PASSES[1:]], "export": ["onnx"] if data else []}
    result = compile(model, plan, (x,), data and {"test": data()})
    result.save(tmp_path / "out")
    assert state_of(model) == before
    assert {name: tensor.tolist() for name, tensor in result.module.named_buffers() if name in ("calls", "seen")} == {
        "calls": 0,
        "seen": [0],
    }
    model.eval()
    assert torch.equal(model(x), right)


def test_a_whole_model_that_counts_is_as_it_was():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.plain, self.table = counting(False), torch.zeros(1), {}
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x):
            self.n += 1
            self.plain += 1
            return self.body(x) if x.sum().item() else x

    model = Whole().eval()
    before = state_of(model), state_of(model.body)
    plan = {"plan": 1, "region": ["body"], "passes": PASSES}
    compile(model, plan, (torch.ones(2, 8),), {"test": Loader()})
    assert (state_of(model), state_of(model.body)) == before


def test_weights_that_a_forward_replaces_are_as_they_were():
    def clipped(s, y):
        s.a.weight.data = s.a.weight.data.clamp(-0.01, 0.01)
        s.b.weight.data.mul_(0.5)
        s.b.bias = nn.Parameter(torch.ones(4))
        return y

    model, x = Net(clipped).eval(), torch.randn(2, 8)
    parameters, values = dict(model.named_parameters()), [each.tolist() for each in model.parameters()]
    check_runs(model, arguments(model, (x,)))
    assert all(each is parameters[name] for name, each in model.named_parameters())
    assert [each.tolist() for each in model.parameters()] == values


def test_a_run_says_nothing(capsys):
    def talks(s, y):
        if torch.compiler.is_exporting():
            return y
        print("seen", y.shape)  # noqa: T201
        return y

    model = Net(talks).eval()
    check_runs(model, arguments(model, (torch.ones(1, 8),)))
    assert capsys.readouterr() == ("", "")


def test_no_kernel_for_half_precision_is_no_fault_of_the_model(monkeypatch):
    def refuses(s, y):
        raise NotImplementedError("\"mul_cpu\" not implemented for 'Half'")

    check_runs(Net(refuses), arguments(Net(refuses), (torch.ones(1, 8),)))

    def for_whole_numbers(s, y):
        raise NotImplementedError("\"gelu\" not implemented for 'Long'")

    with pytest.raises(ModelError, match="not implemented for 'Long'"):
        check_runs(Net(for_whole_numbers), arguments(Net(for_whole_numbers), (torch.ones(1, 8),)))
