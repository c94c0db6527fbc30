"""One graph for both modes: it computes what a model gives in eval mode, and what it gives in train mode.

    %fc = fc(%pool)                         both
    %aux = aux(%cut)                        train alone
    %softmax = %fc.softmax(1)               eval alone
    return ByMode(eval=%softmax, train=(%fc, %aux))

Where the modes part and meet again, a node chooses: `%c = by_mode(%b, %noisy)` is `%b` in eval mode, `%noisy` in train
mode.

Passes, labels, the verifier and the text see one graph with one output and needn't know. What is made of it in the end
(a module, source, an ONNX file) takes it apart again: each half holds the nodes that its result needs. The weights are
shared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

from torch import fx, nn

from prunec.compiler.ir.graph import is_impure, output_of

Mode = Literal["eval", "train"]
"""Which branches of a model's Python code are traced."""

MODES: Final[tuple[Mode, Mode]] = ("eval", "train")


class ByMode(NamedTuple):
    """The output of a graph of both modes."""

    eval: Any
    train: Any


def by_mode(evaluated: Any, trained: Any) -> Any:
    """In a graph of both modes, a choice: the first value in eval mode, the second in train mode.

    `keep_mode` puts the chosen value in the node's place; a graph that is run whole takes the first, that of eval mode.
    """
    return evaluated


def has_both(graph: fx.Graph) -> bool:
    """Whether the graph holds a result for each mode."""
    output = output_of(graph)
    return output.op == "output" and isinstance(output.args[0], ByMode)


def in_eval(result: Any) -> Any:
    """The result of eval mode, of what a graph gives: a `ByMode`, or one result for both modes."""
    return result.eval if isinstance(result, ByMode) else result


def needed(graph: fx.Graph, mode: Mode) -> set[fx.Node]:
    """The nodes of one half: what its result is computed from, the inputs, and nodes with side effects.

    A node with a side effect (a write in place, an assertion) belongs to every half that computes all its operands.
    """
    output = output_of(graph)
    if not has_both(graph):
        return set(graph.nodes)
    given = {name: behind(_nodes_in(getattr(output.args[0], name)), name) for name in MODES}
    mine = given.pop(mode)
    (others,) = given.values()
    foreign, acting = others - mine, set()
    for node in graph.nodes:
        if any(source in foreign for source in _taken(node, mode)):
            foreign.add(node)
        elif node not in mine and is_impure(node):
            acting.add(node)
    return mine | behind(acting - {output}, mode) | {output, *graph.find_nodes(op="placeholder")}


def keep_mode(graph: fx.Graph, mode: Mode) -> None:
    """Cut a graph of both modes down to one half, in place; a graph with one result stays."""
    if not has_both(graph):
        return
    kept, output = needed(graph, mode), output_of(graph)
    for node in graph.find_nodes(op="call_function", target=by_mode):
        node.replace_all_uses_with(_chosen(node, mode))
        graph.erase_node(node)
    output.args = (getattr(output.args[0], mode),)
    output.meta["val"] = getattr(output.meta["val"], mode)
    for node in reversed(list(graph.nodes)):
        if node not in kept:
            graph.erase_node(node)


def set_defaults(graph: fx.Graph) -> None:
    """Give the last inputs, as far as eval mode doesn't read them, the default None; the graph is edited in place."""
    read = needed(graph, "eval")
    for node in reversed(graph.find_nodes(op="placeholder")):
        if not has_both(graph) or any(user in read for user in node.users):
            return
        node.args = node.args or (None,)


def joint_output(graph: fx.Graph, evaluated: Any, trained: Any) -> Any:
    """What a graph of both modes returns: a `ByMode`, or one result where both are the same and no `by_mode` is
    left."""
    same = repr(evaluated) == repr(trained) and not graph.find_nodes(op="call_function", target=by_mode)
    return trained if same else ByMode(evaluated, trained)


def switching(name: str, holder: nn.Module, halves: Mapping[Mode, fx.GraphModule]) -> nn.Module:
    """A module with the parameters and submodules of `holder` that runs the half which its `training` flag asks for.

    The halves' generated functions run on the module itself: there is one set of weights, and a copy of the module, its
    `double()` or its `state_dict` are those of any other.
    """
    forwards: dict[Mode, Callable[..., Any]] = {mode: type(half).forward for mode, half in halves.items()}

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forwards["train" if self.training else "eval"](self, *args, **kwargs)

    forward.__signature__ = inspect.signature(forwards["train"])  # type: ignore[attr-defined]
    made: nn.Module = type(name, (nn.Module,), {"forward": forward, "__doc__": "A model of both modes."})()
    for table in ("_parameters", "_buffers", "_modules"):
        made.__dict__[table].update(holder.__dict__[table])
    made.training = holder.training
    return made


def _nodes_in(value: Any) -> set[fx.Node]:
    found: set[fx.Node] = set()
    fx.node.map_arg(value, found.add)
    return found


def behind(nodes: Iterable[fx.Node], mode: Mode | None = None) -> set[fx.Node]:
    """These nodes and all that they are computed from; with a mode, through a `by_mode` to that mode's value alone."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        new = [source for source in _taken(waiting.pop(), mode) if source not in found]
        found.update(new)
        waiting += new
    return found


def _taken(node: fx.Node, mode: Mode | None) -> list[fx.Node]:
    """The nodes that a node reads; with a mode, a `by_mode` reads that mode's value alone."""
    return [_chosen(node, mode)] if mode and node.target is by_mode else node.all_input_nodes


def _chosen(node: fx.Node, mode: Mode) -> fx.Node:
    value = node.args[MODES.index(mode)]
    assert isinstance(value, fx.Node), f"{node.name} chooses between values"
    return value
