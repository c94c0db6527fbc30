"""What a training pass must leave as it was: the graph, and the names, shapes and types of all tensors."""

from __future__ import annotations

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Program


def check_trained(before: Program, after: Program, pass_name: str) -> None:
    """Raise `VerifyError` where a training pass has changed structure: values are all that it may change."""
    old, new = before.tensors, after.tensors
    if after.graph is not before.graph:
        raise VerifyError(f"the pass '{pass_name}' trains, and has changed the graph")
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            raise VerifyError(f"the pass '{pass_name}' trains, and has {'lost' if name in old else 'made'} '{name}'")
        was, now = old[name], new[name]
        if was.shape != now.shape or was.dtype != now.dtype:
            found = f"{list(now.shape)} of {now.dtype}, was {list(was.shape)} of {was.dtype}"
            raise VerifyError(f"the pass '{pass_name}' trains, and has changed the tensor '{name}': {found}")
