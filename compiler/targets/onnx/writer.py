"""The walk over a program's graph that writes it as an ONNX model.

    write(program, opset=20, open_batch=True, inputs=["x"], outputs=["output"])      a ModelProto

What the inputs don't reach is computed here and now, with torch, and becomes an initialiser where something reads it;
sizes become numbers or follow the batch (`sizes.py`); every other node is written by its row. A write in place gives
its value a new name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import onnx
import torch
from onnx import helper
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import first_line
from prunec.compiler.ir.aliasing import memories, mutates
from prunec.compiler.ir.graph import call, output_of
from prunec.compiler.ir.inputs import batch_of, is_batched
from prunec.compiler.ir.modules import eval_copy, is_scripted
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import seeded
from prunec.compiler.targets.onnx import ops  # noqa: F401  (enters the rows)
from prunec.compiler.targets.onnx.call import OP_ROWS, Call, Declined, Names, Row, module_row
from prunec.compiler.targets.onnx.graph import TYPES, Graph, value_info
from prunec.compiler.targets.onnx.sizes import NotAffine, Shapes, shapes_of

LARGEST: Final = 2**31 - 2**20
"""Bytes that a file without external data may hold, less room for the graph."""
IR_VERSION: Final = 10
"""That of the files of torch's exporter; an opset that wants a newer one gets it."""
_FOLDED: Final = 2**18
"""Elements that a constant may grow to when it is computed ahead, where it is larger than what it is computed from."""


def write(
    program: Program,
    *,
    opset: int,
    open_batch: bool,
    inputs: Sequence[str],
    outputs: Sequence[str],
    one_file: bool = True,
) -> onnx.ModelProto:
    """The program in eval mode as an ONNX model with these names; with `open_batch`, of any batch size. As
    `one_file` it holds no more than `LARGEST` bytes of weights.

    Raises `Declined` where the program holds what can't be written.
    """
    _check_types(program)
    rows = {node: _row(program, node) for node in program.graph.nodes}
    try:
        shapes = shapes_of(program, open_batch)
    except Exception as error:  # whatever an operation raises that needs more than shapes
        raise Declined(f"the model doesn't run on shapes alone: {first_line(error)}") from error
    with torch.no_grad(), seeded(0):
        before = torch.random.get_rng_state()
        writer = _Writer(program, Graph(opset, _keys(program)), shapes, rows, LARGEST if one_file else None)
        model = writer.model(inputs, outputs, open_batch)
        if not torch.equal(before, torch.random.get_rng_state()):
            raise Declined("the model draws random numbers")
    return model


def _check_types(program: Program) -> None:
    for name, tensor in program.tensors.items():
        if tensor.dtype not in TYPES or tensor.layout != torch.strided:
            raise Declined(f"'{name}' is {tensor.dtype}, {tensor.layout}")


def _keys(program: Program) -> dict[int, str]:
    """id of a tensor of the state -> its first name."""
    found: dict[int, str] = {}
    for name, tensor in program.tensors.items():
        found.setdefault(id(tensor), name)
    return found


def _row(program: Program, node: fx.Node) -> Row | None:
    if node.op == "call_module":
        module = program.state[str(node.target)]
        assert isinstance(module, nn.Module)
        return None if is_scripted(module) else module_row(module)
    return OP_ROWS.get(op_name(node)) if node.op in {"call_function", "call_method"} else None


def _called(program: Program, node: fx.Node) -> str:
    """What a node calls, for messages."""
    return type(program.state[str(node.target)]).__name__ if node.op == "call_module" else op_name(node)


class _Writer:
    """One walk: the names of every value, and the graph that grows."""

    def __init__(
        self,
        program: Program,
        graph: Graph,
        shapes: Shapes,
        rows: Mapping[fx.Node, Row | None],
        largest: int | None = None,
    ) -> None:
        self.program = program
        self.largest = largest
        self.graph = graph
        self.shapes = shapes
        self.rows = rows
        self.env: dict[fx.Node, Names] = {}
        """Values that hold tensors: names, and constants as tensors."""
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in program.tensors.values()}
        self.order = {node: place for place, node in enumerate(program.graph.nodes)}
        self.shared: dict[fx.Node, set[fx.Node]] | None = None

    def model(self, inputs: Sequence[str], outputs: Sequence[str], open_batch: bool) -> onnx.ModelProto:
        """The whole model."""
        infos = list(self._inputs(inputs, open_batch))
        for node in self.program.graph.nodes:
            if node.op not in {"placeholder", "output"}:
                self._write(node)
        results = list(self._outputs(outputs))
        if self.largest is not None and self.graph.weight_bytes > self.largest:
            raise Declined("the weights are too large for one file")
        weights = self.graph.initialisers()
        graph = helper.make_graph(self.graph.nodes, self.program.name, infos, results, initializer=weights)
        imports = [helper.make_opsetid("", self.graph.opset)]
        version = max(IR_VERSION, helper.find_min_ir_version_for(imports))
        return helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="prunec")

    # -- inputs and outputs --------------------------------------------------------------------------------------------

    def _inputs(self, names: Sequence[str], open_batch: bool) -> Iterator[onnx.ValueInfoProto]:
        waiting = iter(names)
        old = batch_of(self.program.inputs)
        for node, value in zip(self.program.graph.find_nodes(op="placeholder"), self.program.inputs, strict=True):
            known = iter(pytree.tree_leaves(value))
            found = []
            for leaf in known:
                if not isinstance(leaf, torch.Tensor):
                    found.append(leaf)
                    continue
                name = self.graph.unique(next(waiting))
                batched = open_batch and is_batched(leaf, old)
                if batched and not self.graph.batch_source:
                    self.graph.batch_source = name
                if leaf.dtype not in TYPES:
                    raise Declined(f"the input '{name}' is {leaf.dtype}")
                info = value_info(name, leaf.dtype, list(leaf.shape))
                if batched:
                    info.type.tensor_type.shape.dim[0].dim_param = "batch"
                yield info
                found.append(name)
            self.env[node] = pytree.tree_unflatten(found, pytree.tree_structure(value))

    def _outputs(self, names: Sequence[str]) -> Iterator[onnx.ValueInfoProto]:
        """The graph's outputs, under their names; nodes that none of them needs go."""
        output = output_of(self.program.graph)
        values = [pytree.tree_leaves(value) for value in self.shapes.of(output.args[0])]
        leaves = pytree.tree_leaves(fx.node.map_arg(output.args[0], lambda node: self.env.get(node, node)))
        leaves = [leaf for leaf in leaves if leaf is not None]
        tensors = [[x for x in found if x is not None] for found in values]
        if any(not isinstance(x, torch.Tensor) for found in tensors for x in found):
            raise Declined("an output is no tensor")
        if {len(found) for found in tensors} != {len(names)} or len(leaves) != len(names):
            raise Declined("the number of outputs follows the batch")
        given: dict[str, str] = {}
        taken = [self._own_name(leaf, name, given) for leaf, name in zip(leaves, names, strict=True)]
        self.graph.prune(taken)
        self.graph.rename(given)
        for name, *parts in zip(names, *tensors, strict=True):
            yield value_info(name, self._type(parts[0].dtype), self._shape(parts))

    def _own_name(self, leaf: Any, name: str, given: dict[str, str]) -> str:
        """The name that the value of an output has so far, and notes the name that it gets; an input, a constant and a
        second output of one value need a node of their own."""
        self.graph.scope = name
        value = leaf if isinstance(leaf, str) else self.graph.tensor(leaf)
        if value not in self.graph.producers or value in given:
            value = self.graph.add("Identity", value)
        given[value] = name
        return value

    def _type(self, dtype: torch.dtype) -> torch.dtype:
        if dtype not in TYPES:
            raise Declined(f"an output is {dtype}")
        return dtype

    def _shape(self, parts: Sequence[torch.Tensor]) -> Any:
        try:
            return self.shapes.shape(parts)
        except NotAffine as error:
            raise Declined("the shape of an output doesn't follow the batch in proportion") from error

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _write(self, node: fx.Node) -> None:
        value = self.shapes.values[0][node]
        if node.op == "get_attr":
            if node.target != "training":
                self.env[node] = self.program.state[str(node.target)]
            return
        writes = mutates(node, self.program.state)
        if not writes and not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            return  # a size, a flag, an assertion
        self.graph.scope = node.name
        try:
            if self._is_constant(node):
                self.env[node] = self._computed(node)
                return
            row = self.rows[node]
            if row is None:
                raise Declined("the direct writer doesn't know it")
            module = self.program.state[str(node.target)] if node.op == "call_module" else None
            assert module is None or isinstance(module, nn.Module)
            names = row(Call(self.graph, self.shapes, self.env, node, module))
            if writes:
                self._rebind(node, names)
            self.env[node] = names
        except Declined as error:
            raise Declined(f"{_called(self.program, node)} at '{node.name}': {error}") from error

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether the node's value is the same for all inputs, and no larger than what it is computed from."""
        for source in node.all_input_nodes:
            leaves = pytree.tree_leaves(self.env.get(source))
            if any(isinstance(leaf, str) for leaf in leaves):
                return False
            if source not in self.env and self._follows_batch(source):
                return False
        grown = sum(x.numel() for x in pytree.tree_leaves(self.shapes.values[0][node]) if isinstance(x, torch.Tensor))
        given = sum(x.numel() for source in node.all_input_nodes for x in _tensors(self.env.get(source)))
        return not given or grown <= max(_FOLDED, given) or self.rows[node] is None

    def _follows_batch(self, node: fx.Node) -> bool:
        values = [known[node] for known in self.shapes.values]
        return any(value != values[0] for value in values[1:])

    def _computed(self, node: fx.Node) -> Any:
        """The value of a node that no input reaches."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._real)
        if mutates(node, self.program.state):
            first = args[0] if args else None
            if not isinstance(first, torch.Tensor) or first.untyped_storage().data_ptr() in self.storages:
                raise Declined("it writes into a tensor of the model")
        try:
            if node.op == "call_module":
                module = self.program.state[str(node.target)]
                assert isinstance(module, nn.Module)
                return _detached(eval_copy(module)(*args, **kwargs))
            return _detached(call(node, args, kwargs))
        except Exception as error:  # what an operation raises on these constants
            raise Declined(f"it can't be computed ahead: {first_line(error)}") from error

    def _real(self, node: fx.Node) -> Any:
        value = self.env[node] if node in self.env else self.shapes.values[0][node]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    # -- writes in place -----------------------------------------------------------------------------------------------

    def _rebind(self, node: fx.Node, names: Names) -> None:
        """A write in place into the whole of a value: who reads that value from now on reads the new one."""
        target = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(target, fx.Node) or not isinstance(names, str) or node.kwargs.get("out") is not None:
            raise Declined("it writes in place")
        if not isinstance(self.env.get(target), str):
            raise Declined("it writes what follows the inputs into a constant")
        old = self.env[target]
        for other in self._memory_of(target):
            if other in self.env and any(self.order[user] > self.order[node] for user in other.users):
                if other is not target and not (self.env[other] == old and self._is_whole(other)):
                    raise Declined(f"it writes in place into memory that '{other.name}' may share")
                self.env[other] = names

    def _memory_of(self, node: fx.Node) -> set[fx.Node]:
        if self.shared is None:
            self.shared = {node: found for found in memories(self.program.graph, self.program.state) for node in found}
        return self.shared[node]

    def _is_whole(self, node: fx.Node) -> bool:
        """Whether a value that has the name of another is certain to lie in the same memory."""
        if node.op == "placeholder" or mutates(node, self.program.state):
            return True
        module = self.program.state.get(str(node.target)) if node.op == "call_module" else None
        return isinstance(module, nn.Identity | nn.Dropout)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _detached(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, value)
