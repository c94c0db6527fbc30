"""Files as a user writes them, and plans that name them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prunec.compiler.driver.load import load_model
from prunec.compiler.plan.plan import Plan

NETS = '''\
"""Factories as a user writes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Widths:
    hidden: int


def small(classes=3, *, hidden=4):
    return nn.Sequential(nn.Linear(2, Widths(hidden).hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, classes))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight


def needy(depth, width):
    return nn.Identity()


def failing():
    raise ValueError("no luck")


def nothing():
    return {"a": 1}


def keywords(**options):
    return nn.Linear(options["size"], 1)


class Digits:
    def __init__(self, batch_size=2):
        self.draw = torch.rand(batch_size)

    def train(self):
        return [(self.draw, None)]

    val = test = train


NUMBER = 3
'''


def load(text: str) -> Plan:
    Path("plan.yaml").write_text("plan: 1\n" + text)
    return Plan.load("plan.yaml")


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def trained() -> nn.Module:
    """The small network with other weights than the plan's seed gives."""
    return load_model(load("model: nets.py:small\nseed: 99\n"))
