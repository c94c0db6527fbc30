"""Slim networks that are wrong: what `verify` says of them, and the layer that it must name."""

from __future__ import annotations

import pytest
import torch
from slimmed_by_hand import CASES, program_of
from torch import nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify


def mutated(name, change):
    """The error that a hand-slimmed network meets after a `change` of its slim model."""
    case = CASES[name]
    model = case.slim()
    with torch.no_grad():
        change(model, case.before.tensors)
    with pytest.raises(VerifyError) as caught:
        verify(program_of(model, case.example()), Masked(case.before, case.axes()), pass_name="shrink")
    return caught.value.message


def wrong_index(model, old):
    model.conv1.weight[0] = old["conv1.weight"][1]


def off_by_one_later(model, old):
    model.conv2.weight.copy_(model.conv2.weight.roll(1, 1))


def bias_not_sliced(model, old):
    model.conv1.bias.copy_(old["conv1.bias"][: len(model.conv1.bias)])


def bias_left_whole(model, old):
    model.conv1.bias = nn.Parameter(old["conv1.bias"].detach().clone())


def statistics_of_others(model, old):
    model.bn1.running_mean.copy_(old["bn1.running_mean"][: len(model.bn1.running_mean)].flip(0))


def statistics_left_whole(model, old):
    model.bn1.running_var = old["bn1.running_var"].detach().clone()


def wrong_order(model, old):
    model.bn1.weight.copy_(model.bn1.weight.flip(0))


MUTATIONS = {
    wrong_index: "'conv1'",
    off_by_one_later: "'conv2'",
    bias_not_sliced: "'conv1'",
    bias_left_whole: "'conv1'",
    statistics_of_others: "'bn1'",
    statistics_left_whole: "'bn1'",
    wrong_order: "'bn1'",
}
