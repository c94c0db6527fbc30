"""Types of values as text, and back."""

from __future__ import annotations

import pytest
import torch

from prunec.compiler.errors import TextError
from prunec.compiler.text.lexer import Fragment
from prunec.compiler.text.types import SHORT, read_tensor_type, read_type, same_type, type_text


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


TYPES = {
    "f32[1, 3, 8, 8]": meta(1, 3, 8, 8),
    "bf16[]": meta(dtype=torch.bfloat16),
    "bool[0]": meta(0, dtype=torch.bool),
    "uint16[2]": meta(2, dtype=torch.uint16),
    "(f32[2], i64[2])": (meta(2), meta(2, dtype=torch.int64)),
    "(f32[2],)": (meta(2),),
    "[f32[2], 3, None]": [meta(2), 3, None],
    '{"x": f32[2], "n": {"mask": bool[2]}}': {"x": meta(2), "n": {"mask": meta(2, dtype=torch.bool)}},
}


@pytest.mark.parametrize(("text", "value"), TYPES.items(), ids=TYPES)
def test_a_type_reads_as_it_is_written(text, value):
    assert type_text(value) == text
    found = read_type(Fragment.of(text))
    assert type(found) is type(value)
    assert type_text(found) == text


@pytest.mark.parametrize("name", SHORT)
def test_every_short_name_is_of_one_type(name):
    assert read_tensor_type(Fragment.of(f"{name}[2]")).dtype == SHORT[name]
    assert type_text(meta(2, dtype=SHORT[name])) == f"{name}[2]"


def test_what_has_no_literal_is_called_by_its_class():
    assert type_text((3, torch.float16, 0.5)) == "(3, torch.float16, 0.5)"
    assert type_text(Fragment.of("x")) == "Fragment"


@pytest.mark.parametrize(
    ("text", "message", "marked", "hint"),
    [
        ("f32", "expected a shape such as f32[1, 3, 8, 8], got 'f32'", "f32", None),
        ("f32[1,]", "expected a shape such as f32[1, 3, 8, 8], got 'f32[1,]'", "f32[1,]", None),
        ("f23[1]", "expected a type such as f32, got 'f23'", "f23", "did you mean 'f32'?"),
        ("nn[1]", "expected a type such as f32, got 'nn'", "nn", "valid: "),
        ("{f32[2]}", "expected a key and a type such as 'x': f32[8], got 'f32[2]'", "f32[2]", None),
        ("(f32[2], x)", "expected a literal, got 'x'", "x", None),
    ],
)
def test_a_bad_type_is_an_error_at_its_place(text, message, marked, hint):
    with pytest.raises(TextError) as caught:
        read_type(Fragment.of(text))
    assert caught.value.message == message
    at = caught.value.at
    assert at is not None
    assert at.text[at.column - 1 : at.column - 1 + at.length] == marked
    assert (caught.value.hint or "").startswith(hint or "")


def test_space_makes_no_other_type():
    assert same_type("f32[1,3]", "f32[1, 3]")
    assert not same_type("f32[13]", "f32[1, 3]")
