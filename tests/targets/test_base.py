"""Runtimes are found by name, say how many channels they like, and what they can't do."""

from __future__ import annotations

import importlib

import pytest
from nets import program_of

from prunec.compiler.errors import PrunecError
from prunec.compiler.targets.base import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS.names())
def test_each_runtime_says_what_it_likes_and_why(name):
    target = TARGETS.named(name)
    assert target.name == name
    assert target.multiple in (4, 8, 16, 32)
    assert target.__doc__
    assert importlib.import_module(target.__module__).__name__.rpartition(".")[2] == name


class Elsewhere(Target):
    name = "elsewhere"
    multiple = 4


def test_what_a_runtime_can_not_do_it_says(tmp_path):
    assert not Elsewhere.exports
    with pytest.raises(PrunecError, match="there is no export to elsewhere"):
        Elsewhere().export(program_of("chain"), tmp_path / "model")
    with pytest.raises(PrunecError, match="times can't be taken in elsewhere") as caught:
        Elsewhere().meter()
    assert caught.value.hint == "they can in onnxruntime"
    assert not list(tmp_path.iterdir())


def test_the_runtime_that_takes_times_has_a_name_for_them():
    meter = TARGETS.named("onnxruntime")().meter()
    assert meter.name.startswith("onnxruntime")
    assert meter.layout
