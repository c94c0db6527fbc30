"""Every way to call a model: several inputs, by name, left out, nested; and arguments that are no tensors."""

from __future__ import annotations

import importlib.util
from collections import namedtuple

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import Plan, compile, trace
from prunec.compiler.driver.load import example_inputs
from prunec.compiler.errors import ModelError, PlanError
from prunec.compiler.ir.inputs import arguments, batch_of, called, names_of
from prunec.compiler.ir.random_inputs import fresh_inputs
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.verify.reference import Same
from prunec.compiler.verify.verify import verify

PASSES = [{"score": {"criterion": "l1"}}, {"select": {"budget": {"params": "60%"}}}, "shrink"]
Pair = namedtuple("Pair", ["left", "right"])


class Many(nn.Module):
    """Takes images, tokens, masks and options in every form that a forward may."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 12)
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3)
        self.fc = nn.Linear(10, 4)

    def forward(self, image, tokens=None, *, extra=None, crops=(), twice=False, mode="sum", **more):
        y = self.a(image).relu()
        y = y * 2 if twice else y
        if tokens is not None:
            y = y + self.emb(tokens).mean(1)[:, :, None, None]
        for crop in crops:
            y = y + self.a(crop).relu()
        if extra is not None:
            y = y * torch.where(extra["mask"], 1.0, 2.0)[:, None, None, None]
        for name in sorted(more):
            y = y + self.a(more[name])
        z = getattr(self.b(y), mode)((2, 3))
        return {"logits": self.fc(z), "aux": [z.sum(1), image.mean()]}


def image(size: int = 8) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (2, 5))


CALLS = {
    "in order": (lambda: (image(), tokens()), ["image", "tokens"]),
    "one left out": (lambda: (image(),), ["image"]),
    "None": (lambda: (image(), None), ["image"]),
    "by name": (lambda: {"tokens": tokens(), "image": image()}, ["image", "tokens"]),
    "options": (lambda: {"image": image(), "twice": True, "mode": "mean"}, ["image"]),
    "a list": (lambda: {"image": image(), "crops": [image(), image()]}, ["image", "crops"]),
    "a named tuple": (lambda: {"image": image(), "crops": Pair(image(), image())}, ["image", "crops"]),
    "a mapping": (lambda: {"image": image(), "extra": {"mask": torch.tensor([True, False])}}, ["image", "extra"]),
    "names of its own": (lambda: {"image": image(), "other": image(), "another": image()}, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_form_of_call(name, tmp_path):
    torch.manual_seed(0)
    model, (make, names) = Many().eval(), CALLS[name]
    inputs = make()
    result = compile(model, {"plan": 1, "passes": PASSES}, example_inputs=inputs)
    found = [str(node.target) for node in result.program.graph.find_nodes(op="placeholder")]
    assert sorted(found) == sorted(names or inputs)
    result.save(tmp_path / "out")
    spec = importlib.util.spec_from_file_location("made", tmp_path / "out/model.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    before = result.before.module(**dict(zip(found, result.before.inputs, strict=True)))
    assert torch.equal(before["logits"], called(model, inputs)["logits"])
    slim = result.module(*result.program.inputs)
    loaded = made.load()(**dict(zip(found, result.program.inputs, strict=True)))
    assert torch.equal(loaded["logits"], slim["logits"])
    assert result.report["passes"][-1]["verification"]["batches"] == [2, 3]
    assert result.module.fc.weight.shape[1] < 10 or result.module.a.weight.shape[0] < 12


def test_a_nest_prints_and_reads_back():
    inputs = {"image": image(), "crops": [image()], "extra": {"mask": torch.tensor([True, False])}}
    program = trace(Many(), inputs)
    text = to_text(program)
    assert '  input %extra : {"mask": bool[2]}\n  input %crops : [f32[2, 3, 8, 8]]\n' in text
    read = from_text(text)
    assert to_text(read) == text
    read.module(*read.inputs)


def test_onnx_names_what_is_nested(tmp_path):
    inputs = {"image": image(), "crops": [image()], "extra": {"mask": torch.tensor([True, False])}}
    result = compile(Many(), {"plan": 1, "passes": PASSES, "export": ["onnx"]}, example_inputs=inputs)
    report = result.save(tmp_path / "out")
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    assert [value.name for value in graph.input] == ["image", "extra_mask", "crops_0"]
    assert [value.name for value in graph.output] == ["logits", "aux_0", "aux_1"]
    assert report["onnx"]["dynamic_batch"]


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, images):
        return [self.b(self.a(image).relu()) for image in images]


def test_a_list_of_images_of_several_sizes():
    images = [torch.randn(3, 9, 8), torch.randn(3, 12, 11)]
    result = compile(Detector(), {"plan": 1, "passes": PASSES}, example_inputs=(images,))
    assert [x.shape for x in result.module(images)] == [x.shape for x in Detector()(images)]
    assert result.module.a.weight.shape[0] < 8


class Lengths(nn.Module):
    """Made for certain values: the ids must be small, the second input unbatched."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, ids, scale, picked):
        return self.fc(F.relu(self.emb(ids)) * scale).mean(1) * picked[:, None]


def test_fresh_inputs_are_of_the_example_s_kind():
    inputs = (torch.full((2, 4), 8), torch.rand(5, 4, 1)[:1], torch.tensor([True, False]))
    program = trace(Lengths(), inputs)
    ids, scale, picked = fresh_inputs(program, 64, seed=0)
    assert (ids.shape, scale.shape, picked.shape) == ((64, 4), (1, 4, 1), (64,))
    assert (ids.dtype, picked.dtype) == (torch.int64, torch.bool)
    assert (int(ids.max()), int(ids.min()), set(picked.tolist())) == (8, 0, {True, False})


def test_a_model_for_certain_values_is_checked_on_the_example():
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(4, 3)

        def forward(self, ids):
            return self.emb(ids + 4)  # the example's ids are all below zero; zero is out of range

    program = trace(Made(), (torch.tensor([-4, -1, -2]),))
    found = verify(program, Same(program), pass_name="nothing")
    assert found.batches == (3,)


def test_plan_inputs(tmp_path):
    plan = Plan.from_dict(
        {
            "plan": 1,
            "inputs": {
                "image": [2, 3, 8, 8],
                "tokens": {"shape": [2, 5], "dtype": "int64", "low": 10, "high": 20},
                "crops": [[2, 3, 8, 8], [2, 3, 8, 8]],
                "extra": {"items": {"mask": {"shape": [2], "dtype": "bool"}}},
                "twice": {"value": True},
                "mode": {"value": "mean"},
            },
            "passes": PASSES,
        }
    )
    inputs = example_inputs(plan)
    assert [x.shape for x in inputs["crops"]] == [(2, 3, 8, 8)] * 2
    assert 10 <= int(inputs["tokens"].min()) <= int(inputs["tokens"].max()) < 20
    assert (inputs["extra"]["mask"].dtype, inputs["twice"], inputs["mode"]) == (torch.bool, True, "mean")
    result = compile(Many(), plan)
    again = compile(Many(), Plan.from_dict(result.lock | {"hashes": {}}))
    assert again.lock["inputs"] == result.lock["inputs"]
    assert again.lock["removed"] == result.lock["removed"]


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "mean"])
def test_values_survive_a_lock(value):
    plan = Plan.from_dict({"plan": 1, "inputs": {"x": [1, 2], "v": {"value": value}}})
    assert example_inputs(Plan.from_dict(plan.to_dict()))["v"] is value or value == 0.5


FAULTS = {
    "misspelt": ("{x: {shap: [1, 2]}}", "unknown key 'shap'", "did you mean 'shape'"),
    "no shape": ("{x: 5}", "x must be a shape such as", "'shape'; got 5"),
    "no list": ("5", "inputs must be a list or a mapping, got 5", "inputs"),
    "size": ("{x: [1, 2, a]}", r"x\[2\] must be a whole number, got 'a'", "a"),
    "nested": ("[[[1, 2], [0]]]", r"inputs\[0\]\[1\]\[0\] must be at least 1", "0"),
    "bool": ("{x: {shape: [1], dtype: bool, high: 3}}", "must not have the key 'high' beside dtype bool", "int64"),
    "empty": ("{x: {shape: [1], dtype: int64, low: 9, high: 3}}", "must have 'low' below 'high', which is 3", "low"),
    "unsigned": ("{x: {shape: [1], dtype: uint8, low: -1, high: 3}}", "'low' at least 0 beside dtype uint8", "low"),
    "both": ("{x: {shape: [1], value: 3}}", "unknown key 'value'", "valid: dtype, high, low, shape"),
    "bare": ("{shape: [1, 3], dtype: int64}", "must be a list of inputs or a mapping", "write inputs"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_inputs(name, tmp_path):
    text, message, hint = FAULTS[name]
    (tmp_path / "plan.yaml").write_text(f"plan: 1\ninputs: {text}\n", encoding="utf-8")
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(tmp_path / "plan.yaml")
    assert "plan.yaml:2:" in str(caught.value)
    assert hint in str(caught.value)


REFUSED = {
    "an object": ({"image": image(), "extra": object()}, "'extra' holds a object", "give tensors"),
    "misspelt": ({"imag": image()}, "don't fit Many.forward", "did you mean"),
    "too many": ((image(), tokens(), image()), "3 example inputs don't fit", None),
    "no container": (image(), "a tuple of tensors, or a mapping by name, not Tensor", "write (x,)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_are_refused(name):
    inputs, message, hint = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        trace(Many(), inputs)
    assert (hint or "") in str(caught.value)


def test_arguments_call_again_with_other_values():
    class Each(nn.Module):
        def forward(self, x, *rest, flag=False, **more):
            return x

    taken = arguments(Each(), (1, image(), None, image()))
    assert list(taken.inputs) == ["rest_0", "rest_2"]
    assert taken.call({"rest_0": "a", "rest_2": "b"}) == ((1, "a", None, "b"), {})
    taken = arguments(Each(), {"x": image(), "flag": True, "y": image()})
    assert taken.call({"x": "a", "y": "b"}) == ((), {"x": "a", "flag": True, "y": "b"})


def test_small_helpers():
    assert batch_of([torch.zeros(()), {"a": torch.zeros(4, 2)}]) == 4
    assert batch_of([torch.zeros(())]) is None
    assert names_of("x", {"a": [image(), (image(),)], "b": 3}) == ["x_a_0", "x_a_1_0"]
    assert names_of("x", Pair(image(), image())) == ["x_left", "x_right"]
