"""The emitted source: it loads with torch alone, computes the same bit for bit, trains, and reads well."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import textwrap
import types
import weakref
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from hand_made import X, by_hand
from torch import nn

from prunec.compiler.emit.python import WEIGHTS, class_name, emit_source, save_weights, saved_tensors, weights_size
from prunec.compiler.errors import ModelError
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.trace import trace

Pair = namedtuple("Pair", ["mean", "rest"])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))])
        self.blocks.append(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3, groups=3)
        self.up = nn.ConvTranspose2d(10, 4, 3, stride=2, output_padding=1, groups=2)

    def forward(self, x):
        both = torch.cat([F.gelu(self.left(x)), torch.tanh(self.right(x))], dim=1)
        return self.up(both)[:, 1:, ::2, ..., -1]


class Shared(nn.Module):
    """A module under two names, and a parameter that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.nest = nn.ModuleDict({"0": self.first, "other": nn.Linear(6, 6)})
        self.nest["other"].weight = self.first.weight

    def forward(self, x):
        return self.nest["other"](torch.relu(self.nest["0"](self.first(x))))


class Numbers(nn.Module):
    """Parts whose names are numbers: parameters, both kinds beside each other, and a name that a dict has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(6)) for _ in range(2)])
        self.scales[1] = self.scales[0]
        self.mixed = nn.Module()
        self.mixed.add_module("0", nn.Linear(6, 6))
        self.mixed.register_parameter("1", nn.Parameter(torch.randn(6)))
        self.mixed.register_buffer("2", torch.randn(6))
        self.mixed.add_module("class", self.mixed.get_submodule("0"))
        self.heads = nn.Module()
        self.heads.add_module("0", nn.Linear(6, 6))
        self.heads.add_module("keys", nn.Linear(6, 6))

    def forward(self, x):
        x = self.mixed.get_submodule("0")(x) * self.mixed.get_parameter("1") + self.mixed.get_buffer("2")
        x = self.mixed.get_submodule("class")(x) * self.scales[0] + self.scales[1]
        return self.heads.keys(self.heads.get_submodule("0")(x))


class Free(nn.Module):
    """Free parameters and buffers, at the root and below, one of them of another type and one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.zero_dim = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("order", torch.randperm(6))
        self.inner = nn.Module()
        self.inner.weight = nn.Parameter(torch.randn(4, 6))
        self.inner.register_buffer("shift", torch.randn(4))

    def forward(self, x):
        x = x[:, self.order] * self.scale**-1 + (-2.0) ** self.zero_dim
        return F.linear(x, self.inner.weight, self.inner.shift) + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 50), nn.Linear(50, 3)

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.training))


class SetItem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        x = self.a(x).clone()
        x[:, 2:4] = x[:, :2] * 2
        x[:, 0] = 0.5
        x.mul_(2)
        return x


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        low, high = self.a(x).chunk(2, dim=1)
        return {"pair": Pair(low.mean(), [high]), "all": (low, {"high": high})}


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = self.a(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, -1)
        return x.flatten(1).softmax(dim=-1) / x.size(1)


class Awkward(nn.Module):
    """Names that the emitted file uses itself, that a container could have, or that ruff dislikes."""

    def __init__(self) -> None:
        super().__init__()
        self.F = nn.Linear(6, 6)
        self.keys = nn.Linear(6, 6)
        self.load = nn.Linear(6, 6)

    def forward(self, F, l, input):  # noqa: E741
        return self.F(F) + self.keys(l) - self.load(input)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.a.requires_grad_(False)
        self.b.bias.requires_grad_(False)

    def forward(self, x):
        return self.b(self.a(x))


class Borrowed(nn.Module):
    """A layer's weight is read beside the layer: as a matrix, and on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(6, 6), nn.Sequential(nn.BatchNorm1d(6))

    def forward(self, x):
        return F.linear(self.n(self.a(x)), self.a.weight.T) + self.n[0].running_mean


def images(*shape: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(shape or (2, 3, 8, 8)),)


def rows(count: int = 1) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, 6) for _ in range(count))


NETS = {
    "residual": (Residual, images()),
    "concat, groups, transposed": (Concat, images()),
    "shared": (Shared, rows()),
    "numbers": (Numbers, (torch.randn(2, 6),)),
    "free": (Free, rows()),
    "dropout": (Dropout, rows()),
    "set item": (SetItem, rows()),
    "outputs": (Outputs, rows()),
    "sizes": (Sizes, images()),
    "awkward names": (Awkward, rows(3)),
    "frozen": (Frozen, rows()),
    "borrowed": (Borrowed, rows()),
    "numbered root": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), rows()),
    "double": (lambda: Dropout().double(), (torch.randn(2, 6, dtype=torch.float64),)),
    "half buffers": (lambda: nn.Sequential(nn.Linear(6, 2)).to(torch.bfloat16), (torch.randn(2, 6).bfloat16(),)),
    "resnet18": (torchvision.models.resnet18, images(2, 3, 32, 32)),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, images(2, 3, 32, 32)),
}


def net_of(name: str) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return NETS[name][0]().eval()


def program_of(name: str) -> Program:
    return trace(net_of(name), NETS[name][1])


def emitted(program: Program, folder: Path) -> types.ModuleType:
    """The emitted file as a module of this process, its weights beside it."""
    module = types.ModuleType("model")
    module.__file__ = str(folder / "model.py")
    save_weights(program, folder / WEIGHTS)
    exec(compile(emit_source(program), module.__file__, "exec"), vars(module))
    return module


RUNNER = """
    import importlib.util, json, pathlib, sys

    class Nothing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"prunec", "safetensors", "torchvision"}:
                raise ImportError(f"{name} isn't here")

    sys.meta_path.insert(0, Nothing())
    import torch
    from torch.utils import _pytree

    def tensors(value):
        return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]

    def scripted(model, inputs):
        try:
            return tensors(torch.jit.script(model)(*inputs))
        except RuntimeError as error:
            return str(error)

    def check(folder):
        spec = importlib.util.spec_from_file_location("model", folder / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.load()
        inputs, expected = torch.load(folder / "example.pt", weights_only=True)
        with torch.no_grad():
            outputs = tensors(model(*[value.clone() for value in inputs]))
            script = scripted(model, [value.clone() for value in inputs])
        equal = len(outputs) == len(expected) and all(map(torch.equal, outputs, expected))
        if isinstance(script, list):
            script = len(script) == len(outputs) and all(map(torch.allclose, script, outputs))
        before = {name: value.clone() for name, value in model.named_parameters()}
        model.train()
        torch.manual_seed(0)
        sum((value.double() ** 2).sum() for value in tensors(model(*inputs))).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
        without = [name for name, value in model.named_parameters() if value.grad is None]
        return {"equal": equal, "script": script, "moved": moved, "without gradient": without}

    root = pathlib.Path(sys.argv[1])
    print(json.dumps({folder.name: check(folder) for folder in sorted(root.iterdir())}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, dict[str, object]]:
    """What a process without prunec, safetensors and torchvision saw of each emitted net."""
    root = tmp_path_factory.mktemp("emitted")
    for name in NETS:
        program = program_of(name)
        folder = root / name
        folder.mkdir()
        (folder / "model.py").write_text(emit_source(program))
        save_weights(program, folder / WEIGHTS)
        with torch.no_grad():
            outputs = net_of(name)(*(value.clone() for value in program.inputs))
        expected = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        torch.save((program.inputs, expected), folder / "example.pt")
    command = [sys.executable, "-c", textwrap.dedent(RUNNER), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NETS)
def test_loads_with_torch_alone_and_computes_the_same_bits(loaded, name):
    assert loaded[name]["equal"]


@pytest.mark.parametrize("name", NETS)
def test_scripts_and_computes_the_same(loaded, name):
    if name == "outputs":  # TorchScript has no type for a dict of this and that
        assert "Expected a value of type" in loaded[name]["script"]
    else:
        assert loaded[name]["script"] is True


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_learns_but_the_frozen_ones(loaded, name):
    parameters = {key: value for key, value in program_of(name).tensors.items() if isinstance(value, nn.Parameter)}
    frozen = {key for key, value in parameters.items() if not value.requires_grad}
    assert set(loaded[name]["without gradient"]) == frozen
    assert loaded[name]["moved"]
    assert not frozen & set(loaded[name]["moved"])


@pytest.mark.parametrize("name", NETS)
def test_keeps_the_names_and_passes_ruff(name, tmp_path):
    program = program_of(name)
    source = emit_source(program)
    model = emitted(program, tmp_path).load()
    assert set(model.state_dict()) == set(saved_tensors(program)) >= set(program.tensors)
    assert emit_source(program_of(name)) == source
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "-"]
    checked = subprocess.run(command, input=source, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_original_takes_the_weights_back(tmp_path):
    program = program_of("resnet18")
    original = torchvision.models.resnet18()
    original.load_state_dict(emitted(program, tmp_path).read_weights(tmp_path / WEIGHTS))
    with torch.no_grad():
        assert torch.equal(original.eval()(*program.inputs), net_of("resnet18")(*program.inputs))


def test_weights_that_are_cut_short_say_so(tmp_path):
    module, path = emitted(program_of("residual"), tmp_path), tmp_path / WEIGHTS
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="is cut short"):
            module.load()


def test_a_tied_parameter_stays_one(tmp_path):
    model = emitted(program_of("shared"), tmp_path).load()
    assert model.nest.other.weight is model.first.weight
    assert len(list(model.parameters())) == 3


def test_a_parameter_of_three_names_is_written_three_times(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[2].weight = model[0].weight
    program = trace(model.eval(), (torch.ones(1, 4),))
    save_weights(program, tmp_path / WEIGHTS)
    found = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(found[f"{place}.weight"], model[0].weight) for place in range(3))


@pytest.mark.parametrize("name", ["shared", "numbers", "double", "residual"])
def test_the_size_of_the_weights_is_known_before_they_are_written(name, tmp_path):
    program = program_of(name)
    save_weights(program, tmp_path / WEIGHTS)
    assert weights_size(program) == (tmp_path / WEIGHTS).stat().st_size


def test_the_size_of_weights_of_every_type_and_of_names_of_every_kind(tmp_path):
    types = [getattr(torch, name) for name in "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32".split()]
    types += [torch.float64, torch.complex64]
    for size in (1, 7, 96, 1001):
        named = {f"{'abc'[i % 3]}é.{i}": torch.zeros(size, i + 1).to(dtype) for i, dtype in enumerate(types)}
        state = {"none": torch.zeros(0, 3), "number": torch.zeros(()), **named}
        program = by_hand(("call_function", torch.relu, (X,))).derive(state=state)
        save_weights(program, tmp_path / WEIGHTS)
        assert weights_size(program) == (tmp_path / WEIGHTS).stat().st_size


def test_dropout_follows_the_mode(tmp_path):
    program = program_of("dropout")
    model = emitted(program, tmp_path).load()
    assert torch.equal(model(*program.inputs), model(*program.inputs))
    model.train()
    assert not torch.equal(model(*program.inputs), model(*program.inputs))


def test_a_block_frees_its_values(tmp_path):
    program = program_of("resnet18")
    model = emitted(program, tmp_path).load()
    inside: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    model.layer1["0"].conv2.register_forward_hook(lambda module, inputs, output: inside.append(weakref.ref(output)))
    model.layer2["0"].conv1.register_forward_hook(lambda *_: alive.extend(ref() is not None for ref in inside))
    with torch.no_grad():
        model(*program.inputs)
    assert alive == [False]


LINES = {
    "residual": [
        "def forward(self, x: torch.Tensor):",
        "stem = self.stem(x)",
        'blocks_0_0 = self.blocks["0"]["0"](stem)',
        "add = stem + blocks_0_2",
        "return head",
    ],
    "concat, groups, transposed": [
        "gelu = F.gelu(left)",
        "cat = torch.cat([gelu, tanh], dim=1)",
        "[:, 1:, ::2, ..., -1]",
    ],
    "shared": ["self.nest.other.weight = self.first.weight"],
    "free": [
        "self.scale = nn.Parameter(torch.empty(6))",
        "self.zero_dim = nn.Parameter(torch.empty(()), requires_grad=False)",
        'self.register_buffer("order", torch.empty(6, dtype=torch.int64))',
        '"shift": torch.empty(4),',
        "= self.scale ** -1",
        "= (-2.0) ** self.zero_dim",
        "= F.linear(add, self.inner.weight, self.inner.shift)",
    ],
    "dropout": ["dropout = F.dropout(a, training=self.training)"],
    "set item": ["clone[:, 0] = 0.5", "clone *= 2"],
    "outputs": ['Pair = namedtuple("Pair", ["mean", "rest"])', "from collections import namedtuple"],
    "sizes": [" // 2"],
    "awkward names": ["def forward(self, F_: torch.Tensor, l_: torch.Tensor, input: torch.Tensor):", "self.F(F_)"],
    "numbers": [
        "self.scales = nn.ParameterDict({",
        'mixed_3 * self.scales["0"]',
        "self.mixed = Parts({",
        'getattr(self.mixed, "0")(add)',
        "self.heads = Parts({",
    ],
    "numbered root": ['setattr(self, "0", nn.Linear(6, 4))', 'getattr(self, "0")('],
    "frozen": ["self.a.requires_grad_(False)", "self.b.bias.requires_grad_(False)"],
    "double": ["self.a = nn.Linear(6, 50, dtype=torch.float64)"],
}


@pytest.mark.parametrize(("name", "lines"), LINES.items(), ids=LINES)
def test_reads_like_this(name, lines):
    source = emit_source(program_of(name))
    assert [line for line in lines if line not in source] == []


def test_a_long_statement_is_broken_inside_its_brackets():
    source = emit_source(
        by_hand(("call_function", torch.cat, ([X] * 60, 1)), ("call_function", operator.add, ("a " * 80, X)))
    )
    assert max(len(line) for line in source.splitlines() if "a a" not in line) <= 120
    compile(source, "model.py", "exec")
    assert f'"{"a " * 80}" + x' in source


def test_a_long_deletion_is_several_statements():
    """TorchScript reads no `del (a, b)`."""
    source = emit_source(program_of("resnet18"))
    assert "del (" not in source
    assert max(len(line) for line in source.splitlines()) <= 120


def test_a_value_that_nobody_reads_is_no_variable():
    source = emit_source(by_hand(("call_method", "add_", (X, 1)), ("call_function", torch.relu, (X,))))
    assert "        x.add_(1)\n        relu = torch.relu(x)\n" in source


def test_names_the_module_that_has_no_constructor():
    class Own(nn.Linear):
        pass

    program = by_hand(("call_module", "inner.own", (X,))).derive(state={"inner.own": Own(3, 3)})
    with pytest.raises(ModelError, match=r"'inner\.own' can't be written as source"):
        emit_source(program)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Net", "Net"), ("2 nets", "_2_nets"), ("", "Model"), ("Parts", "PartsModel"), ("class", "classModel")],
)
def test_class_names_are_legal(name, expected):
    assert class_name(name) == expected


def test_weights_of_every_type_come_back(tmp_path):
    kinds = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
    state = {f"b{index}": torch.randint(0, 2, (3, 2)).to(kind) for index, kind in enumerate(kinds)}
    state |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(3.5), "turned": torch.randn(2, 5).T}
    program = by_hand(("call_function", torch.relu, (X,))).derive(state=state)
    module = emitted(program, tmp_path)
    found = module.load().state_dict()
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        name: (value.dtype, value.tolist()) for name, value in state.items()
    }


def test_refuses_a_type_that_no_weight_file_holds(tmp_path):
    program = by_hand(("call_function", torch.relu, (X,))).derive(state={"w": torch.zeros(2, dtype=torch.complex128)})
    with pytest.raises(ModelError, match=r"'w' has the type torch\.complex128"):
        save_weights(program, tmp_path / WEIGHTS)
