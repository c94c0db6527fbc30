"""What is put in the place of things of torch's that a trace can't run through as they are, while it lasts.

    torch.autocast(x.device.type)     on the meta device there is no such mode: nothing is cast
    Categorical(logits=x)             its arguments aren't checked, which would look at their values
    scripted(x, y)                    the Python function that the script was made from is called, so that it is seen

A program computes in the precision of its weights and inputs: what casts during one call of the model is no part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Function = Callable[..., Any]


@contextmanager
def patched() -> Iterator[None]:
    """Stand-ins for the time of a trace; all is put back at the end."""
    distribution = torch.distributions.Distribution
    validates = distribution._validate_args
    cast, script = torch.autocast.__init__, torch.jit.ScriptFunction.__call__
    torch.autocast.__init__ = _without_meta(cast)  # type: ignore[method-assign]
    torch.jit.ScriptFunction.__call__ = _inlined(script)  # type: ignore[method-assign]
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(validates)
        torch.autocast.__init__ = cast  # type: ignore[method-assign]
        torch.jit.ScriptFunction.__call__ = script  # type: ignore[method-assign]


def _without_meta(init: _Function) -> _Function:
    """Autocast's constructor, which takes a tensor on the meta device for one on a device that isn't cast on."""
    thread = threading.get_ident()

    def made(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "meta" and threading.get_ident() == thread:
            init(self, "cpu", enabled=False)
        else:
            init(self, device_type, *args, **kwargs)

    return made


def _inlined(call: _Function) -> _Function:
    """A scripted function's call, which runs the source where torch still has it."""
    thread = threading.get_ident()

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        source = getattr(self, "_torchdynamo_inline", None)  # set by torch.jit.script
        if source is None or threading.get_ident() != thread:
            return call(self, *args, **kwargs)
        return source(*args, **kwargs)

    return run
