"""What options may say, and the complaints about those that may not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from fake_passes import Trim
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prunec.compiler.plan.options import Fraction01, faults, label, nested, wrong
from prunec.compiler.plan.source import dotted


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0.0), (1, 1.0), (0.25, 0.25), ("25%", 0.25), ("12.5 %", 0.125), ("100%", 1.0)]
)
def test_fractions(value, number):
    assert Trim(ratio=value).ratio == number


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), True, "0.5", "-5%", "%", "half", None, [0.5]], ids=repr)
def test_no_fractions(value):
    with pytest.raises(ValueError, match="must be between 0 and 1, or a percentage"):
        Trim(ratio=value)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("passes", 0, "select", "ratio"), "ratio"),
        (("inputs", 0, "shape", 1), "shape[1]"),
        (("a", 1, 2), "a[1][2]"),
        ((), "the plan"),
        ((0,), "the plan[0]"),
    ],
    ids=str,
)
def test_the_short_name_of_a_place(keys, name):
    assert label(keys) == name


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = Field(examples=[3])
    kind: Literal["near", "far"] = "near"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner | Fraction01 | None = None
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    name: str = "a"

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == "b":
            raise wrong("must be a", hint="write a")
        if value == "c":
            raise ValueError("is taken")
        return value


FAULTS = {
    "unknown key": ({"nane": 1}, [("nane", "unknown key 'nane'", "did you mean 'name'?", True)]),
    "inner key": (
        {"inner": {"depth": 1, "knid": 2}},
        [("inner.knid", "unknown key 'knid'", "did you mean 'kind'?", True)],
    ),
    "missing": ({"inner": {}}, [("inner.depth", "missing key 'depth'", "for example: depth: 3", True)]),
    "type": ({"sizes": [1, "x"]}, [("sizes.1", "sizes[1] must be a whole number, got 'x'", None, False)]),
    "bound": ({"sizes": [0]}, [("sizes.0", "sizes[0] must be at least 1, got 0", None, False)]),
    "choice": (
        {"inner": {"depth": 1, "kind": "fat"}},
        [("inner.kind", "kind must be 'near' or 'far', got 'fat'", "did you mean 'far'?", False)],
    ),
    "length": ({"sizes": []}, [("sizes", "sizes must be a list of at least 1, got []", None, False)]),
    "own words": ({"name": "b"}, [("name", "name must be a, got 'b'", "write a", False)]),
    "other words": ({"name": "c"}, [("name", "name: is taken", None, False)]),
    "two": (
        {"name": 3, "sizes": 3},
        [("sizes", "sizes must be a list, got 3", None, False), ("name", "name must be text, got 3", None, False)],
    ),
    "union": (
        {"inner": "x"},
        [("inner", "inner must be a mapping or between 0 and 1, or a percentage; got 'x'", None, False)],
    ),
}


@pytest.mark.parametrize(("data", "expected"), FAULTS.values(), ids=FAULTS)
def test_complaints_in_the_plans_words(data, expected):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    found = faults(caught.value, data, ("passes", 0), Outer)
    assert [(dotted(f.keys), f.message, f.hint, f.on_key) for f in found] == [
        (f"passes.0.{keys}", *rest) for keys, *rest in expected
    ]


def test_a_model_that_the_value_names_complains_at_its_place():
    class Choice(BaseModel):
        made: Any

        @field_validator("made")
        @classmethod
        def _inner(cls, value: Any) -> Any:
            try:
                return Inner.model_validate(value["inner"])
            except ValidationError as error:
                raise nested(error, value["inner"], ("inner",), Inner) from error

    data = {"made": {"inner": {"dept": 1}}}
    with pytest.raises(ValidationError) as caught:
        Choice.model_validate(data)
    found = faults(caught.value, data, (), Choice)
    assert {(dotted(f.keys), f.message) for f in found} == {
        ("made.inner.dept", "unknown key 'dept'"),
        ("made.inner.depth", "missing key 'depth'"),
    }
