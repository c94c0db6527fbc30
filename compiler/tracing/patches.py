"""What is put in the place of things of torch that can't be traced, for the time of a trace.

    patched                            what user code meets
      torch.compiler.is_exporting()    true where asked for, as for torch.export: code that asks leaves out shortcuts
                                       that depend on the values of a tensor, such as that of a mask that masks nothing
      torch.autocast(x.device.type)    nothing is cast
      Categorical(logits=x)            its arguments aren't checked, which would look at their values
      scripted(x, y)                   the Python function that the script was made from is called, and so traced
      x.set_()                         nothing is freed
      copy.copy(x)                     x.detach(), which shares the memory, too
      torch.dropout(x, p, flag)        its namesake in torch.nn.functional, which takes a traced flag
    written_out                        what torch's own transformers meet
      the fast path of eval mode       is off, so that the layers' operations are traced
      _detect_is_causal_mask           doesn't look at the mask's values
    module_calls_sent_to
      the call of a module             the tracer is asked first: it makes a leaf one node

A program computes in the precision of its weights and inputs: what casts during one call of the model is no part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import transformer

from prunec.compiler.tracing.symbolic_numbers import Refused

_Function = Callable[..., Any]

_ASKED = "_compiled_call_impl"
"""The attribute that `nn.Module.__call__` asks first for what to call in its place."""

_FLAGS = ("_is_compiling_flag", "_is_exporting_flag")
"""What `torch.compiler.is_exporting()` reads."""

_TAKES_FLAG: Mapping[str, _Function] = {
    "dropout": F.dropout,
    "alpha_dropout": F.alpha_dropout,
    "feature_alpha_dropout": F.feature_alpha_dropout,
}
"""Compiled functions that refuse a traced flag for a bool -> their namesakes in Python, with the same parameters."""


@contextmanager
def patched(*, exporting: bool) -> Iterator[None]:
    """What user code meets during a trace, as in the module's text; all is put back at the end."""
    distribution = torch.distributions.Distribution
    validates = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        with (
            _replaced(torch, _TAKES_FLAG),
            _replaced(torch.compiler, dict.fromkeys(_FLAGS, exporting)),
            _replaced(torch.autocast, {"__init__": _idle(torch.autocast.__init__)}),
            _replaced(torch.jit.ScriptFunction, {"__call__": _inlined(torch.jit.ScriptFunction.__call__)}),
            _replaced(torch.Tensor, {"set_": _kept(torch.Tensor.set_), "__copy__": torch.Tensor.detach}),
            _replaced(torch.Tensor, {"__reduce_ex__": _unpickled(torch.Tensor.__reduce_ex__)}),
            _replaced(nn.Parameter, {"__reduce_ex__": _unpickled(nn.Parameter.__reduce_ex__)}),
        ):
            yield
    finally:
        distribution.set_default_validate_args(validates)


@contextmanager
def _replaced(owner: object, values: Mapping[str, Any]) -> Iterator[None]:
    """Give attributes of `owner` other values for a while."""
    old = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in old:
                setattr(owner, name, old[name])
            else:
                delattr(owner, name)


def _idle(init: _Function) -> _Function:
    """A constructor for autocast contexts that cast nothing, in this thread."""
    thread = threading.get_ident()

    def made(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            init(self, "cpu" if device_type == "meta" else device_type, enabled=False)
        else:
            init(self, device_type, *args, **kwargs)

    return made


def _kept(empty: _Function) -> _Function:
    """`x.set_()` without an effect on traced tensors: reversible networks use it to free memory."""
    thread = threading.get_ident()

    def freed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and any(isinstance(x, Tensor) and x.is_meta for x in (self, *args)):
            if args or kwargs:
                raise Refused("the data of a tensor are replaced (`set_`)", "use an operation, such as copy_")
            return self
        return empty(self, *args, **kwargs)

    return freed


def _unpickled(reduce: _Function) -> _Function:
    """What pickle asks of a tensor: one of the trace has no bytes."""
    thread = threading.get_ident()

    def reduced(self: Any, protocol: Any) -> Any:
        if threading.get_ident() == thread and self.is_meta:
            raise Refused("a tensor is pickled or saved", "keep it a tensor, such as x.clone()")
        return reduce(self, protocol)

    return reduced


def _inlined(call: _Function) -> _Function:
    """The call of a scripted function: it runs the Python source, where torch still has that."""
    thread = threading.get_ident()

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        source = getattr(self, "_torchdynamo_inline", None)  # set by torch.jit.script
        if threading.get_ident() != thread:
            return call(self, *args, **kwargs)
        if source is not None:
            return source(*args, **kwargs)
        with _replaced(torch.compiler, dict.fromkeys(_FLAGS, False)):  # else torch looks for the source itself
            return call(self, *args, **kwargs)

    return run


@contextmanager
def written_out() -> Iterator[None]:
    """Let torch's transformers compute by the operations that they consist of.

    Their fused path is switched off. Whether a mask is the causal one isn't looked up in its values: knowing it saves
    time and changes nothing.
    """
    fused, detect = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = _is_said_to_be_causal
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        transformer._detect_is_causal_mask = detect


def _is_said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


@contextmanager
def module_calls_sent_to(receiver: Callable[..., Any], modules: Iterable[nn.Module]) -> Iterator[None]:
    """Send this thread's calls of modules of these modules' classes to `receiver(module, args, kwargs)`.

    `nn.Module.__call__` itself stays: Python would forget what it knows of the thousands of classes below it.
    """
    thread = threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        return receiver(module, args, kwargs)

    held = tuple(modules)
    compiled = [(own, own.pop(_ASKED)) for own in (module.__dict__ for module in held) if _ASKED in own]
    classes = dict.fromkeys(map(type, held))
    classes.pop(nn.Module, None)  # the class of mere containers, which nobody calls
    before = {cls: vars(cls)[_ASKED] for cls in classes if _ASKED in vars(cls)}
    try:
        for cls in classes:
            type.__setattr__(cls, _ASKED, call)
        yield
    finally:
        for cls in classes:
            if cls in before:
                type.__setattr__(cls, _ASKED, before[cls])
            else:
                type.__delattr__(cls, _ASKED)
        for own, implementation in compiled:
            own[_ASKED] = implementation
