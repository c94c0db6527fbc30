"""One run over the data that watches every read at once: the program's graph with a watcher on each.

    %conv2 = conv2(%pool)        ->      %watch_1 = watch_1(%pool)
                                         %conv2   = conv2(%watch_1)

A watcher passes its value on. It shows `Look` the value as it comes by, or, where there is a loss, the value with the
loss's gradient through this read alone. Parameters are frozen, so the backward pass computes the values' gradients
only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec.compiler.data import Batch
from prunec.compiler.errors import PassError
from prunec.compiler.ir.modules import clone_module, eval_copy, is_scripted, module_tensors
from prunec.compiler.ir.program import Program
from prunec.passes.criteria.reads import Read

Look = Callable[[Read, Tensor, Tensor], None]
"""What is called with a read, its value and its gradient; without a loss, the value stands in the gradient's place."""

Target = Callable[[Any, Batch], Tensor]
"""What is differentiated: a scalar of the model's outputs for a piece."""


class _Tap(torch.autograd.Function):
    """The identity, which shows its value with the gradient. Autograd refuses a value that was overwritten since."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, watcher: _Watcher) -> Tensor:
        ctx.save_for_backward(value)
        ctx.watcher = watcher
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (value,) = ctx.saved_tensors
        ctx.watcher.look(ctx.watcher.read, value, gradients[0])
        return gradients[0] if ctx.needs_input_grad[0] else None, None, None


class _Watcher(nn.Module):
    def __init__(self, read: Read, look: Look) -> None:
        super().__init__()
        self.read, self.look = read, look
        self.anchor = torch.zeros(0, requires_grad=True)
        """An input with a gradient, so that autograd reaches the tap even if nothing before the read needs one."""

    def forward(self, value: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self.look(self.read, value, value)
            return value
        tapped: Tensor = _Tap.apply(value, self.anchor, self)
        return tapped


def evaluated(program: Program, leaves: Mapping[str, nn.Parameter] | None = None) -> Program:
    """The program in evaluation mode, with tensors that share their memory with the old ones but take no gradient.

    `leaves` replaces tensors by name. Nothing of the user's model is touched.
    """
    made: dict[int, Tensor] = {id(program.tensors[name]): leaf for name, leaf in (leaves or {}).items()}

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            bare = tensor.detach()
            made[id(tensor)] = nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare
        return made[id(tensor)]

    state = {name: _own_module(v, own) if isinstance(v, nn.Module) else own(v) for name, v in program.state.items()}
    return program.derive(state=state, training=False)


def _own_module(module: nn.Module, own: Callable[[Tensor], Tensor]) -> nn.Module:
    if is_scripted(module):
        return eval_copy(module)
    tensors = {key: own(t) for key, t in module_tensors("", module) if "." not in key}
    copy = clone_module(module, tensors, training=False)
    for key, child in module._modules.items():
        copy._modules[key] = None if child is None else _own_module(child, own)
    return copy


def watched(program: Program, reads: Sequence[Read], look: Look) -> fx.GraphModule:
    """The program in evaluation mode, with a watcher on every read."""
    return tapped(evaluated(program), reads, look).graph_module


def tapped(program: Program, reads: Sequence[Read], look: Look) -> Program:
    """The program with a watcher on every read; it shares the tensors."""
    graph, mapping = program.copy_graph_with_map()
    watchers: dict[str, nn.Module] = {}
    for number, read in enumerate(reads):
        consumer, source = mapping[read.consumer], mapping[read.source]
        name = f"watch_{number}"
        watchers[name] = _Watcher(read, look)
        with graph.inserting_before(consumer):
            tap = graph.call_module(name, (source,))
        tap.meta.update(source.meta)
        _reroute(consumer, source, tap)
    return program.derive(graph=graph, state={**program.state, **watchers})


def _reroute(consumer: fx.Node, source: fx.Node, tap: fx.Node) -> None:
    """Let the consumer read the tap; if it already reads another of the same value, the new one goes behind that."""
    inputs = consumer.all_input_nodes
    earlier = [node for node in inputs if node.name.startswith("watch_") and node.args == (source,)]
    if source in consumer.all_input_nodes:
        consumer.replace_input_with(source, tap)
    else:
        tap.args = (earlier[0],)
        consumer.replace_input_with(earlier[0], tap)


def look_once(module: fx.GraphModule, piece: Batch, target: Target | None) -> Any:
    """Run a watched module over a piece, and backwards from the target where there is one; gives the outputs."""
    with torch.set_grad_enabled(target is not None):
        outputs = piece.through(module)
        if target is not None:
            scalar = target(outputs, piece)
            _backwards(scalar)
    return outputs


def _backwards(scalar: Tensor) -> None:
    if not scalar.requires_grad:
        return
    try:
        torch.autograd.backward(scalar)
    except RuntimeError as error:
        raise PassError(f"the loss can't be taken backwards: {error}", keys=("criterion",)) from error
