"""Finds where a rewrite went wrong: the first node whose value differs from the reference's and spoils the output.

node     conv1      relu       conv2      add        output
value    same       same       differs    differs    differs     conv2 is named in the error
value    differs    same       differs    differs    differs     conv2 again: behind conv1 the values agree
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import seeded
from prunec.compiler.verify.compare import Comparison, Trial, compare_values
from prunec.compiler.verify.interpreter import Interpreter, StepError, describe
from prunec.compiler.verify.reference import Reference


def first_difference(after: Program, reference: Reference, trial: Trial, dtype: torch.dtype, tolerance: float) -> str:
    """A sentence on the first node that differs, and that the difference of the output comes from.

    A rewrite may change a value on purpose (a convolution with a batch norm folded in). Then the values agree again
    further on. So a node counts only if a path of nodes that don't agree leads from it to the output. `trial` is the
    comparison that failed, in `dtype`; values that differ by no more than `tolerance` agree.
    """
    got, crash = _all_values(after, trial.inputs, dtype)
    compared: dict[fx.Node, Comparison | None] = {}
    with seeded(0):
        for node, value in reference.values(trial.inputs, dtype):
            compared[node] = compare_values(value, got[node.name], diagnose=True) if node.name in got else None
    agreeing = {node for node, found in compared.items() if found is not None and found.difference <= tolerance}
    reached = _leading_to_output(compared, agreeing)
    suspects = [(node, found) for node, found in compared.items() if found is not None and node in reached]
    if not suspects:
        return crash or "all values agree, but the outputs are nested in another way or hold other numbers"
    return _sentence(suspects, dtype) + (f"; then {crash}" if crash else "")


def _sentence(suspects: Sequence[tuple[fx.Node, Comparison]], dtype: torch.dtype) -> str:
    """What to say of the first suspect; if it only reorders elements, also of the first one that does more."""
    node, found = suspects[0]
    text = (
        f"{describe(node)} is the first whose value differs: relative difference {found.difference:.2g} in "
        f"{str(dtype).removeprefix('torch.')}, shape {found.got}, expected {found.want}"
    )
    other = next((node for node, found in suspects if not found.reordered), None)
    if not found.reordered:
        return text
    return f"{text} (the same elements in another order" + (f"; in {describe(other)} others)" if other else ")")


def _all_values(program: Program, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[dict[str, Any], str]:
    """Node name -> value (a copy, since later nodes may write in place), and why the run stopped early, if it did."""
    values: dict[str, Any] = {}
    try:
        with seeded(0):
            for node, value in Interpreter(program, dtype).steps(inputs):
                values[node.name] = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)
    except StepError as error:
        return values, str(error)
    return values, ""


def _leading_to_output(order: Iterable[fx.Node], agreeing: Set[fx.Node]) -> Set[fx.Node]:
    """The nodes of `order` from which a path of nodes that don't agree leads to the output."""
    reached: set[fx.Node] = set()
    for node in reversed(list(order)):
        if node not in agreeing and (node.op == "output" or any(user in reached for user in node.users)):
            reached.add(node)
    return reached
