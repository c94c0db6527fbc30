"""Fragments of a line know their place, whatever stands in strings and brackets."""

from __future__ import annotations

import ast

import pytest

from prunec.compiler.errors import TextError
from prunec.compiler.text.lexer import Fragment, blank_strings

LINE = Fragment.of("  %a = f(%b, 'x, y') : f32[2]  ", "net.txt", 7)


def test_a_stretch_knows_its_place():
    assert (LINE.code, LINE.start) == ("%a = f(%b, 'x, y') : f32[2]", 2)
    part = LINE.part(4, 19)
    assert part.code == "f(%b, 'x, y')"
    assert (str(part.span()), part.span().length, part.span().text) == ("net.txt:7:8", 13, LINE.text)
    assert LINE.part(20).code == "f32[2]"
    assert LINE.part(27).span().length == 1, "an end has a place, too"


@pytest.mark.parametrize(
    ("code", "char", "place"),
    [
        ("a, b", ",", 1),
        ("(a, b), c", ",", 6),
        ("{'k': [1, 2]}, c", ",", 13),
        ("'a, b', c", ",", 6),
        (r"'it\'s, so', c", ",", 11),
        ("[a, b]", ",", -1),
        ("'open, ", ",", -1),
        ('"a:b": c', ":", 5),
    ],
)
def test_a_character_outside_strings_and_brackets(code, char, place):
    assert Fragment.of(code).find(char) == place


def test_strings_are_blanked_out_in_their_length():
    assert blank_strings("""f("%a", 'b', %c)""") == """f(    ,    , %c)"""


def test_an_expression_names_its_nodes():
    fragment = LINE.part(4, 19)
    found = fragment.expression()
    assert isinstance(found, ast.Call)
    assert [fragment.at(part).code for part in (found.func, *found.args)] == ["f", "%b", "'x, y'"]


def test_a_callee_may_be_no_name():
    fragment = Fragment.of("layer1.0.conv(%x)")
    found = fragment.expression(callee=len("layer1.0.conv"))
    assert isinstance(found, ast.Call)
    assert fragment.at(found.args[0]).code == "%x"
    with pytest.raises(TextError):
        fragment.expression()


def test_places_are_counted_in_characters():
    fragment = Fragment.of("f('ä → ö', %x)")
    found = fragment.expression()
    assert isinstance(found, ast.Call)
    assert fragment.at(found.args[1]).code == "%x"


@pytest.mark.parametrize("code", ["f(%x", "1 +", "", "a b"])
def test_an_error_points_into_the_stretch(code):
    with pytest.raises(TextError, match="expected an expression, got") as caught:
        Fragment(f"ab {code} cd", 3, 3 + len(code)).expression()
    assert caught.value.at is not None
    assert 4 <= caught.value.at.column <= 3 + max(len(code), 1)
