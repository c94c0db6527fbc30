"""The compiler: tracing, label flow, the dependency graph, verification and emission. It knows no pruning method.

    from prunec.compiler import compile, trace, Plan

These names are looked up when they are first asked for: `import prunec.compiler` alone imports no torch, so that the
command line answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prunec.compiler.driver import Result, compile
    from prunec.compiler.errors import PrunecError
    from prunec.compiler.plan import Plan
    from prunec.compiler.trace import trace

__all__ = ["Plan", "PrunecError", "Result", "__version__", "compile", "trace"]

__version__ = "0.1.0"

_HOMES: Final = {"Plan": "plan", "PrunecError": "errors", "Result": "driver", "compile": "driver", "trace": "trace"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `prunec.compiler.trace` the function: Python would put the submodule of that name in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trace" and isinstance(value, ModuleType):
            value = value.trace
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
