"""What options may say, and the complaints about those that may not."""

from __future__ import annotations

import pytest
from fake_passes import Trim


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0.0), (1, 1.0), (0.25, 0.25), ("25%", 0.25), ("12.5 %", 0.125), ("100%", 1.0)]
)
def test_fractions(value, number):
    assert Trim(ratio=value).ratio == number


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), True, "0.5", "-5%", "%", "half", None, [0.5]], ids=repr)
def test_no_fractions(value):
    with pytest.raises(ValueError, match="must be between 0 and 1, or a percentage"):
        Trim(ratio=value)
