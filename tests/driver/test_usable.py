"""Models that can't be compiled are refused by name: without parameters, without data, of tensors that aren't plain."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from prunec.compiler.cli import main as cli
from prunec.compiler.cost.model import cost
from prunec.compiler.driver.compile import compile
from prunec.compiler.errors import ModelError, PlanError
from prunec.compiler.tracing.trace import trace

HALF = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Net(nn.Module):
    """An MLP with a tensor of another kind before it."""

    def __init__(self, tensor, *, parameter=False):
        super().__init__()
        if parameter:
            self.scale = nn.Parameter(tensor)
        else:
            self.register_buffer("scale", tensor)
        self.layers = mlp()

    def forward(self, x):
        return self.layers(x * self.scale)


class Cut(nn.Module):
    """Gives what a slice leaves of an MLP's output, or of what goes into its last layer."""

    def __init__(self, *where, late=True):
        super().__init__()
        self.first, self.last, self.where, self.late = nn.Linear(4, 8), nn.Linear(8, 2), where, late

    def forward(self, x):
        return self.last(self.first(x))[self.where] if self.late else self.last(self.first(x)[self.where]).sum()


def on_meta(module):
    with torch.device("meta"):
        return module()


def faked():
    with FakeTensorMode():
        return mlp()


def one_on_meta():
    model = mlp()
    model[0].weight = nn.Parameter(model[0].weight.to("meta"))
    return model


REFUSED = {
    "no parameters": (nn.Identity, "Identity has no parameters that its forward reads: there is nothing to compile"),
    "only activations": (nn.ReLU, "ReLU has no parameters that its forward reads: there is nothing to compile"),
    "meta": (
        lambda: on_meta(mlp),
        "'0.weight' and 3 more have no data, only a shape, as on the meta device",
    ),
    "one on meta": (one_on_meta, "'0.weight' has no data, only a shape, as on the meta device"),
    "buffer on meta": (
        lambda: Net(torch.empty(4, device="meta")),
        "'scale' has no data, only a shape, as on the meta device",
    ),
    "fake": (faked, "'0.weight' and 3 more have no data, only a shape, as on the meta device"),
    "sparse": (
        lambda: Net(torch.ones(4).to_sparse(), parameter=True),
        "Net: 'scale' is sparse, and channels are taken out of plain tensors",
    ),
    "sparse rows": (
        lambda: Net(torch.eye(4).to_sparse_csr()),
        "Net: 'scale' is sparse, and channels are taken out of plain tensors",
    ),
    "quantised": (
        lambda: Net(torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)),
        "Net: 'scale' is quantised, and channels are taken out of plain tensors",
    ),
    "empty batch": (
        lambda: Cut(slice(0, 0)),
        "Cut: the model gives an empty tensor, [0, 2], on the example inputs",
    ),
    "no features": (
        lambda: Cut(slice(None), slice(0, 0)),
        "Cut: the model gives an empty tensor, [1, 0], on the example inputs",
    ),
    "empty within": (
        lambda: Cut(slice(1, None), late=False),
        "Cut: last gives an empty tensor, [0, 2], on the example inputs",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name(case):
    make, message = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        compile(make(), HALF, (torch.randn(1, 4),))
    assert caught.value.message == message


def test_parameters_that_must_all_stay_are_something_to_compile():
    result = compile(nn.BatchNorm1d(4), HALF, (torch.randn(1, 4),))
    assert cost(result.before).params == cost(result.program).params == 8


def test_a_model_without_data_can_be_looked_at():
    assert len(trace(on_meta(mlp), (torch.randn(1, 4),)).graph.nodes) == 5


@pytest.mark.parametrize(
    "inputs", ["[[1000000000000, 4]]", "[[4000000000, 4000000000]]", "{x: {items: [{shape: [1000000000000]}]}}"]
)
def test_inputs_beyond_memory_are_the_plans_fault(tmp_path, monkeypatch, capsys, inputs):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(f"plan: 1\nmodel: prunec.models.digits:mlp\ninputs: {inputs}\n")
    assert cli.run(["compile", "plan.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("plan.yaml:3:1: the inputs take ")
    assert "GB, which this machine's memory doesn't hold" in err


@pytest.mark.parametrize("size", [2**50, 2**62], ids=["torch", "python"])
def test_memory_that_runs_out_later_is_no_bug(tmp_path, monkeypatch, capsys, size):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("plan: 1\nmodel: prunec.models.digits:mlp\ninputs: [[1, 1, 8, 8]]\n")
    ask = Mock(side_effect=lambda *_, **__: torch.empty(size) if size == 2**50 else bytearray(size))
    monkeypatch.setattr("prunec.compiler.driver.compile.run_passes", ask)
    assert cli.run(["compile", "plan.yaml"]) == 1
    assert "memory" in capsys.readouterr().err.lower()


def test_a_selection_beyond_the_group_is_the_plans_fault():
    for unit, message in ((10**40, "is beyond the whole numbers"), (8, "names unit 8"), (-1, "names unit -1")):
        plan = {"plan": 1, "passes": [{"select": {"units": {"0": [unit]}}}, "shrink"]}
        with pytest.raises(Exception, match=message) as caught:
            compile(mlp(), plan, (torch.randn(1, 4),))
        assert getattr(caught.value, "exit_code", None) == 1


def test_a_link_to_itself_is_the_plans_fault(tmp_path):
    (tmp_path / "me").symlink_to("me")
    for key, ending in (("saved", ""), ("factory", ".py:f")):
        with pytest.raises(PlanError, match="no file"):
            compile(None, {"plan": 1, "model": {key: f"{tmp_path}/me{ending}"}})


@pytest.mark.parametrize("ending", ["", ".yaml", ".py:net", ".pth", "/x"])
def test_names_that_no_file_can_have(tmp_path, monkeypatch, capsys, ending):
    monkeypatch.chdir(tmp_path)
    name = "a" * 300 + ending
    Path("plan.yaml").write_text("plan: 1\nmodel: prunec.models.digits:mlp\ninputs: [[1, 1, 8, 8]]\n")
    for command in (["explain", name], ["compile", name], ["compile", "plan.yaml", "-o", name]):
        assert cli.run(command) == 1, command
        assert capsys.readouterr().err


@pytest.mark.parametrize("model", [nn.Linear, mlp, "net.py:net"])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(ModelError, match=r"the model must be an nn\.Module, got "):
        compile(model, HALF, (torch.randn(1, 4),))


def test_what_is_no_plan_is_refused():
    for plan in (None, 5, ["shrink"]):
        with pytest.raises(PlanError, match="a plan must be a mapping or the path of a file"):
            compile(mlp(), plan, (torch.randn(1, 4),))


def test_example_inputs_without_values_are_refused():
    with pytest.raises(ModelError, match="the example inputs have no data"):
        compile(mlp(), HALF, (torch.randn(1, 4, device="meta"),))


def test_a_traced_script_is_refused_as_a_scripted_module_is():
    traced = torch.jit.trace(mlp().eval(), torch.randn(1, 4))
    with pytest.raises(ModelError, match="the model is a scripted module"):
        compile(traced, HALF, (torch.randn(1, 4),))


def test_a_part_whose_name_no_code_can_hold_is_refused():
    model = mlp()
    model.add_module("a\nb", nn.Linear(model[-1].out_features, 2))
    with pytest.raises(ModelError, match="has a name that can't be written in code"):
        compile(model, HALF, (torch.randn(1, 4),))


def test_a_factory_may_change_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    Path("net.py").write_text(
        "import os\nfrom torch import nn\n\n\ndef net():\n    os.chdir('elsewhere')\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    Path("plan.yaml").write_text(
        "plan: 1\nmodel: net.py:net\ninputs: [[1, 4]]\npasses: [score, {select: 50%}, shrink]\n"
    )
    assert cli.run(["compile", "plan.yaml", "-q"]) == 0
    assert (tmp_path / "out" / "model.py").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())
