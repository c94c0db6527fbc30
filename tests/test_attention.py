"""Attention in every form that occurs: heads, widths and embeddings are units, and what is left computes the same."""

from __future__ import annotations

import types

import pytest
import torch
from attention_nets import FORMS, build
from oracle import difference, masked, run, selection
from torch import nn

from prunec.compiler.emit import WEIGHTS, emit_source, save_weights
from prunec.compiler.slimming import remove_units
from prunec.compiler.text import to_text
from prunec.compiler.text_parse import from_text
from prunec.compiler.trace import trace
from prunec.compiler.units import analyse

TOLERANCE = 1e-9
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
UNWRITTEN = {"rotary_by_complex_numbers"}
"""Holds a buffer of complex numbers, that no weight file keeps."""


@pytest.fixture(scope="module", params=sorted(FORMS))
def found(request):
    """A form by its name, its model, and the program."""
    model = build(request.param)
    return request.param, model, trace(model, FORMS[request.param].inputs())


def test_the_trace_is_exact(found):
    """With gradients: without, torch's transformers give zeros at padded tokens, by their fused path."""
    name, model, program = found
    for batch in (2, 3):
        inputs = FORMS[name].inputs(batch if "padding" not in name and "added_keys_and" not in name else 2)
        assert difference(program.module(*inputs).detach(), model(*inputs).detach()) < 1e-12


def test_no_parameter_is_renamed_or_lost(found):
    _, model, program = found
    own = dict(model.named_parameters())
    assert all(program.tensors[name] is tensor for name, tensor in own.items() if name in program.tensors)
    assert own.keys() == {name for name, t in program.tensors.items() if isinstance(t, nn.Parameter)}


def test_heads_and_widths_are_units(found):
    name, _, program = found
    groups = {g.name: (g.size, int(g.free.sum())) for g in analyse(program).groups.values()}
    assert groups == dict(FORMS[name].groups)


def test_slim_is_masked(found):
    name, _, program = found
    for seed, share in enumerate((0.3, 0.7, 1.0)):
        keep = selection(analyse(program), seed, share)
        inputs = FORMS[name].inputs(2, seed)
        assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


def test_slim_has_a_text_and_a_source(found, tmp_path):
    name, _, program = found
    slim = remove_units(program, selection(analyse(program), 0, 0.5))
    text = to_text(slim)
    assert to_text(from_text(text)) == text
    if name in UNWRITTEN:
        return
    module = types.ModuleType("model")
    module.__file__ = str(tmp_path / "model.py")
    save_weights(slim, tmp_path / WEIGHTS)
    exec(compile(emit_source(slim), module.__file__, "exec"), vars(module))
    inputs = FORMS[name].inputs()
    with torch.no_grad():
        assert difference(module.load()(*inputs), slim.module(*inputs)) == 0
