"""What a traced forward knows beyond shapes: values that depend on the model's buffers and on literals alone.

    if self.flag:                    decided, where `flag` is a buffer
    if (size / self.stride).ceil():  decided, where `size` is a number that the example's shape gives
    mask = torch.ones(7, 7).tril()   after the trace one stored tensor, `_tensor_constant0`

A tensor that anything writes into is no constant, nor is a view of it: memory tells which tensors these are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.graph import call

_RANDOM = re.compile("(rand|normal|bernoulli|multinomial|poisson|dropout|alpha_dropout|feature_dropout|empty).*")


class Constants:
    """What is known of one trace's values. `added` holds the tensors that belong to no module, under new names."""

    def __init__(self, owned: Mapping[str, torch.Tensor]) -> None:
        self.added: dict[str, torch.Tensor] = {}
        self._owned = owned
        self._known: set[fx.Node] = set()
        self._sized: set[fx.Node] = set()
        self._values: dict[fx.Node, Any] = {}
        self._written: set[int] = set()

    def add(self, tensor: torch.Tensor) -> str:
        """Store a tensor under a new name."""
        taken = len(self.added)
        while (name := f"_tensor_constant{taken}") in self._owned or name in self.added:
            taken += 1
        self.added[name] = tensor
        return name

    def note(self, node: fx.Node) -> None:
        """Take in a new node: whether it depends on constants alone, and whether on constants and sizes alone."""
        if node.op == "get_attr":
            constant = node.target in self.added or node.target in self._owned
        else:
            constant = node.op in {"call_function", "call_method"} and not is_random(node)
        if constant and all(source in self._known for source in node.all_input_nodes):
            self._known.add(node)
        if _is_plain(node) or (constant and all(source in self._sized for source in node.all_input_nodes)):
            self._sized.add(node)

    def spoil(self, tensors: Iterable[torch.Tensor]) -> None:
        """From now on, nothing that shares memory with these tensors (as they are on the meta device) is constant."""
        self._written.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def evaluate(self, function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any] | None:
        """`function` of a node's arguments, in a tuple; `None` where they don't depend on constants and sizes alone."""
        sources: list[fx.Node] = []
        fx.node.map_arg((args, kwargs), sources.append)
        if not all(self._is_constant(source, self._sized) for source in sources):
            return None
        real_args, real_kwargs = fx.node.map_arg((args, kwargs), self._value)
        return (function(*real_args, **real_kwargs),)

    def fold(self, graph: fx.Graph) -> None:
        """Replace what is computed from literals alone by stored tensors. Parameters and buffers stay what they are,
        so that the model may be trained on."""
        fixed: set[fx.Node] = set()
        for node in graph.nodes:
            literal = node.target in self.added if node.op == "get_attr" else node in self._known
            settled = literal and all(source in fixed for source in node.all_input_nodes)
            if settled and self._is_constant(node, self._known):
                fixed.add(node)
        for node in [node for node in graph.nodes if node in fixed and node.op != "get_attr"]:
            readers = [user for user in node.users if user not in fixed]
            if readers and isinstance(node.meta["val"], torch.Tensor):
                self._store(graph, node, readers)

    def _store(self, graph: fx.Graph, node: fx.Node, readers: list[fx.Node]) -> None:
        with graph.inserting_before(node):
            stored = graph.get_attr(self.add(self._value(node).detach()))
        stored.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, stored)

    def _device(self) -> torch.device:
        """Where the model is: there its constants are computed."""
        return next((tensor.device for tensor in self._owned.values()), torch.device("cpu"))

    def _is_constant(self, node: fx.Node, known: set[fx.Node]) -> bool:
        """Whether the node is among `known`, and nothing that it is computed from was written into."""
        if node not in known or _writes(node) or self._storages(node) & self._written:
            return False
        return _is_plain(node) or all(self._is_constant(source, known) for source in node.all_input_nodes)

    def _storages(self, node: fx.Node) -> set[int]:
        found: set[int] = set()
        value = node.meta["val"]
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, torch.Tensor):
                found.add(item.untyped_storage()._cdata)
        return found

    def _value(self, node: fx.Node) -> Any:
        """The real value of a constant node."""
        if node not in self._values:
            self._values[node] = self._compute(node)
        return self._values[node]

    def _compute(self, node: fx.Node) -> Any:
        if _is_plain(node):
            value = node.meta["val"]
            return self._device() if isinstance(value, torch.device) else value
        if node.op == "get_attr":
            tensor = self.added.get(str(node.target), self._owned.get(str(node.target)))
            assert tensor is not None, f"{node.target} is a constant"
            return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        return call(node, args, kwargs)


def _is_plain(node: fx.Node) -> bool:
    """Whether a node gives a number, a size, a flag or a device, which the example decides."""
    value = node.meta.get("val")
    plain = isinstance(value, int | float | torch.Size | torch.device)
    return plain and node.op in {"call_function", "call_method"}


def _writes(node: fx.Node) -> bool:
    return bool(node.meta.get("mutates"))


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers, or gives uninitialised memory."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return _RANDOM.match(name) is not None
