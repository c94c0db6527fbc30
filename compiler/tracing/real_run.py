"""A model as it is, run on its example inputs: what fails in it is told as its own, before anything of ours runs.

    net.py:12:5: the model doesn't run on the example inputs: head (Linear): mat1 and mat2 must have the same dtype
        return self.head(x)
               ^^^^^^^^^^^^
    hint: they are x float32 [2, 8] from -2.31 to 1.97

A trace has no values, and torch doesn't check all dtypes without them: it can't see an index beyond a table, a check of
values that raises, or a layer in double precision behind one in single.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.inputs import Arguments, map_tensors, names_of, tensors_in
from prunec.compiler.ir.modules import evaluating, named_modules
from prunec.compiler.ir.random_inputs import seeded
from prunec.compiler.ir.wrappers import uncompiled
from prunec.compiler.tracing.user_state import untouched
from prunec.compiler.user_code import name_of, running, text_of, told, user_span

_NO_KERNEL: Final = tuple(f"not implemented for '{kind}'" for kind in ("Half", "BFloat16", "Float8"))
"""What torch says where it can't compute in low precision on this machine, which is no fault of the model's."""


def check_runs(model: nn.Module, inputs: Arguments) -> None:
    """Run the model once on these inputs, in eval mode; it says nothing, and is afterwards as it was before.

    Raises ModelError, with the module and the place in the user's file, where it fails.
    """
    values = {name: map_tensors(torch.clone, value) for name, value in inputs.inputs.items()}
    args, kwargs = inputs.call(values)
    with really_run(model, inputs), quiet():
        try:
            copy_context().run(partial(model, *args, **kwargs))
        except RuntimeError as error:
            if not any(words in text_of(error) for words in _NO_KERNEL):
                raise


@contextmanager
def really_run(model: nn.Module, inputs: Arguments | None = None) -> Iterator[None]:
    """A context to run a model in, in eval mode and without gradients; what that raises becomes a ModelError."""
    explain = partial(_explained, model, inputs)
    watched = running("", ModelError, explain=explain)
    with watched, untouched(model), uncompiled(), seeded(0), torch.no_grad(), evaluating(model):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """What user code prints, logs and warns of is dropped: a run of ours says nothing to the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _explained(model: nn.Module, inputs: Arguments | None, error: BaseException) -> ModelError:
    where = failed_in(model, error)
    text = f"the model doesn't run on the example inputs: {where}: {words(error)}"
    if inputs is None or not isinstance(error, Exception):
        return ModelError(text, at=user_span(error))
    shown = (line for name, value in inputs.inputs.items() for line in _shown(name, value))
    return ModelError(text, at=user_span(error), hint=f"they are {', '.join(shown)}")


def words(error: BaseException) -> str:
    """The first line of what an exception says; torch's own texts say enough without the exception's type."""
    text = (text_of(error) or name_of(error)).splitlines()[0]
    return text if type(error) in (RuntimeError, ValueError) else told(error).splitlines()[0]


def failed_in(model: nn.Module, error: BaseException) -> str:
    """The innermost module of a model whose forward had begun when an exception was raised: its name and class."""
    names = {id(part): name for name, part in named_modules(model).items()}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return f"{found} ({type(model.get_submodule(found)).__name__})" if found else type(model).__name__


def _shown(name: str, value: Any) -> Iterator[str]:
    """Dtype, shape and range of each tensor in an input."""
    for each, tensor in zip(names_of(name, value), tensors_in(value), strict=True):
        yield f"{each} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}{_range(tensor)}"


def _range(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool or tensor.is_complex() or not tensor.numel():
        return ""
    low, high = (each.item() for each in tensor.aminmax())
    return f" from {low:.3g} to {high:.3g}" if tensor.is_floating_point() else f" from {low} to {high}"
