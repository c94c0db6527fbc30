"""`fold_constants`: what gives a constant goes, and nothing else changes; one stays where zeros are padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunec.compiler import Plan, compile

GONE = (1, 4, 6)


def _net(padding: int, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=padding, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * (4 + 2 * padding) ** 2, 5),
    )
    with torch.no_grad():
        net[1].bias.fill_(0.5)
        net[0].weight[list(GONE)] = 0
        net[1].weight[0], net[1].bias[0] = 0, -1  # dead behind the relu
        net[3].weight[2] = 0
        if bias:
            net[3].bias[2] = 0.25
    return net.eval()


def _compiled(net: nn.Module, *passes: Any) -> Any:
    plan = {"plan": 1, "passes": list(passes) or ["fold_constants"]}
    return compile(net, plan, example_inputs=(torch.randn(2, 3, 8, 8),))


def _widths(result: Any) -> tuple[int, ...]:
    return tuple(result.module.state_dict()[name].shape[0] for name in ("0.weight", "3.weight"))


@pytest.mark.parametrize(("padding", "widths"), [(0, (4, 5)), (1, (5, 5))])
def test_constants_and_zeros_go_without_a_trace(padding, widths):
    net = _net(padding)
    result = _compiled(net)
    assert _widths(result) == widths
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)
    record = result.report["passes"][0]
    assert record["verification"]["difference"] < 1e-5
    assert result.report["warnings"] == []
    assert [note["subject"] for note in record["notes"]] == ([] if padding == 0 else ["0"])


def test_what_is_approximated_is_told():
    net = _net(1)
    result = _compiled(net, {"fold_constants": "approximate"})
    assert _widths(result) == (4, 5)
    assert any("the borders of images differ" in warning for warning in result.report["warnings"])
    x = torch.randn(4, 3, 8, 8)
    apart = (result.module(x) - net(x)).abs().max()
    dropped = _compiled(net, {"select": {"units": {"0": [0, *GONE]}}}, {"shrink": {"constants": "drop"}})
    assert 1e-4 < apart < 0.7 * (dropped.module(x) - net(x)).abs().max()


def test_a_network_without_constants_stays_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    result = _compiled(net)
    assert result.program is not None
    assert torch.equal(result.module.state_dict()["0.weight"], net[0].weight)


def test_a_group_keeps_a_unit():
    net = _net(0)
    nn.init.zeros_(net[0].weight)
    result = _compiled(net)
    assert _widths(result)[0] == 1
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)


@pytest.mark.parametrize("padded", ["keep", "approximate"])
def test_its_lock_gives_the_same(padded):
    net = _net(1)
    first = _compiled(net, {"fold_constants": padded})
    again = compile(net, first.lock, example_inputs=(torch.randn(2, 3, 8, 8),))
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor)


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 8), nn.GroupNorm(2, 8)])
def test_zeros_behind_a_norm_that_counts_them_stay(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].bias[3] = 4
        net[1].weight[3], net[1].bias[3] = 0, 0
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(_compiled(net).module(x), net(x), atol=1e-5)


class _Shut(nn.Module):
    """A sum of which one summand is a constant, and the other zero for common inputs."""

    def __init__(self, *, bounded: bool, shift: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 8, 1)
        self.third, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.bounded = bounded
        with torch.no_grad():
            self.third.weight[3], self.third.bias[3] = 0, shift
            self.second.bias[3] = -0.99 * self.second.weight[3].abs().sum() if bounded else -30

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.second(x.tanh() if self.bounded else x).relu()
        return self.last(x + self.third(x))


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("bounded", [False, True])
def test_what_common_inputs_alone_shut_stays(bounded, shift):
    net = _Shut(bounded=bounded, shift=shift).eval()
    result = _compiled(net)
    assert result.module.state_dict()["second.weight"].shape[0] == 8


@pytest.mark.parametrize("passes", [("fold_constants",), ({"select": {"units": {"0": [3]}}}, "shrink")])
def test_constants_that_depend_on_the_batch_size_are_no_reason_to_fail(passes):
    class OverTheBatch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.sum(0, keepdim=True).clamp(min=0.1)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), OverTheBatch(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0, 0.5
    result = compile(net, {"plan": 1, "passes": list(passes)}, example_inputs=(torch.randn(2, 6),))
    x = torch.randn(5, 6)
    if passes == ("fold_constants",):
        assert torch.allclose(result.module(x), net(x), atol=1e-5)
    else:
        assert any("lose these constants" in warning for warning in result.report["warnings"])


@pytest.mark.parametrize("size", [8, 40])
def test_constants_that_depend_on_the_image_size_stay(size):
    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum((2, 3))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Pooled(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0, 0.5
    plan = {"plan": 1, "passes": ["fold_constants"]}
    result = compile(net, plan, example_inputs=(torch.randn(2, 3, size, size),))
    x = torch.randn(2, 3, 12, 12)
    assert torch.allclose(result.module(x), net(x), rtol=1e-4)


def test_a_tiny_constant_stands_for_no_other():
    net = _net(1)
    with torch.no_grad():
        net[1].bias[1] = 1e-9
    result = _compiled(net)
    assert result.module.state_dict()["3.weight"].abs().max() < 10
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)


def test_the_largest_constant_stays_for_the_others():
    net = _net(1)
    with torch.no_grad():
        net[1].bias[4] = 3
    result = _compiled(net)
    assert result.lock["removed"]["0.weight"]["0"] == [0, 1, 6]
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)


# -- behind every plan -------------------------------------------------------------------------------------------------

_SHUT = {"select": {"units": {"0": [2, 3]}}}
PLANS: dict[str, tuple[list[Any], tuple[int, int]]] = {
    "without passes": ([], (4, 5)),
    "without a rewrite": ([{"score": "l1"}], (4, 5)),
    "of a rewrite": (["fold_bn"], (4, 5)),
    "of other units": ([_SHUT, "shrink"], (2, 5)),
    "in rounds": ([{"repeat": {"steps": 1, "passes": [_SHUT, "shrink"]}}], (2, 5)),
    "that says no": ([{"fold_constants": "none"}], (8, 6)),
    "that says where": (["fold_constants", _SHUT, {"shrink": {"constants": "drop"}}], (2, 5)),
}


@pytest.mark.parametrize(("passes", "widths"), PLANS.values(), ids=PLANS)
def test_constants_are_removed_behind_every_plan(passes, widths):
    net = _net(0)
    plan = {"plan": 1, "passes": passes}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = compile(net, plan, example_inputs=(torch.randn(2, 3, 8, 8),))
    assert _widths(result) == widths
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    kept = {"plan": 1, "passes": [*passes, {"fold_constants": "none"}]}
    same = compile(net, kept, example_inputs=(torch.randn(2, 3, 8, 8),)).module
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(result.module(x), same(x), atol=1e-5)


def test_what_is_removed_by_default_is_told_and_locked():
    net = _net(1)
    result = compile(net, {"plan": 1}, example_inputs=(torch.randn(2, 3, 8, 8),))
    (record,) = result.report["passes"]
    assert (record["pass"], record["details"]["removed_units"]) == ("fold_constants", {"0": 3, "3": 1})
    assert [note["reason"] for note in record["notes"]] == ["1 constant unit stays; 3 puts zeros around it"]
    assert record["verification"]["difference"] < 1e-5
    assert result.lock["removed"]["0.weight"]["0"] == [0, 4, 6]
    again = compile(net, result.lock, example_inputs=(torch.randn(2, 3, 8, 8),))
    assert all(torch.equal(again.module.state_dict()[name], x) for name, x in result.module.state_dict().items())
    assert [each["pass"] for each in again.report["passes"]] == ["select", "shrink"]


def test_where_there_is_no_constant_nothing_is_told():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    result = compile(net, {"plan": 1, "passes": ["fold_bn"]}, example_inputs=(torch.randn(2, 3, 8, 8),))
    assert [each["pass"] for each in result.report["passes"]] == ["fold_bn"]
    assert result.lock["passes"] == ["fold_bn"]


def test_what_trials_alone_show_is_no_default():
    """An operation without a rule of its own: that it passes on a constant isn't proven, but seen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LPPool2d(2, 2), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0, 0.5
    for passes, width in (([], 8), (["fold_constants"], 7)):
        result = compile(net, {"plan": 1, "passes": passes}, example_inputs=(torch.randn(2, 3, 8, 8),))
        assert result.module.state_dict()["0.weight"].shape[0] == width


WIDTHS: dict[str, tuple[Any, int]] = {
    "a multiple": ({"ratio": 0.01, "multiple_of": 8}, 16),
    "a multiple that is given up": ({"ratio": 0.4, "multiple_of": 5}, 10),
    "a width": ({"widths": {"0": 14}}, 14),
    "equal widths": ({"ratio": 0.01, "equal_widths": ["0", "2"]}, 15),
    "protected": ({"ratio": 0.01, "protect": ["0"]}, 16),
    "a ratio": ({"ratio": 0.01}, 10),
}


@pytest.mark.parametrize(("select", "width"), WIDTHS.values(), ids=WIDTHS)
def test_by_default_groups_keep_the_widths_that_were_asked_for(select, width):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight[:5], net[0].bias[:5] = 0, 9
    passes = [{"score": {"criterion": "random"}}, {"select": select}, "shrink"]
    result = compile(net, {"plan": 1, "passes": passes}, example_inputs=(torch.randn(2, 3, 8, 8),))
    assert result.module.state_dict()["0.weight"].shape[0] == width


def test_a_model_of_both_modes_keeps_its_constants_by_default():
    """In train mode a batch norm shifts by other means than in eval mode."""
    net = _net(0)
    result = compile(net, {"plan": 1, "mode": "train"}, example_inputs=(torch.randn(2, 3, 8, 8),))
    assert _widths(result) == (8, 6)


class _Sized(nn.Module):
    """A unit gives 0.5, until what the image's size asks for is padded."""

    def __init__(self, step: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, step, stride=step)
        self.step = step
        with torch.no_grad():
            self.a.weight[3], self.a.bias[3] = 0, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        x = nn.functional.pad(self.a(x).relu(), (0, -width % self.step, 0, -height % self.step))
        found: torch.Tensor = self.b(x).mean((2, 3))
        return found


class _Placed(nn.Module):
    """A unit gives 0.5 in the first places alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.places = nn.Parameter(torch.randn(1, 64, 8))
        with torch.no_grad():
            self.a.weight[3], self.a.bias[3] = 0, 0.5
            self.places[:, :20, 3] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b((self.a(x) + self.places[:, : x.shape[1]]).relu())
        return found


@pytest.mark.parametrize(
    ("net", "passes", "example", "other"),
    [
        (_Sized(4), [], (2, 3, 16, 16), (2, 3, 18, 18)),
        (_Sized(2), [], (2, 3, 16, 16), (1, 3, 21, 19)),
        (_Placed(), [], (2, 8, 4), (2, 40, 4)),
        (_Sized(4), ["fold_constants"], (2, 3, 16, 16), (2, 3, 18, 18)),
        (_Sized(2), ["fold_constants"], (2, 3, 16, 16), (1, 3, 21, 19)),
    ],
    ids=[
        "padded to a multiple",
        "padded to an even size",
        "places",
        "by trials, a multiple",
        "by trials, an even size",
    ],
)
def test_what_is_constant_at_one_size_alone_stays(net, passes, example, other):
    result = compile(net.eval(), {"plan": 1, "passes": passes}, example_inputs=(torch.randn(example),))
    x = torch.randn(other)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)


class _Mapped(nn.Module):
    """A frozen convolution with constant channels, whose readers pad and flatten: only images of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Conv2d(*width, 3, padding=1) for width in ((3, 8), (8, 6)))
        self.c = nn.Linear(6 * 64, 4)
        with torch.no_grad():
            self.a.weight[:3], self.a.bias[:3] = 0.0, torch.tensor([1.0, 2.0, 3.0])
        self.a.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.c(self.b(self.a(x).relu()).relu().flatten(1))
        return found


_TRAINED: list[Any] = [{"finetune": {"epochs": 1}}]
_CUT: list[Any] = [{"score": "l1"}, {"select": "30%"}]
_ROUND: list[Any] = [{"score": "l1"}, "select", {"shrink": {"constants": "map"}}]


@pytest.mark.parametrize(
    "passes",
    [
        [{"fold_constants": "map"}],
        [{"fold_constants": "map"}, *_TRAINED, "fold_bn"],
        [*_TRAINED, {"fold_constants": "map"}, *_TRAINED],
        [*_CUT, {"shrink": {"constants": "map"}}, {"repair": {"samples": 32}}, *_TRAINED],
        [{"fold_constants": "map"}, *_CUT, "shrink", *_TRAINED],
        [{"repeat": {"steps": 2, "to": {"macs": "40%"}, "passes": _ROUND}}],
    ],
    ids=["alone", "trained behind", "trained around", "repaired", "cut behind", "in rounds"],
)
@pytest.mark.parametrize("trained", [False, True])
def test_a_lock_has_maps_again(passes, trained, tmp_path):
    torch.manual_seed(1)
    net, x = _Mapped().eval(), torch.randn(32, 3, 8, 8)
    data = [(x, torch.arange(32) % 4)]
    result = compile(net, {"plan": 1, "passes": passes}, (x[:2],), data)
    assert any(each["details"].get("maps") for each in result.report["passes"])
    result.save(tmp_path / "out")
    again = compile(net, Plan.load(tmp_path / "out" / "plan.lock.json"), (x[:2],), data, trained=trained)
    assert again.lock["hashes"] == result.lock["hashes"]
    assert torch.equal(again.module(x), result.module(x))
