"""Code that real forwards hold besides operations: contexts, scripted functions, tensors in the place of numbers.

Each traces, and the program computes what the model does, on another batch, too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunec.compiler.errors import ModelError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.inputs import arguments
from prunec.compiler.ir.modules import named_modules
from prunec.compiler.tracing.trace import trace
from prunec.compiler.tracing.tracer import Tracer
from prunec.compiler.verify.compare import difference


def _script(function: Callable[..., Any]) -> Any:
    with pytest.warns(FutureWarning, match="deprecated"):
        return torch.jit.script(function)


def _gated(x: Tensor, y: Tensor, count: Tensor) -> Tensor:
    n = count[0]
    both = x + y
    return torch.tanh(both[:, :n]) * torch.sigmoid(both[:, n:])


class Traced(nn.Module):
    """A linear layer, some buffers, and a forward that is given."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(6, 8)
        self.norm: Tensor
        self.register_buffer("norm", torch.tensor(4.0))
        self.scripted = _script(_gated) if run is scripted else None
        self._run = run

    def forward(self, x: Tensor) -> Any:
        """What the table says."""
        return self._run(self, x)


def scripted(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.scripted(y, torch.zeros_like(y), torch.IntTensor([4]))


def uncast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        return m.a(x.float())


def decided(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    policy = torch.distributions.Categorical(logits=m.a(x))
    return policy.log_prob(policy.logits.argmax(-1)), policy.entropy()


def scaled(m: Any, x: Tensor) -> Tensor:
    one = torch.tensor(1.0, dtype=m.norm.dtype, device=m.norm.device)
    y = m.a(x)
    return torch.baddbmm(torch.zeros(1, 8, 8), y[:, :, None], y[:, None], beta=1.0, alpha=one / m.norm)


FORWARDS = {
    "autocast on the device of an input": uncast,
    "a scripted function, and a slice by a tensor": scripted,
    "a distribution": decided,
    "a factor that is a buffer": scaled,
    "new_tensor of an array": lambda m, x: m.a(x) + x.new_tensor(np.arange(8)).unsqueeze(0),
    "new by sizes": lambda m, x: m.a(x) + x.data.new(x.size(0), 8).zero_(),
    "a place that depends on the input": lambda m, x: m.a(x)[:, m.a(x).mean(0).argmax()],
    "complex numbers": lambda m, x: (m.a(x) * (1 + 2j)).imag,
}


@pytest.mark.parametrize("name", FORWARDS)
def test_the_program_computes_what_the_model_does(name):
    model = Traced(FORWARDS[name]).eval()
    program = trace(model, (torch.rand(2, 6),))
    for batch in (2, 5):
        x = torch.rand(batch, 6)
        with torch.no_grad():
            assert difference(program.module(x), model(x)) < 1e-6


def test_what_is_put_in_place_for_a_trace_is_taken_back():
    before = torch.autocast.__init__, torch.jit.ScriptFunction.__call__, torch.distributions.Distribution._validate_args
    trace(Traced(uncast), (torch.rand(2, 6),))
    after = torch.autocast.__init__, torch.jit.ScriptFunction.__call__, torch.distributions.Distribution._validate_args
    assert before == after


HIDDEN: list[nn.Module] = []
"""Where a forward finds a layer besides in its model."""


class Watched(nn.Module):
    """Tells what is called in place of the calls of its layer, while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        """Looks, and runs the layer in another thread, too."""
        self.seen.append(nn.Linear._compiled_call_impl)
        with ThreadPoolExecutor(1) as pool:
            self.seen.append(pool.submit(lambda: HIDDEN[0](torch.ones(1, 6))).result())
        return self.layer(x)


def test_calls_of_modules_are_sent_to_the_tracer_in_its_own_thread_and_while_it_runs():
    model, calls = Watched().eval(), nn.Module.__call__
    HIDDEN[:] = [model.layer]
    tracer = Tracer(model, named_modules(model))
    tracer.run_forward(arguments(model, (torch.rand(2, 6),)))
    asked, given = tracer.copy.root.seen  # type: ignore[misc]
    assert asked is not None
    assert given.device.type == "cpu", "what runs elsewhere runs as ever"
    assert nn.Module.__call__ is calls
    assert nn.Linear._compiled_call_impl is None
    assert [node.op for node in tracer.graph.nodes] == ["placeholder", "call_module", "output"]


def test_a_module_that_was_compiled_in_place_is_traced_where_it_is_called_itself():
    layer = nn.Linear(6, 8)
    layer.compile(backend="eager")
    compiled = layer._compiled_call_impl

    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return HIDDEN[0](x)

    HIDDEN[:] = [layer]
    program = trace(Hides().eval(), (torch.rand(2, 6),))
    assert [node.op for node in program.graph.nodes] == ["placeholder", "call_module", "output"]
    assert layer._compiled_call_impl is compiled


REFUSED = {
    "where": (lambda m, x: torch.where(m.a(x) > 0)[0], r"size of a result depends on the values.*`where`"),
    "packed": (
        lambda m, x: nn.utils.rnn.pack_padded_sequence(m.a(x)[None], (x[:1, 0] > 2).long() + 1, batch_first=True).data,
        r"read as Python numbers \(`pack_padded_sequence`\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_values_is_refused(name):
    run, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        trace(Traced(run), (torch.rand(2, 6),))
    assert "region" in str(caught.value.hint)


def test_new_memory_by_sizes_follows_its_width():
    model = nn.Sequential(Traced(lambda m, x: m.a(x) + x.data.new(x.size(0), 8).zero_()), nn.Linear(8, 3))
    group = next(iter(analyse(trace(model, (torch.rand(2, 6),))).groups.values()))
    assert int(group.free.sum()) == 8


class Held(nn.Module):
    """A forward that reads a parameter of the model in its own way, and not through the model."""

    def __init__(self, reads: Callable[[Any], Callable[[], Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self._read = reads(self.a)

    def forward(self, x: Tensor) -> Tensor:
        """The first layer by hand."""
        return self.b((x @ self._read().t()).relu())


@pytest.mark.parametrize(
    "reads",
    [lambda layer: lambda weight=layer.weight: weight, lambda layer: lambda weights=(layer.weight,): weights[0]],
    ids=["a default", "in a tuple"],
)
def test_a_parameter_that_is_reached_in_another_way_keeps_its_name(reads):
    model = Held(reads).eval()
    program = trace(model, (torch.rand(2, 6),))
    assert program.tensors["a.weight"] is model.a.weight
    assert [int(g.free.sum()) for g in analyse(program).groups.values() if g.name == "a.weight[0]"] == [8]


class Shared(nn.Module):
    """A weight that is computed by statistics, from a parameter that the forward reads in another way, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.rand(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Both uses, of which one goes through a value that the other shares."""
        lifted = self.w.exp()
        weight = lifted / lifted.softmax(0)
        return x @ weight.t() + lifted.sum(1) + self.w.sum(1)


def test_a_parameter_with_other_readers_keeps_its_values():
    model = Shared().eval()
    program = trace(model, (torch.rand(2, 6),))
    x = torch.rand(3, 6)
    with torch.no_grad():
        assert difference(program.module(x), model(x)) < 1e-6


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_complex_values_are_compared(off):
    want = torch.tensor([1 + 1j, 2.0])
    assert difference(want + off * 1j, want) == pytest.approx(off / 2, abs=1e-6)
