"""Branches on values that change nothing of what the model computes: warnings, counters, logs.

    if self.pad in ids[:, [-1, 0]]:
        warnings.warn("some of the ids are padding, and there is no mask")

Values aren't known while a model is traced. So such a forward is traced once for each way that it may take: where all
give the same graph, it is the model's, whatever the values are. Where they differ, or one fails, it stays refused.

    if (ids >= n).any():
        raise ValueError("no such word")

A way that ends in a `raise` of the code that asked gives no result that another could differ from: the graph is that of
the other ways, and goes without this check of values, which is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.graph import is_impure, output_of
from prunec.compiler.tracing.answers import Answers
from prunec.compiler.tracing.real_run import quiet
from prunec.compiler.tracing.tracer import Tracer
from prunec.compiler.user_code import user_span

MOST_WAYS = 16
"""More ways than this aren't tried."""


def either_way(attempt: Callable[[Answers], Tracer]) -> Tracer | None:
    """The trace of a forward that asks for values and gives the same graph whatever they are; None of any other.

    `attempt` traces it with such answers. The places of checks that the graph goes without are in `unchecked`.
    """
    waiting: list[tuple[bool, ...]] = [()]
    found: list[tuple[Tracer, str]] = []
    stopped: dict[str, None] = {}
    tried = 0
    while waiting:
        answers = Answers(waiting.pop())
        tried += 1
        if tried > MOST_WAYS:
            return None
        try:
            with quiet() if tried > 1 else contextlib.nullcontext():
                tracer = attempt(answers)
        except ModelError as error:
            if not answers.stops(error.__cause__):
                return None
            stopped[_place(error)] = None
        else:
            tracer.graph.eliminate_dead_code(is_impure)
            found.append((tracer, _form(tracer)))
            if found[-1][1] != found[0][1]:
                return None
        waiting += [(*answers.given[:i], True) for i in range(len(answers.planned), len(answers.given))]
    if not found:
        return None
    output_of(found[0][0].graph).meta["unchecked"] = tuple(stopped)
    return found[0][0]


def unchecked(graph: fx.Graph) -> Sequence[str]:
    """The places of checks of values that a graph which was just traced goes without."""
    places: Sequence[str] = output_of(graph).meta.get("unchecked", ())
    return places


def _place(error: ModelError) -> str:
    span = user_span(error.__cause__) if error.__cause__ else None
    return f"{span.file}:{span.line}" if span else ""


def _form(tracer: Tracer) -> str:
    """All that a graph computes, without the names of its nodes and of its constants."""
    places: dict[fx.Node, str] = {}
    lines = []
    for node in tracer.graph.nodes:
        target: Any = node.target
        if node.op == "get_attr" and target in tracer.constants.added:
            value = tracer.constants.added[target]
            target = value.dtype, value.tolist()
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        places[node] = f"%{len(places)}"
        lines.append(f"{node.op} {target} {args} {kwargs}")
    return "\n".join(lines)
