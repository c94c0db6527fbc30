"""A program as a value: what a new one keeps of the old, what is made once, and sizes of axes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from nets import program_of
from program_texts import wrap
from torch import fx, nn

from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.ir.program import Axis, Note, Program, shape_of
from prunec.compiler.text.parser import from_text


@pytest.fixture
def program() -> Program:
    return program_of("residual").with_facts(scores={"a": 1})


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (lambda p: {"graph": p.copy_graph()}, {}),
        (lambda p: {"state": dict(p.state)}, {}),
        (lambda p: {"graph": p.copy_graph(), "facts": p.facts}, {"scores": {"a": 1}}),
        (lambda p: {"name": "Other"}, {"scores": {"a": 1}}),
        (lambda p: {"granularity": Granularity(grouped=(("*", "same"),))}, {"scores": {"a": 1}}),
    ],
    ids=["graph", "state", "graph with facts", "name", "granularity"],
)
def test_a_new_graph_or_state_drops_facts(program, changes, facts):
    assert program.derive(**changes(program)).facts == facts
    assert program.facts == {"scores": {"a": 1}}


def test_facts_add_up_and_what_was_made_is_kept(program):
    made = program.cached("answer", lambda: object())
    more = program.with_facts(selection=2)
    assert more.facts == {"scores": {"a": 1}, "selection": 2}
    assert more.cached("answer", lambda: pytest.fail("made again")) is made
    assert program.with_facts(scores=3).facts == {"scores": 3}


def test_what_is_made_later_is_each_programs_own(program):
    more = program.with_facts(selection=2)
    assert program.cached("answer", lambda: 1) == 1
    assert more.cached("answer", lambda: 2) == 2


def test_a_derived_program_makes_everything_anew(program):
    program.cached("answer", lambda: 1)
    assert program.derive(name="Other").cached("answer", lambda: 2) == 2
    assert program.derive(name="Other").module is not program.module


def test_the_module_is_made_once_and_shares_its_layers(program):
    assert program.module is program.module
    assert program.module.get_submodule("a") is program.state["a"]


@pytest.mark.filterwarnings("ignore")  # torch warns of itself: of its deprecated parts, and of fx's modules
def test_the_module_scripts_exports_copies_and_pickles(program):
    module, inputs = program.module, program.inputs
    expected = module(*inputs)
    others = {
        "script": torch.jit.script(module),
        "trace": torch.jit.trace(module, inputs),
        "export": torch.export.export(module, inputs).module(),
        "copy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
        "fx": fx.symbolic_trace(module),
    }
    assert {name: torch.equal(other(*inputs), expected) for name, other in others.items()} == dict.fromkeys(
        others, True
    )


def test_a_new_graph_keeps_what_it_reads_of_the_state():
    program = from_text(
        wrap(
            "input %x : f32[1, 4]",
            "module a = Linear(4, 4)",
            "module b = Linear(4, 4)",
            "value a.weight = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]",
            "value b.bias = [0, 0, 0, 1]",
            "%a = a(%x)",
            "%b = b(%a)",
            "return %b",
        )
    ).derive(origin={Axis("b.weight", 0): np.arange(3)})
    graph, mapping = program.copy_graph_with_map()
    nodes = {node.name: node for node in program.graph.nodes}
    mapping[nodes["b"]].replace_all_uses_with(mapping[nodes["a"]])
    graph.erase_node(mapping[nodes["b"]])
    new = program.with_graph(graph, program.state)
    assert (set(program.state), set(new.state)) == ({"a", "b"}, {"a"})
    assert (program.shown, new.shown) == ({"a.weight", "b.bias"}, {"a.weight"})
    assert set(new.origin) == {Axis("b.weight", 0)}, "the lock tells what was removed from it"
    assert set(new.tensors) == {"a.weight", "a.bias"}


def test_a_copied_graph_has_the_same_names_and_values_and_its_own_nodes(program):
    graph, mapping = program.copy_graph_with_map()
    graph.lint()
    assert [str(node) for node in graph.nodes] == [str(node) for node in program.graph.nodes]
    assert not set(graph.nodes) & set(program.graph.nodes)
    for old, new in mapping.items():
        assert new.meta == old.meta
        assert new.meta is not old.meta
        assert [mapping[each] for each in old.all_input_nodes] == new.all_input_nodes


SIZES = {
    "plain": (nn.Conv2d(6, 8, 3), (8, 6)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (8, 6)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (12, 6)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, groups=2), (6, 8)),
    "linear": (nn.Linear(6, 8), (8, 6)),
}


@pytest.mark.parametrize(("layer", "sizes"), SIZES.values(), ids=SIZES)
def test_dimension_one_counts_the_channels_of_all_groups(layer, sizes):
    program = Program(program_of("chain").graph, {"a": layer}, ())
    rows, columns = Axis("a.weight", 0), Axis("a.weight", 1)
    assert (program.size(rows), program.size(columns)) == sizes
    assert program.groups_along(rows) == 1
    assert program.groups_along(columns) == getattr(layer, "groups", 1)
    assert program.groups_along(Axis("gone.weight", 1)) == 1


def test_an_axis_that_lost_positions_is_as_long_as_what_is_left():
    axis = Axis("a.weight", 1)
    program = Program(program_of("chain").graph, {"a": nn.Conv2d(6, 8, 3, groups=2)}, ())
    assert program.derive(origin={axis: np.array([0, 4])}).size(axis) == 2


def test_what_is_left_of_an_earlier_program(program):
    """Positions are numbered by the traced model, and looked up among those that an earlier program had."""
    axis = Axis("conv.weight", 0)
    earlier = program.derive(origin={axis: np.array([7, 1, 4])})
    later = program.derive(origin={axis: np.array([4, 7])})
    assert later.left_of(earlier, axis).tolist() == [2, 0]
    assert later.left_of(program, axis).tolist() == [4, 7]
    assert program.left_of(program, axis) is None


def test_a_tied_tensor_is_saved_in_each_of_its_places():
    first, second = nn.Linear(3, 3), nn.BatchNorm1d(3)
    second.weight = first.bias
    program = Program(program_of("chain").graph, {"a": first, "b": second, "c": torch.ones(2)}, ())
    assert program.saved["a.bias"] is program.saved["b.weight"] is program.tensors["b.weight"]
    assert set(program.saved) == {*program.tensors}
    with pytest.raises(TypeError):
        program.tensors["new"] = torch.ones(1)


def test_in_words():
    assert str(Axis("layer1.0.conv1.weight", 0)) == "layer1.0.conv1.weight[0]"
    assert Axis("layer1.0.conv1.weight", 0).owner == "layer1.0.conv1"
    assert Axis("position", 2).owner == ""
    assert str(Note("fc", "reaches the model's output")) == "fc: reaches the model's output"


def test_the_shape_of_a_number_is_refused(program):
    node = next(iter(program.graph.nodes))
    assert shape_of(node) == tuple(node.meta["val"].shape)
    node.meta["val"] = 3
    with pytest.raises(AssertionError, match="is no tensor but int"):
        shape_of(node)
