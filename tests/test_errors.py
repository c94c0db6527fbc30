"""Errors: the place with its carets, the hint, the first line of a foreign error, and who is at fault."""

from __future__ import annotations

import pytest

from prunec.compiler import errors
from prunec.compiler.errors import PassError, PlanError, PrunecError, Span, VerifyError, first_line, nearest

CARETS = [
    (Span("f", 1, 5, 2, "    ration: 0.5"), "    ration: 0.5\n    ^^"),
    (Span("f", 1, 7, 3, "  a: bcd  "), "    a: bcd\n        ^^^"),
    (Span("f", 1, 1, 1, "  early"), "    early\n    ^"),
    (Span("f", 1, 1, 0, "none"), "    none\n    ^"),
    (Span("f", 1, 1, 1, "   "), ""),
    (Span("f", 1, 1), ""),
]


@pytest.mark.parametrize(
    ("span", "expected"), CARETS, ids=["indented", "inside", "before the text", "empty", "blank", "unknown"]
)
def test_carets_stand_under_the_stretch(span, expected):
    assert span.caret() == expected


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PrunecError("no"), "no"),
        (PrunecError("no", hint="yes"), "no\nhint: yes"),
        (PlanError("no", at=Span("plan.yaml", 4, 5)), "plan.yaml:4:5: no"),
        (PlanError("no", at=Span("p", 1, 1, 2, "ab: 1"), hint="h"), "p:1:1: no\n    ab: 1\n    ^^\nhint: h"),
        (PassError("no", keys=("a", 1), hint="h"), "no\nhint: h"),
    ],
    ids=["bare", "hint", "place", "line", "keys"],
)
def test_an_error_in_words(error, text):
    assert str(error) == text
    assert error.message == "no"


def test_the_verifier_alone_blames_the_compiler():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PrunecError)]
    assert len(kinds) > 7
    assert [kind for kind in kinds if kind.exit_code != 1] == [VerifyError]
    assert VerifyError.exit_code == 2


def chained() -> BaseException:
    try:
        try:
            raise KeyError("inner\nmore")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  one \n two"), "ValueError: one "),
        (ValueError(), "ValueError"),
        (chained(), "KeyError: inner"),
        (KeyError("name"), "KeyError: 'name'"),
    ],
    ids=["lines", "no words", "cause", "key"],
)
def test_the_first_line_of_a_foreign_error(error, line):
    assert first_line(error) == line


MANY = [f"name{i}" for i in range(13)]


@pytest.mark.parametrize(
    ("name", "valid", "hint"),
    [
        ("ration", ["select", "ratio"], "did you mean 'ratio'?"),
        ("x", ["b", "a"], "valid: a, b"),
        ("x", [], None),
        ("x", MANY, None),
        ("x", MANY[:12], f"valid: {', '.join(sorted(MANY[:12]))}"),
        ("nam3", MANY, "did you mean 'name3'?"),
    ],
    ids=["near", "few", "none", "many", "twelve", "near of many"],
)
def test_a_hint_at_what_is_valid(name, valid, hint):
    assert nearest(name, iter(valid)) == hint


def test_a_line_beyond_reading_is_not_shown():
    assert Span("plan.yaml", 1, 1, 1, "x" * 5000).caret() == ""
