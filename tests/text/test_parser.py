"""Programs as text: round trips, computed shapes, made-up values, and errors that point at their place."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from prunec.compiler.errors import ModelError, TextError
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.symbols import function_name, function_names, resolve_function
from prunec.compiler.text.lexer import Fragment
from prunec.compiler.text.literals import Reader, literal
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text


def wrap(*lines: str) -> str:
    """A program's text around its lines."""
    return "\n".join(["program Model {", *(f"  {line}" for line in lines), "}", ""])


def one_operation(operation: str) -> str:
    return wrap(
        "input %x : f32[2, 3, 4]", "input %y : f32[2, 3, 4]", "input %n : i64[2]", f"%out = {operation}", "return %out"
    )


# --- round trips ------------------------------------------------------------------------------------------------------

OPERATIONS = [
    "%x + %y : f32[2, 3, 4]",
    "%x * 2 : f32[2, 3, 4]",
    "2 - %x : f32[2, 3, 4]",
    "(-2) ** %x : f32[2, 3, 4]",
    "-%x : f32[2, 3, 4]",
    "%x >= 0.5 : bool[2, 3, 4]",
    "%x @ %y.mT : f32[2, 3, 3]",
    "%x[:, 0:2] : f32[2, 2, 4]",
    "%x[0] : f32[3, 4]",
    "%x[0,] : f32[3, 4]",
    "%x[..., None, -1::2] : f32[2, 3, 1, 1]",
    "%x[:, [2, 0]] : f32[2, 2, 4]",
    "%x.shape : (2, 3, 4)",
    "%x.dtype : torch.float32",
    "%x.size(1) : 3",
    "%x.view(2, -1) : f32[2, 12]",
    "%x.to(dtype=torch.float64) : f64[2, 3, 4]",
    "%x.contiguous(memory_format=torch.contiguous_format) : f32[2, 3, 4]",
    "%x.max(1) : (f32[2, 4], i64[2, 4])",
    "%x.chunk(2, dim=2) : (f32[2, 3, 2], f32[2, 3, 2])",
    "len(%x) : 2",
    "F.relu(%x, inplace=True) : f32[2, 3, 4]",
    "F.gelu(%x) : f32[2, 3, 4]",
    'F.pad(%x, (1, 1), "constant", float("-inf")) : f32[2, 3, 6]',
    "torch.relu(%x) : f32[2, 3, 4]",
    "torch.cat([%x, %y], dim=1) : f32[2, 6, 4]",
    'torch.einsum("ijk,ijk->ij", %x, %y) : f32[2, 3]',
    'torch.zeros(2, 3, device=torch.device("cpu"), dtype=torch.float16) : f16[2, 3]',
    "torch.linalg.norm(%x, dim=(1, 2)) : f32[2]",
    "torch.ops.aten.relu.default(%x) : f32[2, 3, 4]",
    "operator.iadd(%x, %y) : f32[2, 3, 4]",
    "operator.setitem(%x, (slice(None, None, None), 0), 0.0) : None",
    "math.floor(2.5) : 2",
    'torch._assert(True, "100% sure: it\'s %x, [#1]") : None',
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=OPERATIONS)
def test_an_operation_reads_as_it_is_written(operation):
    if ".mT" in operation:  # one operation a line: the transposed factor is a value of its own
        text = one_operation(operation.replace("%y.mT", "%t")).replace(
            "  %out", "  %t = %y.mT : f32[2, 4, 3]\n  %out", 1
        )
    else:
        text = one_operation(operation)
    assert to_text(from_text(text)) == text


def test_every_part_of_a_program_reads_as_it_is_written():
    text = wrap(
        "input %x : f32[1, 3, 8, 8]",
        "input %input_1 = input : i64[1]",
        "input %mask default None : None",
        "module layer1.0.conv = Conv2d(3, 2, kernel_size=(1, 1), bias=False)",
        "value layer1.0.conv.weight = [[[[1.0]], [[0.1]], [[-2.0]]], [[[0.5]], [[1e-05]], [[3.0]]]]",
        "module table = Embedding(4, 2)",
        "param scale : f32[2, 1, 1]",
        "module tail = Embedding(4, 2)",
        "buffer unused : bf16[3]",
        "value unused = [0.5, -1.0, 2.0]",
        "tie tail.weight = table.weight",
        "%conv = layer1.0.conv(%x) : f32[1, 2, 8, 8]",
        "%table = table(%input_1) : f32[1, 2]",
        "%scale = get scale : f32[2, 1, 1]",
        "%tail = tail(%input_1) : f32[1, 2]",
        "%mul = %conv * %scale : f32[1, 2, 8, 8]",
        "%training = get training : False",
        "%drop = F.dropout(%mul, 0.5, %training) : f32[1, 2, 8, 8]",
        "%size = %drop.size() : (1, 2, 8, 8)",
        'return (%drop, [%table, {"tail": %tail, "size": %size}])',
        "clusters layer1.0.conv.weight[0] = ((0, 1), (2,))",
        "cost = 3",
        "scores conv = [0.5, 1.25]",
        "selection conv = []",
    )
    program = from_text(text)
    assert to_text(program) == text
    assert program.state["tail"].weight is program.state["table"].weight
    assert len(program.inputs) == 2
    assert program.facts["selection"]["conv"].dtype == np.int64
    assert program.facts["clusters"] == {"layer1.0.conv.weight[0]": ((0, 1), (2,))}
    assert program.shown == {"layer1.0.conv.weight", "unused"}
    out, (_, named) = program.module(*program.inputs)
    assert out.shape == (1, 2, 8, 8)
    assert named["size"] == (1, 2, 8, 8)
    every = to_text(program, values=True)
    assert "value table.weight = [[" in every
    assert to_text(from_text(every)) == every


def test_a_program_in_training_mode_says_so():
    text = wrap(
        "input %x : f32[4, 2]",
        "module bn = BatchNorm1d(2)",
        "%bn = bn(%x) : f32[4, 2]",
        "%training = get training : True",
        "return (%bn, %training)",
    ).replace("Model {", "Model training {")
    program = from_text(text)
    assert to_text(program) == text
    assert program.state["bn"].training
    assert not from_text(text.replace(" training {", " {").replace(" : True", "")).state["bn"].training


def test_what_the_printer_adds_may_be_left_out():
    loose = """
        # a comment
        program Model {
          input %x : f32[ 1,2 ]   # another
          module fc = nn.Linear(in_features=2, out_features=3, bias=True)

          %fc = fc(%x)
          %relu = torch.nn.functional.relu(%fc) : f32[1,3]
          return %relu
        }
    """.replace("torch.nn.functional.", "F.")
    assert to_text(from_text(loose)) == wrap(
        "input %x : f32[1, 2]",
        "module fc = Linear(2, 3)",
        "%fc = fc(%x) : f32[1, 3]",
        "%relu = F.relu(%fc) : f32[1, 3]",
        "return %relu",
    )


def test_a_parameter_that_a_module_holds_may_be_read_beside_it():
    text = wrap(
        "input %x : f32[1, 2]",
        "module fc = Linear(2, 2)",
        "%fc = fc(%x) : f32[1, 2]",
        "%weight = get fc.weight : f32[2, 2]",
        "%linear = F.linear(%fc, %weight) : f32[1, 2]",
        "return %linear",
    )
    program = from_text(text)
    assert to_text(program) == text
    assert program.state["fc.weight"] is program.state["fc"].weight
    x = program.inputs[0]
    fc = program.state["fc"]
    assert torch.equal(program.module(x), F.linear(fc(x), fc.weight))


def test_a_module_is_found_before_a_function_of_its_name():
    text = wrap(
        "input %x : f32[2, 2]",
        "module abs = ReLU()",
        "%relu = abs(%x) : f32[2, 2]",
        "%other = builtins.abs(%relu) : f32[2, 2]",
        "return %other",
    )
    program = from_text(text)
    assert [node.op for node in program.graph.nodes][1:3] == ["call_module", "call_function"]
    assert to_text(program) == text


# --- values -----------------------------------------------------------------------------------------------------------


def test_made_up_values_depend_on_name_and_shape_alone():
    lines = ["input %x : f32[1, 3, 4, 4]", "module a.conv = Conv2d(3, 2, kernel_size=(3, 3))", "return %x"]
    one, other = from_text(wrap(*lines)), from_text(wrap(lines[0], "module bn = BatchNorm2d(3)", *lines[1:]))
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name])
    assert torch.equal(one.inputs[0], other.inputs[0])
    assert (other.tensors["bn.running_var"] > 0).all()
    assert (other.tensors["bn.weight"] > 0.5).all()
    assert other.tensors["bn.num_batches_tracked"] == 0
    assert not other.state["bn"].training


def test_reading_a_text_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    from_text(wrap("input %x : f32[1, 2]", "module fc = Linear(2, 2)", "%fc = fc(%x)", "return %fc"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_shown_values_come_back_bit_for_bit(dtype):
    program = from_text(wrap(f"input %x : {dtype}[4]", f"param w : {dtype}[40]", "%w = get w", "return %w"))
    again = from_text(to_text(program, values=True))
    assert torch.equal(again.tensors["w"], program.tensors["w"])
    assert again.tensors["w"].dtype == program.tensors["w"].dtype


# --- traced networks --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(width)
        self.gain = nn.Parameter(torch.rand(width, 1, 1))
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x):
        y = F.gelu(self.norm(self.conv(x)))
        left, right = y.chunk(2, dim=1)
        return x + self.gain * torch.cat([right, left], 1) + self.offset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2))
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4 * 16, 5, bias=False)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.view(x.size(0), -1)), "mean": x[:, 1:].mean((2, 3))}


def traced(model: nn.Module, x: torch.Tensor) -> Program:
    """A program by stock tracing, with the values of one run as the nodes' values."""
    module = fx.symbolic_trace(model.eval())
    values = fx.Interpreter(module)
    values.garbage_collect_values = False
    values.run(x)
    for node in module.graph.nodes:
        node.meta["val"] = fx.node.map_aggregate(
            values.env[node], lambda v: v.detach().to("meta") if isinstance(v, torch.Tensor) else v
        )
    state = {
        node.target: operator.attrgetter(node.target)(module)
        if node.op == "get_attr"
        else module.get_submodule(node.target)
        for node in module.graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    return Program(module.graph, state, (x,), name=type(model).__name__)


def test_a_traced_network_keeps_names_shapes_and_values():
    torch.manual_seed(0)
    program = traced(Net(), torch.randn(2, 3, 8, 8))
    text = to_text(program)
    again = from_text(text)
    assert to_text(again) == text
    assert {n: t.shape for n, t in again.tensors.items()} == {n: t.shape for n, t in program.tensors.items()}
    same = from_text(to_text(program, values=True))
    x = program.inputs[0]
    for key, want in program.module(x).items():
        assert torch.equal(same.module(x)[key], want)


def test_a_function_of_the_users_has_a_text_that_reads_as_an_error():
    graph = fx.Graph()
    x = graph.placeholder("x")
    out = graph.call_function(traced, (x,))
    graph.output(out)
    x.meta["val"] = out.meta["val"] = torch.empty(1, device="meta")
    text = to_text(Program(graph, {}, (torch.ones(1),)))
    assert f"%traced = {__name__}.traced(%x) : f32[1]" in text
    with pytest.raises(TextError, match=f"expected a function or module, got '{__name__}.traced'"):
        from_text(text)


def test_a_module_of_the_users_has_no_text():
    graph = fx.Graph()
    graph.output(graph.call_module("net"))
    with pytest.raises(ModelError, match=f"expected a module of torch.nn, got '{__name__}.Net'"):
        to_text(Program(graph, {"net": Net()}, ()))


# --- function names ---------------------------------------------------------------------------------------------------

NAMES = [
    (F.gelu, "F.gelu"),
    (F.conv2d, "F.conv2d"),
    (torch.conv2d, "F.conv2d"),
    (F.max_pool2d, "F.max_pool2d"),
    (F.scaled_dot_product_attention, "F.scaled_dot_product_attention"),
    (torch.relu, "torch.relu"),
    (torch.einsum, "torch.einsum"),
    (torch.Tensor.add_, "torch.Tensor.add_"),
    (torch._assert, "torch._assert"),
    (operator.setitem, "operator.setitem"),
    (getattr, "getattr"),
    (torch.ops.aten.relu.default, "torch.ops.aten.relu.default"),
]


@pytest.mark.parametrize(("function", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_function_has_a_public_name(function, name):
    assert function_name(function) == name
    assert resolve_function(name) is function


DANGEROUS = [
    "torch.load", "torch.save", "torch.compile", "torch.set_num_threads", "torch.from_file", "torch.manual_seed",
    "operator.call", "operator.attrgetter", "eval", "exec", "open", "__import__", "builtins.eval", "os.system",
    "torch._C._nn.gelu", "torch.ops.aten.__class__", "torch.ops.load_library", "torch.nn.Linear", "torch.hub.load",
]  # fmt: skip


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_text_may_call_pure_functions_alone(name):
    assert resolve_function(name) is None


def test_every_name_resolves_to_something_that_keeps_its_name_resolvable():
    for name in function_names():
        function = resolve_function(name)
        assert resolve_function(function_name(function)) is not None, name


# --- errors -----------------------------------------------------------------------------------------------------------

OPERATION_ERRORS = [
    ("F.relu(%x) : f32[1, 9]", "%out: text says f32[1, 9], computed f32[2, 3, 4]", "f32[1, 9]", None),
    ("F.relv(%x)", "expected a function or module, got 'F.relv'", "F.relv", "did you mean 'F.relu'?"),
    ("torch.load(%x)", "expected a function or module, got 'torch.load'", "torch.load", "did you mean 'torch.log'?"),
    ("F.relu(%z)", "expected a value that is defined above, got '%z'", "%z", "valid: n, x, y"),
    ("F.relu(x)", "expected a literal, got 'x'", "x", None),
    ("%x", "expected an operation, got '%x'", "%x", None),
    ("7", "expected an operation, got '7'", "7", None),
    ("%x +", "expected an expression, got '%x +': invalid syntax", "+", None),
    ("%x + %y + %n", "expected a literal, got '%x + %y'", "%x + %y", None),
    ("%x < %y < %n", "expected an operation, got '%x < %y < %n'", "%x < %y < %n", None),
    ("%x.__class__", "expected a public name, got '__class__'", "%x.__class__", None),
    ("%x.__reduce__()", "expected a public name, got '__reduce__'", "%x.__reduce__", None),
    ("F.relu(**%x)", "expected 'name=value', got '**%x'", "**%x", None),
    ("F.relu(*%x)", "expected a literal, got '*%x'", "*%x", None),
    ("%x.view(5)", "the operation fails: shape '[5]' is invalid for input of size 24", "%x.view(5)", None),
    ("get weight", "expected a tensor that is declared above, got 'weight'", "weight", None),
    ('F.relu("äö", %z)', "expected a value that is defined above, got '%z'", "%z", "valid: n, x, y"),
]


@pytest.mark.parametrize(
    ("operation", "message", "marked", "hint"), OPERATION_ERRORS, ids=[operation for operation, *_ in OPERATION_ERRORS]
)
def test_a_bad_operation_is_an_error_at_its_place(operation, message, marked, hint):
    with pytest.raises(TextError) as caught:
        from_text(one_operation(operation), "net.txt")
    error = caught.value
    assert error.message == message
    assert (error.at.file, error.at.line) == ("net.txt", 5)
    start = error.at.column - 1
    assert error.at.text[start : start + error.at.length] == marked
    assert error.hint == hint


LINE_ERRORS = [
    (["inptu %x : f32[1]"], "expected a statement, got 'inptu'", "did you mean 'input'?"),
    (["input %x"], "expected '%name : f32[1, 3, 8, 8]', got '%x'", None),
    (["input %x : f33[1]"], "expected a type such as f32, got 'f33'", "did you mean 'f32'?"),
    (["input %x : 1x3"], "expected a shape such as f32[1, 3, 8, 8], got '1x3'", None),
    (["input %x : f32[1]", "input %x : f32[1]"], "expected a new name, got '%x' a second time", None),
    (["input %input : f32[1]"], "expected a name that a graph may use, got '%input'", "write %input_1"),
    (["module fc Linear(1, 2)"], "expected 'name = Module(...)', got 'fc Linear(1, 2)'", None),
    (["module fc = Linaer(1, 2)"], "expected a class of torch.nn, got 'Linaer'", "did you mean 'Linear'?"),
    (
        ["module c = Conv2d(3, 4, 1, groups=2)"],
        "Conv2d refuses its arguments: in_channels must be divisible by groups",
        None,
    ),
    (["param w : f32[1]", "buffer w : f32[1]"], "expected a new name, got 'w' a second time", None),
    (["param w : f32[2]", "value w = [1.0]"], "expected numbers of shape [2], got [1]", None),
    (
        ["param w : f32[2]", "value v = [1.0, 2.0]"],
        "expected a tensor that is declared above, got 'v'",
        "valid: w",
    ),
    (["param w : f32[2]", "param v : f32[3]", "tie w = v"], "expected a tensor of type f32[2], got f32[3]", None),
    (["%x F.relu()"], "expected '%name = operation', got '%x F.relu()'", None),
    (["program Other {"], "expected a statement, got 'program'", "did you mean 'param'?"),
    (["return 1", "module fc = Linear(1, 2)"], "expected a literal, got 'Linear(1, 2)'", None),
    (["return 1", "nothing"], "expected a fact such as 'scores conv1 = [0.5]' or '}', got 'nothing'", None),
    ([], "expected a return before '}'", None),
]


@pytest.mark.parametrize(("lines", "message", "hint"), LINE_ERRORS, ids=[" / ".join(case[0]) for case in LINE_ERRORS])
def test_a_bad_line_is_an_error(lines, message, hint):
    with pytest.raises(TextError) as caught:
        from_text(wrap(*lines))
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.at.line == 1 + max(len(lines), 1)


FRAME_ERRORS = [
    ("", "expected '}', got the end of the text"),
    ("graph Model {", "expected 'program NAME {', got 'graph Model {'"),
    ("program Model {\n  return 1", "expected '}', got the end of the text"),
    ("program Model {\n  return 1\n}\n}", "expected the end of the text, got '}'"),
]


@pytest.mark.parametrize(("text", "message"), FRAME_ERRORS, ids=[message for _, message in FRAME_ERRORS])
def test_a_bad_frame_is_an_error(text, message):
    with pytest.raises(TextError) as caught:
        from_text(text)
    assert caught.value.message == message


def test_an_error_shows_the_line_with_carets():
    text = wrap("input %x : f32[1, 8]", "%relu = F.relu(%x) : f32[1, 9]   # wrong", "return %relu")
    with pytest.raises(TextError) as caught:
        from_text(text, "net.txt")
    assert str(caught.value) == (
        "net.txt:3:24: %relu: text says f32[1, 9], computed f32[1, 8]\n"
        "    %relu = F.relu(%x) : f32[1, 9]   # wrong\n"
        "                         ^^^^^^^^^"
    )


# --- properties -------------------------------------------------------------------------------------------------------

CONSTANTS = [
    torch.float32,
    torch.int64,
    torch.channels_last,
    torch.strided,
    torch.device("cpu"),
    torch.device("cuda", 1),
    ...,
]
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(CONSTANTS)
    | st.builds(slice, st.none() | st.integers(), st.none() | st.integers(), st.none() | st.integers())
)
KEYS = st.text() | st.integers() | st.booleans()
LITERALS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(LITERALS)
def test_a_literal_reads_as_it_is_written(value):
    fragment = Fragment.of(literal(value))
    assert repr(Reader(fragment, {}).value(fragment.expression())) == repr(value)


NUMBERS = st.integers(-3, 3) | st.floats(-2, 2)
OPERATION = st.one_of(
    st.builds("{a} + {b}".format, a=st.just("{0}"), b=st.just("{1}")),
    st.builds("{{0}} {} {}".format, st.sampled_from(["+", "-", "*", "/", ">", "<="]), NUMBERS.map(literal)),
    st.builds("({}) ** {{0}}".format, st.integers(-3, -1)),
    st.builds("{{0}}.clamp(max={}, min={})".format, NUMBERS.map(literal), NUMBERS.map(literal)),
    st.builds("torch.roll({{0}}, {}, dims={})".format, st.integers(-2, 2), st.sampled_from([0, 1])),
    st.builds("F.softmax({{0}}, {})".format, st.sampled_from([0, 1, -1])),
    st.permutations(range(4)).map("{{0}}[:, {}]".format),
    st.sampled_from(["fc({0})", "F.gelu({0})", "-{0}", "{0}.detach()", "torch.maximum({0}, {1})"]),
)


@st.composite
def programs(draw) -> str:
    """Straight-line programs over tensors of shape [3, 4]."""
    lines, names = [], ["%x"]
    for number in range(draw(st.integers(0, 6))):
        one, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        operation = draw(OPERATION).format(one, other)
        lines.append(f"%v{number}_ = {operation}")
        if not any(sign in operation for sign in "><"):
            names.append(f"%v{number}_")
    returned = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    shown = draw(st.lists(NUMBERS, min_size=4, max_size=4))
    return wrap(
        "input %x : f32[3, 4]",
        "module fc = Linear(4, 4)",
        f"value fc.bias = {literal(shown)}",
        *lines,
        f"return {literal(tuple(returned)).replace(chr(34), '')}",
        f"scores fc = {literal(draw(st.lists(st.floats(-1, 1), min_size=1, max_size=3)))}",
    )


@settings(max_examples=40, deadline=None)
@given(programs())
def test_a_written_program_reads_as_itself_and_computes_the_same(text):
    program = from_text(text)
    canonical = to_text(program)
    again = from_text(canonical)
    assert to_text(again) == canonical
    assert dict(module_tensors("", again.state["fc"])).keys() == {"weight", "bias"}
    x = program.inputs[0]
    for got, want in zip(again.module(x), program.module(x), strict=True):
        assert torch.equal(got.nan_to_num(), want.nan_to_num())
