"""The optimizer's memory over cuts: what is left of it belongs to the channels that are left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler import trace
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink
from prunec.passes.training.carried import Carried


def cut(program: Program, units: dict[str, list[int]]) -> Program:
    chosen = Select(units=units).run(program, Context()).program
    return Shrink().run(chosen, Context()).program


def numbered(program: Program) -> dict[str, dict[str, object]]:
    """For each parameter a memory that is the parameter itself, and a count."""
    return {name: {"momentum": tensor.detach().clone(), "step": 7} for name, tensor in program.tensors.items()}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 5),
    ).eval()


def test_memory_follows_its_parameter_through_two_cuts(net):
    program = trace(net, (torch.zeros(1, 3, 8, 8),))
    carried = Carried.of("sgd", numbered(program), program)
    once = cut(program, {"5": [1]})
    twice = cut(once, {"5": [0, 3]})
    for later in (once, twice):
        fitted = dict(carried.fitted(later))
        assert fitted.keys() == later.tensors.keys()
        for name, memory in fitted.items():
            assert torch.equal(memory["momentum"], later.tensors[name].detach()), name
            assert memory["step"] == 7


def test_memory_taken_behind_a_cut_is_numbered_anew(net):
    program = cut(trace(net, (torch.zeros(1, 3, 8, 8),)), {"5": [1]})
    carried = Carried.of("sgd", numbered(program), program)
    later = cut(program, {"5": [1, 2]})
    for name, memory in carried.fitted(later):
        assert torch.equal(memory["momentum"], later.tensors[name].detach()), name


def test_a_grouped_convolution_that_loses_groups(net):
    program = trace(net, (torch.zeros(1, 3, 8, 8),))
    carried = Carried.of("sgd", numbered(program), program)
    names = [group for group in ("0", "3") if group in _groups(program)]
    later = cut(program, {names[0]: [0]})
    for name, memory in carried.fitted(later):
        assert torch.equal(memory["momentum"], later.tensors[name].detach()), name


def _groups(program: Program) -> list[str]:
    from prunec.compiler.groups.analysis import analyse  # noqa: PLC0415

    return list(analyse(program).groups)


def test_a_parameter_that_is_gone_or_has_another_shape_has_no_memory(net):
    program = trace(net, (torch.zeros(1, 3, 8, 8),))
    memory = numbered(program)
    memory["5.bias"] = {"momentum": torch.zeros(6)}
    carried = Carried("sgd", memory, {}, dict.fromkeys(memory, (1, 2)))
    fitted = dict(carried.fitted(program))
    assert "7.weight" in fitted
    assert dict(Carried.of("sgd", {"0.weight": {}}, program).fitted(program)) == {"0.weight": {}}
