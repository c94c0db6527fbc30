"""`fold_bn`: what folds gives the same numbers, what doesn't says why, and the given program stays as it was."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.pass_base import Context, PassResult
from prunec.compiler.tracing.trace import trace
from prunec.passes.fold_bn import NORMS, FoldBN


def lively(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, its batch norms with statistics and weights of every sign."""
    generator = torch.Generator().manual_seed(0)
    for norm in (each for each in model.modules() if isinstance(each, NORMS)):
        norm.eps = 1e-3
        if norm.running_mean is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.1, 3, generator=generator)
        if norm.weight is not None:
            norm.weight.data.normal_(generator=generator)
            norm.weight.data[0] = 0
            norm.weight.data[1] = -2
            norm.bias.data.normal_(generator=generator)
    return model.double().eval()


def program_of(model: nn.Module, *shape: int) -> Program:
    """The traced model, with double inputs of this shape."""
    return trace(lively(model), (torch.zeros(shape, dtype=torch.float64),))


def fold(program: Program, **options: object) -> PassResult:
    return FoldBN(**options).run(program, Context())


def modules(program: Program) -> list[str]:
    """The names of the called modules, in order."""
    return [str(node.target) for node in program.graph.nodes if node.op == "call_module"]


def assert_same(before: Program, after: Program, *shape: int) -> None:
    """Both compute the same, for another batch size than the example's."""
    x = torch.randn(3, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(after.module(x), before.module(x), rtol=0, atol=1e-9)


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def plain(norm: type[nn.Module], size: int) -> nn.Module:
    return norm(size, affine=False)


AFTER = {
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), (2, 3, 7)),
    "conv2d": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 7, 7)),
    "conv3d": (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
    "no bias": (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 7, 7)),
    "not affine": (nn.Conv2d(3, 4, 3), plain(nn.BatchNorm2d, 4), (2, 3, 7, 7)),
    "neither": (nn.Conv2d(3, 4, 3, bias=False), plain(nn.BatchNorm2d, 4), (2, 3, 7, 7)),
    "padded": (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (2, 3, 7, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 7, 7)),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2), nn.BatchNorm2d(4), (2, 3, 7, 7)),
    "strided": (nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 7, 7)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), (2, 3, 7, 7)),
    "transposed1d": (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 7)),
    "transposed2d": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), (2, 3, 5, 5)),
    "transposed3d": (nn.ConvTranspose3d(3, 4, 3, bias=False), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "linear": (nn.Linear(5, 4), nn.BatchNorm1d(4), (2, 5)),
    "linear, no bias": (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), (2, 5)),
}


@pytest.mark.parametrize(("layer", "bn", "shape"), AFTER.values(), ids=AFTER)
def test_folds_into_the_layer_that_feeds_it(layer: nn.Module, bn: nn.Module, shape: tuple[int, ...]):
    before = program_of(chain(layer=layer, bn=bn), *shape)
    result = fold(before, where="after")
    assert result.notes == ()
    assert result.details == {"folded": {"bn": ["layer"]}}
    assert modules(result.program) == ["layer"]
    assert_same(before, result.program, *shape)


BEFORE = {
    "conv1d": (nn.BatchNorm1d(3), nn.Conv1d(3, 4, 3), (2, 3, 7)),
    "conv2d": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), (2, 3, 7, 7)),
    "conv3d": (nn.BatchNorm3d(3), nn.Conv3d(3, 4, 3, bias=False), (2, 3, 5, 5, 5)),
    "not affine": (plain(nn.BatchNorm2d, 3), nn.Conv2d(3, 4, 3), (2, 3, 7, 7)),
    "grouped": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 7, 7)),
    "dilated, strided": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, dilation=2, stride=2), (2, 3, 7, 7)),
    "valid": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 7, 7)),
    "same, but of size 1": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding="same"), (2, 3, 7, 7)),
    "reflect": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 7, 7)),
    "circular": (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 7)),
    "linear": (nn.BatchNorm1d(5), nn.Linear(5, 4), (2, 5)),
    "linear, no bias": (nn.BatchNorm1d(5), nn.Linear(5, 4, bias=False), (2, 5)),
}


@pytest.mark.parametrize(("bn", "layer", "shape"), BEFORE.values(), ids=BEFORE)
def test_folds_into_the_layer_that_reads_it(bn: nn.Module, layer: nn.Module, shape: tuple[int, ...]):
    before = program_of(chain(bn=bn, layer=layer), *shape)
    result = fold(before, where="before")
    assert result.notes == ()
    assert modules(result.program) == ["layer"]
    assert_same(before, result.program, *shape)


class Several(nn.Module):
    """Two layers read one batch norm, one of them through a flatten."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3, padding=padding)
        self.fc = nn.Linear(3 * 5 * 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(x)
        return self.conv(x).mean((2, 3)) + self.fc(torch.flatten(x, 1))


def test_folds_into_all_of_several_readers():
    before = program_of(Several(), 2, 3, 5, 4)
    result = fold(before)
    assert result.details == {"folded": {"bn": ["conv", "fc"]}}
    assert modules(result.program) == ["conv", "fc"]
    assert_same(before, result.program, 2, 3, 5, 4)


def test_folds_into_none_of_several_readers_when_one_refuses():
    before = program_of(Several(padding=1), 2, 3, 5, 4)
    result = fold(before, where="before")
    assert result.program is before
    assert [str(note) for note in result.notes] == ["bn: 'conv' has zero padding: the border would differ"]


def test_folds_chains_from_both_sides():
    layers = {"a": nn.BatchNorm2d(3), "b": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3, bias=False)}
    before = program_of(chain(**layers, c=nn.BatchNorm2d(4), d=plain(nn.BatchNorm2d, 4)), 2, 3, 7, 7)
    result = fold(before)
    assert modules(result.program) == ["conv"]
    assert set(result.details["folded"]) == {"a", "b", "c", "d"}
    assert_same(before, result.program, 2, 3, 7, 7)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + self.bn(x)


class Twice(nn.Module):
    """One module is called twice; the other calls are `bn1` and `conv2`."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv2 = self.conv if shared == "conv" else nn.Conv2d(3, 3, 1)
        self.bn2 = self.bn if shared == "bn" else nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x)).relu()
        return self.bn2(self.conv2(x)).relu()


class Tied(Twice):
    """Two convolutions have one weight."""

    def __init__(self) -> None:
        super().__init__("nothing")
        self.conv2.weight = self.conv.weight


class Written(nn.Module):
    """The batch norm's input is overwritten before the layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.exp()
        y = self.bn(x)
        x.relu_()
        return self.fc(y) + x


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(self.conv(x), self.mean, self.var)


IMAGE = (2, 3, 7, 7)
DECLINED = {
    "padded": (
        chain(bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3, padding=1)),
        IMAGE,
        ("is no convolution or linear layer; 'conv' has zero padding: the border would differ",),
    ),
    "same": (
        chain(relu=nn.ReLU(), bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3, padding="same")),
        IMAGE,
        ("bn: 'relu' is no convolution or linear layer; 'conv' has zero padding: the border would differ",),
    ),
    "transposed": (
        chain(relu=nn.ReLU(), bn=nn.BatchNorm2d(3), up=nn.ConvTranspose2d(3, 4, 3)),
        IMAGE,
        ("'up' is a transposed convolution: the border would differ",),
    ),
    "no statistics": (
        chain(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
        ("bn: it keeps no running statistics",),
    ),
    "residual": (Residual(), IMAGE, ("bn: 'conv' is also read by 'add'; ",)),
    "shared conv": (
        Twice("conv"),
        IMAGE,
        ("bn: 'conv' is shared with another call; ", "bn2: 'conv' is shared with another call; "),
    ),
    "shared bn": (Twice("bn"), IMAGE, ("bn: it is shared with another call",)),
    "tied weight": (
        Tied(),
        IMAGE,
        ("bn: 'conv' is shared with another call; ", "bn2: 'conv2' is shared with another call; "),
    ),
    "sequence": (
        chain(fc=nn.Linear(4, 4), bn=nn.BatchNorm1d(5)),
        (2, 5, 4),
        ("bn: it normalises dimension 1, which is not the channel of 'fc'; ",),
    ),
    "before a sequence": (
        chain(bn=nn.BatchNorm1d(5), fc=nn.Linear(4, 4)),
        (2, 5, 4),
        ("it normalises dimension 1, which is not the one that 'fc' reads",),
    ),
    "no batch": (
        chain(conv=nn.Conv1d(3, 4, 2), bn=nn.BatchNorm1d(6)),
        (3, 7),
        ("bn: it normalises dimension 1, which is not the channel of 'conv'; ",),
    ),
    "written": (Written(), (2, 4), ("'relu_' writes in place before 'fc' reads",)),
    "functional": (Functional(), IMAGE, ("batch_norm: functional batch norm: its statistics are values of the graph",)),
    "alone": (chain(relu=nn.ReLU(), bn=nn.BatchNorm2d(3)), IMAGE, ("it is read by 'output', which is no convolution",)),
}


@pytest.mark.parametrize(("model", "shape", "notes"), DECLINED.values(), ids=DECLINED)
def test_declines_with_a_reason(model: nn.Module, shape: tuple[int, ...], notes: tuple[str, ...]):
    before = program_of(model, *shape)
    result = fold(before)
    assert result.program is before
    assert len(result.notes) == len(notes)
    for note, text in zip(result.notes, notes, strict=True):
        assert text in str(note)


def test_a_model_in_training_mode_is_read_as_at_inference():
    model = lively(chain(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    x = torch.randn(IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = model(x)
    after = fold(trace(model.train(), (x,))).program
    torch.testing.assert_close(after.module(x), expected, rtol=0, atol=1e-9)
    assert modules(after) == ["conv"]


def test_declines_weights_that_would_not_be_finite():
    model = lively(chain(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    model.bn.weight.data.fill_(1e39)
    before = trace(model.float(), (torch.zeros(2, 3, 7, 7),))
    assert fold(before, where="after").notes[0].reason == "the folded weights of 'conv' would not be finite"


def test_options_choose_sides_and_batch_norms():
    layers = {"a": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3), "b": nn.BatchNorm2d(4)}
    before = program_of(chain(**layers), *IMAGE)
    assert modules(fold(before, where="after").program) == ["a", "conv"]
    assert modules(fold(before, where="before").program) == ["conv", "b"]
    result = fold(before, protect=["b*"])
    assert modules(result.program) == ["conv", "b"]
    assert [str(note) for note in result.notes] == ["b: kept by 'protect'"]


def test_a_pattern_that_names_nothing_is_an_error():
    before = program_of(chain(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)), *IMAGE)
    with pytest.raises(PassError, match=r"'protect': nothing is called 'nrom'\nhint: did you mean 'norm'\?"):
        fold(before, protect=["nrom"])


def test_leaves_the_given_program_alone_and_is_idempotent():
    model = chain(conv=nn.Conv2d(3, 4, 3, bias=False), bn=nn.BatchNorm2d(4), relu=nn.ReLU(), out=nn.BatchNorm2d(4))
    before = program_of(model, *IMAGE)
    graph, tensors = str(before.graph), {name: tensor.clone() for name, tensor in before.tensors.items()}
    result = fold(before)
    assert str(before.graph) == graph
    assert list(before.tensors) == list(tensors)
    assert all(torch.equal(before.tensors[name], tensor) for name, tensor in tensors.items())
    again = fold(result.program)
    assert again.program is result.program
    assert again.notes == result.notes


def test_keeps_names_types_and_whether_parameters_are_trained():
    model = lively(chain(conv=nn.Conv2d(3, 4, 3, bias=False), bn=nn.BatchNorm2d(4))).to(torch.bfloat16)
    model.conv.weight.requires_grad_(False)
    after = fold(trace(model, (torch.zeros(2, 3, 7, 7, dtype=torch.bfloat16),))).program
    assert list(after.tensors) == ["conv.weight", "conv.bias"]
    for tensor in after.tensors.values():
        assert isinstance(tensor, nn.Parameter)
        assert tensor.dtype == torch.bfloat16
        assert not tensor.requires_grad
    assert [node.name for node in after.graph.nodes][1] == "conv"


def test_origins_follow_the_tensors():
    """Those of a batch norm that is gone stay: the lock tells what was removed from it before."""
    model = chain(conv=nn.Conv2d(3, 2, 3, bias=False), bn=nn.BatchNorm2d(2))
    before = program_of(model, *IMAGE)
    rows = torch.tensor([1, 5]).numpy()
    before = before.derive(
        origin={Axis("conv.weight", 0): rows, Axis("bn.weight", 0): rows}, shown=frozenset({"bn.weight"})
    )
    after = fold(before).program
    assert {str(axis): list(positions) for axis, positions in after.origin.items()} == {
        "conv.weight[0]": [1, 5],
        "conv.bias[0]": [1, 5],
        "bn.weight[0]": [1, 5],
    }
    assert after.shown == frozenset()
