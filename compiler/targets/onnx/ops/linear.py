"""Linear layers and embeddings: a matrix is one Gemm, more dimensions are a MatMul."""

from __future__ import annotations

from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op


@on_module(nn.Linear)
@on_op("linear")
def linear(call: Call) -> str:
    """x @ weight.T + bias."""
    weight, bias = call.operand(1, "weight"), call.operand(2, "bias")
    fixed = call.constant(weight)
    if call.rank_of(weight) != 2:
        call.decline("its weight is no matrix")
    if call.rank_of(call.subject) == 2:
        inputs = [call.first, call.name(weight)] + ([] if bias is None else [call.name(bias)])
        made = call.add("Gemm", *inputs, transB=1)
        shift = None if bias is None else call.constant(bias)
        if fixed is not None and (bias is None or shift is not None):
            call.graph.foldable[call.node] = (fixed, shift)
        return made
    matrix = call.transposed(call.name(weight), (1, 0)) if fixed is None else call.graph.transposed(fixed)
    product = call.add("MatMul", call.first, matrix)
    return product if bias is None else call.add("Add", product, call.name(bias))


@on_module(nn.Embedding)
@on_op("embedding")
def embedding(call: Call) -> str:
    """Rows of the weight."""
    if call.option(3, "max_norm") is not None:
        call.decline("it rescales its weight")
    weight = call.module.weight if call.is_module else call.given(1, "weight")
    indices = call.subject
    return call.add("Gather", call.name(weight), call.name(indices), axis=0)
