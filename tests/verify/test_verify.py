"""`verify`: networks slimmed by hand pass, and every single fault in them is caught and traced to its node."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.ir.random_inputs import fresh_inputs
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.interpreter import Interpreter
from prunec.compiler.verify.reference import Masked, Replaced, Same
from prunec.compiler.verify.verify import verify

Removed = Mapping[Axis, IntArray]


def program_of(model: nn.Module, *inputs: Tensor) -> Program:
    """The model as a program, by torch's own tracer: `verify` asks nothing of the nodes but what they call."""
    traced = fx.symbolic_trace(model)
    state = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            state[node.target] = traced.get_submodule(node.target)
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            state[node.target] = getattr(traced.get_submodule(owner), name)
    return Program(traced.graph, state, inputs)


def seeded(model: nn.Module) -> nn.Module:
    """The model with weights, biases and statistics of which no two are alike."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            spread = torch.rand(tensor.shape, generator=generator) + 0.5
            sign = 1 if "var" in name else torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            tensor.data.copy_(spread * sign / max(1, tensor[0].numel() if tensor.ndim > 1 else 1) ** 0.5)
    return model.eval()


class Net(nn.Module):
    """Layers by name; the subclass says how they meet."""

    def __init__(self, **layers: nn.Module | Tensor) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Plain(Net):
    def forward(self, x):
        return self.conv2(F.relu(self.bn1(self.conv1(x))))


class Residual(Net):
    def forward(self, x):
        y = self.conv1(x)
        return self.head(F.relu(y + self.conv2(F.relu(y))))


class Concat(Net):
    def forward(self, x):
        return self.conv3(torch.cat([self.conv1(x), x, self.conv2(x)], 1))


class Flat(Net):
    def forward(self, x):
        return self.fc(F.max_pool2d(F.relu(self.conv1(x)), 2).flatten(1))


class Chain(Net):
    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Shared(Net):
    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.again(x))
        return self.head(self.again(x))


class Gate(Net):
    def forward(self, x):
        y = self.conv1(x)
        gate = torch.sigmoid(self.expand(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.conv2(y * gate)


class PaddedShortcut(Net):
    def forward(self, x):
        y = self.stem(x)
        shortcut = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, self.extra))
        return self.head(F.relu(self.conv(y) + shortcut))


class Functional(Net):
    def forward(self, x):
        return self.conv2(F.relu(F.conv2d(x, self.weight, self.bias, padding=1)) * self.scale.view(1, -1, 1, 1))


class Shuffle(Net):
    def forward(self, x):
        y = self.conv1(x)
        b, _, h, w = y.shape
        y = y.view(b, 2, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return self.conv2(y)


class Attention(Net):
    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, 2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class ManualAttention(Net):
    def forward(self, x):
        q, k, v = self.qk(x), self.k(x), self.v(x)
        scores = torch.einsum("bic,bjc->bij", q, k).softmax(-1)
        return self.out(scores @ v)


class Chunked(Net):
    def forward(self, x):
        a, b = self.fc1(x).split(self.sizes, -1)
        return self.fc2(a) + self.fc3(b) + self.fc4(F.glu(self.fc5(x), -1))


class Position(Net):
    def forward(self, x):
        y = self.embed(x) + self.position
        return self.fc(self.norm(y))


@dataclass(frozen=True)
class Case:
    """A network, an input shape, the positions that leave each axis, and what surgery sets besides."""

    model: nn.Module
    shape: tuple[int, ...]
    removed: Mapping[str, Mapping[int, list[int]]]
    attributes: Mapping[str, object] = field(default_factory=dict)
    integer: bool = False

    def axes(self) -> Removed:
        return {Axis(n, d): np.array(p) for n, dims in self.removed.items() for d, p in dims.items()}

    def example(self) -> Tensor:
        return torch.randint(0, 7, self.shape) if self.integer else torch.zeros(self.shape, dtype=torch.float64)

    @cached_property
    def before(self) -> Program:
        return program_of(seeded(copy.deepcopy(self.model).double()), self.example())

    def slim(self) -> nn.Module:
        """A fresh copy of the model with every axis gathered."""
        return copy.deepcopy(self._slim)

    @cached_property
    def _slim(self) -> nn.Module:
        model = seeded(copy.deepcopy(self.model).double())
        for axis, lost in self.axes().items():
            owner, _, name = axis.tensor.rpartition(".")
            module = model.get_submodule(owner)
            gathered = without(getattr(module, name).detach(), axis.dim, lost, getattr(module, "groups", 1))
            getattr(module, name).data = gathered
        for target, value in self.attributes.items():
            owner, _, name = target.rpartition(".")
            setattr(model.get_submodule(owner), name, value)
        return model

    def after(self) -> Program:
        return program_of(self.slim(), self.example())


def without(tensor: Tensor, dim: int, lost: IntArray, groups: int) -> Tensor:
    """The tensor without positions of a dimension; dimension 1 of a grouped convolution counts over all groups.

    Rows of grouped tensors are taken as they are: the same positions leave each group.
    """
    local = {int(i) % tensor.shape[1] for i in lost} if dim == 1 and groups > 1 else set(lost.tolist())
    if len(local) == tensor.shape[dim]:
        return tensor
    return tensor.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i not in local]))


def layer(name: str, out: list[int] | None = None, into: list[int] | None = None) -> dict[str, dict[int, list[int]]]:
    """Removed positions of a layer with weight and bias."""
    weight = {d: p for d, p in ((0, out), (1, into)) if p}
    return {f"{name}.weight": weight, **({f"{name}.bias": {0: out}} if out else {})}


def norm(name: str, lost: list[int], *tensors: str) -> dict[str, dict[int, list[int]]]:
    return {f"{name}.{tensor}": {0: lost} for tensor in ("weight", "bias", *tensors)}


IMAGE = (2, 3, 6, 6)
STATISTICS = ("running_mean", "running_var")

CASES: dict[str, Case] = {
    "conv-bn-relu-conv": Case(
        Plain(conv1=conv(3, 5), bn1=nn.BatchNorm2d(5), conv2=conv(5, 4)), IMAGE,
        {**layer("conv1", [1, 3]), **norm("bn1", [1, 3], *STATISTICS), **layer("conv2", None, [1, 3])},
    ),
    "residual": Case(
        Residual(conv1=conv(3, 5), conv2=conv(5, 5), head=conv(5, 2)), IMAGE,
        {**layer("conv1", [2]), **layer("conv2", [2], [2]), **layer("head", None, [2])},
    ),
    "concat": Case(
        Concat(conv1=conv(3, 4), conv2=conv(3, 4), conv3=conv(11, 3)), IMAGE,
        {**layer("conv1", [0]), **layer("conv2", [3, 1]), **layer("conv3", None, [0, 8, 10])},
    ),
    "flatten-linear": Case(
        Flat(conv1=conv(3, 4), fc=nn.Linear(36, 5)), IMAGE,
        {**layer("conv1", [2]), **layer("fc", None, list(range(18, 27)))},
    ),
    "depthwise": Case(
        Chain(a=conv(3, 5), dw=conv(5, 5, groups=5), act=nn.ReLU6(), b=conv(5, 3)), IMAGE,
        {**layer("a", [1]), **layer("dw", [1]), **layer("b", None, [1])}, {"dw.groups": 4},
    ),
    "grouped": Case(
        Chain(a=conv(3, 6), g=conv(6, 8, groups=2), b=conv(8, 3)), IMAGE,
        {**layer("a", [1, 4]), **layer("g", [0, 4], [1, 4]), **layer("b", None, [0, 4])},
    ),
    "grouped-transposed": Case(
        Chain(a=conv(3, 6), g=nn.ConvTranspose2d(6, 8, 2, groups=2), b=conv(8, 3)), IMAGE,
        {**layer("a", [1, 4]), "g.weight": {0: [1, 4], 1: [0, 4]}, "g.bias": {0: [0, 4]}, **layer("b", None, [0, 4])},
    ),
    "layer-norm": Case(
        Chain(fc1=nn.Linear(4, 6), norm=nn.LayerNorm(6), act=nn.GELU(), fc2=nn.Linear(6, 3)), (2, 5, 4),
        {**layer("fc1", [1, 4]), **norm("norm", [1, 4]), **layer("fc2", None, [1, 4])}, {"norm.normalized_shape": (4,)},
    ),
    "rms-norm": Case(
        Chain(fc1=nn.Linear(4, 6), norm=nn.RMSNorm(6), act=nn.SiLU(), fc2=nn.Linear(6, 3)), (2, 4),
        {**layer("fc1", [5]), "norm.weight": {0: [5]}, **layer("fc2", None, [5])}, {"norm.normalized_shape": (5,)},
    ),
    "group-norm": Case(
        Chain(a=conv(3, 8), norm=nn.GroupNorm(2, 8), act=nn.PReLU(8), b=conv(8, 3)), IMAGE,
        {**layer("a", [0, 6]), **norm("norm", [0, 6]), "act.weight": {0: [0, 6]}, **layer("b", None, [0, 6])},
        {"norm.num_channels": 6},
    ),
    "group-norm-whole-group": Case(
        Chain(a=conv(3, 6), norm=nn.GroupNorm(3, 6), b=conv(6, 3)), IMAGE,
        {**layer("a", [2, 3]), **norm("norm", [2, 3]), **layer("b", None, [2, 3])},
        {"norm.num_channels": 4, "norm.num_groups": 2},
    ),
    "shared": Case(
        Shared(stem=conv(3, 4), again=conv(4, 4), head=conv(4, 2)), IMAGE,
        {**layer("stem", [1]), **layer("again", [1], [1]), **layer("head", None, [1])},
    ),
    "gate": Case(
        Gate(conv1=conv(3, 5), squeeze=nn.Conv2d(5, 3, 1), expand=nn.Conv2d(3, 5, 1), conv2=conv(5, 2)), IMAGE,
        {
            **layer("conv1", [1]), **layer("squeeze", [2], [1]),
            **layer("expand", [1], [2]), **layer("conv2", None, [1]),
        },
    ),
    "zero-pad-shortcut": Case(
        PaddedShortcut(stem=conv(3, 3), conv=conv(3, 6, stride=2), head=conv(6, 2), extra=2), IMAGE,
        {**layer("stem", [1]), **layer("conv", [2, 5], [1]), **layer("head", None, [2, 5])}, {"extra": 1},
    ),
    "functional": Case(
        Functional(
            weight=nn.Parameter(torch.empty(5, 3, 3, 3)), bias=nn.Parameter(torch.empty(5)),
            scale=nn.Parameter(torch.empty(5)), conv2=conv(5, 2),
        ), IMAGE,
        {"weight": {0: [0, 3]}, "bias": {0: [0, 3]}, "scale": {0: [0, 3]}, **layer("conv2", None, [0, 3])},
    ),
    "shuffle": Case(  # channels 0 1 2 | 3 4 5 leave as 0 3 1 4 2 5
        Shuffle(conv1=conv(3, 6), conv2=conv(6, 2)), IMAGE,
        {**layer("conv1", [1, 4]), **layer("conv2", None, [2, 3])},
    ),
    "attention-head": Case(
        Attention(
            query=nn.Linear(4, 6), key=nn.Linear(4, 6, bias=False), value=nn.Linear(4, 6), out=nn.Linear(6, 4),
        ), (2, 5, 4),
        {**layer("query", [2, 3]), "key.weight": {0: [2, 3]}, **layer("value", [2, 3]), **layer("out", None, [2, 3])},
    ),
    "einsum-matmul": Case(
        ManualAttention(
            qk=nn.Linear(4, 6), k=nn.Linear(4, 6, bias=False), v=nn.Linear(4, 5), out=nn.Linear(5, 3),
        ), (2, 5, 4),
        {**layer("qk", [2, 5]), "k.weight": {0: [2, 5]}, **layer("v", [1]), **layer("out", None, [1])},
    ),
    "split-glu": Case(
        Chunked(
            fc1=nn.Linear(3, 6), fc2=nn.Linear(4, 3), fc3=nn.Linear(2, 3), fc4=nn.Linear(3, 3), fc5=nn.Linear(3, 6),
            sizes=[4, 2],
        ), (2, 3),
        {
            **layer("fc1", [1, 5]), **layer("fc2", None, [1]), **layer("fc3", None, [1]), **layer("fc4", None, [2]),
            **layer("fc5", [2, 5]),
        }, {"sizes": [3, 1]},
    ),
    "embedding-position": Case(
        Position(embed=nn.Embedding(7, 5), position=nn.Parameter(torch.empty(1, 4, 5)), norm=nn.LayerNorm(5),
                 fc=nn.Linear(5, 2)), (2, 4),
        {"embed.weight": {1: [3]}, "position": {2: [3]}, **norm("norm", [3]), **layer("fc", None, [3])},
        {"norm.normalized_shape": (4,)}, integer=True,
    ),
    "pools": Case(
        Chain(a=conv(3, 4), bn=nn.BatchNorm2d(4), pad=nn.ZeroPad2d(1), max=nn.MaxPool2d(2), act=nn.Hardswish(),
              up=nn.Upsample(scale_factor=2), drop=nn.Dropout(), avg=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten(),
              fc=nn.Linear(16, 3)), IMAGE,
        {**layer("a", [1]), **norm("bn", [1], *STATISTICS), **layer("fc", None, [4, 5, 6, 7])},
    ),
    "pixel-shuffle": Case(
        Chain(a=conv(3, 8), shuffle=nn.PixelShuffle(2), b=conv(2, 3)), IMAGE,
        {**layer("a", [0, 1, 2, 3]), **layer("b", None, [0])},
    ),
}  # fmt: skip

by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@by_case
def test_hand_slimmed_networks_pass_in_float64(case):
    report = verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink")
    assert report.difference <= 1e-9
    assert report.dtype == "float64"
    assert report.batches == (2, 3)


@by_case
def test_the_slim_network_differs_from_the_whole_one(case):
    """Else the passing tests would show nothing."""
    with pytest.raises(VerifyError):
        verify(case.after(), Same(case.before), pass_name="shrink")


def swaps() -> Iterator[tuple[str, str, int]]:
    for name, case in CASES.items():
        for key, tensor in case.slim().state_dict().items():
            for dim in (d for d in range(min(tensor.ndim, 2)) if tensor.shape[d] > 1):
                yield name, key, dim


@pytest.mark.parametrize(("name", "tensor", "dim"), swaps())
def test_every_swapped_pair_is_caught_where_it_is(name, tensor, dim):
    case = CASES[name]
    model = case.slim()
    data = model.state_dict()[tensor]
    first = list(range(data.shape[dim]))
    data.copy_(data.index_select(dim, torch.tensor([first[1], first[0], *first[2:]])))
    owner = tensor.rpartition(".")[0] or tensor
    with pytest.raises(VerifyError, match=rf"pass 'shrink'.*: node '{owner}' \({owner}\) is the first whose value"):
        verify(program_of(model, case.example()), Masked(case.before, case.axes()), pass_name="shrink", batches=(2,))


INCONSISTENT = r"kept meet channels|positions of an axis|no whole channels"


def forgotten() -> Iterator[tuple[str, Axis]]:
    for name, case in CASES.items():
        for axis in case.axes():
            yield name, axis


@pytest.mark.parametrize(("name", "axis"), forgotten(), ids=str)
def test_a_selection_that_forgets_an_axis_is_inconsistent(name, axis):
    case = CASES[name]
    removed = {a: positions for a, positions in case.axes().items() if a != axis}
    with pytest.raises(VerifyError, match=INCONSISTENT):
        Masked(case.before, removed).run((case.example(),), torch.float64)


@pytest.mark.parametrize(("name", "axis"), forgotten(), ids=str)
def test_a_selection_of_one_other_position_is_inconsistent(name, axis):
    case = CASES[name]
    removed = dict(case.axes())
    spare = next(i for i in range(100) if i not in removed[axis])
    removed[axis] = np.array([spare, *removed[axis][1:]])
    with pytest.raises(VerifyError, match=INCONSISTENT):
        Masked(case.before, removed).run((case.example(),), torch.float64)


# --- single faults --------------------------------------------------------------------------------------------------


def fault(name: str, **tensors: Tensor) -> str:
    """The message that a slim network with some tensors set anew is refused with (`conv1__bias` is `conv1.bias`)."""
    case = CASES[name]
    model = case.slim()
    for key, value in tensors.items():
        owner, _, attribute = key.replace("__", ".").rpartition(".")
        getattr(model.get_submodule(owner), attribute).data = value.double()
    with pytest.raises(VerifyError) as caught:
        verify(program_of(model, case.example()), Masked(case.before, case.axes()), pass_name="shrink")
    assert caught.value.exit_code == 2
    return caught.value.message


def original(name: str, tensor: str) -> Tensor:
    return CASES[name].before.tensors[tensor].detach()


def test_a_wrong_column_is_caught():
    weight = original("conv-bn-relu-conv", "conv2.weight")
    assert "node 'conv2' (conv2) is the first" in fault("conv-bn-relu-conv", conv2__weight=weight[:, [0, 2, 3]])


def test_a_forgotten_bias_is_caught():
    assert "node 'conv1' (conv1) is the first" in fault("conv-bn-relu-conv", conv1__bias=torch.zeros(3))


def test_the_mean_of_another_channel_is_caught():
    mean = original("conv-bn-relu-conv", "bn1.running_mean")
    assert "node 'bn1' (bn1) is the first" in fault("conv-bn-relu-conv", bn1__running_mean=mean[[0, 1, 4]])


def test_a_reader_left_whole_is_caught_where_it_breaks():
    message = fault("residual", head__weight=original("residual", "head.weight"))
    assert "node 'head' (head) fails" in message


def test_a_writer_left_whole_is_named_though_the_crash_comes_later():
    whole = {f"conv1__{key}": original("conv-bn-relu-conv", f"conv1.{key}") for key in ("weight", "bias")}
    message = fault("conv-bn-relu-conv", **whole)
    assert "node 'conv1' (conv1) is the first whose value differs" in message
    assert "shape (2, 5, 6, 6), expected (2, 3, 6, 6)" in message
    assert "then node 'bn1' (bn1) fails" in message


def test_the_wrong_order_in_a_concatenation_is_caught():
    class Turned(Net):
        def forward(self, x):
            conv1 = self.conv1(x)
            return self.conv3(torch.cat([self.conv2(x), x, conv1], 1))

    case = CASES["concat"]
    slim = case.slim()
    turned = program_of(Turned(conv1=slim.conv1, conv2=slim.conv2, conv3=slim.conv3), case.example())
    with pytest.raises(VerifyError, match="node 'cat'"):
        verify(turned, Masked(case.before, case.axes()), pass_name="shrink")


def test_an_unequal_selection_from_the_groups_of_a_convolution_is_read_by_group():
    """Groups may lose different positions, as long as each loses as many."""
    case = CASES["grouped"]
    removed = {Axis("a.weight", 0): [1, 5], Axis("a.bias", 0): [1, 5], Axis("g.weight", 1): [1, 5]}
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    model.a.weight.data = model.a.weight.detach()[[0, 2, 3, 4]]
    model.a.bias.data = model.a.bias.detach()[[0, 2, 3, 4]]
    weight = model.g.weight.detach()
    model.g.weight.data = torch.cat([weight[:4, [0, 2]], weight[4:, [0, 1]]])
    masked = Masked(before, {axis: np.array(lost) for axis, lost in removed.items()})
    verify(program_of(model, case.example()), masked, pass_name="shrink")
    model.g.weight.data = torch.cat([weight[:4, [0, 2]], weight[4:, [0, 2]]])
    with pytest.raises(VerifyError, match="node 'g'"):
        verify(program_of(model, case.example()), masked, pass_name="shrink")


def test_a_view_of_marked_channels():
    """What is a view of the data must be one of the marks."""

    class Viewed(Net):
        def forward(self, x):
            return self.fc(self.conv1(x).view(x.size(0), -1))

    case = Case(Viewed(conv1=conv(3, 4), fc=nn.Linear(144, 2)), IMAGE,
                {**layer("conv1", [1]), **layer("fc", None, list(range(36, 72)))})  # fmt: skip
    assert verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink").difference <= 1e-9


def test_a_shuffle_that_changes_the_order_of_what_is_left():
    """Channels 0 2 | 3 4 of 0 1 2 | 3 4 5 come out as 0 3 2 4, where the old order without 1 and 5 is 0 3 4 2."""
    case = CASES["shuffle"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    for name in ("weight", "bias"):
        getattr(model.conv1, name).data = getattr(model.conv1, name).detach()[[0, 2, 3, 4]]
    arriving = model.conv2.weight.detach()
    old = {0: 0, 3: 1, 1: 2, 4: 3, 2: 4, 5: 5}
    removed = {Axis("conv1.weight", 0): [1, 5], Axis("conv1.bias", 0): [1, 5], Axis("conv2.weight", 1): [2, 5]}
    masked = Masked(before, {axis: np.array(lost) for axis, lost in removed.items()})
    model.conv2.weight.data = arriving[:, [old[i] for i in (0, 3, 2, 4)]]
    verify(program_of(model, case.example()), masked, pass_name="shrink")
    model.conv2.weight.data = arriving[:, [old[i] for i in (0, 3, 4, 2)]]
    with pytest.raises(VerifyError, match=r"the same elements in another order; in node 'conv2'"):
        verify(program_of(model, case.example()), masked, pass_name="shrink")


# --- what may not be removed ----------------------------------------------------------------------------------------


class After(Net):
    """A convolution that loses a channel, then `then`, then a reader."""

    def forward(self, x):
        return self.read(self.then(self.conv(x)))


class Do(nn.Module):
    """A plain function as a step of the graph."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = {
    "output": (lambda x: x, nn.Identity(), "reach the model's output"),
    "softmax": (lambda x: x.softmax(1), conv(4, 2), "reduces over removed channels at node 'softmax'"),
    "product": (lambda x: x.prod(1, keepdim=True).expand(-1, 4, -1, -1), conv(4, 2), "reduces over removed"),
    "argmax": (lambda x: x.argmax(1), nn.Identity(), "reduces over removed"),
    "median-of-all": (lambda x: torch.median(x), nn.Identity(), "reduces over removed"),
    "unknown": (lambda x: torch.cdist(x, x), conv(4, 2), "doesn't know at node 'cdist'"),
    "response-norm": (lambda x: F.local_response_norm(x, 2), conv(4, 2), "a norm over removed channels at"),
    "flip": (lambda x: x.flip(1), conv(4, 2), "not those of the channels that arrive at node 'read'"),
    "kept-image": (lambda x: x + torch.cat([x[:, 2:], x[:, :2]], 1), conv(4, 2), "kept meet .* at node 'add'"),
    "whole-outer": (lambda x: x * x.mean((2, 3), keepdim=True).roll(1, 1), conv(4, 2), "kept meet .* at node 'mul'"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "reader", "message"), REFUSED.values(), ids=REFUSED)
def test_a_removed_channel_must_not_get_there(function, reader, message):
    model = seeded(After(conv=conv(3, 4), then=Do(function), read=reader))
    removed = {Axis("conv.weight", 0): np.array([1]), Axis("conv.bias", 0): np.array([1])}
    if isinstance(reader, nn.Conv2d):
        removed[Axis("read.weight", 1)] = np.array([1])
    program = program_of(model, torch.zeros(IMAGE))
    with pytest.raises(VerifyError, match=message):
        verify(program, Masked(program, removed), pass_name="shrink")


def test_a_kept_constant_is_not_dropped_unless_it_is_zero():
    class Joined(Net):
        def forward(self, x):
            y = self.conv(x)
            return self.read(F.pad(y, (0, 0, 0, 0, 0, 1), value=self.value))

    removed = {Axis("read.weight", 1): np.array([2])}
    for value, refused in ((0.0, False), (0.5, True)):
        masked = Masked(
            program_of(seeded(Joined(conv=conv(3, 2), read=conv(3, 2), value=value)), torch.zeros(IMAGE)), removed
        )
        if refused:
            with pytest.raises(VerifyError, match="positions of an axis"):
                masked.run((torch.ones(IMAGE),), torch.float64)
        else:
            masked.run((torch.ones(IMAGE),), torch.float64)


@pytest.mark.parametrize(
    ("axis", "position", "message"),
    [(Axis("gone.weight", 0), 0, "no such tensor"), (Axis("conv1.weight", 0), 5, "has 5 positions")],
    ids=["tensor", "position"],
)
def test_axes_that_the_program_lacks_are_named(axis, position, message):
    case = CASES["conv-bn-relu-conv"]
    with pytest.raises(VerifyError, match=message):
        verify(case.after(), Masked(case.before, {axis: np.array([position])}), pass_name="shrink")


# --- references -----------------------------------------------------------------------------------------------------


def folded(scale: float = 1.0) -> tuple[Program, Program]:
    """A network and the same with its batch norm folded into the convolution, times a factor."""
    case = CASES["conv-bn-relu-conv"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    gain = model.bn1.weight.detach() / torch.sqrt(model.bn1.running_var + model.bn1.eps)
    model.conv1.weight.data = model.conv1.weight.detach() * gain.view(-1, 1, 1, 1) * scale
    model.conv1.bias.data = (model.conv1.bias.detach() - model.bn1.running_mean) * gain + model.bn1.bias.detach()

    class Folded(Net):
        def forward(self, x):
            return self.conv2(F.relu(self.conv1(x)))

    return before, program_of(Folded(conv1=model.conv1, conv2=model.conv2), case.example())


def test_a_folded_batch_norm_is_the_same():
    before, after = folded()
    assert verify(after, Same(before), pass_name="fold_bn").difference <= 1e-9


def test_a_value_that_differs_on_purpose_is_not_the_culprit():
    """The folded convolution's own value differs, too; what counts is where the output's difference comes from."""
    before, after = folded()
    after.tensors["conv2.bias"].data[1] += 1
    with pytest.raises(VerifyError, match=r"node 'conv2' .* is the first"):
        verify(after, Same(before), pass_name="fold_bn")


def test_a_wrong_fold_is_traced_to_the_convolution():
    before, after = folded(1.001)
    with pytest.raises(VerifyError, match=r"node 'conv1' .* is the first"):
        verify(after, Same(before), pass_name="fold_bn")


def test_replaced_tensors_count():
    case = CASES["conv-bn-relu-conv"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    weight = model.conv1.weight.detach().clone()
    weight[:2] = weight[:2].mean(0)
    model.conv1.weight.data = weight
    after = program_of(model, case.example())
    assert verify(after, Replaced(before, {"conv1.weight": weight}), pass_name="merge").difference == 0
    with pytest.raises(VerifyError, match="node 'conv1'"):
        verify(after, Same(before), pass_name="merge")
    with pytest.raises(VerifyError, match="can't be replaced"):
        Replaced(before, {"conv1.weight": weight[:2]})


# --- inputs, outputs and precision ----------------------------------------------------------------------------------


def test_float32_is_enough_where_it_is_close():
    model = seeded(Plain(conv1=conv(3, 5), bn1=nn.BatchNorm2d(5), conv2=conv(5, 4)))
    program = program_of(model, torch.zeros(IMAGE))
    report = verify(program, Same(program), pass_name="nothing", batches=(1, 4))
    assert json.loads(json.dumps(report.as_dict())) == {"difference": 0.0, "dtype": "float32", "batches": [1, 4]}


def test_float64_decides_where_float32_is_too_coarse():
    class Cancelling(Net):
        def forward(self, x):
            return (self.fc(x) + self.large) - self.large

    class Regrouped(Net):
        def forward(self, x):
            return self.fc(x) + (self.large - self.large)

    parts = {"fc": seeded(nn.Linear(4, 3)), "large": nn.Parameter(torch.tensor(1e4))}
    before, after = (program_of(kind(**parts), torch.zeros(2, 4)) for kind in (Cancelling, Regrouped))
    report = verify(after, Same(before), pass_name="regroup", batches=(2,))
    assert report.dtype == "float64"


def test_a_fault_behind_a_tiny_scale_shows_in_float64_alone():
    class Scaled(Net):
        def forward(self, x):
            return x + self.fc(x) * self.scale

    fc, other = seeded(nn.Linear(4, 4)), seeded(nn.Linear(4, 4))
    other.weight.data = other.weight.detach()[:, [1, 0, 2, 3]]
    scale = nn.Parameter(torch.tensor(1e-6))
    before, after = (program_of(Scaled(fc=each, scale=scale), torch.zeros(2, 4)) for each in (fc, other))
    assert verify(after, Same(before), pass_name="shrink").dtype == "float32"
    with pytest.raises(VerifyError, match="node 'fc'"):
        verify(after, Same(before), pass_name="shrink", exact=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_compared_in_float64(dtype):
    class Half(Net):
        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)).half().to(torch.bfloat16)) + torch.ones(3)

    model = seeded(Half(fc1=nn.Linear(4, 5), fc2=nn.Linear(5, 3))).to(dtype)
    program = program_of(model, torch.zeros(2, 4, dtype=dtype))
    assert verify(program, Same(program), pass_name="nothing").dtype == "float64"
    assert program.tensors["fc1.weight"].dtype == dtype


def test_a_model_made_for_one_batch_size_is_compared_on_that():
    class Fixed(Net):
        def forward(self, x):
            return self.fc(x.view(4, -1))

    program = program_of(seeded(Fixed(fc=nn.Linear(6, 2))), torch.zeros(4, 2, 3))
    assert verify(program, Same(program), pass_name="nothing").batches == (4,)


def test_a_program_that_lost_its_dynamic_batch_is_refused():
    class Fixed(Net):
        def forward(self, x):
            return self.fc(x.view(2, -1))

    class Free(Net):
        def forward(self, x):
            return self.fc(x.flatten(1))

    fc = seeded(nn.Linear(6, 2))
    before, after = (program_of(kind(fc=fc), torch.zeros(2, 2, 3)) for kind in (Free, Fixed))
    with pytest.raises(VerifyError, match=r"node 'fc' .* fails"):
        verify(after, Same(before), pass_name="shrink")


class Outputs(Net):
    def forward(self, x):
        return {"a": self.fc(x), "b": (self.fc(x) > 0, [self.fc(x).log()])}


def test_every_output_of_a_nest_is_compared():
    """The logarithm of negative numbers is not a number, in both."""
    before, after = (program_of(seeded(Outputs(fc=nn.Linear(4, 3))), torch.zeros(2, 4)) for _ in range(2))
    assert verify(after, Same(before), pass_name="nothing").difference == 0
    after.tensors["fc.bias"].data[0] += 100
    with pytest.raises(VerifyError, match="node 'fc'"):
        verify(after, Same(before), pass_name="shift")


def test_another_structure_of_the_outputs_is_a_mismatch():
    class Listed(Outputs):
        def forward(self, x):
            return [self.fc(x), self.fc(x) > 0, self.fc(x).log()]

    fc = seeded(nn.Linear(4, 3))
    before, after = (program_of(kind(fc=fc), torch.zeros(2, 4)) for kind in (Outputs, Listed))
    with pytest.raises(VerifyError, match="nested in another way"):
        verify(after, Same(before), pass_name="nothing")


def test_integers_stay_within_the_example():
    tokens = torch.tensor([[0, 5, 2], [1, 1, 3]])
    program = program_of(Chain(a=nn.Embedding(6, 2)), tokens)
    (fresh,) = fresh_inputs(program, 200, seed=0)
    assert (fresh.shape, fresh.dtype, int(fresh.min()), int(fresh.max())) == ((200, 3), torch.int64, 0, 5)
    assert torch.equal(fresh, fresh_inputs(program, 200, seed=0)[0])


class Clipped(nn.Module):
    """Some rows of a convolution, averaged; the view is of the example's own size."""

    def __init__(self, rows: slice = slice(100, None), view: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.conv, self.fc, self.rows, self.view = nn.Conv2d(3, 6, 1), nn.Linear(6, 4), rows, view

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x.view(self.view) if self.view else x)[:, :, self.rows].mean((2, 3)))


FULL, SMALL = [(1, 3, 640, 640), (2, 3, 640, 640)], (2, 3, 160, 160)
SMALLER_IMAGES = {
    "any size": (Clipped(), Clipped(), [FULL[0], SMALL]),
    "one size": (Clipped(), Clipped(view=(-1, 6, 640, 640)), [FULL[0], SMALL, FULL[1]]),
    "the same at one size": (Clipped(), Clipped(slice(-540, None)), [FULL[0], SMALL, FULL[1]]),
}


@pytest.mark.parametrize("name", SMALLER_IMAGES)
def test_large_images_are_checked_once_and_then_smaller(name, monkeypatch):
    """A difference on smaller images alone convicts nobody: full ones decide."""
    old, new, expected = SMALLER_IMAGES[name]
    new.load_state_dict(old.state_dict())
    before, after = (program_of(model, torch.zeros(FULL[0])) for model in (old, new))
    seen, steps = [], Interpreter.steps
    monkeypatch.setattr(Interpreter, "steps", lambda self, xs: seen.append(tuple(xs[0].shape)) or steps(self, xs))
    assert verify(after, Same(before), pass_name="nothing").batches == (1, 2)
    assert list(dict.fromkeys(seen)) == expected


def test_a_fault_in_large_images_is_found():
    before, after = (program_of(Clipped(rows), torch.zeros(FULL[0])) for rows in (slice(100, None), slice(101, None)))
    after = after.derive(state=before.state)
    with pytest.raises(VerifyError, match="'getitem'"):
        verify(after, Same(before), pass_name="nothing")


def test_what_is_cut_of_large_inputs():
    shapes = {
        (1, 3, 800, 640): (2, 3, 200, 160),
        (1, 256, 13, 13): (2, 256, 13, 13),
        (1000, 256, 7, 7): (250, 256, 7, 7),
    }
    program = Program(fx.Graph(), {}, ([torch.zeros(shape) for shape in (*shapes, (1, 5000))],))
    (found,) = fresh_inputs(program, 2, seed=0, smaller=4)
    assert [tuple(x.shape) for x in found] == [*shapes.values(), (2, 5000)]


def test_dropout_and_training_mode_play_no_part_and_nothing_is_changed():
    class Dropping(Net):
        def forward(self, x):
            return F.dropout(self.drop(self.bn(self.fc(x))), 0.5)

    model = seeded(Dropping(fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3), drop=nn.Dropout())).train()
    program = program_of(model, torch.ones(2, 4))
    before = {key: tensor.clone() for key, tensor in program.tensors.items()}
    assert verify(program, Same(program), pass_name="nothing").difference == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in program.tensors.items())
    assert all(module.training for module in program.state.values() if isinstance(module, nn.Module))
    assert torch.get_default_dtype() == torch.float32


def test_values_are_freed_after_their_last_use():
    steps = Interpreter(
        program_of(Chain(**{f"l{i}": nn.Linear(4, 4) for i in range(5)}), torch.ones(2, 4)), torch.float32
    )
    alive: list[weakref.ref[Tensor]] = []
    for _, value in steps.steps((torch.ones(2, 4),)):
        if isinstance(value, Tensor):
            alive.append(weakref.ref(value))
        del value
        assert sum(ref() is not None for ref in alive) <= 2
    assert len(alive) == 7


@pytest.mark.parametrize(("size", "batches"), [(8, (2, 3)), (1100, (1, 2))])
def test_large_samples_come_in_smaller_batches(size, batches):
    program = trace(nn.Sequential(nn.Conv2d(1, 2, 1, stride=64), nn.ReLU()).eval(), (torch.randn(1, 1, size, size),))
    assert verify(program, Same(program), pass_name="none").batches == batches
