"""What each operation does to channel labels: one row an operation, one function a kind of operation.

    writer       conv, linear, embedding      binds its input axis to what arrives, writes fresh labels
    carrier      batch norm, prelu, ...       binds its axes to what arrives, passes it on
    elementwise  relu, add, mul, ...          unifies its operands
    movement     reshape, cat, slice, ...     the operation itself is executed on the labels (movement.py)
    local        pooling, interpolation       mixes trailing dimensions, passes the rest
    reduction    mean, softmax, ...           pins the labels along what it reduces
    plain        size, shape, device          gives no tensor

An operation without a row pins whatever reaches it: not knowing an operation costs prunable channels, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir import Axis, IntArray
from prunec.compiler.labels import FIXED, Fields, Flow, Labelled, Product, elements, shape_of_argument

Rule = Callable[[Flow, fx.Node], Labelled]

MODULE_RULES: dict[type[nn.Module], Rule] = {}
OP_RULES: dict[str, Rule] = {}


def on_module(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for leaf modules of these classes; a second rule for one class is an error."""

    def register(rule: Rule) -> Rule:
        for cls in classes:
            assert cls not in MODULE_RULES, f"{cls.__name__} has a rule already"
            MODULE_RULES[cls] = rule
        return rule

    return register


def on_op(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for functions and tensor methods of these names (see `op_name`)."""

    def register(rule: Rule) -> Rule:
        for name in names:
            assert name not in OP_RULES, f"{name} has a rule already"
            OP_RULES[name] = rule
        return rule

    return register


_HOMES = ("torch", "_operator", "operator", "math", "builtins", "torchvision.ops")


def op_name(node: fx.Node) -> str:
    """The name of a node's function or method without a trailing underscore (`relu_` is `relu`).

    A function from elsewhere than torch and the standard library is named in full, so that a user's own `add` is never
    taken for torch's.
    """
    target = node.target
    if isinstance(target, str):
        return target if target.startswith("__") else target.rstrip("_")
    name = getattr(target, "__name__", str(target))
    home = getattr(target, "__module__", None) or "torch"
    if home not in _HOMES and not home.startswith(("torch.", "torch._")):
        return f"{home}.{name}"
    return name if name.startswith("__") else name.rstrip("_")


def rule_for(flow: Flow, node: fx.Node) -> Rule | None:
    """The row for a node's operation, if there is one."""
    if node.op == "call_module":
        module = flow.program.state[str(node.target)]
        for cls in type(module).__mro__:
            if cls in MODULE_RULES:
                # A subclass with a forward of its own is another operation.
                return MODULE_RULES[cls] if type(module).forward is cls.forward or cls is type(module) else None
        return None
    return OP_RULES.get(op_name(node))


def describe(flow: Flow, node: fx.Node) -> str:
    """A node's operation in words, for reasons."""
    if node.op == "call_module":
        return f"{node.target} ({type(flow.program.state[str(node.target)]).__name__})"
    return f"{op_name(node)} at {node.name}"


def run_rules(flow: Flow) -> None:
    """Flow the labels through the program, from its inputs to its output."""
    for node in flow.program.graph.nodes:
        flow.values[node] = _label(flow, node)


def _label(flow: Flow, node: fx.Node) -> Labelled:
    if node.op == "placeholder":
        return ()
    if node.op == "get_attr":
        return _tensor(flow, node)
    if node.op == "output":
        for value in node.all_input_nodes:
            pin_value(flow, flow.values[value], "reaches the model's output")
        return None
    rule = rule_for(flow, node)
    return unknown(flow, node) if rule is None else rule(flow, node)


def _tensor(flow: Flow, node: fx.Node) -> Labelled:
    """A parameter or buffer that is itself a value: fresh labels along each dimension."""
    name = str(node.target)
    value = flow.program.state.get(name)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return () if isinstance(value, torch.Tensor) else None
    role = "writer" if isinstance(value, nn.Parameter) else "buffer"
    fields: Fields = ()
    for dim, size in enumerate(value.shape):
        if size > 1:
            fields += flow.result(flow.write(Axis(name, dim), size, node, role), value.ndim, dim)
    return fields


def pin_value(flow: Flow, value: Labelled, reason: str) -> None:
    """Pin every label of a value, or of a tuple of values."""
    if isinstance(value, tuple):
        flow.pin_all(value, reason)
    elif isinstance(value, list):
        for part in value:
            pin_value(flow, part, reason)


def unknown(flow: Flow, node: fx.Node) -> Labelled:
    """An operation without a rule: nothing that reaches it may be removed."""
    for value in node.all_input_nodes:
        pin_value(flow, flow.values[value], f"read by unknown op {describe(flow, node)}")
    return bare(node.meta.get("val"))


def bare(known: object) -> Labelled:
    """The labels of a value that has none: `()` for a tensor, a list for a tuple, None for anything else."""
    if isinstance(known, torch.Tensor):
        return ()
    if isinstance(known, tuple | list):
        return [bare(part) for part in known]
    return None


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def rank_of(node: fx.Node) -> int:
    """The rank of the node's value."""
    return len(shape_of_argument(node))


# -- elementwise ---------------------------------------------------------------------------------------------------


def combine(flow: Flow, node: fx.Node, operands: Iterable[tuple[Fields, tuple[int, ...]]]) -> Fields:
    """Unify operands that are broadcast against each other; `operands` are (fields, shape) pairs.

    Fields along the same dimensions are coupled element by element. A field that meets an operand which spans one of
    its dimensions without labels there may not be removed.
    """
    lifted = [(fields, shape) for fields, shape in operands if shape]
    if len(lifted) == 1:
        return lifted[0][0]
    rank = max((len(shape) for _, shape in lifted), default=0)
    sized = [(1,) * (rank - len(shape)) + shape for _, shape in lifted]
    raised = [[_lift(flow, f, rank) for f in fields] for fields, _ in lifted]
    taken: list[IntArray] = []
    for index, fields in enumerate(raised):
        for labels in fields:
            support = [d for d, size in enumerate(labels.shape) if size > 1]
            for other, shape in enumerate(sized):
                if other != index:
                    _meet(flow, node, labels, support, raised[other], shape)
            _take(taken, labels)
    return tuple(taken)


def _lift(flow: Flow, labels: IntArray, rank: int) -> IntArray:
    if labels.ndim == rank:
        return labels
    if labels.size == max(labels.shape):
        dim = int(np.argmax(labels.shape)) + rank - labels.ndim
        return flow.result(flow.flat(labels), rank, dim)[0]
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _meet(
    flow: Flow, node: fx.Node, labels: IntArray, support: list[int], others: list[IntArray], shape: tuple[int, ...]
) -> None:
    spanned = [d for d in support if shape[d] > 1]
    touching = [other for other in others if any(other.shape[d] > 1 for d in support)]
    for other in touching:
        flow.unify(labels, other, node)
    if any(all(other.shape[d] == 1 for other in touching) for d in spanned):
        flow.pin(labels, f"meets positions that are fixed at {node.name}")


def _take(taken: list[IntArray], labels: IntArray) -> None:
    """Keep one field for each set of dimensions: of two that overlap, the one that spans more."""
    for index, other in enumerate(taken):
        if any(a > 1 and b > 1 for a, b in zip(labels.shape, other.shape)):
            if sum(a > 1 for a in labels.shape) > sum(b > 1 for b in other.shape):
                taken[index] = labels
            return
    taken.append(labels)


def operand(flow: Flow, value: object) -> tuple[Fields, tuple[int, ...]]:
    """An argument as `combine` takes it."""
    return flow.fields(value), shape_of_argument(value)


@on_op(
    *"add sub mul div truediv floordiv floor_divide true_divide remainder mod fmod pow rsub radd neg pos abs absolute".split(),
    *"iadd isub imul itruediv ifloordiv and or xor invert logical_and logical_or logical_not logical_xor".split(),
    *"eq ne lt le gt ge maximum minimum fmax fmin where masked_fill clamp clip clamp_min clamp_max hardtanh".split(),
    *"relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid hardsigmoid hardswish tanh hardshrink softshrink".split(),
    *"tanhshrink softplus softsign logsigmoid threshold rrelu exp exp2 expm1 log log2 log10 log1p sqrt rsqrt".split(),
    *"square reciprocal sin cos tan sinh cosh asin acos atan erf erfc sign floor ceil round trunc frac lerp".split(),
    *"addcmul addcdiv nan_to_num isnan isinf isfinite bitwise_and bitwise_or bitwise_not".split(),
    *"dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d".split(),
    *"contiguous clone detach to float double half bfloat16 type type_as requires_grad positive alias".split(),
    *"zeros_like ones_like full_like rand_like randn_like empty_like atan2 hypot".split(),
)
def elementwise(flow: Flow, node: fx.Node) -> Labelled:
    """Every tensor operand is broadcast against the others."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    return combine(flow, node, (operand(flow, value) for value in node.all_input_nodes))


@on_module(
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softplus),
    *(nn.Softsign, nn.LogSigmoid, nn.Threshold, nn.RReLU, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
def passes(flow: Flow, node: fx.Node) -> Labelled:
    """One operand, element by element."""
    return flow.fields(argument(node, 0, "input"))


# -- plain values --------------------------------------------------------------------------------------------------


@on_op("size", "dim", "ndimension", "numel", "is_floating_point", "len", "int", "float_", "bool", "_assert")
@on_op("sym_sqrt", "isqrt", "prod", "get_device", "is_complex", "element_size", "_shape_as_tensor")
def plain(flow: Flow, node: fx.Node) -> Labelled:
    """No tensor comes out, so no labels do; how sizes change is settled when the program is shrunk."""
    known = node.meta.get("val")
    return unknown(flow, node) if isinstance(known, torch.Tensor) else None


# -- writers -------------------------------------------------------------------------------------------------------


def _convolution(flow: Flow, node: fx.Node, transposed: bool) -> Labelled:
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.modules.conv._ConvNd)
    name, value = str(node.target), argument(node, 0, "input")
    dim = rank_of(node) - 1 - len(module.kernel_size)
    arriving, rest = flow.along(value, dim, node)
    keep = tuple(f for f in rest if all(size == 1 for size in f.shape[dim:]))
    flow.pin_all((f for f in rest if all(f is not k for k in keep)), f"is convolved over at {node.name}")
    reads, writes = Axis(f"{name}.weight", 0 if transposed else 1), Axis(f"{name}.weight", 1 if transposed else 0)
    if module.groups > 1:
        arriving, written = _grouped(flow, node, arriving, (reads, writes), module)
    else:
        written = flow.write(writes, module.out_channels, node)
    flow.bind(reads, arriving, node)
    if module.bias is not None:
        flow.bind(Axis(f"{name}.bias", 0), written, node, "carrier")
    space = elements(shape_of_argument(value if transposed else node)[dim + 1 :])
    leading = elements(shape_of_argument(node)[:dim])
    kernel = elements(module.kernel_size) * space * leading
    if reads in flow.by_group:
        total = kernel * module.in_channels // module.groups
        flow.macs.append(Product(node.name, total, (written,)))
    else:
        flow.macs.append(Product(node.name, kernel / module.groups, (written, arriving)))
    return (*keep, *flow.result(written, rank_of(node), dim))


def _grouped(
    flow: Flow, node: fx.Node, arriving: IntArray, axes: tuple[Axis, Axis], module: nn.modules.conv._ConvNd
) -> tuple[IntArray, IntArray]:
    """The labels of a grouped convolution's two axes.

    One input and one output a group (depthwise): the channel passes. One input or one output a group: a whole group is
    the unit. Else the same position of every group goes, so that groups stay equally wide.
    """
    groups, inner, outer = module.groups, module.in_channels // module.groups, module.out_channels // module.groups
    if inner == 1 or outer == 1:
        flow.by_group.add(axes[0])
    if inner == outer == 1:
        if (arriving == FIXED).any():
            flow.pin(arriving[arriving != FIXED], f"shares depthwise {node.name} with fixed positions")
            return arriving, arriving
        flow.bind(axes[1], arriving, node, "carrier")
        return arriving, arriving
    written = flow.write(axes[1], module.out_channels, node)
    if inner == 1 or outer == 1:
        flow.unify(written.reshape(groups, outer), arriving.reshape(groups, inner)[:, :1], node)
        flow.unify(written.reshape(groups, outer)[:, :1], arriving.reshape(groups, inner), node)
        return arriving, written
    for labels, width in ((arriving, inner), (written, outer)):
        rows = labels.reshape(groups, width)
        flow.unify(rows, rows[:1], node)
    return arriving, written


@on_module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(flow: Flow, node: fx.Node) -> Labelled:
    """weight[1] reads, weight[0] writes."""
    return _convolution(flow, node, transposed=False)


@on_module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(flow: Flow, node: fx.Node) -> Labelled:
    """weight[0] reads, weight[1] writes."""
    return _convolution(flow, node, transposed=True)


@on_module(nn.Linear)
def linear(flow: Flow, node: fx.Node) -> Labelled:
    """The last dimension is read and written; fields along the others pass."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Linear)
    name = str(node.target)
    arriving, rest = flow.along(argument(node, 0, "input"), -1, node)
    written = flow.write(Axis(f"{name}.weight", 0), module.out_features, node)
    flow.bind(Axis(f"{name}.weight", 1), arriving, node)
    if module.bias is not None:
        flow.bind(Axis(f"{name}.bias", 0), written, node, "carrier")
    flow.macs.append(Product(node.name, elements(shape_of_argument(node)[:-1]), (written, arriving)))
    return (*rest, *flow.result(written, rank_of(node), -1))


@on_module(nn.Embedding)
def embedding(flow: Flow, node: fx.Node) -> Labelled:
    """The embedding width is written; the vocabulary stays."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Embedding)
    axis = Axis(f"{node.target}.weight", 1)
    return flow.result(flow.write(axis, module.embedding_dim, node), rank_of(node), -1)


@on_op("conv1d", "conv2d", "conv3d")
def functional_convolution(flow: Flow, node: fx.Node) -> Labelled:
    """A convolution whose weight is a value of the graph."""
    value, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    groups = argument(node, 6, "groups", 1)
    width = shape_of_argument(weight)[1]
    arriving, rest = flow.along(value, 1, node)
    flow.pin_all((f for f in rest if any(s > 1 for s in f.shape[1:])), f"is convolved over at {node.name}")
    columns, _ = flow.along(weight, 1, node)
    written, _ = flow.along(weight, 0, node)
    if groups == 1:
        flow.unify(columns, arriving, node)
    elif width == 1 and written.size == groups:
        flow.unify(written, arriving, node)
    else:
        flow.pin_all((arriving, columns, written), f"grouped functional convolution at {node.name}")
    _kernel_pins(flow, node, weight)
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    space = elements(shape_of_argument(node)[2:]) * shape_of_argument(node)[0] * elements(shape_of_argument(weight)[2:])
    flow.macs.append(Product(node.name, space / groups, (written, arriving)))
    return (*(f for f in rest if all(s == 1 for s in f.shape[1:])), *flow.result(written, rank_of(node), 1))


def _kernel_pins(flow: Flow, node: fx.Node, weight: object) -> None:
    for labels in flow.fields(weight):
        if any(size > 1 for size in labels.shape[2:]):
            flow.pin(labels, f"is a kernel dimension of {node.name}")


@on_op("linear")
def functional_linear(flow: Flow, node: fx.Node) -> Labelled:
    """A linear layer whose weight is a value of the graph."""
    value, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    arriving, rest = flow.along(value, -1, node)
    flow.unify(flow.along(weight, -1, node)[0], arriving, node)
    flow.count_matters(arriving, f"contracted at {node.name}")
    written, _ = flow.along(weight, 0, node)
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    flow.macs.append(Product(node.name, elements(shape_of_argument(node)[:-1]), (written, arriving)))
    return (*rest, *flow.result(written, rank_of(node), -1))


@on_op("matmul", "bmm", "mm", "__matmul__")
def matmul(flow: Flow, node: fx.Node) -> Labelled:
    """The contracted labels unify. One that varies along a batch dimension too (a head) goes as a whole."""
    left, right = argument(node, 0, "input"), argument(node, 1, "other" if op_name(node) == "matmul" else "mat2")
    return contract(flow, node, operand(flow, left), operand(flow, right))


def contract(
    flow: Flow, node: fx.Node, left: tuple[Fields, tuple[int, ...]], right: tuple[Fields, tuple[int, ...]]
) -> Fields:
    """The fields of `left @ right`, [..., m, k] by [..., k, n]."""
    rank = rank_of(node)
    if min(len(left[1]), len(right[1])) < 2:
        flow.pin_all((*left[0], *right[0]), f"contracted with a vector at {node.name}")
        return ()
    a_flat, a_rest = _contracted(flow, node, left, -1)
    b_flat, b_rest = _contracted(flow, node, right, -2)
    flow.unify(a_flat, b_flat, node)
    flow.count_matters(a_flat, f"contracted at {node.name}")
    flow.count_matters(b_flat, f"contracted at {node.name}")
    a_shape = (1,) * (rank - len(left[1])) + (*left[1][:-1], 1)
    b_shape = (1,) * (rank - len(right[1])) + (*right[1][:-2], 1, right[1][-1])
    fields = combine(flow, node, ((a_rest, a_shape), (b_rest, b_shape)))
    count_macs(flow, node, elements(shape_of_argument(node)) * left[1][-1], (a_flat, *fields))
    return fields


def count_macs(flow: Flow, node: fx.Node, total: int, widths: Iterable[IntArray]) -> None:
    """A cost of `total` now, proportional to each of the widths that vary along one dimension."""
    flat = tuple(flow.flat(w) for w in widths if w.size == max(w.shape))
    flow.macs.append(Product(node.name, total / elements([w.size for w in flat]), flat))


def _contracted(
    flow: Flow, node: fx.Node, value: tuple[Fields, tuple[int, ...]], dim: int
) -> tuple[IntArray, Fields]:
    """The labels along the contracted dimension, and the fields that are left when it is gone (of size 1)."""
    flat = np.full(value[1][dim], FIXED, dtype=np.int64)
    rest: list[IntArray] = []
    for labels in value[0]:
        if labels.shape[dim] == 1:
            rest.append(labels)
        elif labels.size == labels.shape[dim]:
            flat = flow.flat(labels)
        else:
            index = [slice(None)] * labels.ndim
            index[dim] = slice(0, 1)
            first = labels[tuple(index)]
            flow.unify(labels, first, node)
            flow.count_matters(labels.reshape(-1), f"contracted at {node.name}")
            rest += flow.moved((first,), node)
    return flat, tuple(rest)


@on_op("scaled_dot_product_attention")
def attention(flow: Flow, node: fx.Node) -> Labelled:
    """softmax(q k^T) v, as two contractions with a softmax over the keys between them."""
    query, key, value = (argument(node, i, n) for i, n in enumerate(("query", "key", "value")))
    shapes = [shape_of_argument(v) for v in (query, key, value)]
    flat_q, rest_q = _contracted(flow, node, operand(flow, query), -1)
    flat_k, rest_k = _contracted(flow, node, operand(flow, key), -1)
    flow.unify(flat_q, flat_k, node)
    flow.count_matters(flat_q, f"contracted at {node.name}")
    out: Fields = ()
    for labels in flow.fields(value):
        if labels.shape[-2] > 1:
            flow.pin(labels, f"summed over at {node.name}")
        else:
            out += (labels,)
    for labels in (*rest_q, *rest_k):
        if any(size > 1 for size in labels.shape[-2:]):
            flow.pin(labels, f"tokens of {node.name}")
    heads = [(tuple(f for f in rest if all(s == 1 for s in f.shape[-2:])), (*shape[:-2], 1, 1))
             for rest, shape in ((rest_q, shapes[0]), (rest_k, shapes[1]))]
    mask = argument(node, 3, "attn_mask")
    for labels in flow.fields(mask):
        flow.pin(labels, f"attention mask of {node.name}")
    scores = combine(flow, node, heads)
    fields = combine(flow, node, ((out, (*shapes[2][:-2], 1, shapes[2][-1])), (scores, (*shapes[0][:-2], 1, 1))))
    tokens = elements(shapes[0][:-1]) * shapes[1][-2]
    count_macs(flow, node, tokens * shapes[0][-1], (flat_q, *scores))
    count_macs(flow, node, tokens * shapes[2][-1], fields)
    return fields


# -- carriers ------------------------------------------------------------------------------------------------------


def _carry(flow: Flow, node: fx.Node, labels: IntArray, names: Iterable[str], dim: int = 0) -> None:
    module = flow.program.state[str(node.target)]
    for name in names:
        if isinstance(getattr(module, name, None), torch.Tensor):
            flow.bind(Axis(f"{node.target}.{name}", dim), labels, node, "carrier")


@on_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@on_module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def batch_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Each channel on its own: dimension 1 passes."""
    value = argument(node, 0, "input")
    labels, _ = flow.along(value, 1, node)
    for other in flow.fields(value):
        if any(size > 1 for size in other.shape[2:]):
            flow.pin(other, f"is normalised over at {node.name}")
    _carry(flow, node, labels, ("weight", "bias", "running_mean", "running_var"))
    return flow.fields(value)


@on_module(nn.LayerNorm, nn.RMSNorm)
def layer_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Statistics over the trailing dimensions, of the channels that are kept."""
    module, value = flow.program.state[str(node.target)], argument(node, 0, "input")
    shape: tuple[int, ...] = module.normalized_shape  # type: ignore[union-attr, assignment]
    for index in range(len(shape)):
        labels, _ = flow.along(value, index - len(shape), node)
        flow.count_matters(labels, f"counted by {describe(flow, node)}")
        _carry(flow, node, labels, ("weight", "bias"), dim=index)
    return flow.fields(value)


@on_module(nn.GroupNorm)
def group_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Statistics over each group: the same position of every group goes; with one channel a group, whole groups."""
    module, value = flow.program.state[str(node.target)], argument(node, 0, "input")
    assert isinstance(module, nn.GroupNorm)
    labels, _ = flow.along(value, 1, node)
    for other in flow.fields(value):
        if any(size > 1 for size in other.shape[2:]):
            flow.pin(other, f"is normalised over at {node.name}")
    if module.num_groups < module.num_channels:
        rows = labels.reshape(module.num_groups, -1)
        flow.unify(rows, rows[:1], node)
    flow.count_matters(labels, f"counted by {describe(flow, node)}")
    _carry(flow, node, labels, ("weight", "bias"))
    return flow.fields(value)


@on_op("layer_norm", "rms_norm")
def functional_layer_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; weight and bias are values of the graph."""
    value, shape = argument(node, 0, "input"), argument(node, 1, "normalized_shape")
    names = ("weight", "bias") if op_name(node) == "layer_norm" else ("weight",)
    parts = [argument(node, 2 + i, name) for i, name in enumerate(names)]
    for index in range(len(shape)):
        labels, _ = flow.along(value, index - len(shape), node)
        flow.count_matters(labels, f"counted by {node.name}")
    return combine(flow, node, [operand(flow, value), *(operand(flow, p) for p in parts if p is not None)])


@on_op("batch_norm", "instance_norm")
def functional_batch_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the four vectors are values of the graph, or constants."""
    value = argument(node, 0, "input")
    labels, _ = flow.along(value, 1, node)
    for index, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        vector = argument(node, index, name)
        if isinstance(vector, fx.Node):
            flow.unify(labels, flow.along(vector, 0, node)[0], node)
    return flow.fields(value)


@on_module(nn.PReLU)
def prelu(flow: Flow, node: fx.Node) -> Labelled:
    """One slope, or one a channel."""
    value = argument(node, 0, "input")
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.PReLU)
    if module.num_parameters > 1:
        _carry(flow, node, flow.along(value, 1, node)[0], ("weight",))
    return flow.fields(value)


# -- local mixing and reductions -----------------------------------------------------------------------------------


def mixed(flow: Flow, node: fx.Node, value: object, dims: Iterable[int], verb: str) -> Fields:
    """The fields that don't vary along `dims`; those that do are pinned."""
    rank = len(shape_of_argument(value))
    along = {d % rank for d in dims}
    kept: list[IntArray] = []
    for labels in flow.fields(value):
        if any(labels.shape[d] > 1 for d in along):
            flow.pin(labels, f"{verb} at {node.name}")
        else:
            kept.append(labels)
    return tuple(kept)


def _local(width: int) -> Rule:
    def rule(flow: Flow, node: fx.Node) -> Labelled:
        value = argument(node, 0, "input")
        fields = mixed(flow, node, value, range(-width, 0), "is pooled over")
        if isinstance(node.meta["val"], tuple):
            return [fields, *((),) * (len(node.meta["val"]) - 1)]
        return fields

    return rule


for _width, _suffix in ((1, "1d"), (2, "2d"), (3, "3d")):
    for _pool in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool"):
        on_module(getattr(nn, _pool + _suffix))(_local(_width))
    on_op(*(f"{p}_pool{_suffix}" for p in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")))(_local(_width))
    for _pad in ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
        on_module(getattr(nn, _pad + _suffix))(_local(_width))


@on_module(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@on_op("interpolate", "upsample", "grid_sample")
def interpolation(flow: Flow, node: fx.Node) -> Labelled:
    """Everything behind the channel dimension is mixed."""
    value = argument(node, 0, "input")
    return mixed(flow, node, value, range(2, rank_of(node)), "is interpolated over")


@on_op("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "normalize")
@on_module(nn.Softmax, nn.LogSoftmax)
def along_a_dimension(flow: Flow, node: fx.Node) -> Labelled:
    """Mixes one dimension and keeps its size."""
    default = 1 if op_name(node) == "normalize" else None
    dim = argument(node, 2 if op_name(node) == "normalize" else 1, "dim", default)
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", None)
    rank = rank_of(node)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    return mixed(flow, node, argument(node, 0, "input"), dims, "is normalised over")


@on_op("mean", "sum", "amax", "amin", "var", "std", "max", "min", "norm", "logsumexp", "any", "all", "argmax", "argmin")
def reduction(flow: Flow, node: fx.Node) -> Labelled:
    """Pins what is reduced, and drops its dimensions."""
    value = argument(node, 0, "input")
    if op_name(node) in ("max", "min") and isinstance(argument(node, 1, "other"), fx.Node):
        return elementwise(flow, node)
    dim = argument(node, 2 if op_name(node) == "norm" else 1, "dim")
    keep = bool(argument(node, 3 if op_name(node) == "norm" else 2, "keepdim", False))
    rank = len(shape_of_argument(value))
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    gone = tuple(sorted(d % rank for d in dims))
    fields = mixed(flow, node, value, gone, "is reduced over")
    out = fields if keep else flow.moved((np.squeeze(f, axis=gone) for f in fields), node)
    known = node.meta["val"]
    return out if isinstance(known, torch.Tensor) else [out for _ in known]


@on_module(nn.GLU)
@on_op("glu")
def gated(flow: Flow, node: fx.Node) -> Labelled:
    """The halves of one dimension are multiplied: each position goes with its partner."""
    value = argument(node, 0, "input")
    dim = argument(node, 1, "dim", -1)
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", -1)
    labels, rest = flow.along(value, dim, node)
    halves = labels.reshape(2, -1)
    flow.unify(halves[0], halves[1], node)
    return (*rest, *flow.result(halves[0].copy(), rank_of(node), dim))


