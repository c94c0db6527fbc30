"""`eliminate`: what does nothing at inference goes, what might do something stays and says why."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, PassResult
from prunec.compiler.text.parser import from_text
from prunec.compiler.tracing.trace import trace
from prunec.passes.eliminate import Eliminate


class Calls(nn.Module):
    """A model that is one function of its input, beside a linear layer `fc` of size 6."""

    def __init__(self, function: Callable[[Calls, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def program_of(model: nn.Module | Callable[[Calls, Tensor], Tensor], *shape: int) -> Program:
    """The traced model in evaluation mode."""
    torch.manual_seed(0)
    module = model if isinstance(model, nn.Module) else Calls(model)
    return trace(module.eval(), (torch.randn(shape or (2, 6)),))


def eliminate(program: Program, **options: object) -> PassResult:
    return Eliminate(**options).run(program, Context())


def operations(program: Program) -> list[str]:
    """The names of the nodes between the inputs and the output."""
    return [node.name for node in program.graph.nodes if node.op not in ("placeholder", "output")]


def assert_same(before: Program, after: Program) -> None:
    """Both compute the same, bit for bit, for another batch size than the example's, and write the same inputs."""
    x = torch.randn(3, *before.inputs[0].shape[1:], generator=torch.Generator().manual_seed(1))
    old, new = x.clone(), x.clone()
    assert torch.equal(after.module(new), before.module(old))
    assert torch.equal(new, old)


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def written_before(self: Calls, x: Tensor) -> Tensor:
    y = self.fc(x).relu_()
    return y.clone() * y


REMOVED = {
    "dropouts": (chain(a=nn.Dropout(), fc=nn.Linear(6, 6), b=nn.AlphaDropout(), c=nn.Dropout1d()), ["fc"]),
    "identity": (chain(a=nn.Identity(), fc=nn.Linear(6, 6), b=nn.Identity()), ["fc"]),
    "F.dropout": (lambda self, x: F.dropout(self.fc(x), 0.3, False), ["fc"]),
    "F.dropout, flag": (lambda self, x: F.dropout(self.fc(x), training=self.training), ["fc"]),
    "F.dropout, never": (lambda self, x: F.dropout(self.fc(x), 0.0), ["fc"]),
    "torch.dropout": (lambda self, x: torch.dropout(self.fc(x), 0.3, False), ["fc"]),
    "contiguous": (lambda self, x: self.fc(x.contiguous()), ["fc"]),
    "contiguous, then reshape": (lambda self, x: x.t().contiguous().reshape(-1), ["t", "reshape"]),
    "clone": (lambda self, x: self.fc(x.clone()) + x, ["fc", "add"]),
    "clone, written before": (written_before, ["fc", "relu_", "mul"]),
    "detach": (lambda self, x: self.fc(x).detach(), ["fc"]),
    "neutral numbers": (lambda self, x: self.fc((0 + x) * 1.0 - 0) / 1, ["fc"]),
    "neutral functions": (lambda self, x: torch.mul(torch.add(self.fc(x), 0), 1), ["fc"]),
    "flatten": (chain(fc=nn.Linear(6, 6), flat=nn.Flatten()), ["fc"]),
    "flatten call": (lambda self, x: torch.flatten(self.fc(x), 1), ["fc"]),
    "view -1": (lambda self, x: self.fc(x).view(-1, 6), ["fc"]),
    "view size": (lambda self, x: self.fc(x.view(x.size(0), 6)), ["fc"]),
    "view shape[0]": (lambda self, x: self.fc(x.reshape(x.shape[0], -1)), ["fc"]),
    "view shape": (lambda self, x: self.fc(torch.reshape(x, (-1, 6))), ["fc"]),
}


@pytest.mark.parametrize(("model", "left"), REMOVED.values(), ids=REMOVED)
def test_takes_out(model: nn.Module | Callable[[Calls, Tensor], Tensor], left: list[str]):
    before = program_of(model)
    result = eliminate(before)
    assert operations(result.program) == left
    assert result.notes == ()
    assert result.details["removed"]
    assert_same(before, result.program)
    again = eliminate(result.program)
    assert again.program is result.program


def written_behind(self: Calls, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = y.clone()
    y.relu_()
    return y - z


def written_through_a_view(self: Calls, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = y + 0
    z[:, 1:].mul_(2)
    return y - z


def item_written(self: Calls, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = y.clone()
    z[:, 0] = 0
    return y - z


def input_written(self: Calls, x: Tensor) -> Tensor:
    return x.contiguous().add_(1)


DECLINED = {
    "always on": (lambda self, x: F.dropout(self.fc(x)), ["dropout: it is on at inference too"]),
    "written behind": (written_behind, ["clone: 'relu_' writes in place behind it"]),
    "written by a module": (chain(fc=nn.Linear(6, 6), a=nn.ReLU(inplace=True)), []),
    "written through a view": (written_through_a_view, ["add: 'imul' writes in place behind it"]),
    "item written": (item_written, ["clone: 'setitem' writes in place behind it"]),
    "input written": (input_written, ["contiguous: 'iadd' writes in place behind it"]),
    "view behind": (lambda self, x: x.t().contiguous().view(-1), ["contiguous: 'view' may need its memory layout"]),
    "view far behind": (
        lambda self, x: F.gelu(x.t().contiguous()).view(-1),
        ["contiguous: 'view' may need its memory layout"],
    ),
    "batch in a view": (
        lambda self, x: self.fc(x.view(2, 6)),
        ["view: it is certain to keep the shape for this batch size only"],
    ),
    "batch of another": (
        lambda self, x: self.fc(x).view(x.size(0), 6),
        ["view: it is certain to keep the shape for this batch size only"],
    ),
    "another shape": (lambda self, x: x.view(-1, 2, 3), []),
    "another type": (lambda self, x: (x > 0) * 1 + 0.0, []),
    "another number": (lambda self, x: 1 - (x + 1) * 0, []),
    "in place": (lambda self, x: self.fc(x).relu_(), []),
}


@pytest.mark.parametrize(("model", "notes"), DECLINED.values(), ids=DECLINED)
def test_declines(model: nn.Module | Callable[[Calls, Tensor], Tensor], notes: list[str]):
    before = program_of(model)
    result = eliminate(before)
    assert result.program is before
    assert [str(note) for note in result.notes] == notes


def test_a_model_in_training_mode_is_read_as_at_inference():
    model = chain(drop=nn.Dropout(), fc=nn.Linear(6, 6)).train()
    assert operations(eliminate(trace(model, (torch.randn(2, 6),))).program) == ["fc"]


def test_options_choose_kinds_and_nodes():
    before = program_of(chain(drop1=nn.Dropout(), fc=nn.Linear(6, 6), drop2=nn.Dropout(), same=nn.Identity()))
    assert operations(eliminate(before, only=["dropout"]).program) == ["fc", "same"]
    result = eliminate(before, keep=["*2"])
    assert operations(result.program) == ["fc", "drop2"]
    assert [str(note) for note in result.notes] == ["drop2: kept by 'keep'"]


ASSERTION = """
program Model {
  input %x : f32[2, 6]
  %size = %x.size(1) : 6
  %eq = %size == 6 : True
  %_assert = torch._assert(%eq, "expected six features") : None
  %exp = %x.exp() : f32[2, 6]
  %tanh = %x.tanh() : f32[2, 6]
  return %tanh
}
"""


def test_what_only_an_assertion_read_goes_with_it_and_other_dead_code_stays():
    before = from_text(ASSERTION)
    result = eliminate(before, only=["assert"])
    assert operations(result.program) == ["exp", "tanh"]
    assert result.details == {"removed": {"assert": ["_assert"]}}
    assert operations(eliminate(before).program) == ["tanh"]
    assert_same(before, result.program)


def test_a_name_that_nothing_has_is_an_error():
    with pytest.raises(PassError, match=r"'keep': nothing is called 'dorp'\nhint: did you mean 'drop'\?"):
        eliminate(program_of(chain(drop=nn.Dropout(), fc=nn.Linear(6, 6))), keep=["dorp"])


def test_leaves_the_given_program_alone():
    before = program_of(chain(drop=nn.Dropout(), fc=nn.Linear(6, 6), same=nn.Identity()))
    graph, state = str(before.graph), dict(before.state)
    after = eliminate(before).program
    assert str(before.graph) == graph
    assert dict(before.state) == state
    assert set(after.state) == {"fc"}
    assert after.state["fc"] is before.state["fc"]
    assert all("val" in node.meta for node in after.graph.nodes if node.op != "output")
