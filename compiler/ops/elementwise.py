"""Operations on each element by itself, gated linear units, and operations that give no tensor.

relu(x), x + y, torch.where(m, x, y)      labels pass; those of several operands unify (`labels/broadcast.py`)
x.to(y.dtype), zeros_like(x)              the first operand's labels pass
F.glu(x)                                  position i of the first half goes with position i of the second
x.size(1), len(x)                         no tensor, so no labels
"""

from __future__ import annotations

import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, op_name, rank_of, words
from prunec.compiler.labels.broadcast import combine, with_picks
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import subject, without_labels
from prunec.compiler.labels.registry import on_module, on_op


@on_op(
    *words("""
        add sub mul div truediv floordiv floor_divide true_divide remainder mod fmod pow rsub radd neg pos abs absolute
        iadd isub imul itruediv ifloordiv and or xor invert logical_and logical_or logical_not logical_xor eq ne lt le
        gt ge maximum minimum fmax fmin where masked_fill clamp clip clamp_min clamp_max hardtanh relu relu6 leaky_relu
        elu selu celu gelu silu mish sigmoid hardsigmoid hardswish tanh hardshrink softshrink tanhshrink softplus
        softsign logsigmoid threshold _threshold rrelu exp exp2 expm1
        log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan
        sinh cosh asin acos atan erf erfc sign floor ceil round trunc frac lerp addcmul addcdiv nan_to_num isnan isinf
        isfinite bitwise_and bitwise_or bitwise_not dropout alpha_dropout feature_dropout feature_alpha_dropout
        dropout1d dropout2d dropout3d positive atan2 hypot subtract multiply divide negative xlogy heaviside copysign
        copy by_mode complex polar conj conj_physical resolve_conj resolve_neg angle real imag
    """),
    carries_copies=True,
)
def elementwise(flow: Flow, node: fx.Node) -> Labelled:
    """Every tensor operand is broadcast against the others."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return without_labels(flow, node)
    fields = combine(flow, node, with_picks(flow, node))
    met = [labels for value in node.all_input_nodes for labels in flow.fields(value)]
    if len(node.all_input_nodes) > 1 and all(map(flow.is_own, met)):
        for labels in fields:  # zeros that something without channels was added to
            if not flow.is_settled(labels):
                flow.loosen(labels)
    return fields


@on_op(
    *words("""
        contiguous clone detach to float double half bfloat16 cpu type type_as requires_grad alias as_tensor asarray
        zeros_like ones_like full_like rand_like randn_like empty_like zero fill
    """),
    carries_copies=True,
)
def converted(flow: Flow, node: fx.Node) -> Labelled:
    """The first operand in another form; of a second one only the type is read."""
    first = argument(node, 0, "input")
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return without_labels(flow, node)
    if first in flow.blanks and op_name(node) in ("to", "type_as", "type", "float", "double", "half", "bfloat16"):
        flow.blanks[node] = first
    return flow.fields(first)


@on_module(
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softplus),
    *(nn.Softsign, nn.LogSigmoid, nn.Threshold, nn.RReLU, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    carries_copies=True,
)
def passes(flow: Flow, node: fx.Node) -> Labelled:
    """Modules of one operand, element by element."""
    return flow.fields(subject(flow, node))


@on_module(nn.GLU, reduces=True, carries_copies=True)
@on_op("glu", reduces=True, carries_copies=True)
def gated(flow: Flow, node: fx.Node) -> Labelled:
    """The halves of one dimension are multiplied: each position goes with its partner."""
    value = subject(flow, node)
    dim = flow.constant(argument(node, 1, "dim", -1))
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", -1)
    labels, rest = flow.along(value, dim, node)
    halves = labels.reshape(2, -1)
    flow.unify(halves[0], halves[1], node)
    return (*rest, *flow.result(halves[0].copy(), rank_of(node), dim))


@on_op(
    *words("""
        size dim ndimension numel stride is_contiguous is_floating_point is_complex len int bool _assert sym_sqrt isqrt
        get_device element_size
    """),
    carries_copies=True,
)
def plain(flow: Flow, node: fx.Node) -> Labelled:
    """No tensor comes out, so no labels do; `rewrite/shrink.py` settles how a size follows."""
    return without_labels(flow, node)
