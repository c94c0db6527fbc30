"""The text of a program around some lines of it."""

from __future__ import annotations


def wrap(*lines: str) -> str:
    """A program's text around its lines."""
    return "\n".join(["program Model {", *(f"  {line}" for line in lines), "}", ""])


def one_operation(operation: str) -> str:
    return wrap(
        "input %x : f32[2, 3, 4]", "input %y : f32[2, 3, 4]", "input %n : i64[2]", f"%out = {operation}", "return %out"
    )
