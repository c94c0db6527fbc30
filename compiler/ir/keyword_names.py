"""Parts whose names Python reserves (`nn.ModuleDict({"class": ...})`): the code that fx writes would name them.

self.heads.class(x)   ->   getattr(self.heads, "class")(x)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from keyword import iskeyword

from torch import fx
from torch.fx.graph import _format_target


def reserved(graph: fx.Graph) -> tuple[str, ...]:
    """What a graph reads by a dotted name with a word in it that Python reserves; the longest first."""
    read = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    return tuple(sorted((name for name in read if any(map(iskeyword, name.split(".")))), key=len, reverse=True))


def with_readable_code(graph: fx.Graph, names: Iterable[str]) -> fx.Graph:
    """The graph itself, whose code will ask for these names with `getattr`."""
    if names:
        graph._codegen._body_transformer = _Quoted(tuple(names))
    return graph


@dataclass(frozen=True)
class _Quoted:
    """Rewrites lines of code that fx has written; a class, so that graphs with it are copied and pickled."""

    names: tuple[str, ...]

    def __call__(self, body: list[str]) -> list[str]:
        for name in self.names:
            written = re.compile(re.escape(_format_target("self", name)) + r"(?!\w)")
            quoted = _quoted(name).replace("\\", r"\\")
            body = [written.sub(quoted, line) for line in body]
        return body


def _quoted(name: str) -> str:
    code = "self"
    for word in name.split("."):
        plain = word.isidentifier() and not iskeyword(word)
        code = f"{code}.{word}" if plain else f'getattr({code}, "{word}")'
    return code
