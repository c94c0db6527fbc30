"""Programs as text: round trips, computed shapes, and errors that point at their place."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from program_texts import one_operation, wrap

from prunec.compiler.errors import TextError
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.text.literals import literal
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text

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


# --- hostile texts ----------------------------------------------------------------------------------------------------

HOSTILE = {
    "nested inputs": wrap("input %x : " + "(" * 300 + "f32[1]" + ")" * 300),
    "nested lists": wrap("%a = torch.tensor(" + "[" * 180 + "]" * 180 + ")"),
    "nested brackets": wrap("%a = torch.tensor(" + "(" * 5000 + ")" * 5000 + ")"),
    "long chain": wrap("%a = " + " + ".join("1" * 5000)),
    "long chain of attributes": wrap("%a = %x" + ".mT" * 5000),
    "many signs": wrap("%a = " + "-" * 5000 + "1"),
    "a separator in a shape": wrap("param p : f32[1,\x1e1, 2]"),
    "digits of another script": wrap("param p : f32[\u0661]"),
    "a size of 5000 digits": wrap("param p : f32[" + "9" * 5000 + "]"),
    "a size beyond 64 bits": wrap("param p : f32[99999999999999999999]"),
    "a tensor beyond memory": wrap("param p : f32[1000000, 1000000]"),
    "tensors beyond memory": wrap(*(f"buffer b{i} : f32[600000000]" for i in range(2))),
    "a module beyond memory": wrap("module m = Linear(1000000, 1000000)"),
    "a module of many layers": wrap("module m = LSTM(4, 4, num_layers=1000000000)"),
    "a value beyond memory": wrap("%a = pow(10, 10000000000)"),
    "a string beyond memory": wrap('%a = "a" * 100000000000'),
    "a number of 5000 digits": wrap("%a = F.relu(" + "9" * 5000 + ")"),
    "a null byte": wrap("%a = F.relu(%x\0)"),
    "a line separator": wrap("%a = F.relu(%x\u2028)"),
    "a carriage return": wrap("%a = F.relu(\r%x)"),
    "half a character": wrap("%a = F.relu('\ud800')"),
    "a list as a key": wrap("%a = dict({[1]: 2})"),
    "a tuple of lists as a key": wrap("%a = dict({([1],): 2})"),
    "too large a float": wrap("param p : i64[1]", "value p = [1e400]"),
    "too large a number": wrap("param p : i64[1]", "value p = [99999999999999999999]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_refused_with_its_place(name):
    with pytest.raises(TextError) as caught:
        from_text(HOSTILE[name], "m.txt")
    assert caught.value.at is not None
    assert caught.value.at.file == "m.txt"
    assert len(str(caught.value)) < 1500


def test_a_long_list_of_inputs_is_read_in_one_go():
    start = time.process_time()
    shapes = ", ".join(["f32[1]"] * 5000)
    (inputs,) = from_text(f"program M {{\n  input %x : [{shapes}]\n  return %x\n}}\n").inputs
    assert len(inputs) == 5000
    assert time.process_time() - start < 5


JUNK = [
    "(",
    "[",
    "{",
    ")",
    "]",
    "}",
    ",",
    ":",
    "%",
    "=",
    "-1",
    "9" * 20,
    "\0",
    "\x1e",
    "é",
    "'",
    '"',
    "#",
    "None",
    "...",
    "%x",
]


def test_changed_at_random_a_text_is_read_or_refused():
    rng = random.Random(0)
    texts = [one_operation(operation) for operation in OPERATIONS]
    read = 0
    for _ in range(400):
        text = rng.choice(texts)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            start = rng.randrange(len(text))
            text = text[:start] + rng.choice(JUNK) + text[start + rng.choice((0, 1, 5)) :]
        with suppress(TextError):
            from_text(text)
            read += 1
    assert 50 < read < 200
