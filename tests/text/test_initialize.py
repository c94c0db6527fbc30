"""Values that a text doesn't show are made up, the same each time."""

from __future__ import annotations

import pytest
import torch
from program_texts import wrap
from torch import nn

from prunec.compiler.text.initialize import example_input, fill_module, materialised, synthetic
from prunec.compiler.text.parser import from_text


def test_made_up_values_depend_on_name_and_shape_alone():
    lines = ["input %x : f32[1, 3, 4, 4]", "module a.conv = Conv2d(3, 2, kernel_size=(3, 3))", "return %x"]
    one, other = from_text(wrap(*lines)), from_text(wrap(lines[0], "module bn = BatchNorm2d(3)", *lines[1:]))
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name])
    assert torch.equal(one.inputs[0], other.inputs[0])
    assert (other.tensors["bn.running_var"] > 0).all()
    assert (other.tensors["bn.weight"] > 0.5).all()
    assert other.tensors["bn.num_batches_tracked"] == 0
    assert not other.state["bn"].training


def test_reading_a_text_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    from_text(wrap("input %x : f32[1, 2]", "module fc = Linear(2, 2)", "%fc = fc(%x)", "return %fc"))
    assert torch.equal(before, torch.get_rng_state())


def like(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_made_up_values_are_of_their_kind():
    assert synthetic("bn.num_batches_tracked", like(dtype=torch.int64)).item() == 0
    variance = synthetic("bn.running_var", like(1000))
    assert 0.5 <= float(variance.min()) < float(variance.max()) <= 1.5
    assert float(synthetic("bn.weight", like(1000)).mean()) == pytest.approx(1, abs=0.05)
    assert float(synthetic("fc.bias", like(1000)).std()) == pytest.approx(0.1, rel=0.1)
    assert float(synthetic("scale", like(1000)).std()) == pytest.approx(1, rel=0.1)
    weight = synthetic("conv.weight", like(50, 25, 2, 2, dtype=torch.float16))
    assert (weight.dtype, float(weight.std())) == (torch.float16, pytest.approx(0.1, rel=0.1))


def test_whole_numbers_index_any_table_of_two_rows():
    tokens = example_input("ids", {"a": like(200, dtype=torch.int64), "b": 3})
    assert set(tokens["a"].tolist()) == {0, 1}
    assert tokens["b"] == 3
    assert not torch.equal(example_input("x", [like(4), like(4)])[0], example_input("x", [like(4), like(4)])[1])


def test_a_module_gets_given_and_made_up_values_in_place():
    layer = nn.Linear(2, 3)
    weight = layer.weight
    assert fill_module("fc", layer, {"fc.bias": torch.ones(3)}) is layer
    assert layer.weight is weight
    assert layer.bias.tolist() == [1, 1, 1]
    assert torch.equal(weight.detach(), synthetic("fc.weight", like(3, 2)))


def test_what_was_declared_gets_values_and_ties():
    declared = {"fc": nn.Linear(2, 2, device="meta"), "w": nn.Parameter(like(2, 2), requires_grad=False), "b": like(2)}
    made = materialised(declared, {"w": torch.eye(2)}, {"fc.weight": "w", "b": "fc.bias"}, training=True)
    assert made["fc"].training
    assert made["fc"].weight is made["w"]
    assert made["b"] is made["fc"].bias
    assert isinstance(made["w"], nn.Parameter)
    assert not made["w"].requires_grad
    assert made["w"].tolist() == [[1, 0], [0, 1]]
