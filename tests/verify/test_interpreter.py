"""Programs run node by node: nothing of them changes, and values are freed after their last use."""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from slimmed_by_hand import Chain, Net, program_of, seeded
from torch import Tensor, fx, nn

from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.interpreter import Interpreter, describe
from prunec.compiler.verify.reference import Same
from prunec.compiler.verify.verify import verify


def test_dropout_and_training_mode_play_no_part_and_nothing_is_changed():
    class Dropping(Net):
        def forward(self, x):
            return F.dropout(self.drop(self.bn(self.fc(x))), 0.5)

    model = seeded(Dropping(fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3), drop=nn.Dropout())).train()
    program = program_of(model, torch.ones(2, 4))
    before = {key: tensor.clone() for key, tensor in program.tensors.items()}
    assert verify(program, Same(program), pass_name="nothing").difference == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in program.tensors.items())
    assert all(module.training for module in program.state.values() if isinstance(module, nn.Module))
    assert torch.get_default_dtype() == torch.float32


def test_values_are_freed_after_their_last_use():
    steps = Interpreter(
        program_of(Chain(**{f"l{i}": nn.Linear(4, 4) for i in range(5)}), torch.ones(2, 4)), torch.float32
    )
    alive: list[weakref.ref[Tensor]] = []
    for _, value in steps.steps((torch.ones(2, 4),)):
        if isinstance(value, Tensor):
            alive.append(weakref.ref(value))
        del value
        assert sum(ref() is not None for ref in alive) <= 2
    assert len(alive) == 7


def test_a_node_is_told_with_what_it_calls():
    class Calling(Net):
        def forward(self, x):
            return F.relu(self.fc(x)).neg()

    program = program_of(Calling(fc=nn.Linear(4, 3)), torch.ones(2, 4))
    told = [describe(node) for node in program.graph.nodes if node.op.startswith("call")]
    assert told == ["node 'fc' (fc)", "node 'relu' (relu)", "node 'neg' (neg)"]


def test_a_layer_runs_with_the_layers_in_it_on_other_values_and_keeps_its_own():
    """A layer that is called as a whole, of which the inner ones have tensors of all types."""
    inner = seeded(nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.BatchNorm1d(3)))).train()
    graph = fx.Graph()
    graph.output(graph.call_module("whole", (graph.placeholder("x"),)))
    other, kept = torch.full((3,), 0.25), {key: tensor.clone() for key, tensor in inner.state_dict().items()}
    x = torch.rand(2, 4)
    program = Program(graph, {"whole": inner}, (x,))
    got = Interpreter(program, torch.float64, {"whole.1.0.running_mean": other}).run((x,))
    norm = inner[1][0]
    want = (F.linear(x, inner[0].weight, inner[0].bias) - other) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(got.float(), (want * norm.weight + norm.bias).detach())
    assert all(torch.equal(kept[key], tensor) for key, tensor in inner.state_dict().items())
    assert all(part.training for part in inner.modules())


def test_a_scripted_part_runs_on_other_values_and_keeps_its_own():
    model = Chain(scripted=torch.jit.script(nn.Linear(4, 3)), last=nn.Linear(3, 2)).eval()
    program = trace(model, (torch.ones(2, 4),))
    other = torch.full((3, 4), 0.25)
    kept = model.scripted.weight.detach().clone()
    x = torch.rand(2, 4)
    got = Interpreter(program, torch.float64, {"scripted.weight": other}).run((x,))
    hidden = F.linear(x.double(), other.double(), model.scripted.bias.double())
    want = F.linear(hidden, *map(Tensor.double, model.last.parameters()))
    torch.testing.assert_close(got, want.detach())
    assert torch.equal(model.scripted.weight, kept)
