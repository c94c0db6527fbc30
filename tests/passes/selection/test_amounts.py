"""Amounts as a plan writes them, and the limits that they mean."""

from __future__ import annotations

import pytest
from selecting import selected

from prunec.passes.select import Select
from prunec.passes.selection.amounts import amount


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (1, (1.0, "share")),
        ("1", (1.0, "share")),
        ("0.5", (0.5, "share")),
        ("100%", (1.0, "share")),
        ("2", (2.0, "")),
        ("0.0005k", (0.5, "")),
        ("0.5k", (500.0, "")),
        ("1B", (1.0, "B")),
        ("500us", (5e-4, "s")),
    ],
    ids=str,
)
def test_what_amounts_mean(text, means):
    name = {"B": "file_size", "s": "latency"}.get(means[1], "macs")
    chosen = Select(budget={name: text})
    assert amount(chosen.budget[name]).unit == means[1]
    assert amount(chosen.budget[name]).value == pytest.approx(means[0])


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"params": "0.5k"}, 500),
        ({"file_size": "4KiB"}, 4096),
        ({"memory": 200}, 200),
        ({"memory": "2400B"}, 300),
        ({"macs": "20k"}, 20000),
    ],
    ids=str,
)
def test_amounts(budget, limit):
    (reached,) = selected("chain", budget=budget).details["budget"].values()
    assert reached["limit"] == limit >= reached["reached"]
