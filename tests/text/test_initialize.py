"""Values that a text doesn't show are made up, the same each time."""

from __future__ import annotations

import torch
from program_texts import wrap

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
