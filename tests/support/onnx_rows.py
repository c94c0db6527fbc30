"""A case for every row of the direct ONNX writer, and for each form that a row tells apart; and forms that it declines.

A case is a function or module with the example inputs, whose first dimension is the batch, 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import with_batch
from prunec.compiler.targets.ort_session import session
from prunec.compiler.verify.compare import relative_difference


def difference(model: bytes, program: Program, size: int) -> float:
    """Between a file in onnxruntime and the program's module, on inputs of that batch size."""
    inputs = with_batch(program, size)
    names = [entry.name for entry in onnx.load_from_string(model).graph.input]
    feeds = {name: value.numpy() for name, value in zip(names, tensors_in(inputs), strict=True)}
    got = session(model).run(None, feeds)
    with torch.no_grad():
        expected = [x.numpy() for x in tensors_in(program.module.eval()(*inputs))]
    return relative_difference(got, expected)


Case = tuple[Callable[..., Any], tuple[Any, ...]]

_DRAWN = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=_DRAWN)


class Calls(nn.Module):
    """A function as a module, with tensors that it may read as `self`'s buffers and a layer for its parameters."""

    def __init__(self, function: Callable[..., Any], **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        held = list(self._buffers.values())
        return self.function(*inputs, *held)


IMAGE = (drawn(2, 6, 8, 8),)
SMALL = (drawn(2, 6, 5, 7),)
ROWS = (drawn(2, 6),)
WORDS = (drawn(2, 5, 6),)
PAIR = (drawn(2, 6), drawn(2, 6))
POSITIVE = (drawn(2, 6).abs() + 0.5,)
WHOLE = (torch.tensor([[1, 2, 0], [3, 0, 2]]),)
WEIGHT = drawn(4, 6, 3, 3)


def normed(layer: nn.Module, width: int, kind: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Sequential:
    """A layer and a batch norm that has seen data."""
    return nn.Sequential(layer, _seen(kind(width, **options)))


def _seen(norm: Any) -> Any:
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(drawn(*tensor.shape))
        norm.running_var.copy_(drawn(*norm.running_var.shape).abs() + 0.5)
    return norm


def _scaled(norm: Any) -> Any:
    """A norm whose weights are drawn."""
    with torch.no_grad():
        for tensor in norm.parameters():
            tensor.copy_(drawn(*tensor.shape))
    return norm


def _in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.add_(1)
    return y.relu_() + y


def _masked_window(x: torch.Tensor) -> torch.Tensor:
    mask = x.new_zeros((6, 6))
    mask[:3, :2] = 1
    return x + mask.sum(0)


CONVOLUTIONS: dict[str, Case] = {
    "conv2d": (nn.Conv2d(6, 4, 3, 2, 1), IMAGE),
    "conv2d without bias": (nn.Conv2d(6, 4, 3, bias=False), IMAGE),
    "conv2d, dilated": (nn.Conv2d(6, 4, 3, dilation=2), IMAGE),
    "conv2d, grouped": (nn.Conv2d(6, 6, 3, groups=3), IMAGE),
    "conv2d, same": (nn.Conv2d(6, 4, 4, padding="same"), IMAGE),
    "conv2d, valid": (nn.Conv2d(6, 4, 3, padding="valid"), IMAGE),
    "conv2d, circular": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv2d, reflecting": (nn.Conv2d(6, 4, (3, 1), padding=(2, 0), padding_mode="reflect"), IMAGE),
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1), (drawn(2, 6, 9),)),
    "conv3d": (nn.Conv3d(2, 4, 3), (drawn(2, 2, 5, 4, 6),)),
    "F.conv2d": (Calls(lambda x, w: F.conv2d(x, w, None, 2, (1, 0)), w=WEIGHT), IMAGE),
    "F.conv2d, grouped": (Calls(lambda x, w: F.conv2d(x, w, padding="same", groups=2), w=drawn(4, 3, 3, 3)), IMAGE),
    "F.conv1d": (Calls(F.conv1d, w=drawn(4, 6, 3)), (drawn(2, 6, 9),)),
    "F.conv3d": (Calls(F.conv3d, w=drawn(4, 2, 3, 3, 3)), (drawn(2, 2, 5, 4, 6),)),
    "F.conv2d with a computed weight": (lambda x: F.conv2d(x, x.mean(0, keepdim=True)[:, :, :3, :3]), IMAGE),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1), IMAGE),
    "transposed, grouped": (nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=False), IMAGE),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 3, dilation=2), (drawn(2, 6, 9),)),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 3), (drawn(2, 2, 5, 4, 6),)),
    "F.conv_transpose2d": (Calls(lambda x, w: F.conv_transpose2d(x, w, stride=2), w=drawn(6, 4, 3, 3)), IMAGE),
    "F.conv_transpose1d": (Calls(F.conv_transpose1d, w=drawn(6, 4, 3)), (drawn(2, 6, 9),)),
    "F.conv_transpose3d": (Calls(F.conv_transpose3d, w=drawn(2, 4, 3, 3, 3)), (drawn(2, 2, 5, 4, 6),)),
}
LINEAR: dict[str, Case] = {
    "linear": (nn.Linear(6, 4), ROWS),
    "linear without bias": (nn.Linear(6, 4, bias=False), ROWS),
    "linear on words": (nn.Linear(6, 4), WORDS),
    "F.linear": (Calls(F.linear, w=drawn(4, 6), b=drawn(4)), ROWS),
    "F.linear on words": (Calls(F.linear, w=drawn(4, 6), b=drawn(4)), WORDS),
    "F.linear with a computed weight": (lambda x: F.linear(x, x.mean(0)), WORDS),
    "embedding": (nn.Embedding(9, 4), WHOLE),
    "F.embedding": (Calls(F.embedding, w=drawn(9, 4)), WHOLE),
    "a tied weight": (Calls(lambda i, w: F.linear(F.embedding(i, w), w), w=drawn(9, 4)), WHOLE),
}
PRODUCTS: dict[str, Case] = {
    "matmul": (lambda x: x @ x.transpose(1, 2), WORDS),
    "torch.matmul": (Calls(torch.matmul, w=drawn(6, 3)), WORDS),
    "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2)), WORDS),
    "mm": (Calls(torch.mm, w=drawn(6, 3)), ROWS),
    "mv": (Calls(torch.mv, w=drawn(6)), ROWS),
    "addmm": (Calls(lambda x, b, w: torch.addmm(b, x, w), b=drawn(3), w=drawn(6, 3)), ROWS),
    "baddbmm": (lambda x: torch.baddbmm(x[:, :, :5], x, x.transpose(1, 2)), WORDS),
    "einsum as a product": (lambda q, k: torch.einsum("b i d, b j d -> b i j", q, k), (drawn(2, 5, 6), drawn(2, 4, 6))),
    "einsum, turned": (lambda q, k: torch.einsum("bid,bjd->jbi", q, k), (drawn(2, 5, 6), drawn(2, 4, 6))),
    "einsum with heads": (lambda q, k: torch.einsum("b h i d, b h j d -> b h i j", q, k), (drawn(2, 3, 5, 4),) * 2),
    "einsum of one": (lambda x: torch.einsum("bij->bj", x), WORDS),
    "einsum that sums twice": (lambda q, k: torch.einsum("bid,bid->b", q, k), (drawn(2, 5, 6), drawn(2, 5, 6))),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1), (drawn(2, 3, 5, 4),)),
    "attention, causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3), WORDS),
    "attention with a mask": (
        Calls(lambda x, m: F.scaled_dot_product_attention(x, x, x, m), m=torch.ones(5, 5).tril().bool()),
        WORDS,
    ),
    "attention with a bias": (
        Calls(lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m), m=drawn(5, 5)),
        WORDS,
    ),
    "attention with a computed bias": (lambda x: F.scaled_dot_product_attention(x, x, x, x @ x.mT), WORDS),
    "multi-head attention": (
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
        WORDS,
    ),
}
NORMS: dict[str, Case] = {
    "batch norm": (_seen(nn.BatchNorm2d(6)), IMAGE),
    "batch norm without weight": (_seen(nn.BatchNorm2d(6, affine=False)), IMAGE),
    "batch norm 1d": (_seen(nn.BatchNorm1d(6)), ROWS),
    "batch norm 3d": (_seen(nn.BatchNorm3d(2)), (drawn(2, 2, 3, 4, 5),)),
    "conv and batch norm": (normed(nn.Conv2d(6, 4, 3), 4), IMAGE),
    "conv without bias and batch norm": (normed(nn.Conv2d(6, 4, 3, bias=False), 4), IMAGE),
    "conv and batch norm without weight": (normed(nn.Conv2d(6, 4, 3, bias=False), 4, affine=False), IMAGE),
    "linear and batch norm": (normed(nn.Linear(6, 4), 4, nn.BatchNorm1d), ROWS),
    "F.batch_norm": (
        Calls(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), m=drawn(6), v=drawn(6).abs(), w=drawn(6), b=drawn(6)),
        IMAGE,
    ),
    "layer norm": (_scaled(nn.LayerNorm(6)), WORDS),
    "layer norm over two": (_scaled(nn.LayerNorm((5, 6), bias=False)), WORDS),
    "layer norm without weight": (nn.LayerNorm(6, elementwise_affine=False, eps=0.1), WORDS),
    "F.layer_norm": (Calls(lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-3), w=drawn(6), b=drawn(6)), WORDS),
    "F.layer_norm without weight": (lambda x: F.layer_norm(x, [6]), WORDS),
    "rms norm": (_scaled(nn.RMSNorm(6)), WORDS),
    "F.rms_norm": (Calls(lambda x, w: F.rms_norm(x, (6,), w, 0.1), w=drawn(6)), WORDS),
    "group norm": (_scaled(nn.GroupNorm(3, 6)), IMAGE),
    "group norm on rows": (nn.GroupNorm(2, 6, affine=False), ROWS),
    "F.group_norm": (Calls(lambda x, w, b: F.group_norm(x, 2, w, b), w=drawn(6), b=drawn(6)), IMAGE),
    "instance norm": (nn.InstanceNorm2d(6), IMAGE),
    "instance norm with weight": (_scaled(nn.InstanceNorm1d(6, affine=True)), (drawn(2, 6, 9),)),
    "instance norm 3d": (nn.InstanceNorm3d(2), (drawn(2, 2, 3, 4, 5),)),
    "F.instance_norm": (Calls(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), w=drawn(6), b=drawn(6)), IMAGE),
    "prelu": (nn.PReLU(), IMAGE),
    "prelu by channel": (_scaled(nn.PReLU(6)), IMAGE),
    "F.prelu": (Calls(F.prelu, w=drawn(6)), ROWS),
    "normalize": (lambda x: F.normalize(x, dim=-1), WORDS),
    "normalize by sums": (lambda x: F.normalize(x, p=1.0), WORDS),
}
POOLS: dict[str, Case] = {
    "max pool": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "max pool, rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    "max pool, rounded up over padding": (nn.MaxPool2d(2, 2, 1, ceil_mode=True), SMALL),
    "max pool, dilated": (nn.MaxPool2d(2, 1, dilation=(2, 3)), IMAGE),
    "max pool 1d": (nn.MaxPool1d(2), (drawn(2, 6, 9),)),
    "max pool 3d": (nn.MaxPool3d(2), (drawn(2, 2, 4, 4, 6),)),
    "F.max_pool2d": (lambda x: F.max_pool2d(x, 2), IMAGE),
    "F.max_pool1d": (lambda x: F.max_pool1d(x, 3, 2), (drawn(2, 6, 9),)),
    "F.max_pool3d": (lambda x: F.max_pool3d(x, 2), (drawn(2, 2, 4, 4, 6),)),
    "average pool": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "average pool that leaves padding out": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "average pool, rounded up to the same": (nn.AvgPool2d(2, 2, ceil_mode=True), IMAGE),
    "average pool 1d": (nn.AvgPool1d(2), (drawn(2, 6, 9),)),
    "average pool 3d": (nn.AvgPool3d(2), (drawn(2, 2, 4, 4, 6),)),
    "F.avg_pool2d": (lambda x: F.avg_pool2d(x, (2, 1), padding=(1, 0)), IMAGE),
    "F.avg_pool1d": (lambda x: F.avg_pool1d(x, 3), (drawn(2, 6, 9),)),
    "F.avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (drawn(2, 2, 4, 4, 6),)),
    "adaptive to one": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive to the same": (nn.AdaptiveAvgPool2d((None, 8)), IMAGE),
    "adaptive, even": (nn.AdaptiveAvgPool2d((4, 2)), IMAGE),
    "adaptive, uneven": (nn.AdaptiveAvgPool2d((3, 2)), SMALL),
    "adaptive, larger": (nn.AdaptiveAvgPool2d(7), SMALL),
    "adaptive 1d, uneven": (nn.AdaptiveAvgPool1d(4), (drawn(2, 6, 9),)),
    "adaptive 3d": (nn.AdaptiveAvgPool3d((2, 1, 3)), (drawn(2, 2, 4, 4, 6),)),
    "F.adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), IMAGE),
    "F.adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (drawn(2, 6, 9),)),
    "F.adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), (drawn(2, 2, 4, 4, 6),)),
    "adaptive maximum of one": (nn.AdaptiveMaxPool2d(1), IMAGE),
    "adaptive maximum, even": (nn.AdaptiveMaxPool2d((4, 2)), IMAGE),
    "adaptive maximum 1d": (nn.AdaptiveMaxPool1d(3), (drawn(2, 6, 9),)),
    "adaptive maximum 3d": (nn.AdaptiveMaxPool3d(1), (drawn(2, 2, 4, 4, 6),)),
    "F.adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 1), IMAGE),
    "F.adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), (drawn(2, 6, 9),)),
    "F.adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), (drawn(2, 2, 4, 4, 6),)),
}
_LAYERS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Tanh(), nn.Softsign(), nn.Mish(), nn.ReLU6(),
    nn.Hardtanh(-0.3, 0.7), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"),
    nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.CELU(0.6), nn.Softplus(), nn.Softplus(2.0), nn.LogSigmoid(),
    nn.Tanhshrink(), nn.Softshrink(0.3), nn.Hardshrink(0.3), nn.Threshold(0.1, -2.0), nn.GLU(), nn.Softmax(-1),
    nn.LogSoftmax(1), nn.Identity(), nn.Dropout(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Dropout1d(),
]  # fmt: skip
_FUNCTIONS: list[Callable[..., Any]] = [
    F.relu, torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.sin, torch.cos, torch.erf, torch.floor,
    torch.ceil, torch.round, torch.sign, F.softsign, F.mish, torch.abs, torch.absolute, torch.neg,
    torch.negative, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.leaky_relu, F.elu,
    F.selu, F.celu, F.softplus, F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.glu, torch.clone,
    torch.detach, torch.positive, torch.square,
]  # fmt: skip
_ON_POSITIVE = [torch.log, torch.sqrt, torch.rsqrt, torch.reciprocal]
ELEMENTWISE: dict[str, Case] = {
    **{f"{type(layer).__name__} {number}": (layer, WORDS) for number, layer in enumerate(_LAYERS)},
    **{f"{f.__name__}()": (f, WORDS) for f in _FUNCTIONS},
    **{f"{f.__name__}()": (f, POSITIVE) for f in _ON_POSITIVE},
    "GLU of channels": (nn.GLU(1), IMAGE),
    "dropout layers": (nn.Sequential(nn.Dropout2d(), nn.ReLU()), IMAGE),
    "dropout layers 3d": (nn.Sequential(nn.Dropout3d(), nn.ReLU()), (drawn(2, 6, 3, 3, 3),)),
    "threshold": (lambda x: F.threshold(x, 0.2, 3.0), ROWS),
    "dropouts": (
        lambda x, y, z: (
            F.dropout3d(x, 0.5, False).sum()
            + F.dropout2d(F.dropout(y, 0.5, False), training=False).sum()
            + F.dropout1d(z, 0.5, False)
        ),
        (drawn(2, 6, 3, 3, 3), *IMAGE, *WORDS),
    ),
    "alpha dropouts": (lambda x: F.feature_alpha_dropout(F.alpha_dropout(x, 0.5, False), training=False), IMAGE),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), ROWS),
    "clamp below": (lambda x: torch.clamp(x, max=0.5), ROWS),
    "clamp_min and clamp_max": (lambda x: x.clamp_min(-0.5).clamp_max(0.7), ROWS),
    "clip by tensors": (lambda x, low: torch.clip(x, low, low + 1), PAIR),
    "clamp of integers": (lambda x: x.clamp(1, 2), WHOLE),
    "arithmetic": (lambda x, y: (x + y) * 2 - y / 3 + (1 - x) * (2 / (y * y + 1)), PAIR),
    "functions of arithmetic": (
        lambda x, y: torch.add(x, y).sub(1).mul(torch.div(x, y.abs() + 1)).subtract(y).multiply(x).divide(3),
        PAIR,
    ),
    "rsub": (lambda x: torch.rsub(x, 2), ROWS),
    "integers and floats": (lambda i, x: i * x[:, :3] + i / 2 + (i + 1), (WHOLE[0], ROWS[0])),
    "integers": (lambda i: i * 2 - 1, WHOLE),
    "the batch size as a number": (lambda x: x / x.shape[0] + (2 * x.shape[0] + 1), ROWS),
    "in place": (_in_place, ROWS),
    "augmented": (lambda x, y: _augmented(x * 1, y), PAIR),
    "maximum and minimum": (lambda x, y: torch.maximum(x, y) + torch.minimum(x, y) * torch.fmax(x, y), PAIR),
    "powers": (lambda x: x**2 + x.pow(3) + x.abs() ** 0.5 + 2**x, ROWS),
    "a power of tensors": (lambda x, y: x.abs() ** y, PAIR),
    "a power in place": (lambda x: (x * 1).pow_(2), ROWS),
    "addcmul": (lambda x, y: torch.addcmul(x, y, y), PAIR),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), PAIR),
    "comparisons": (lambda x, y: torch.where(x > y, x, y) + ((x >= 0.1) & (y < 0)).float() * (x <= y), PAIR),
    "equality": (lambda i: (i == 2).int() + (i != 0).long(), WHOLE),
    "named comparisons": (
        lambda x, y: torch.logical_or(x.gt(y), y.ge(0.5)).logical_and(x.le(0.9)).logical_xor(y.lt(x)).float(),
        PAIR,
    ),
    "more named comparisons": (
        lambda i: (
            i.eq(1).float()
            + i.ne(2)
            + (i.greater(0) | i.less(0))
            + i.less_equal(1)
            + i.greater_equal(1)
            + i.not_equal(0)
        ),
        WHOLE,
    ),
    "truth": (lambda x: (~(x > 0) | (x > 1)) ^ torch.logical_not(x < -1), ROWS),
    "bits of truth": (
        lambda x, y: torch.bitwise_and(x > 0, y > 0).bitwise_or(x > y).bitwise_xor(y > 1).bitwise_not(),
        PAIR,
    ),
    "where with a number": (lambda x: torch.where(x > 0, x, -1.0), ROWS),
    "where as a method": (lambda x, y: x.where(y > 0, y), PAIR),
    "masked_fill": (lambda x: x.masked_fill(x > 0.5, -2.0), ROWS),
    "types": (
        lambda x: x.to(torch.int64).float() + x.int() + x.double().type(torch.float32) + x.long().type_as(x),
        ROWS,
    ),
    "halves": (lambda x: x.half().float() + x.bool() + x.cpu(), ROWS),
}


def _augmented(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x += y
    x *= 2
    x -= 1
    x /= y.abs() + 1
    x **= 2
    return x


REDUCTIONS: dict[str, Case] = {
    "mean of places": (lambda x: x.mean((2, 3)), IMAGE),
    "mean of places, kept": (lambda x: x.mean([2, 3], keepdim=True), IMAGE),
    "mean of places, backwards": (lambda x: x.mean((-1, -2)), IMAGE),
    "mean of words": (lambda x: x.mean(1), WORDS),
    "mean of integers": (lambda x: x.mean(1, dtype=torch.float32), WHOLE),
    "mean of all": (lambda x: x - x.mean(), ROWS),
    "sum": (lambda x: x.sum(-1, keepdim=True) + x.sum((1, 2), keepdim=True) + x.sum(), WORDS),
    "sum of truth": (lambda x: (x > 0).sum(1), ROWS),
    "amax and amin": (lambda x: x.amax(1) - x.amin((1, 2)).unsqueeze(1), WORDS),
    "logsumexp": (lambda x: torch.logsumexp(x, 1), WORDS),
    "max along": (lambda x: x.max(1).values + x.min(1, keepdim=True)[0].squeeze(1), WORDS),
    "places of max": (lambda x: torch.max(x, dim=-1), WORDS),
    "max of all": (lambda x: x - x.max() + x.min(), ROWS),
    "max of two": (lambda x, y: torch.max(x, y) + torch.min(x, other=y), PAIR),
    "argmax and argmin": (lambda x: x.argmax(1) + torch.argmin(x, dim=1, keepdim=True).squeeze(1), WORDS),
    "variance": (lambda x: x.var(-1) + x.var(dim=-1, unbiased=False), WORDS),
    "standard deviation": (lambda x: torch.std(x, dim=(1, 2), correction=0, keepdim=True) * x, WORDS),
    "norm": (lambda x: x.norm(dim=-1) + x.norm(p=1, dim=-1), WORDS),
    "vector norm": (lambda x: torch.linalg.vector_norm(x, dim=1), WORDS),
    "softmax": (lambda x: x.softmax(-1) + F.softmax(x, dim=1), WORDS),
    "log_softmax": (lambda x: F.log_softmax(x, dim=1), WORDS),
    "cumsum": (lambda x: x.cumsum(1), WORDS),
}
MOVES: dict[str, Case] = {
    "view": (lambda x: x.view(x.shape[0], -1), IMAGE),
    "view of batch and more": (lambda x: x.view(x.size(0) * 3, 2, -1).view(x.shape[0], -1, 4), IMAGE),
    "view with two open sizes": (lambda x, y: (x @ y.T).reshape(x.shape[0], 1, y.shape[0]), PAIR),
    "flatten": (nn.Flatten(), IMAGE),
    "flatten and unflatten": (lambda x: x.flatten(2).unflatten(1, (2, 3)).flatten(0, 1), IMAGE),
    "unflatten layer": (nn.Unflatten(1, (2, 3)), IMAGE),
    "squeeze and unsqueeze": (lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze(-1).squeeze(1), ROWS),
    "view_as": (lambda x, y: x.view_as(y) + x.reshape_as(y), (drawn(2, 2, 3), ROWS[0])),
    "ravel": (lambda x: x.ravel(), ROWS),
    "permute": (lambda x: x.permute(0, 2, 3, 1).transpose(1, 2).contiguous(), IMAGE),
    "swaps": (lambda x: x.swapaxes(1, 2).swapdims(2, 3).movedim(1, -1).moveaxis(1, 2), IMAGE),
    "t": (lambda x: x @ x.t() @ x.T.mT, ROWS),
    "adjoint": (lambda x: x.adjoint(), WORDS),
    "data": (lambda x: x.data + 1, ROWS),
    "roll": (lambda x: x.roll((1, -2), (1, 2)), WORDS),
    "roll of one": (lambda x: torch.roll(x, 2, 1), WORDS),
    "flip": (lambda x: x.flip(1) + torch.flip(x, (1, 2)), WORDS),
    "cat": (lambda x, y: torch.cat([x, y, x], 1), PAIR),
    "cat along the batch": (lambda x, y: torch.concat((x, y)), PAIR),
    "cat of types": (lambda x: torch.concatenate([x, (x > 0)], -1), ROWS),
    "stack": (lambda x, y: torch.stack([x, y], -1), PAIR),
    "chunk": (lambda x: torch.cat(x.chunk(4, 1)[::-1], 1), ROWS),
    "split": (lambda x: x.split([1, 2, 3], 1)[2] * x.split(3, 1)[0], ROWS),
    "one piece": (lambda x: x.chunk(1, 1)[0] + 1, ROWS),
    "tensor_split": (lambda x: torch.tensor_split(x, 4, 1)[0] + 1, ROWS),
    "split_with_sizes": (lambda x: torch.split_with_sizes(x, [2, 4], 1)[1], ROWS),
    "unbind": (lambda x: x.unbind(1)[0] + x.unbind(1)[4], WORDS),
    "narrow": (lambda x: x.narrow(1, 2, 3) + x.narrow(-1, 2, 1).narrow(1, 0, 1), WORDS),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3)), IMAGE),
    "pad with a value": (lambda x: F.pad(x, (1, 1), value=2.0), ROWS),
    "pad, cutting": (lambda x: F.pad(x, (-1, 2, -3, 0)), IMAGE),
    "pad, reflecting": (lambda x: F.pad(x, (1, 2, 3, 0), "reflect"), IMAGE),
    "pad by nothing": (lambda x: F.pad(x, (0, 0)) + 1, ROWS),
    "pad layers": (
        nn.Sequential(
            nn.ZeroPad2d(1), nn.ConstantPad2d((1, 0, 2, 0), 3.0), nn.ReflectionPad2d(1), nn.ReplicationPad2d(2)
        ),
        IMAGE,
    ),
    "pad layers 1d": (
        nn.Sequential(
            nn.ZeroPad1d(1),
            nn.ConstantPad1d(1, 2.0),
            nn.ReflectionPad1d(1),
            nn.ReplicationPad1d(2),
            nn.CircularPad1d(1),
        ),
        (drawn(2, 6, 9),),
    ),
    "pad layers 3d": (
        nn.Sequential(
            nn.ZeroPad3d(1),
            nn.ConstantPad3d(1, 2.0),
            nn.ReflectionPad3d(1),
            nn.ReplicationPad3d(1),
            nn.CircularPad3d(1),
        ),
        (drawn(2, 2, 3, 4, 3),),
    ),
    "circular padding": (nn.CircularPad2d((1, 2, 0, 1)), IMAGE),
    "pixel shuffle": (nn.PixelShuffle(2), (drawn(2, 8, 3, 5),)),
    "F.pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (drawn(2, 8, 3, 5),)),
    "pixel unshuffle": (nn.PixelUnshuffle(2), IMAGE),
    "F.pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 4), IMAGE),
    "channel shuffle": (nn.ChannelShuffle(3), IMAGE),
    "F.channel_shuffle": (lambda x: F.channel_shuffle(x, 2), IMAGE),
    "F.native_channel_shuffle": (lambda x: torch.native_channel_shuffle(x, 2), IMAGE),
}
PICKS: dict[str, Case] = {
    "numbers": (lambda x: x[:, 0] + x[:, -1], WORDS),
    "a number of the batch": (lambda x: x[0] + x, ROWS),
    "slices": (lambda x: x[:, 1:4, ::2] + x[:, -3:, :3], WORDS),
    "new dimensions": (lambda x: x[:, None, ..., 0] + x[:, 1, None, :1], WORDS),
    "a range of the batch": (lambda x: x[:1] + x, ROWS),
    "a list": (lambda x: x[:, [2, 0, 2]], WORDS),
    "a tensor": (Calls(lambda x, i: x[..., i], i=torch.tensor([[0, 3], [5, -1]])), WORDS),
    "a tensor as an index of rows": (Calls(lambda i, w: w[i], w=drawn(9, 4)), WHOLE),
    "select": (lambda x: x.select(1, 2) + x.select(-2, -1), WORDS),
    "index_select": (Calls(lambda x, i: x.index_select(1, i), i=torch.tensor([3, 0])), WORDS),
    "gather": (lambda x, i: x.gather(1, i), (ROWS[0], torch.tensor([[0, 5], [2, 2]]))),
}
COPIES: dict[str, Case] = {
    "expand": (Calls(lambda x, t: torch.cat([t.expand(x.shape[0], -1, -1), x], 1), t=drawn(1, 1, 6)), WORDS),
    "expand_as": (lambda x: x.mean(1, keepdim=True).expand_as(x) * 2, WORDS),
    "broadcast_to": (lambda x: torch.broadcast_to(x.unsqueeze(1), (x.shape[0], 3, 6)) + 1, ROWS),
    "repeat": (lambda x: x.repeat(1, 2, 1) + x.repeat(1, 1, 1, 1)[0].repeat(1, 2, 1), WORDS),
    "tile": (lambda x: x.tile((2, 1)), WORDS),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), WORDS),
    "zeros for the batch": (lambda x: torch.cat([x.new_zeros(x.shape[0], 2), x, x.new_ones((x.shape[0], 1))], 1), ROWS),
    "zeros of the batch": (lambda x: torch.zeros(x.shape[0], 6) + torch.ones(x.size(0), 1) + x, ROWS),
    "like": (lambda x: torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 2.5) + x, ROWS),
    "full": (lambda x: torch.full((x.shape[0], 1), 3.0) + x.new_full((x.shape[0], 6), 2.0) + x, ROWS),
    "a mask that is written": (_masked_window, ROWS),
    "places": (lambda x: x + torch.arange(x.shape[1]) * 2, ROWS),
}
IMAGES: dict[str, Case] = {
    "nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "nearest to a size": (lambda x: F.interpolate(x, (11, 9)), SMALL),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), SMALL),
    "bilinear, aligned": (nn.Upsample((9, 13), mode="bilinear", align_corners=True), SMALL),
    "bilinear, smaller": (lambda x: F.interpolate(x, (4, 4), mode="bilinear"), IMAGE),
    "bilinear by a number": (nn.UpsamplingBilinear2d(scale_factor=3), SMALL),
    "nearest by a number": (nn.UpsamplingNearest2d(scale_factor=3), SMALL),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), IMAGE),
    "linear": (lambda x: F.interpolate(x, 11, mode="linear"), (drawn(2, 6, 5),)),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (drawn(2, 2, 3, 4, 3),)),
}
FAMILIES: dict[str, dict[str, Case]] = {
    "conv": CONVOLUTIONS,
    "linear": LINEAR,
    "matmul": PRODUCTS,
    "norm": NORMS,
    "pooling": POOLS,
    "elementwise": ELEMENTWISE,
    "reduction": REDUCTIONS,
    "reshape": MOVES,
    "indexing": PICKS,
    "expand": COPIES,
    "image": IMAGES,
}
CASES: dict[str, Case] = {
    f"{family}: {name}": case for family, cases in FAMILIES.items() for name, case in cases.items()
}

DECLINED: dict[str, tuple[Case, str]] = {
    "an operation without a row": ((torch.fft.rfft, ROWS), "fft_rfft at .*: the direct writer doesn't know it"),
    "a layer without a row": (
        (nn.Sequential(nn.LocalResponseNorm(2)), IMAGE),
        "[^:]* at .*: the direct writer doesn't know it",
    ),
    "random numbers": ((lambda x: x + torch.rand(6), ROWS), "random numbers"),
    "a function that drops": ((lambda x: F.dropout(x, 0.5), ROWS), "drops values"),
    "parts of the batch": ((lambda x: x.unbind(0)[0], ROWS), "parts follows the batch"),
    "a squared batch": (
        (lambda x: x[None].expand(x.shape[0] ** 2, -1, -1)[0], ROWS),
        "expand at .*: a shape doesn't follow",
    ),
    "an uncertain view that is written": ((lambda x: _written_view(x * 1), WORDS), "may share"),
    "the places of a pool": (
        (lambda x: F.max_pool2d(x, 2, return_indices=True), IMAGE),
        "max_pool2d_with_indices at .*doesn't know",
    ),
    "an average over the edge": ((nn.AvgPool2d(3, 2, ceil_mode=True), IMAGE), "over the padded edge"),
    "uneven maxima": ((nn.AdaptiveMaxPool2d(3), IMAGE), "uneven"),
    "an image without a batch": (
        (Calls(lambda x, w: x + F.conv2d(x[0], w).mean(), w=WEIGHT), IMAGE),
        "no batch dimension",
    ),
    "a smooth resize": ((lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True), IMAGE), "smooths"),
    "a crooked scale": ((lambda x: F.interpolate(x, scale_factor=1.3), IMAGE), "ratio"),
    "a mask": (
        (Calls(lambda x, m: x[:, m], m=torch.tensor([True, False, True, True, False])), WORDS),
        "doesn't run on shapes alone",
    ),
    "a mask of attention that follows the inputs": (
        (lambda x: F.scaled_dot_product_attention(x, x, x, (x @ x.mT) > 0), WORDS),
        "may hide everything",
    ),
    "a rounded quotient": ((lambda x: torch.div(x, 2, rounding_mode="floor"), ROWS), "it rounds"),
    "an alpha": ((lambda x: torch.add(x, x, alpha=2), ROWS), "alpha"),
    "a view of bytes": ((lambda x: x.view(torch.int32), ROWS), "bytes"),
    "statistics of the batch": ((nn.BatchNorm1d(6, track_running_stats=False), ROWS), "its own statistics"),
    "complex numbers": ((lambda x: torch.view_as_real(x.to(torch.complex64)), ROWS), "complex64"),
}


def _written_view(x: torch.Tensor) -> torch.Tensor:
    x[:, 0].add_(1)
    return x * 2
