"""Every pattern: what may be removed, that the slim program computes what the masked one does, and that it can be
written as text, as source and as ONNX."""

from __future__ import annotations

import types

import channel_patterns  # noqa: F401  (enters its patterns)
import image_patterns  # noqa: F401  (enters its patterns)
import numpy as np
import pytest
import sequence_patterns  # noqa: F401  (enters its patterns)
import torch
from model_patterns import PATTERNS
from oracle import difference, masked, run, selection
from torch import nn

from prunec.compiler.emit.python import WEIGHTS, emit_source, save_weights
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.targets.onnx_export import export_onnx
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify

SHARES = (0.2, 0.6, 1.0)


@pytest.fixture(scope="module", params=PATTERNS)
def traced(request):
    """A pattern's network and its program."""
    net = PATTERNS[request.param]
    return net, trace(net.build(), net.inputs())


def slimmed(program, seed):
    """The program without a random selection of its units."""
    return remove_units(program, selection(analyse(program), seed, 0.5))


def test_so_many_units_may_be_removed(traced):
    net, program = traced
    assert {g.name: (g.size, int(g.free.sum())) for g in analyse(program).groups.values()} == dict(net.groups)


def test_pins_say_why(traced):
    net, program = traced
    for name, reason in net.pins.items():
        assert any(reason in said for said in analyse(program).groups[name].pinned)


def test_slim_is_masked(traced):
    net, program = traced
    for seed, share in enumerate(SHARES):
        keep = selection(analyse(program), seed, share)
        for batch in (1, 3):
            inputs = net.inputs(batch, seed)
            assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < 1e-9


def test_the_verifier_agrees(traced):
    _, program = traced
    keep = selection(analyse(program), 5, 0.5)
    removed = removed_positions(analyse(program), keep)
    assert verify(remove_units(program, keep), Masked(program, removed), pass_name="shrink").difference < 1e-9


def test_a_second_removal_is_right_too(traced):
    net, program = traced
    slim = slimmed(program, 7)
    keep = selection(analyse(slim), 8, 0.4)
    assert difference(run(slim, keep, net.inputs(3)), masked(slim, keep, net.inputs(3))) < 1e-9


def test_text_reads_back(traced):
    text = to_text(slimmed(traced[1], 3))
    assert to_text(from_text(text)) == text


def test_source_computes_the_same(traced, tmp_path):
    net, program = traced
    slim, module = slimmed(program, 4), types.ModuleType("model")
    module.__file__ = str(tmp_path / "model.py")
    save_weights(slim, tmp_path / WEIGHTS)
    exec(compile(emit_source(slim), module.__file__, "exec"), vars(module))
    with torch.no_grad():
        got, want = module.load().double()(*net.inputs(3)), slim.module(*net.inputs(3))
    assert difference(got, want) < 1e-12


def test_shapes_on_the_nodes_are_the_real_ones(traced):
    net, program = traced
    slim = slimmed(program, 6)
    again = {node.name: node.meta["val"] for node in trace(slim.module, net.inputs()).graph.nodes}
    for node in slim.graph.find_nodes(op="call_module"):
        assert shapes(node.meta["val"]) == shapes(again[node.name])


def shapes(value):
    return [shapes(part) for part in value] if isinstance(value, tuple | list) else tuple(value.shape)


EXPORTED = (
    "added up: mean",
    "added up: norm by position",
    "moved: roll",
    "moved: permuted by a buffer",
    "moved: index_select of some",
    "moved: pixel shuffle by views",
    "written: interleaved",
    "written: overwritten",
    "joined with: image",
    "wide: where",
    "layer: grouped",
    "function: transposed with multiplier",
    "function: unfolded and multiplied",
    "recurrent: lstm",
    "halves: maxout",
    "given: waves of a map",
    "given: a written table",
)


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_computes_the_same(name, tmp_path):
    net = PATTERNS[name]
    model = net.build().float()
    program = slimmed(trace(model, tuple(x.float() for x in net.inputs())), 2)
    assert export_onnx(program, tmp_path / "model.onnx").max_difference < 1e-4


# -- single cases ------------------------------------------------------------------------------------------------------


def nodes_of(name, *gone):
    """The nodes of a pattern's slim program, by name; `gone` are units of group `a`."""
    net = PATTERNS[name]
    program = trace(net.build(), net.inputs())
    keep = np.ones(analyse(program).size, dtype=bool)
    keep[analyse(program).groups["a"].start + np.array(gone)] = False
    return {node.name: node for node in remove_units(program, keep).graph.nodes}


def test_a_mean_is_scaled_by_the_share_that_is_left():
    nodes = nodes_of("added up: mean", 1, 2)
    assert nodes["mean"].args[1] == 6 / 8
    assert nodes["mean"].args[0].target == "mean"


@pytest.mark.parametrize(
    ("name", "node", "arguments"),
    [
        ("moved: roll", "roll", (2, 1)),
        ("moved: permuted by a list", "getitem", ((slice(None), [2, 0, 1, 5, 4, 3]),)),
        ("moved: cropped and padded", "pad", ((0, 0, 0, 0, -1, 2),)),
        ("written: stuffed with zeros", "new_zeros", ((2, 6, 12, 12),)),
    ],
    ids=["roll", "list", "crop", "zeros"],
)
def test_literals_follow(name, node, arguments):
    found = nodes_of(name, 1, 5)[node].args[1:]
    known = torch.fx.node.map_arg(found, lambda n: n.meta["val"])
    assert known == arguments


def test_a_state_goes_in_every_tensor_of_a_recurrent_layer():
    net = PATTERNS["recurrent: deep and both ways"]
    slim = slimmed(trace(net.build(), net.inputs()), 1)
    layer = slim.state["r"]
    assert isinstance(layer, nn.LSTM)
    assert layer.weight_ih_l1.shape == (4 * layer.hidden_size, 2 * layer.hidden_size)
    assert layer.weight_ih_l0_reverse.shape == (4 * layer.hidden_size, layer.input_size)
    assert layer.hidden_size < 5


def test_an_index_that_is_a_literal_now_is_dropped():
    net = PATTERNS["moved: permuted by a buffer"]
    program = trace(net.build(), net.inputs())
    assert "order" in program.tensors
    assert "order" not in slimmed(program, 1).tensors


def test_an_index_without_data_pins():
    net = PATTERNS["moved: permuted by a buffer"]
    with torch.device("meta"):
        model = net.build()
    analysis = analyse(trace(model, net.inputs()))
    assert set(analysis.groups["a"].pinned) == {"is picked from at getitem"}
