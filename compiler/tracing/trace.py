"""From a model to a program: one run of its forward in eval mode, on tensors that have shapes and no data.

    model, (x,)  --trace-->  Program
                               graph   one node an operation, node.meta["val"] its value on the meta device
                               state   the original's leaf modules and tensors by their dotted names, shared

What Python decides during the run (`if x.shape[2] > 7`, loops over sizes, buffers used as flags) is decided by the
example inputs; arithmetic on sizes stays in the graph. `node.meta` also holds, where it is known, `scope` (the dotted
name of the module whose forward made the node), `at` (file and line) and `mutates` (the node writes into an operand).
"""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import ModelError, Span
from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.graph import is_impure, output_of
from prunec.compiler.ir.inputs import Arguments, Inputs, arguments, tensors_in
from prunec.compiler.ir.modules import eval_copy, named_modules, unhooked
from prunec.compiler.ir.program import Program, State
from prunec.compiler.ir.train_eval import Mode
from prunec.compiler.ir.wrappers import uncompiled
from prunec.compiler.tracing.answers import Answers
from prunec.compiler.tracing.batch_dim import check_batch
from prunec.compiler.tracing.dynamic_batch import follow_batch
from prunec.compiler.tracing.either_way import either_way
from prunec.compiler.tracing.float_arguments import write_floats
from prunec.compiler.tracing.lowering import plain_linear
from prunec.compiler.tracing.parametrizations import without_parametrizations
from prunec.compiler.tracing.real_run import check_runs, words
from prunec.compiler.tracing.symbolic_numbers import Refused
from prunec.compiler.tracing.tracer import Tracer
from prunec.compiler.tracing.user_state import undisturbed
from prunec.compiler.tracing.weight_folding import with_plain_weights
from prunec.compiler.user_code import running, text_of, user_span

_ON_SHAPES = (
    "the model itself runs on the example inputs; this line doesn't on tensors that have shapes and no data: write it "
    "with operations of tensors, or name a part of the model that leaves it out: region: backbone"
)


_RENAME = "give it another name in the model, and in its weights"


class _Foreign(ModelError):
    """What the user's code or torch's raised, neither of which says what it means for a trace."""


NOT_BOOL = "must be bool, not Flag"
"""What compiled functions say when they are given the traced flag `training`, which is no true bool."""


@gc_paused()
def trace(
    model: nn.Module, example_inputs: Inputs, *, name: str | None = None, mode: Mode = "eval", advise: bool = True
) -> Program:
    """The program of a model for inputs like the example's. The model isn't changed, and its weights are shared.

    `example_inputs` are forward's arguments: a tuple in order, or a mapping by name. Those that hold no tensor are
    decided for good, see `ir.inputs`. In mode `train`, Python code that asks for `self.training` takes the branches of
    train mode, such as those of auxiliary heads; dropout and batch norm follow the program's own flag in either mode,
    in mode `train` also where they were given a bare `training=True`.
    Weights that are computed from others (weight norm, parametrizations, weight standardisation) become plain ones: see
    `tracing.parametrizations` and `tracing.weight_folding`.
    A dataclass or mapping that the model gives back becomes a dict. Raises ModelError where the model can't be traced
    (with the module and the source line), where the inputs don't fit it, and for `check_batch`'s fault; where it fails
    in foreign code, the model itself is run once, to `advise` what to do about it.
    """
    with running(f"{type(model).__name__} can't be traced", ModelError, mixed=True):
        program = with_plain_weights(recorded(model, example_inputs, name=name, mode=mode, advise=advise))
        check_batch(program)
    return program


def recorded(
    model: nn.Module, example_inputs: Inputs, *, name: str | None = None, mode: Mode = "eval", advise: bool = True
) -> Program:
    """`trace` without its last two steps: no computed weight is made plain, and views of the batch aren't checked.

    Where that fails in the user's code or in torch's, the model itself is run, to `advise` what to do about it.
    """
    inputs = arguments(model, example_inputs)
    try:
        tracer = _run(model, inputs, mode)
    except _Foreign as error:
        hint = _ON_SHAPES if advise and _runs(model, inputs) else error.hint
        raise ModelError(error.message, at=error.at, hint=hint) from error.__cause__
    if tracer.froze:
        follow_batch(tracer.graph, inputs, lambda others: _run(model, others, mode).graph)
    tracer.constants.fold(tracer.graph)
    write_floats(tracer.graph)
    if any(not node.users for node in tracer.graph.nodes if node.op != "output"):
        tracer.graph.eliminate_dead_code(is_impure)
    _check_names(tracer.graph)
    _check_inputs_matter(tracer.graph, type(model).__name__)
    _check_not_empty(tracer, type(model).__name__)
    return Program(
        graph=tracer.graph,
        state=_state(tracer),
        inputs=tuple(inputs.inputs.values()),
        name=name or type(model).__name__,
        training=False,
    )


def _run(model: nn.Module, inputs: Arguments, mode: Mode) -> Tracer:
    """Trace the forward; where that is refused, once more in a way that may help.

    Where values of a tensor were asked for, the model is told that it is being exported, so that it may leave out
    shortcuts that depend on them. Where a compiled function wants a true bool, `training` is one, so that the mode is
    decided. Where code asks whether values are true, it is traced `either_way`.
    """
    try:
        return _attempt(model, inputs, mode)
    except ModelError as error:
        refused, unflagged = isinstance(error.__cause__, Refused), NOT_BOOL in error.message
        if not (refused or unflagged):
            raise
        try:
            return _attempt(model, inputs, mode, exporting=refused, flagged=not unflagged)
        except ModelError:
            found = either_way(lambda known: _attempt(model, inputs, mode, exporting=refused, answers=known))
            if found is None:
                raise error from error.__cause__
            return found


def _attempt(
    model: nn.Module,
    inputs: Arguments,
    mode: Mode,
    *,
    exporting: bool = False,
    flagged: bool = True,
    answers: Answers | None = None,
) -> Tracer:
    tracer: Tracer | None = None

    def explain(error: BaseException) -> ModelError:
        return _explained(error, model, tracer, inputs)

    watched, named = running("the forward failed", ModelError, explain=explain), named_modules(model)
    with watched, gc_paused(), undisturbed(model, named.values()), uncompiled():
        # Next to nothing that a trace makes is garbage.
        plain = without_parametrizations(model, named.values())
        named = named if plain is model else named_modules(plain)
        tracer = Tracer(plain, named, training=mode == "train", flagged=flagged, answers=answers)
        copy_context().run(tracer.run_forward, inputs, exporting=exporting)  # what it sets in a ContextVar ends with it
    return tracer


def _check_names(graph: fx.Graph) -> None:
    """Raise ModelError for a part whose name no code that torch writes for a graph can spell."""
    for node in graph.nodes:
        parts = node.target.split(".") if node.op in ("call_module", "get_attr") else ()
        for part in parts:
            if not part.isprintable() or '"' in part or "\\" in part:
                raise ModelError(f"the part {node.target!r} has a name that can't be written in code", hint=_RENAME)


def _check_inputs_matter(graph: fx.Graph, name: str) -> None:
    """Raise ModelError where no input is read: then the forward gives what an earlier run has left in an attribute."""
    if any(node.users for node in graph.find_nodes(op="placeholder")):
        return
    raise ModelError(
        f"{name}: nothing that the model gives depends on its inputs",
        hint="does it read a tensor that an earlier run has left in an attribute, or that a hook has put elsewhere?",
    )


def _check_not_empty(tracer: Tracer, name: str) -> None:
    """Raise ModelError where an output, or what a layer gives, has no elements: no run could tell
    whether its channels matter."""
    for node in (*tracer.graph.find_nodes(op="call_module"), *output_of(tracer.graph).all_input_nodes):
        value = node.meta["val"]
        leaves = (value,) if type(value) is torch.Tensor else pytree.tree_leaves(value)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        empty = next((tensor for tensor in tensors if not tensor.numel()), None)
        if empty is None:
            continue
        what = str(node.target) if node.op == "call_module" else "the model"
        raise ModelError(
            f"{name}: {what} gives an empty tensor, {list(empty.shape)}, on the example inputs",
            at=Span.of_line(node.meta.get("at")),
            hint="would larger example inputs, or more of them in a batch, give more?",
        )


def _state(tracer: Tracer) -> dict[str, State]:
    """The modules (in eval mode) and tensors of the original that the graph reads, by name."""
    state: dict[str, State] = {}
    modules = {standin.name: standin.original for standin in tracer.copy.modules.values()}
    for node in tracer.graph.nodes:
        target = str(node.target)
        if target in state:
            continue
        if node.op == "call_module":
            state[target] = unhooked(eval_copy(plain_linear(modules[target])))
        elif node.op == "get_attr" and target in tracer.copy.tensors:
            state[target] = tracer.copy.tensors[target][0]
        elif node.op == "get_attr" and target in tracer.constants.added:
            state[target] = tracer.constants.added[target]
    return state


def _explained(error: BaseException, model: nn.Module, tracer: Tracer | None, inputs: Arguments) -> ModelError:
    """The error in words: which module, which line, what is wrong and what would be right."""
    where = type(model).__name__
    if tracer and tracer.failed and tracer.failed[0] is error and tracer.failed[1].name:
        standin = tracer.failed[1]
        where = f"{standin.name} ({type(standin.original).__name__})"
    if isinstance(error, Refused):
        return ModelError(f"{where}: {text_of(error).splitlines()[0]}", at=user_span(error), hint=error.hint)
    text = words(error)
    if NOT_BOOL in text:
        hint = "give `self.training` to the function's namesake in torch.nn.functional, which the tracer sees"
        return ModelError(f"{where}: {text}", at=user_span(error), hint=hint)
    if not isinstance(error, Exception):  # a forward that ends the program doesn't do so for its inputs' sake
        return ModelError(f"{where}: {text}", at=user_span(error))
    shapes = ", ".join(f"{key} {_shapes(value)}" for key, value in inputs.inputs.items())
    asked = f"the example inputs are {shapes}: does the model run on such inputs?"
    return _Foreign(f"{where}: {text}", at=user_span(error), hint=asked)


def _runs(model: nn.Module, inputs: Arguments) -> bool:
    """Whether the model itself runs on the example inputs."""
    try:
        check_runs(model, inputs)
    except ModelError:
        return False
    return True


def _shapes(value: Any) -> str:
    return " ".join(str(list(x.shape)) for x in tensors_in(value))
