"""Runtimes are found by name, say how many channels they like, and what they can't do."""

from __future__ import annotations

import csv
import importlib
from importlib.metadata import requires
from pathlib import Path

import pytest
import widths
from nets import program_of
from packaging.requirements import Requirement

from prunec.compiler.errors import PrunecError, TargetError
from prunec.compiler.targets.base import TARGETS, ExportOptions, Int8, Target


@pytest.mark.parametrize("name", TARGETS.names())
def test_each_runtime_says_what_it_likes_and_why(name):
    target = TARGETS.named(name)
    assert target.name == name
    assert target.multiple in (4, 8, 16, 32)
    assert target.__doc__
    assert importlib.import_module(target.__module__).__name__.rpartition(".")[2].startswith(name)


class Elsewhere(Target):
    name = "elsewhere"
    multiple = 4


def test_what_a_runtime_can_not_do_it_says(tmp_path):
    target, program = Elsewhere(), program_of("chain")
    assert not target.suffixes
    assert not target.quantizes()
    with pytest.raises(TargetError, match="there is no export to elsewhere"):
        target.convert(program, tmp_path / "model", ExportOptions())
    with pytest.raises(TargetError, match="elsewhere can't run here"):
        target.load(tmp_path / "model", 1)
    with pytest.raises(TargetError, match="elsewhere has no int8 yet"):
        target.quantize(program, tmp_path / "model", tmp_path / "model.int8", ExportOptions(), [])
    with pytest.raises(PrunecError, match="times can't be taken in elsewhere") as caught:
        target.meter()
    assert caught.value.hint == "they can in onnxruntime"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS.names())
def test_what_a_target_needs_is_what_its_extra_brings(name):
    target = TARGETS.named(name)
    brought = {
        f"{need.name}{need.specifier}"
        for need in map(Requirement, requires("prunec"))
        if need.marker is not None and need.marker.evaluate({"extra": target.extra or "none"})
    }
    assert brought == {str(Requirement(need)) for need in (*target.needs, *target.int8_needs)}
    assert bool(target.extra) == bool(target.needs)
    assert set(target.aside) <= set(target.suffixes)
    assert not (target.runtime and target.runtime not in TARGETS.names())


def test_files_lie_beside_the_first():
    class Two(Elsewhere):
        suffixes = (".two.param", ".two.bin")

    paths = Two.beside(Path("out/model.int8.two.param"))
    assert [str(path) for path in paths] == ["out/model.int8.two.param", "out/model.int8.two.bin"]


@pytest.mark.parametrize(
    ("said", "made"), [(True, Int8()), (False, None), (None, None), ({"samples": 3}, Int8(samples=3))]
)
def test_int8_is_yes_no_or_options(said, made):
    assert ExportOptions.model_validate({"int8": said}).int8 == made


def test_the_runtime_that_takes_times_has_a_name_for_them():
    meter = TARGETS.named("onnxruntime")().meter()
    assert meter.name.startswith("onnxruntime")
    assert meter.layout


WIDTHS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "widths.csv"


@pytest.mark.parametrize("name", widths.RUNTIMES)
def test_the_multiple_is_what_was_measured(name):
    with WIDTHS.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["target"] == name]
    assert {row["layer"] for row in rows} == set(widths.LAYERS)
    assert all(row["processor"] and row["runtime"] for row in rows)
    assert TARGETS.named(name).multiple == widths.multiple(rows, name)


def test_a_staircase_is_seen_in_figures():
    def rows(step):
        lines = [(width, -(-width // step) * step) for width in widths.WIDTHS]
        return [{"target": "t", "layer": "1x1", "size": "7", "side": "out", "width": w, "us": us} for w, us in lines]

    assert [widths.multiple(rows(step), "t") for step in (1, 4, 8, 16, 32)] == [4, 4, 8, 16, 16]
