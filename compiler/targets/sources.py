"""What converters read: a program in another form, at another batch size, or up to one of its nodes.

exported(program)        a `torch.export.ExportedProgram`
onnx_model(program)      an ONNX model of fixed sizes
at_batch(program, 1)     the same program with example inputs of one sample
until(program, 5)        its first five steps; what later ones read of them are the outputs
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from prunec.compiler.ir.devices import on_device
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.modules import evaluating, to_meta
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import seeded, with_batch
from prunec.compiler.targets.base import Converted
from prunec.compiler.targets.onnx_export import OnnxReport, onnx_bytes
from prunec.compiler.verify.interpreter import Interpreter


def deployed(program: Program) -> Program:
    """What is exported: the half of eval mode, on the CPU."""
    return on_device(program.deployed, torch.device("cpu"))


def exported(program: Program) -> ExportedProgram:
    """The program as `torch.export` sees it, at the sizes of its example inputs; no operation is decomposed yet."""
    with evaluating(program.module), torch.no_grad():
        return torch.export.export(program.module, program.inputs)


def onnx_model(program: Program, opset: int = 20) -> onnx.ModelProto:
    """The program as an ONNX model of the sizes of its example inputs. Raises `ModelError` where there is none."""
    return onnx.load_from_string(onnx_bytes(program, opset))


def from_onnx(program: Program, report: OnnxReport) -> Converted:
    """What is to be told of a file that was made of a program's ONNX file: its batch, and why that is fixed."""
    batch = None if report.dynamic_batch else batch_of(program.inputs)
    return Converted(batch, report.static_reason and f"fixed batch: {report.static_reason}")


def at_batch(program: Program, size: int) -> Program:
    """The program with example inputs of this batch size, and with the shapes that its values have then; the program
    itself where it has no batch, or another size of it doesn't run."""
    if batch_of(program.inputs) in (None, size):
        return program
    inputs = with_batch(program, size)
    try:
        with seeded(0):
            values = {node.name: value for node, value in Interpreter(program, torch.float32).steps(inputs)}
            fits = _shapes(program.module(*inputs)) == _shapes(values[output_of(program.graph).name])
    except Exception:  # whatever the model's own code raises on a batch that it isn't made for
        return program
    if not fits:
        return program
    graph = program.copy_graph()
    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(_on_meta, values[node.name])
    return program.derive(graph=graph, inputs=inputs)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _on_meta(value: Any) -> Any:
    return to_meta(value) if isinstance(value, torch.Tensor) else value


# -- a program's first steps ---------------------------------------------------------------------------------------


def steps(program: Program) -> list[fx.Node]:
    """The nodes that compute something, in order."""
    return [node for node in program.graph.nodes if node.op in ("call_module", "call_function", "call_method")]


def until(program: Program, count: int) -> Program | None:
    """The first `count` steps of a program as a program; None where no tensor of floats leads on from there, or complex
    numbers do.

    What later nodes read of them, tensors alone, are its outputs.
    """
    graph, mapping = program.copy_graph_with_map()
    computed = steps(program)
    kept = {node for node in program.graph.nodes if node not in computed[count:] and node.op != "output"}
    read = [node for node in computed[:count] if any(user not in kept for user in node.users)]
    live = [node for node in read if _floats(node)]
    if not live or any(map(is_complex, read)):
        return None
    for old in reversed(list(program.graph.nodes)):
        if old not in kept:
            graph.erase_node(mapping[old])
    graph.output(tuple(mapping[node] for node in live))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("get_attr", "call_function", "call_method") and not _floats(node):
            graph.erase_node(node)  # sizes that only later steps read
    output_of(graph).meta["val"] = tuple(node.meta["val"] for node in live)
    return program.with_graph(graph, program.state)


def _floats(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of floats, or a nest of such."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return bool(leaves) and all(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves)


def types_of(node: fx.Node) -> set[torch.dtype]:
    """The types of the tensors among a node's values; a size has none."""
    return {leaf.dtype for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)}


def is_complex(node: fx.Node) -> bool:
    """Whether complex numbers are among a node's values."""
    return any(each.is_complex for each in types_of(node))


def is_foreign(node: fx.Node) -> bool:
    """Whether a node calls an operation that torch doesn't bring."""
    return isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket) and not str(
        node.target
    ).startswith(("aten.", "prims."))


def described(program: Program, node: fx.Node) -> str:
    """A step for people: what it computes, and the layer of the user's model that it stands in."""
    if node.op == "call_module":
        return f"{node.target} ({type(program.state[str(node.target)]).__name__})"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.target is getattr:
        called = str(node.args[1])
    scope = node.meta.get("scope")
    return f"{called} in {scope}" if scope else str(called)
