"""The ONNX graph as it grows: nodes, initialisers and their names.

    graph.add("Relu", "conv1")                  a node; gives the name of its output
    graph.tensor(weight)                        the name of an initialiser: `conv1.weight`, made once for one tensor
    graph.shape([Affine(1, 0), 8, 64])          the name of a vector of sizes, computed from the batch where it must be

Nodes that nobody reads and initialisers that no node takes don't come into the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx

from prunec.compiler.targets.onnx.sizes import Affine, Size

Array = npt.NDArray[Any]

TYPES: Mapping[torch.dtype, int] = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}
_SMALL = 64
"""Constants of so many elements at most are made once for all that are equal."""


class Graph:
    """Nodes and initialisers of one ONNX graph. `scope` is the name of what is being written; names derive from it."""

    def __init__(self, opset: int, keys: Mapping[int, str]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.scope = ""
        self.batch_source = ""
        """The input whose first dimension is the batch."""
        self.producers: dict[str, onnx.NodeProto] = {}
        self.foldable: dict[fx.Node, tuple[torch.Tensor, torch.Tensor | None]] = {}
        """Layers that a batch norm may be folded into -> weight and bias."""
        self._keys = keys
        self._names: set[str] = set()
        self._arrays: dict[str, Callable[[], Array]] = {}
        self._sizes: dict[str, int] = {}
        self._wanted: dict[str, str] = {}
        """Initialiser -> the name that it was to have."""
        self._known: dict[Any, str] = {}
        self._held: list[torch.Tensor] = []

    # -- names ---------------------------------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """The name, or with a number behind it where it is taken."""
        found, number = name, 0
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is given. An empty name stands for an input that is left out."""
        return self.add_many(kind, 1, *inputs, **attributes)[0]

    def add_many(self, kind: str, count: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """A node with `count` outputs."""
        outputs = tuple(self.unique(self.scope) for _ in range(count))
        node = helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes)
        self.nodes.append(node)
        self.producers.update(dict.fromkeys(outputs, node))
        return outputs

    # -- constants -----------------------------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: torch.dtype) -> str:
        """An initialiser from a number or numbers."""
        array = torch.tensor(value, dtype=dtype).numpy(force=True)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= _SMALL else None
        if key is None or key not in self._known:
            name = self._initialiser(f"{self.scope}_constant", lambda: array, array.nbytes)
            if key is None:
                return name
            self._known[key] = name
        return self._known[key]

    def numbers(self, values: Sequence[int]) -> str:
        """A vector of whole numbers."""
        return self.constant(list(values), torch.int64)

    def tensor(self, tensor: torch.Tensor) -> str:
        """The initialiser of a tensor, under its name in the state dict where it has one."""
        key = id(tensor), tensor._version
        if key not in self._known:
            if id(tensor) in self._keys:
                return self._of_state(tensor)
            if tensor.numel() <= _SMALL:
                self._known[key] = self.constant(tensor.tolist(), tensor.dtype)
            else:
                copy = tensor.clone()  # a constant may be written into later on
                self._known[key] = self.derived(f"{self.scope}_constant", lambda: copy.numpy(force=True), copy.nbytes)
            self._held.append(tensor)
        return self._known[key]

    def _of_state(self, tensor: torch.Tensor) -> str:
        name = self.derived(
            self._keys[id(tensor)], lambda: tensor.detach().contiguous().numpy(force=True), tensor.nbytes
        )
        self._known[id(tensor), tensor._version] = name
        return name

    def key(self, tensor: torch.Tensor) -> str:
        """A tensor's name in the state dict; for another tensor, one from the scope."""
        return self._keys.get(id(tensor), f"{self.scope}_constant")

    def transposed(self, tensor: torch.Tensor) -> str:
        """The initialiser of a matrix whose last two dimensions change places; made once for one tensor."""
        known = id(tensor), tensor._version, "transposed"
        if known not in self._known:
            self._known[known] = self.derived(
                f"{self.key(tensor)}.T",
                lambda: np.ascontiguousarray(tensor.detach().transpose(-1, -2).numpy(force=True)),
                tensor.nbytes,
            )
            self._held.append(tensor)
        return self._known[known]

    def derived(self, name: str, make: Callable[[], Array], size: int) -> str:
        """An initialiser of `size` bytes that is made when the file is."""
        return self._initialiser(name, make, size)

    def _initialiser(self, name: str, make: Callable[[], Array], size: int) -> str:
        found = self.unique(name)
        self._arrays[found], self._sizes[found], self._wanted[found] = make, size, name
        return found

    # -- sizes ---------------------------------------------------------------------------------------------------------

    def batch(self) -> str:
        """A vector of one element: the batch size."""
        if "batch" not in self._known:
            scope, self.scope = self.scope, "batch_size"
            self._known["batch"] = self.add("Shape", self.batch_source, start=0, end=1)
            self.scope = scope
        return self._known["batch"]

    def size(self, size: Size) -> str:
        """A vector of one element, this size."""
        if isinstance(size, int):
            return self.numbers([size])
        if size not in self._known:
            name = self.batch()
            if size.times != 1:
                name = self.add("Mul", name, self.numbers([size.times]))
            if size.plus:
                name = self.add("Add", name, self.numbers([size.plus]))
            self._known[size] = name
        return self._known[size]

    def shape(self, sizes: Sequence[Size]) -> str:
        """A vector of these sizes."""
        parts: list[str] = []
        run: list[int] = []
        for size in [*sizes, None]:
            if isinstance(size, int):
                run.append(size)
                continue
            if run:
                parts.append(self.numbers(run))
                run = []
            if isinstance(size, Affine):
                parts.append(self.size(size))
        if not parts:
            return self.numbers([])
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    # -- the file ------------------------------------------------------------------------------------------------------

    def prune(self, outputs: Iterable[str]) -> None:
        """Take out the nodes that no output needs."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]

    def rename(self, names: Mapping[str, str]) -> None:
        """Give values other names."""
        for node in self.nodes:
            for names_of in (node.input, node.output):
                for place, name in enumerate(names_of):
                    if name in names:
                        names_of[place] = names[name]

    @property
    def weight_bytes(self) -> int:
        """How large the initialisers are that nodes take."""
        return sum(self._sizes[name] for name in self._taken())

    def initialisers(self) -> list[onnx.TensorProto]:
        """The initialisers that nodes take; one gets the name that another held which was folded away."""
        taken = self._taken()
        self._names.difference_update(self._arrays.keys() - set(taken))
        names = {name: name if self._wanted[name] in self._names else self.unique(self._wanted[name]) for name in taken}
        self.rename(names)
        return [numpy_helper.from_array(self._arrays[name](), new) for name, new in names.items()]

    def _taken(self) -> list[str]:
        return list(dict.fromkeys(name for node in self.nodes for name in node.input if name in self._arrays))


def value_info(name: str, dtype: torch.dtype, shape: Sequence[Size]) -> onnx.ValueInfoProto:
    """An input or output of the graph."""
    return helper.make_tensor_value_info(name, TYPES[dtype], [_dimension(size) for size in shape])


def _dimension(size: Size) -> int | str:
    if isinstance(size, int):
        return size
    times = "batch" if size.times == 1 else f"{size.times}*batch"
    return f"{times} + {size.plus}" if size.plus else times
