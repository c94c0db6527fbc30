"""The compiler: tracing, label flow, the dependency graph, verification and emission. It knows no pruning method.

    from prunec.compiler import compile, trace, Plan

These names are looked up when they are first asked for: `import prunec.compiler` alone imports no torch, so that the
command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prunec.compiler.driver.compile import Result, compile
    from prunec.compiler.driver.kept_indices import kept_indices
    from prunec.compiler.errors import PrunecError
    from prunec.compiler.plan.plan import Plan
    from prunec.compiler.tracing.trace import trace
    from prunec.compiler.version import __version__

__all__ = ["Plan", "PrunecError", "Result", "__version__", "compile", "kept_indices", "trace"]

_HOMES: Final = {
    "Plan": "plan.plan",
    "PrunecError": "errors",
    "Result": "driver.compile",
    "__version__": "version",
    "compile": "driver.compile",
    "kept_indices": "driver.kept_indices",
    "trace": "tracing.trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
