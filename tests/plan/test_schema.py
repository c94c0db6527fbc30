"""The parts of a plan as checked values: short forms, paths from the plan's folder, and ranges of inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from prunec.compiler.plan.schema import (
    Factory,
    InputItems,
    InputSpec,
    InputValue,
    LossSpec,
    MetricSpec,
    ModelSpec,
    PlanInput,
    Ref,
)

INPUT = TypeAdapter(PlanInput)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 3], InputSpec(shape=(1, 3))),
        ({"shape": [1], "dtype": "bool"}, InputSpec(shape=(1,), dtype="bool")),
        ([[1], [2]], InputItems(items=(InputSpec(shape=(1,)), InputSpec(shape=(2,))))),
        ({"items": {"a": [1]}}, InputItems(items={"a": InputSpec(shape=(1,))})),
        ({"value": None}, InputValue(value=None)),
    ],
    ids=str,
)
def test_the_short_forms_of_an_input(value, expected):
    found = INPUT.validate_python(value)
    assert found == expected
    assert INPUT.validate_python(found.model_dump()) == found


@pytest.mark.parametrize(
    ("dtype", "low", "high", "complaint"),
    [
        ("int64", None, 10, ""),
        ("int8", -128, 128, ""),
        ("int8", -129, 1, "must have 'low' at least -128"),
        ("int8", 0, 129, "must have 'high' at most 128"),
        ("uint8", -1, 2, "must have 'low' at least 0"),
        ("int64", 5, 5, "must have 'low' below 'high', which is 5"),
        ("int64", None, None, "must have the key 'high' beside dtype int64"),
        ("float32", None, 3, "must not have the key 'high' beside dtype float32"),
        ("bool", 0, None, "must not have the key 'low' beside dtype bool"),
    ],
)
def test_the_range_of_whole_numbers(dtype, low, high, complaint):
    given = {"shape": [1], "dtype": dtype, "low": low, "high": high}
    if complaint:
        with pytest.raises(ValidationError, match=complaint):
            InputSpec.model_validate(given)
    else:
        assert InputSpec.model_validate(given).whole is (dtype in ("int64", "int8"))


def in_folder(folder: Path, value: object) -> ModelSpec:
    return ModelSpec.model_validate(value, context={"folder": folder})


def test_paths_start_at_the_plans_folder(tmp_path):
    (tmp_path / "nets.py").touch()
    (tmp_path / "w.pt").touch()
    found = in_folder(tmp_path, {"factory": "./nets.py:make.it", "weights": "plans/../w.pt"})
    assert found.factory is not None
    assert (found.factory.module, found.factory.name) == (tmp_path / "nets.py", "make.it")
    assert found.weights is not None
    assert found.weights.file == tmp_path / "w.pt"
    dumped = found.model_dump(context={"relative_to": tmp_path / "out"})
    assert (dumped["factory"], dumped["weights"]) == ("../nets.py:make.it", "../w.pt")
    assert Factory(factory="package.module:make").factory.module == "package.module"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("nets", "must be package.module:name or path/to/file.py:name"),
        ("a-b:make", "must be package.module:name or path/to/file.py:name"),
        ("nets.py:1", "must be package.module:name or path/to/file.py:name"),
        ("net.py:make", "no file"),
        ({}, "must have either the key 'factory' or the key 'saved'"),
        ({"factory": "a:b", "weights": "."}, "is a folder, expected a file of weights"),
        ({"saved": "."}, "no model.py in"),
        (3, "must be package.module:name or a mapping with the key 'factory' or 'saved'"),
    ],
    ids=str,
)
def test_a_model_that_no_plan_may_name(tmp_path, value, complaint):
    (tmp_path / "nets.py").touch()
    with pytest.raises(ValidationError) as caught:
        in_folder(tmp_path, value)
    assert complaint in str(caught.value)


def test_a_saved_model_has_weights_and_arguments_of_its_own(tmp_path):
    (tmp_path / "model.py").touch()
    assert in_folder(tmp_path, {"saved": "."}).saved == tmp_path
    with pytest.raises(ValidationError, match="must not have 'args' or 'weights' beside 'saved'"):
        in_folder(tmp_path, {"saved": ".", "args": {"a": 1}})


def loss_of(value: object) -> LossSpec:
    return LossSpec.model_validate(value, context={"folder": Path()})


def test_a_loss_by_name_or_by_callable():
    assert loss_of("mse") == LossSpec(name="mse")
    spelled = {"name": "torch.nn:HuberLoss", "args": {"delta": 0.5}, "output": 1}
    found = loss_of(spelled)
    assert (found.name, found.output) == (Ref("torch.nn", "HuberLoss"), 1)
    assert found.model_dump(mode="json") == spelled
    assert loss_of("mse").model_dump(mode="json") == "mse"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("cross_entrpy", "must be the name of a loss, or package.module:callable"),
        ("nets.py:loss", "no file"),
        ({"args": {}}, "Field required"),
        (3, "must be the name of a loss, package.module:callable, or a mapping with the key 'name'"),
        ({"name": "mse", "args": {"weight": [1]}}, "must not have the argument 'weight': mse takes none"),
        ({"name": "nll", "args": {"beta": 1}}, "must not have the argument 'beta': nll takes ignore_index, weight"),
        ({"name": "mse", "output": -1}, "greater than or equal to 0"),
        (
            {"name": "cross_entropy", "args": {"label_smoothing": 2}},
            "must have a number from 0 to 1 for 'label_smoothing'",
        ),
        (
            {"name": "cross_entropy", "args": {"ignore_index": "void"}},
            "must have the number of a class for 'ignore_index'",
        ),
        ({"name": "nll", "args": {"weight": 3}}, "must have a list of numbers for 'weight', not 3"),
    ],
    ids=str,
)
def test_a_loss_that_no_plan_may_name(value, complaint):
    with pytest.raises(ValidationError, match=complaint):
        loss_of(value)


def metric_of(value: object) -> MetricSpec:
    return MetricSpec.model_validate(value, context={"folder": Path()})


def test_a_metric_by_name_of_torchmetrics_or_by_callable():
    assert metric_of("rmse") == MetricSpec(name="rmse")
    assert metric_of("MulticlassF1Score").name == "MulticlassF1Score"
    spelled = {"name": "a:b", "args": {"c": 1}, "output": "d", "better": "lower", "key": "e"}
    assert metric_of(spelled).model_dump(mode="json") == spelled
    assert metric_of("mae").model_dump(mode="json") == "mae"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("rmsee", "must be the name of a metric, a class of torchmetrics, or package.module:callable"),
        ({"name": "rmse", "args": {"squared": True}}, "must not have the argument 'squared': rmse takes none"),
        ({"name": "rmse", "better": "higher"}, "must not have the key 'better' beside the metric rmse"),
        ({"name": "loss", "output": 1}, "must not have the key 'output' beside the metric loss"),
        ({"name": "a:b", "better": "up"}, "'higher' or 'lower'"),
    ],
    ids=str,
)
def test_a_metric_that_no_plan_may_name(value, complaint):
    with pytest.raises(ValidationError, match=complaint):
        metric_of(value)
