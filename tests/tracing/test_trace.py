"""The tracer: a program computes what the model computes, for other batch sizes too; refusals say where and why."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import operator
import pickle
import re
import time
from collections import namedtuple
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from same import assert_same, leaves
from torch import fx, nn

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.both_modes import trace_modes
from prunec.compiler.tracing.trace import trace

torchvision = pytest.importorskip("torchvision")


class Net(nn.Module):
    """A module with one layer of each kind that the cases below may use; a case is its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.table = nn.Parameter(torch.rand(4, 6))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.p = 0.5
        self.sizes: list[int] = []
        self.plain = torch.arange(3.0)
        torch.nn.init.uniform_(self.bn.running_mean)


Point = namedtuple("Point", ["left", "right"])


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    features: torch.Tensor | None = None


def size_branch(self, x):
    return self.conv(x) if x.shape[2] > 7 else x


def size_unpacking(self, x):
    n, c, h, w = x.shape
    return x.view(n, c * h * w)


def size_method(self, x):
    return x.reshape(x.size(0), -1)


def size_slice(self, x):
    return x.reshape(*x.shape[:2], -1) + torch.ones(x.shape[:2] + (1,))  # noqa: RUF005  (the sum is what is tested)


def size_arithmetic(self, x):
    rows = (2 * x.shape[2] + 4) // 4 - 1
    return x[:, :, :rows] * (x.size(3) / 2) - x.shape[0] % 1 + x.shape[2] ** 0.5


def size_loop(self, x):
    return torch.stack([x[:, :, i] * len(x.shape) for i in range(0, x.size(2), 2)])


def size_int(self, x):
    return F.interpolate(x, size=(int(x.shape[2]) // 2, int(math.sqrt(x.shape[3] * x.shape[2]))))


def size_floor(self, x):
    return x[:, :, : math.floor(x.shape[2] / 3), : round(x.shape[3] / 3)]


def size_product(self, x):
    return x.view(x.shape[:1].numel(), math.prod(x.shape[1:]))


def rows(self, x):
    return sum(row.mean(0) for row in x.transpose(0, 1)) + len(x.shape)


def type_checks(self, x):
    assert isinstance(x, torch.Tensor)
    assert isinstance(x.shape[0], int)
    assert isinstance(x.shape, torch.Size)
    assert x.shape[1:] == (3, 8, 8)
    return [x, x, x][x.shape[1] - 1] + 1


def factories(self, x):
    n = x.size(0)
    mask = torch.zeros(n, 1, 8, 8, device=x.device) + torch.arange(n).view(n, 1, 1, 1)
    full = torch.full((n, 1, 1, 1), 2.0, dtype=x.dtype) + x.new_ones(n, 1, 1, 1)
    return x + mask + full + torch.zeros_like(x) + torch.linspace(0, 1, x.shape[3]) + torch.tensor([n / n])


def constants(self, x):
    return x * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) + self.plain.view(1, 3, 1, 1)


def plain_attribute(self, x):
    return x * self.plain.view(3, 1, 1)


def buffer_decides(self, x):
    return self.conv(x) if self.flag else x


def buffer_number(self, x):
    return x[:, self.order] * self.order[0].item() + x[:, self.order.tolist()]


def buffer_mask(self, x):
    return x[:, self.order > 0]


def parameters(self, x):
    return self.conv(x) * self.scale + F.conv2d(x, self.conv.weight, padding=1) * self.scale


def augmented(self, x):
    y = self.conv(x)
    y += self.scale
    y *= 2
    return y


def item_assignment(self, x):
    y = x.clone()
    y[:, 0] = x[:, 1] * 2
    y[:, 1:, ::2] = 0
    return y


def write_through_view(self, x):
    y = x * 1
    top = y[:, :, :2]
    top += 1
    top[:, 0].zero_()
    return y


def write_into_new(self, x):
    out = torch.zeros(3, 8)
    half = out[:, :4]
    half += 1
    out[0] = 5
    counts = out.sum()
    return x + out[:, None] + counts


def write_into_given(self, x):
    y = self.conv(x)
    F.relu(y, True)
    torch.sigmoid_(y)
    return y


def residual_in_place(self, x):
    y = self.conv(x)
    kept = y
    y = F.relu(y, inplace=True)
    return kept + y


def identity_calls(self, x):
    return self.drop(x) + F.dropout(x, self.p, self.training) + x.contiguous() + x.float()


def flag_branch(self, x):
    return x * 100 if self.training else F.dropout2d(self.conv(x), self.p, self.training)


def functional_norm(self, x):
    y = self.conv(x)
    return F.batch_norm(y, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, self.training)


def shared(self, x):
    return self.other(self.other(self.conv(x)))


def operators(self, x):
    a = 1 - x + 2 / (x.abs() + 1) - (x > 0).float() + 2**x - (-x) // 1 + x % 2
    return a + (x.mT @ x).mean() + ((x > 0) & ~(x < 1)).float()


def devices(self, x):
    y = x.to("cpu") + x.to(x.device) + x.cpu() + x.to(device="cpu") + x.type_as(x)
    return y + torch.zeros(3, 1, 1, device="cpu") + torch.zeros(x.shape, device=torch.device("cpu"))


def tuples(self, x):
    a, b = self.conv(x).chunk(2, dim=1)
    values, indices = b.max(dim=1, keepdim=True)
    return a * values + indices + x.max(1, keepdim=True).values


def attributes(self, x):
    self.sizes.append(x.shape[0])
    self.last = x
    return x.mT + x.data


def give_dict(self, x):
    return {"a": x + 1, "b": [x, None, 3]}


def give_tuple(self, x):
    return x, (self.conv(x), 0.5)


def give_sizes(self, x):
    return x.mean((2, 3)), x.shape[0], x.shape[2] * 2


def give_named(self, x):
    return Pair(x + 1, self.conv(x))


def give_point(self, x):
    return Point(left=x + 1, right=self.conv(x))


def many_arguments(self, x):
    return F.max_pool2d(F.avg_pool2d(x, 2), 2, return_indices=True)[0] + F.pad(x, (1, -7, 0, -6))


def attention(self, x):
    y = x.flatten(2).transpose(1, 2)
    return torch.einsum("nij,nkj->nik", y, y) @ y + F.scaled_dot_product_attention(y, y, y)


# fmt: off
BATCHED = [
    size_branch, size_unpacking, size_method, size_slice, size_arithmetic, size_loop, size_int,
    size_floor, size_product, rows, type_checks, factories, constants, plain_attribute,
    buffer_decides, buffer_number, buffer_mask, parameters, augmented, item_assignment, write_through_view,
    write_into_new, write_into_given, residual_in_place, identity_calls, flag_branch, functional_norm, shared,
    operators, devices, tuples, attributes, give_dict, give_tuple, give_sizes, give_named,
    give_point, many_arguments, attention,
]
# fmt: on


def build(forward: Any, **attributes: Any) -> nn.Module:
    """A `Net` with this forward."""
    torch.manual_seed(0)
    return type("Net", (Net,), {"forward": forward, **attributes})()


def calls(program: Program, op: str) -> list[Any]:
    return [node.target for node in program.graph.nodes if node.op == op]


@pytest.mark.parametrize("forward", BATCHED, ids=lambda f: f.__name__)
def test_program_computes_what_the_model_computes(forward):
    model = build(forward).train()
    program = trace(model, (torch.rand(1, 3, 8, 8),))
    assert model.training, "tracing doesn't switch the model's mode"
    for batch in (1, 2, 5):
        assert_same(program.module, model, torch.rand(batch, 3, 8, 8))
    assert all("val" in node.meta for node in program.graph.nodes)


@pytest.mark.parametrize("forward", BATCHED, ids=lambda f: f.__name__)
def test_values_have_the_shapes_of_a_real_run(forward):
    class Check(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            found = super().run_node(node)
            for value, real in zip(leaves(node.meta["val"]), leaves(found), strict=True):
                if isinstance(real, torch.Tensor):
                    assert value.is_meta
                    assert (value.shape, value.dtype) == (real.shape, real.dtype), node.format_node()
                else:
                    assert value == real or isinstance(real, torch.device), node.format_node()
            return found

    program = trace(build(forward), (torch.rand(2, 3, 8, 8),))
    Check(program.module).run(torch.rand(2, 3, 8, 8))


KINDS = {
    "a leaf is one node": (size_branch, "call_module", ["conv"]),
    "a parameter is read once": (parameters, "get_attr", ["scale", "conv.weight"]),
    "a constant is stored": (lambda self, x: x * torch.ones(3, 1, 1), "get_attr", ["_tensor_constant0"]),
    "the flag is read": (flag_branch, "get_attr", ["training"]),
    "a shared module keeps its name": (shared, "call_module", ["conv", "other", "other"]),
    "sizes stay in the graph": (size_method, "call_method", ["size", "reshape"]),
    "a flag of a buffer leaves no trace": (buffer_decides, "get_attr", []),
    "x += y writes in place": (augmented, "call_function", [operator.iadd, operator.imul]),
}


@pytest.mark.parametrize(("forward", "op", "expected"), KINDS.values(), ids=KINDS)
def test_node_kinds(forward, op, expected):
    assert calls(trace(build(forward), (torch.rand(2, 3, 8, 8),)), op) == expected


def test_item_assignment_survives_dead_code_elimination():
    program = trace(build(item_assignment), (torch.rand(2, 3, 8, 8),))
    writes = [node for node in program.graph.nodes if node.target is operator.setitem]
    assert len(writes) == 2
    assert all(node.meta["mutates"] and not node.users for node in writes)


def test_dead_code_goes_and_unused_inputs_stay():
    def forward(self, x, unused):
        self.other(self.conv(x)).view(x.shape[0], -1)
        return x + 1

    program = trace(build(forward), (torch.rand(2, 3, 8, 8), torch.rand(1)))
    assert [node.name for node in program.graph.nodes] == ["x", "unused", "add", "output"]
    assert not program.state


def test_state_is_shared_and_in_eval_mode():
    model = build(lambda self, x: self.bn(self.conv(x)) * self.scale).train()
    program = trace(model, (torch.rand(2, 3, 8, 8),))
    assert list(program.state) == ["conv", "bn", "scale"]
    assert program.state["scale"] is model.scale
    assert program.state["bn"].running_mean is model.bn.running_mean
    assert not program.state["bn"].training
    assert model.bn.training
    assert not program.training
    assert trace(model.eval(), (torch.rand(2, 3, 8, 8),)).state["conv"] is model.conv


def test_the_model_is_left_alone():
    model = build(attributes)
    before, keys = copy.deepcopy(model.state_dict()), set(model.__dict__)
    trace(model, (torch.rand(2, 3, 8, 8),))
    assert model.sizes == []
    assert set(model.__dict__) == keys
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_patched_call_is_restored_after_a_failure():
    original = nn.Module.__call__
    with pytest.raises(ModelError):
        trace(build(lambda self, x: self.conv(x[:, :2])), (torch.rand(1, 3, 8, 8),))
    assert nn.Module.__call__ is original


def test_the_training_flag_is_not_frozen():
    program = trace(build(lambda self, x: F.dropout(x, 0.5, self.training)), (torch.rand(2, 3, 8, 8),))
    module, x = program.module, torch.ones(2, 3, 8, 8)
    assert torch.equal(module(x), x)
    assert not torch.equal(module.train()(x), x)


def test_dropout_keeps_result_and_operand_apart():
    program = trace(build(lambda self, x: x + self.drop(x)), (torch.rand(2, 3, 8, 8),))
    x, drop, add, _ = program.graph.nodes
    assert add.args == (x, drop)


def test_constants_that_are_written_into_are_made_anew():
    module, x = trace(build(write_into_new), (torch.rand(2, 3, 8, 8),)).module, torch.rand(2, 3, 8, 8)
    assert torch.equal(module(x), module(x))
    assert not any(name.startswith("_tensor_constant") for name, _ in module.named_buffers())


def test_random_numbers_are_not_frozen():
    module = trace(build(lambda self, x: x + torch.rand(3, 1, 1)), (torch.rand(2, 3, 8, 8),)).module
    x = torch.zeros(1, 3, 8, 8)
    assert not torch.equal(module(x), module(x))


def test_tracing_draws_no_random_numbers():
    model = build(lambda self, x: x + torch.rand(3, 1, 1))
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    trace(model, (torch.zeros(2, 3, 8, 8),))
    assert torch.equal(torch.rand(4), expected)


SIGNATURES = {
    "optional": (lambda self, x, y=None, scale=2: x * scale if y is None else x + y, 1, ["x"]),
    "two": (lambda self, x, y=None: x if y is None else x + y, 2, ["x", "y"]),
    "variadic": (lambda self, *xs: sum(xs), 3, ["xs_0", "xs_1", "xs_2"]),
    "named like a builtin": (lambda self, input: input + 1, 1, ["input"]),
}


@pytest.mark.parametrize(("forward", "count", "names"), SIGNATURES.values(), ids=SIGNATURES)
def test_inputs(forward, count, names):
    model, inputs = build(forward), tuple(torch.rand(2, 3, 8, 8) for _ in range(count))
    program = trace(model, inputs)
    assert calls(program, "placeholder") == names
    assert_same(program.module, model, *inputs)


@pytest.mark.parametrize("whole", [True, False], ids=["with features", "without"])
def test_a_dataclass_becomes_a_dict(whole):
    program = trace(build(lambda self, x: Result(x + 1, x * 2 if whole else None)), (torch.rand(2, 3, 8, 8),))
    x = torch.rand(2, 3, 8, 8)
    found = program.module(x)
    assert list(found) == ["logits", "features"]
    assert torch.equal(found["logits"], x + 1)
    assert torch.equal(found["features"], x * 2) if whole else found["features"] is None


def test_named_tuples_keep_their_type():
    def forward(self, x):
        return Pair(x, Point(x + 1, x))

    found = trace(build(forward), (torch.rand(2, 3, 8, 8),)).module(torch.rand(2, 3, 8, 8))
    assert isinstance(found, Pair)
    assert type(found.second) is tuple, "an inner one is a plain tuple, since generated code can't name its type"


def test_torch_containers_and_encoders_are_traced_through():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4))
    program = trace(model, (torch.rand(2, 5, 8),))
    assert {"0.self_attn.in_proj_weight", "0.self_attn.out_proj", "0.linear1", "0.linear2", "1"} <= set(program.state)
    x = torch.rand(3, 5, 8)
    assert torch.allclose(program.module(x), model.eval()(x), atol=1e-6)  # torch's fused path rounds otherwise


@pytest.mark.parametrize("leaf", [nn.LSTM(8, 4, batch_first=True), nn.Linear(8, 4)], ids=repr)
def test_a_lone_torch_module(leaf):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaf = leaf

        def forward(self, x):
            found = self.leaf(x)
            return found[0] if isinstance(found, tuple) else found

    model = Outer()
    program = trace(model, (torch.rand(2, 5, 8),))
    assert calls(program, "call_module") == ["leaf"]
    assert_same(program.module, model, torch.rand(2, 5, 8))


def test_a_root_of_torch_is_traced_through():
    model = nn.Linear(8, 4)
    program = trace(model, (torch.rand(2, 8),))
    assert set(program.state) == {"weight", "bias"}
    assert_same(program.module, model, torch.rand(3, 8))


def test_functions_marked_as_leaves_by_a_library_are_called():
    program = trace(torchvision.ops.StochasticDepth(0.5, "row"), (torch.rand(2, 8),))
    assert len(program.graph.nodes) == 2, "in eval mode it does nothing"


def test_a_program_can_be_traced_again():
    model = torchvision.models.resnet18(num_classes=4)
    first = trace(model, (torch.rand(1, 3, 64, 64),))
    again = trace(first.module, (torch.rand(1, 3, 64, 64),))
    assert set(again.state) == set(first.state)
    assert_same(again.module, model, torch.rand(2, 3, 64, 64))


def test_inference_mode_and_models_without_data():
    with torch.device("meta"):
        model = build(size_branch)
    with torch.inference_mode():
        program = trace(model, (torch.rand(1, 3, 8, 8),))
    assert program.state["conv"] is not None
    assert calls(program, "call_module") == ["conv"]


# ---- refusals -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A part of a model that is at fault."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


class Opaque:
    """Something that no graph can hold."""


def branch_on_values(self, x):
    return x if x.sum() > 0 else -x


def set_data(self, x):
    x.data = x * 2
    return x


compiled = torch.jit.CompilationUnit("def run(x: Tensor) -> Tensor:\n    return x * torch.sigmoid(x)\n").run


@torch.jit.script
def scripted(x: torch.Tensor, factor: int):
    return x * torch.sigmoid(x) * factor


def skips_what_masks_nothing(self, x):
    """As libraries write it: a shortcut that depends on values, unless the model is being exported."""
    mask = x > 0
    return x if not torch.compiler.is_exporting() and mask.all() else x.masked_fill(~mask, 0.0)


def asks_for_the_device(self, x):
    places = torch.arange(x.shape[-1], device=x.device)
    kind = torch.device(x.device.type)
    scale = 2.0 if kind == x.device and x.device.type != "meta" else 3.0
    return x * places.to(x.device) * torch.ones(x.shape[-1], device=kind) * scale


def takes_no_flag(self, x):
    return torch.rrelu(x, 0.1, 0.3, self.training) + torch.zeros_like(x, requires_grad=self.training)


def pads_by_buffers(self, x):
    frames = torch.ceil((x.shape[-1] - self.stride * 2) / self.stride).to(torch.int64)
    extra = frames * self.stride - x.shape[-1] + 7
    if extra > 0:
        x = F.pad(x, (0, extra.item()))
    return F.pad(x, (self.stride - 1, extra)).view(x.shape[0], self.stride, -1, x.shape[-1] + extra + 2)


REFUSALS = {
    "compiled": (lambda self, x: compiled(x) + 1, r"code that the tracer can't look into", "plain Python"),
    "branch": (branch_on_values, r"a branch depends on the values of a tensor", "torch.where"),
    "item": (lambda self, x: x * x.mean().item(), r"read as Python numbers \(`.item\(\)`\)", "keep the value a tensor"),
    "int": (lambda self, x: x[: int(x.max())], r"read as Python numbers \(`int\(\)`\)", "keep the value a tensor"),
    "tolist": (lambda self, x: x * x[0, 0, 0].tolist()[0], r"`.tolist\(\)`", "keep the value a tensor"),
    "mask": (lambda self, x: x[x > 0], r"size of a result depends on the values.*`x\[mask\]`", "such as a mask"),
    "nonzero": (lambda self, x: x.nonzero(), r"size of a result depends on the values", "such as a mask"),
    "data": (set_data, r"the data of a tensor are replaced", "copy_"),
    "user's error": (lambda self, x: x.no_such_method(), r"AttributeError: .*no_such_method", "inputs are input"),
    "shape": (lambda self, x: self.conv(x[:, :2]), r"expected input\[1, 2, 8, 8\] to have 3", "inputs are input"),
    "view": (lambda self, x: x.view(-1, 100), r"shape '\[-1, 100\]' is invalid", "inputs are input"),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "message", "hint"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_name_the_module_and_the_line(forward, message, hint):
    model = nn.Sequential(nn.Identity(), nn.Sequential(Block(forward)))
    with pytest.raises(ModelError, match=message) as caught:
        trace(model, (torch.rand(1, 3, 8, 8),))
    error = caught.value
    where = "1.0.conv (Conv2d)" if "expected input" in message else "1.0 (Block)"
    assert error.message.startswith(f"{where}: ")
    assert error.hint
    assert hint in error.hint
    assert error.at
    assert error.at.file == __file__
    first = forward.__code__.co_firstlineno
    assert first <= error.at.line <= first + 2
    assert error.__cause__ is not None


TRACED = {
    "scripted": (lambda self, x: scripted(self.conv(x), 3), "conv"),
    "shortcut": (skips_what_masks_nothing, "masked_fill"),
    "device": (asks_for_the_device, "arange"),
    "flag": (takes_no_flag, "rrelu"),
    "sizes and buffers": (pads_by_buffers, "pad"),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "named"), TRACED.values(), ids=TRACED)
def test_what_a_forward_asks_is_answered_as_for_an_export(forward, named):
    block = Block(forward).eval()
    block.register_buffer("stride", torch.tensor(3))
    x = torch.randn(2, 3, 8, 8)
    program = trace(block, (x,))
    assert any(node.name.startswith(named) for node in program.graph.nodes)
    assert torch.equal(program.module(x), block(x))
    assert not torch.compiler.is_compiling()
    assert not torch.compiler.is_exporting()


class Frozen(dict):
    """A configuration that forbids to be changed."""

    def update(self, *args, **kwargs):
        raise TypeError("it is frozen")


def test_a_configuration_that_is_frozen_is_shared():
    block = Block(lambda self, x: self.conv(x) * self.config["scale"] + len(self.config["widths"])).eval()
    block.config = Frozen(scale=2.0, widths=[8, 16], shape=(1, 2))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(trace(block, (x,)).module(x), block(x))


def test_an_output_that_no_graph_can_make():
    with pytest.raises(ModelError, match=r"Net: the model gives back a Opaque"):
        trace(build(lambda self, x: Opaque()), (torch.rand(1, 3, 8, 8),))


BESIDES = {
    "a field": (lambda y: {"y": y, "cache": Opaque()}, "'cache' (Opaque)"),
    "fields": (lambda y: {"a": Opaque(), "y": y, "b": Opaque()}, "'a' (Opaque) and 'b' (Opaque)"),
    "an inner field": (lambda y: (y, {"y": y, "cache": Opaque()}), "'cache' (Opaque)"),
    "at the end": (lambda y: (y, Opaque()), "item 1 (Opaque)"),
}


@pytest.mark.parametrize("name", BESIDES)
def test_objects_besides_tensors_are_left_out_with_a_warning(name):
    give, named = BESIDES[name]
    net, x = build(lambda self, x: give(self.conv(x))), torch.rand(1, 3, 8, 8)
    for mode in ("eval", "train"):
        program, [warning] = trace_modes(net, (x,), mode)
        assert warning == f"of what the model gives back, {named} is left out: a graph gives tensors alone"
        wanted = [leaf for leaf in leaves(net.eval()(x)) if isinstance(leaf, torch.Tensor)]
        found = leaves(program.module(x))
        assert len(found) == len(wanted) > 0
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("give", [lambda y: {"cache": Opaque()}, lambda y: (Opaque(), y), lambda y: [y, Opaque()]])
def test_objects_that_can_not_be_left_out(give):
    with pytest.raises(ModelError, match=r"the model gives back a Opaque"):
        trace(build(lambda self, x: give(self.conv(x))), (torch.rand(1, 3, 8, 8),))


LAYERS = {
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 4, 9, 9), r"^0 \(Conv2d\): .*input\[1, 4, 9, 9\] to have 3"),
    "bn": (nn.Sequential(nn.BatchNorm2d(8)), (1, 4, 5, 5), r"^0 \(BatchNorm2d\): .*should contain 4 elements not 8"),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), (1, 8), r"^1 \(Linear\): .*1x8 and 7x3"),
    "layer norm": (nn.Sequential(nn.LayerNorm(7)), (1, 8), r"^0 \(LayerNorm\): .*normalized_shape"),
    "rank": (nn.Sequential(nn.BatchNorm2d(8)), (1, 8), r"^0 \(BatchNorm2d\): expected 4D input \(got 2D input\)"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "shape", "message"), LAYERS.values(), ids=LAYERS)
def test_inputs_that_do_not_fit_name_the_layer(model, shape, message):
    with pytest.raises(ModelError) as caught:
        trace(model, (torch.rand(shape),))
    assert re.search(message, caught.value.message)
    assert f"input {list(shape)}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(1, 3), "tuple of tensors, or a mapping by name, not Tensor"),
        (([1, [object()]],), "the example input 'input' holds a object"),
        ((torch.rand(1), torch.rand(1)), "2 example inputs don't fit"),
        ((), "0 example inputs don't fit"),
    ],
    ids=["bare", "list", "too many", "too few"],
)
def test_example_inputs_of_the_wrong_kind(inputs, message):
    with pytest.raises(ModelError, match=message):
        trace(nn.Sequential(nn.Identity()), inputs)


def test_lazy_modules_and_scripted_models_are_refused():
    with pytest.raises(ModelError, match=r"1\.weight has no size yet"):
        trace(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), (torch.rand(1, 8),))
    with pytest.raises(ModelError, match="the model is a scripted module"):
        trace(torch.jit.script(nn.ReLU()), (torch.rand(1, 8),))


# ---- real networks --------------------------------------------------------------------------------------------------

NETWORKS = ("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small", "swin_t", "convnext_tiny")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_come_out_bit_identical(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=5)
    program = trace(model, (torch.rand(1, 3, 64, 64),))
    assert_same(program.module, model, torch.rand(2, 3, 64, 64))
    assert not any(type(module).__module__.startswith("torchvision") for module in program.state.values())


@pytest.mark.sweep
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_classifier_of_torchvision(name):
    if name.startswith("regnet"):
        model = torchvision.models.get_model(name)
    else:
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
    program = trace(model, (torch.empty(1, 3, 224, 224, device="meta"),))
    assert program.graph.find_nodes(op="output")[0].meta["val"].shape == (1, 1000)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + torch.relu(self.bn(self.conv(x)))


class Foreign(nn.Module):
    """A model whose forward does `what`."""

    def __init__(self, what):
        super().__init__()
        self.fc, self.what = nn.Linear(4, 4), what

    def forward(self, x):
        return self.fc(self.what(x))


@pytest.mark.parametrize("what", [lambda x: torch.FloatTensor(x), lambda x: torch.nested.nested_tensor([x[0]])[0] + x])
def test_a_hint_says_that_the_model_runs_where_it_does(what):
    with pytest.raises(ModelError) as caught:
        trace(Foreign(what), (torch.rand(2, 4),))
    assert caught.value.hint.startswith(
        "the model itself runs on the example inputs; this line doesn't on tensors that"
    )
    assert caught.value.hint.endswith("region: backbone")
    assert caught.value.at.file == __file__


def test_a_hint_asks_where_the_model_fails():
    with pytest.raises(ModelError) as caught:
        trace(Foreign(lambda x: x[:, :3]), (torch.rand(2, 4),))
    assert caught.value.hint == "the example inputs are x [2, 4]: does the model run on such inputs?"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: pickle.loads(pickle.dumps(x)), "a tensor is pickled or saved"),
        (lambda x: torch.save(x, io.BytesIO()) or x, "a tensor is pickled or saved"),
        (lambda x: pickle.loads(pickle.dumps(nn.Parameter(x))), "a tensor is pickled or saved"),
        (lambda x: torch.empty(0).set_(x), "the data of a tensor are replaced (`set_`)"),
    ],
)
def test_tensors_of_a_trace_have_no_bytes(what, message):
    with pytest.raises(ModelError) as caught:
        trace(Foreign(what), (torch.rand(2, 4),))
    assert caught.value.message == f"Foreign: {message}"
    x = torch.rand(3)
    assert torch.equal(pickle.loads(pickle.dumps(x)), x)
    assert not hasattr(torch.Tensor, "__copy__")


def test_time_grows_linearly_with_depth():
    def seconds(depth: int) -> float:
        model = nn.Sequential(*(Residual() for _ in range(depth)))
        start = time.process_time()
        trace(model, (torch.rand(1, 8, 8, 8),))
        return time.process_time() - start

    seconds(10)
    assert seconds(600) < 6 * 3 * seconds(100), "six times as deep, and a factor of three for a noisy machine"
