"""What a file of Python defines that may stand behind its colon, read from its text: nothing of it is run.

nets.py:Net      a network    (width=8)
nets.py:make     a function   (depth, *, pretrained=False)
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunec.compiler.errors import PlanError, Span


@dataclass(frozen=True)
class Definition:
    """A public class or function at the top of a file."""

    name: str
    kind: str
    """`network`, `class` or `function`."""
    arguments: str
    """As they stand in the file, in brackets."""
    text: str
    """The first line of its docstring."""


def definitions(path: Path) -> list[Definition]:
    """The public classes and functions of a file: networks first, then functions, then other classes.

    A network is a class that is derived from one of torch's, one called `...Module`, or a network of the file.
    Raises `PlanError` where the file can't be read as Python, with the place.
    """
    found = {node.name: node for node in _top(_parsed(path).body) if not node.name.startswith("_")}
    classes = {name: node for name, node in found.items() if isinstance(node, ast.ClassDef)}
    made = [_definition(node, _is_network(node, classes)) for node in found.values()]
    return sorted(made, key=lambda each: ("network", "function", "class").index(each.kind))


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        at = Span(str(path), error.lineno or 1, error.offset or 1, 1, (error.text or "").rstrip("\n"))
        raise PlanError(f"this is no Python: {error.msg}", at=at) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise PlanError(f"{path} can't be read as Python: {error}") from error
    except OSError as error:
        raise PlanError(f"can't read {path}: {error.strerror}") from error


_Defined = ast.ClassDef | ast.FunctionDef


def _top(body: Iterable[ast.stmt]) -> Iterator[_Defined]:
    """What a module's statements define, also below an `if` or a `try`."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, ast.If | ast.Try):
                for inner in getattr(node, part, ()):
                    yield from _top(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _is_network(node: _Defined, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a class is derived from a module, by the names that stand in its head."""
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        for base in here.bases if isinstance(here, ast.ClassDef) else ():
            name = ast.unparse(base).rpartition(".")[2]
            if name.endswith("Module") or _is_layer(name):
                return True
            if name in classes and name not in seen:
                seen.add(name)
                waiting.append(classes[name])
    return False


def _is_layer(name: str) -> bool:
    """Whether torch has a module of that name, such as `Sequential`."""
    known = getattr(nn, name, None)
    return isinstance(known, type) and issubclass(known, nn.Module)


def _definition(node: _Defined, network: bool) -> Definition:
    text = (ast.get_docstring(node) or "").partition("\n")[0]
    if isinstance(node, ast.FunctionDef):
        return Definition(node.name, "function", f"({ast.unparse(node.args)})", text)
    start = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    arguments = "" if start is None else ast.unparse(start.args).partition(",")[2].strip()
    return Definition(node.name, "network" if network else "class", f"({arguments})", text)
