"""Linear layers, embeddings and bilinear layers, as modules and as functions.

Linear       weight [out, in]          dimension 1 reads the last dimension that arrives, 0 writes fresh labels
Embedding    weight [rows, width]      dimension 1 writes; the vocabulary stays
Bilinear     weight [out, in1, in2]    dimensions 1 and 2 read the two inputs
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, rank_of, shape_of_argument
from prunec.compiler.ir.program import Axis
from prunec.compiler.labels.broadcast import combine
from prunec.compiler.labels.flow import Fields, Flow, Labelled
from prunec.compiler.labels.heads import shared
from prunec.compiler.labels.propagate import count_macs, describe, subject, unknown
from prunec.compiler.labels.registry import Attributes, on_module, on_op, repeats_tensors


@on_module(nn.Linear)
def linear(flow: Flow, node: fx.Node) -> Labelled:
    """Reads and writes the last dimension; fields along the others pass."""
    module, value = flow.program.state[str(node.target)], subject(flow, node)
    assert isinstance(module, nn.Linear)
    name = str(node.target)
    arriving, rest = flow.along_of(shared(flow, node, value, -1), shape_of_argument(value), -1, node)
    written = flow.write(Axis(f"{name}.weight", 0), module.out_features, node)
    flow.bind(Axis(f"{name}.weight", 1), arriving, node)
    if module.bias is not None:
        flow.bind(Axis(f"{name}.bias", 0), written, node, "carrier")
    count_macs(flow, node, elements(shape_of_argument(value)) * module.out_features, (written, arriving, *rest))
    return (*rest, *flow.result(written, rank_of(node), -1))


@on_module(nn.Embedding, nn.EmbeddingBag)
def embedding(flow: Flow, node: fx.Node) -> Labelled:
    """The embedding width is written; the vocabulary stays."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    subject(flow, node)
    written = flow.write(Axis(f"{node.target}.weight", 1), module.embedding_dim, node)
    if module.max_norm is not None:
        flow.pin(written, f"is counted in the norms that {describe(flow, node)} limits")
    for labels in flow.fields(argument(node, 0, "input")):
        flow.pin(labels, f"is looked up at {node.name}")
    return flow.result(written, rank_of(node), -1)


@on_op("linear")
def functional_linear(flow: Flow, node: fx.Node) -> Labelled:
    """A linear layer whose weight is a value of the graph."""
    value, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    if len(shape_of_argument(weight)) != 2:
        return unknown(flow, node)
    arriving, rest = flow.along_of(shared(flow, node, value, -1), shape_of_argument(value), -1, node)
    flow.unify(flow.along(weight, -1, node)[0], arriving, node)
    axis = flow.weight_along(weight, 1, node)
    flow.count_matters(arriving, f"is contracted at {node.name}", weight=axis)
    written, _ = flow.along(weight, 0, node)
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    total = elements(shape_of_argument(value)) * written.size
    count_macs(flow, node, total, (written, arriving, *rest))
    return (*rest, *flow.result(written, rank_of(node), -1))


@on_op("embedding")
def functional_embedding(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the table is a value of the graph."""
    places, table = argument(node, 0, "input"), argument(node, 1, "weight")
    flow.pin_all(flow.fields(places), f"is looked up at {node.name}")
    written, rows = flow.along(table, 1, node)
    flow.pin_all(rows, f"is a row of the table at {node.name}")
    if argument(node, 3, "max_norm") is not None:
        flow.pin(written, f"is counted in the norms that {describe(flow, node)} limits")
    return flow.result(written, rank_of(node), -1)


@on_module(nn.Bilinear)
def bilinear(flow: Flow, node: fx.Node) -> Labelled:
    """weight [out, in1, in2]: both inputs' last dimensions are read."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Bilinear)
    written = flow.write(Axis(f"{node.target}.weight", 0), module.out_features, node)
    fields: list[Fields] = []
    for index, value in enumerate((argument(node, 0, "input1"), argument(node, 1, "input2"))):
        arriving, rest = flow.along(value, -1, node)
        flow.bind(Axis(f"{node.target}.weight", 1 + index), arriving, node)
        flow.count_matters(arriving, f"is contracted at {node.name}")
        fields.append(rest)
    if module.bias is not None:
        flow.bind(Axis(f"{node.target}.bias", 0), written, node, "carrier")
    rest = combine(flow, node, [(own, (*shape_of_argument(node)[:-1], 1)) for own in fields])
    widths = [flow.bindings[Axis(f"{node.target}.weight", dim)].labels for dim in range(3)]
    count_macs(flow, node, elements(shape_of_argument(node)[:-1]) * elements(module.weight.shape), (*widths, *rest))
    return (*rest, *flow.result(written, rank_of(node), -1))


@repeats_tensors(nn.Linear)
def features(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Attributes:
    """The weight is [out, in]."""
    return {"in_features": tensors["weight"].shape[1], "out_features": tensors["weight"].shape[0]}


@repeats_tensors(nn.Embedding, nn.EmbeddingBag)
def embedding_width(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Attributes:
    """The weight is [rows, width]."""
    return {"embedding_dim": tensors["weight"].shape[1]}


@repeats_tensors(nn.Bilinear)
def bilinear_features(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Attributes:
    """The weight is [out, in1, in2]."""
    return dict(zip(("out_features", "in1_features", "in2_features"), tensors["weight"].shape, strict=True))
