"""Both modes of a model: what it gives in eval mode and in train mode, compiled together.

    original    eval: logits                train: (logits, aux)
    slim        eval: logits                train: (logits, aux)

In mode `train` the model is traced in either mode, and the two traces become one program (`tracing.joint_graph`). Where
they can't, the program is that of train mode, which the slim module then runs in eval mode, too; a warning says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.inputs import Inputs
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.train_eval import MODES, Mode
from prunec.compiler.tracing.batch_dim import check_batch
from prunec.compiler.tracing.either_way import unchecked
from prunec.compiler.tracing.joint_graph import joint_program
from prunec.compiler.tracing.other_sizes import size_warnings
from prunec.compiler.tracing.trace import recorded, trace
from prunec.compiler.tracing.training_flag import FOLLOWS
from prunec.compiler.tracing.weight_folding import with_plain_weights

SHOWN = 3
"""How many places a warning names."""

_KINDS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
"""Layers that behave differently in training."""


def trace_modes(
    model: nn.Module, example_inputs: Inputs, mode: Mode, *, name: str | None = None
) -> tuple[Program, tuple[str, ...]]:
    """The program of a model for a compile in this mode, and warnings for the user. Raises what `trace` raises.

    In mode `train` it is a program of both modes, unless these are the same.
    """
    if mode == "eval":
        program = trace(model, example_inputs, name=name)
        return program, (
            *_goes_without(program),
            *size_warnings(program, example_inputs, partial(trace, model, advise=False)),
        )
    trained = recorded(model, example_inputs, name=name, mode="train")
    warnings = _goes_without(trained)
    try:
        traced = recorded(model, example_inputs, name=name)
        joint = joint_program(traced, trained)
        warnings = (*warnings, *size_warnings(traced, example_inputs, partial(recorded, model, advise=False)))
    except ModelError as error:
        joint, warnings = trained, (*warnings, _one_result(error))
    program = with_plain_weights(joint)
    output_of(program.graph).meta |= {"left_out": left_out(trained), "one_result": joint is trained}
    for each in MODES:
        check_batch(program.half(each))
    return program, warnings


def left_out(program: Program) -> Sequence[str]:
    """What the model gives back besides tensors, which a program that was just traced doesn't give."""
    names: Sequence[str] = output_of(program.graph).meta.get("left_out", ())
    return names


def one_result(program: Program) -> bool:
    """Whether a program that was just traced gives in eval mode what the original gives in train mode."""
    return bool(output_of(program.graph).meta.get("one_result"))


def _goes_without(program: Program) -> tuple[str, ...]:
    warnings = []
    if left_out(program):
        names = " and ".join(left_out(program))
        warnings.append(f"of what the model gives back, {names} is left out: a graph gives tensors alone")
    if places := unchecked(program.graph):
        warnings.append(f"the slim model goes without the checks of values that raise at {' and '.join(places)}")
    return tuple(warnings)


def _one_result(error: ModelError) -> str:
    return (
        "compiled in mode 'train': the slim module does what the original does in train mode, in eval mode, too; "
        f"the original's eval mode can't be compiled along ({error.message})"
    )


def train_warnings(before: Program, after: Program) -> list[str]:
    """Warnings about a slim module that is to be trained on: which dropouts and batch norms passes took out."""
    left = _by_mode(after)
    gone = [name for name in _by_mode(before) if name not in left]
    if not gone:
        return []
    shown = ", ".join(gone[:SHOWN]) + (", ..." if len(gone) > SHOWN else "")
    return [
        f"in train mode the slim module goes without batch statistics or dropout in {len(gone)} places, where passes "
        f"took them out: {shown}"
    ]


def _by_mode(program: Program) -> list[str]:
    """The layers and functions that behave differently in training."""
    layers = [name for name, value in program.state.items() if isinstance(value, _KINDS)]
    return layers + [node.name for node in program.graph.nodes if node.op == "call_function" and node.target in FOLLOWS]
