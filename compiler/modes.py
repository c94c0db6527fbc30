"""What mode `train` costs: whether a model that is compiled so gives something else in eval mode than the original.

    original    eval: logits                train: (logits, aux)
    slim        eval: (logits, aux)         train: (logits, aux)        so the report warns

A program has one result. In mode `train` it is the one of train mode, whatever the slim module's own flag says.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from prunec.compiler.errors import ModelError
from prunec.compiler.ir import Program
from prunec.compiler.outlines import mismatch, outline


def eval_warnings(program: Program, traced_in_eval: Callable[[], Program]) -> list[str]:
    """What to tell whoever compiles in mode `train`; nothing where the original does the same in either mode.

    Graphs are compared, not only results: a softmax that only eval mode takes leaves the shapes alike.
    """
    kept = "compiled in mode 'train': the slim module does what the original does in train mode, in eval mode, too"
    try:
        other = traced_in_eval()
    except ModelError as error:
        return [f"{kept}; the original can't be traced in eval mode to compare ({error.message})"]
    if _spelt(program.graph) == _spelt(other.graph):
        return []
    if kind := mismatch(_result(program), _result(other)):
        return [f"{kept}, and so gives {kind}"]
    return [f"{kept}; the original computes something else in eval mode"]


def _spelt(graph: fx.Graph) -> list[tuple[str, str, str]]:
    """What the nodes call, and with what. Nodes are numbered alike where all before them are alike."""
    return [(node.op, str(node.target), f"{node.args} {node.kwargs}") for node in graph.nodes]


def _result(program: Program) -> object:
    return outline(next(iter(reversed(program.graph.nodes))).meta["val"])
