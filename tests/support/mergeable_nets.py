"""Networks whose channels can be merged, each with another operation between writers and readers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.models.densenet import densenet
from prunec.models.resnet import resnet
from prunec.passes.cluster import Cluster


class Net(nn.Module):
    """A module whose children are given by name."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            if isinstance(child, nn.Parameter):
                self.register_parameter(name, child)
            else:
                self.add_module(name, child)


class Chain(Net):
    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Residual(Net):
    def forward(self, x):
        y = self.bn(self.stem(x))
        y = F.relu(y + self.second(F.relu(self.first(y))))
        return self.head(y)


class Concat(Net):
    def forward(self, x):
        a, b = F.relu(self.left(x)), torch.tanh(self.right(x))
        return self.head(torch.cat([a, x, b, a], 1))


class Gate(Net):
    def forward(self, x):
        y = self.conv(x)
        gate = torch.sigmoid(self.expand(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(y * gate)


class Twice(Net):
    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.again(F.relu(self.again(x)))))


class Nhwc(Net):
    def forward(self, x):
        y = F.relu(self.conv(x)) * self.scale
        return self.head(y.permute(0, 2, 3, 1).flatten(1))


class Shuffle(Net):
    def forward(self, x):
        y = self.conv(x)
        n, _, h, w = y.shape
        return self.head(y.view(n, 2, -1, h, w).transpose(1, 2).reshape(n, -1, h, w))


class Halves(Net):
    """Both halves of `conv` are read at the same place of the same layer, but only one is rectified."""

    def forward(self, x):
        a, b = self.conv(x).chunk(2, 1)
        return self.head(torch.cat([F.relu(a), b], 1))


class Interleaved(Net):
    """Channels and their mirror images alternate, so a unit's places are another pattern for each unit."""

    def forward(self, x):
        y = self.conv(x)
        return self.head(torch.stack([y, torch.tanh(y.flip(1))], 2).flatten(1, 2))


class Attention(Net):
    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, 2, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(1, 2).reshape(b, t, -1))


class Tied(Net):
    """One weight under two names: its columns are written by the embedding and read by the decoder."""

    def __init__(self):
        super().__init__(embedding=nn.Embedding(10, 6), decoder=nn.Linear(6, 10, bias=False))
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.embedding(x)))


class Mixer(Net):
    """A table with a row for each token and a column for each channel is added to what mixes both."""

    def forward(self, x):
        y = self.tokens(self.channels(x).transpose(1, 2)).transpose(1, 2)
        return self.head(self.last(torch.tanh(y + self.table)).transpose(1, 2))


class Functional(Net):
    """Weights are values: of convolutions, of a linear layer, and a factor."""

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.kernel, self.bias, padding=1))
        y = F.relu(F.conv_transpose2d(y, self.turned)).flatten(2).transpose(1, 2)
        y = torch.tanh(F.linear(y, self.weight)) @ self.factor
        return torch.addmm(self.shift, torch.tanh(y).mean(1), self.last)


class UsedTwice(Net):
    """A weight reads channels, and writes them when it goes the way back."""

    def forward(self, x):
        return self.head(F.conv_transpose2d(F.conv2d(F.relu(self.conv(x)), self.weight), self.weight))


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def flat_net():
    return Chain(conv=conv(3, 6), bn=nn.BatchNorm2d(6), act=nn.PReLU(6), flat=nn.Flatten(), fc=nn.Linear(6 * 16, 5))


def residual_net():
    return Residual(stem=conv(3, 8), bn=nn.BatchNorm2d(8), first=conv(8, 6), second=conv(6, 8), head=conv(8, 4))


def middle(layer, width=6):
    """A convolution of 6 channels, the layer, and a reader of `width` channels."""
    return Chain(conv=conv(3, 6), bn=nn.BatchNorm2d(6), relu=nn.ReLU(), layer=layer, head=conv(width, 4))


_FUNCTIONAL = {
    "kernel": (8, 3, 3, 3),
    "bias": (8,),
    "turned": (8, 6, 2, 2),
    "weight": (10, 6),
    "factor": (10, 4),
    "shift": (3,),
    "last": (4, 3),
}

NETS = {
    "chain": lambda: Chain(a=conv(3, 6), relu=nn.ReLU(), b=conv(6, 8), bn=nn.BatchNorm2d(8), c=conv(8, 4)),
    "flatten": flat_net,
    "nhwc_flatten": lambda: Nhwc(conv=conv(3, 6), scale=nn.Parameter(torch.randn(6, 1, 1)), head=nn.Linear(96, 5)),
    "residual": residual_net,
    "concat": lambda: Concat(left=conv(3, 6), right=conv(3, 6), head=conv(6 + 3 + 6 + 6, 4)),
    "depthwise": lambda: middle(conv(6, 6, groups=6)),
    "depthwise_multiplier": lambda: middle(conv(6, 12, groups=6), 12),
    "grouped_in": lambda: middle(conv(6, 3, groups=3), 3),
    "grouped": lambda: middle(conv(6, 8, groups=2), 8),
    "transposed": lambda: middle(nn.ConvTranspose2d(6, 8, 2, stride=2), 8),
    "transposed_grouped": lambda: middle(nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), 8),
    "transposed_depthwise": lambda: middle(nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6)),
    "squeeze_excite": lambda: Gate(conv=conv(3, 8), squeeze=conv(8, 4), expand=conv(4, 8), head=conv(8, 4)),
    "shared": lambda: Twice(stem=conv(3, 6), again=conv(6, 6), head=conv(6, 4)),
    "shuffle": lambda: Shuffle(conv=conv(3, 8), head=conv(8, 4)),
    "pixel_shuffle": lambda: middle(nn.Sequential(nn.PixelUnshuffle(2)), 24),
    "two_dimensions": lambda: Mixer(
        channels=nn.Linear(6, 8),
        tokens=nn.Linear(5, 6),
        table=nn.Parameter(torch.randn(6, 8)),
        last=nn.Linear(8, 3),
        head=nn.Linear(6, 4),
    ),
    "functional": lambda: Functional(
        **{name: nn.Parameter(torch.randn(sizes) / 2) for name, sizes in _FUNCTIONAL.items()}
    ),
    "resnet_projection": lambda: resnet(8, "projection", widths=(4, 8, 12)),
    "resnet_zero_pad": lambda: resnet(8, "zero_pad", widths=(4, 8, 12)),
    "densenet": lambda: densenet(7, growth=4, stem=6),
}


def traced(model, *shape):
    """The program of a float64 model in which no norm is an identity."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            values = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.copy_(values if "var" in name else values - 0.9)
    x = torch.randn(*(shape or (2, 3, 4, 4)), generator=generator, dtype=torch.float64)
    return trace(model.double().eval(), (x,))


def small(name):
    torch.manual_seed(0)
    shape = (2, 5, 6) if name == "two_dimensions" else (2, 3, 32, 32) if "net_" in name or name == "densenet" else ()
    return traced(NETS[name](), *shape)


def clustered(program, **options):
    return Cluster(**{"method": "even", "ratio": 0.5, **options}).run(program, Context()).program
