"""Weights that are no numbers: NaN and infinite values are refused by the tensor's name, before any pass runs.

    parameters                                        neither NaN nor infinite
    running statistics of batch and instance norm     neither NaN nor infinite
    other buffers                                     no NaN; infinite values are constants, such as the -inf of a mask

A single NaN in a weight makes every score of its layer, and every output, a NaN; a network that diverged in training
would be made smaller without a word. What a plan names under `allow_nonfinite` is let through.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from prunec.compiler.errors import ModelError, PassError, Span
from prunec.compiler.ir.program import Program
from prunec.compiler.plan.plan import Plan

_NAMED = 3
"""How many tensors an error names."""


def check_finite(program: Program, plan: Plan) -> None:
    """Raise `ModelError` where a tensor that the program reads isn't finite, unless the plan allows it."""
    allowed = plan.allow_nonfinite or ()
    found = {
        name: what for name, what in nonfinite(program).items() if not any(fnmatchcase(name, each) for each in allowed)
    }
    if not found:
        return
    listed = ", ".join(f"'{name}' holds {what}" for name, what in list(found.items())[:_NAMED])
    more = f", and {len(found) - _NAMED} more tensors aren't finite" if len(found) > _NAMED else ""
    at = plan.at("model", "weights") if plan.model and plan.model.weights else plan.at("model")
    hint = f"did its training diverge? allow_nonfinite: ['{next(iter(found))}'] in the plan lets a tensor through"
    raise ModelError(f"the model isn't finite: {listed}{more}", at=at, hint=hint)


def check_stays_finite(before: Program, after: Program, pass_name: str, at: Span | None) -> None:
    """Raise `PassError` where a pass has made the tensors of a finite program infinite, or NaN."""
    if nonfinite(before):
        return
    for name, what in nonfinite(after).items():
        raise PassError(f"the pass '{pass_name}' makes '{name}' hold {what}", at=at)


def nonfinite(program: Program) -> dict[str, str]:
    """The tensors that aren't finite and should be, with what they hold, in words."""
    return program.cached("nonfinite", lambda: _nonfinite(program))


def _nonfinite(program: Program) -> dict[str, str]:
    statistics = set(_statistics(program))
    found = {}
    for name, tensor in program.tensors.items():
        what = _held(tensor)
        if what == "NaN" or (what and (isinstance(tensor, nn.Parameter) or name in statistics)):
            found[name] = what
    return found


def _held(tensor: torch.Tensor) -> str:
    """What a tensor holds that is no number, in words; empty where all are."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel() or tensor.is_meta:
        return ""
    values = tensor.detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    ends = torch.stack(torch.aminmax(values if values.element_size() > 1 else values.float()))  # one pass; NaN wins
    if ends.isnan().any():
        return "NaN"
    return "an infinite value" if ends.isinf().any() else ""


def _statistics(program: Program) -> Iterator[str]:
    """The names of running means and variances."""
    for name, module in program.state.items():
        if isinstance(module, _NormBase):
            yield from (f"{name}.running_mean", f"{name}.running_var")
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in (F.batch_norm, F.instance_norm):
            given = (*node.args[1:3], node.kwargs.get("running_mean"), node.kwargs.get("running_var"))
            yield from (str(each.target) for each in given if isinstance(each, fx.Node) and each.op == "get_attr")
