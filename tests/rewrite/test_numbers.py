"""Numbers of a slim graph: a quotient of sizes keeps its value, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Made
from program_texts import wrap
from torch import fx, nn

from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.numbers import Numbers
from prunec.compiler.text.parser import from_text
from prunec.compiler.tracing.trace import trace

HEADS, LEFT = 4, 3


def sizes(m, x):
    """Heads folded into the batch, and numbers read off it."""
    q = m.q(x).view(x.size(0), 5, HEADS, 2).transpose(1, 2).reshape(x.size(0) * HEADS, 5, 2)
    whole, tokens = q.size(0), q.size(1)
    samples, half, ceiling = whole // 4, whole // 2, -(-whole // 4)
    views = q.view(samples, HEADS, tokens, 2), q.view(half, 2, 5, 2), q.view(ceiling, -1, 5, 2), q.view(q.shape[0], 10)
    return *views, q.new_zeros(5 - 10 // whole), q.new_zeros(q.shape)


@pytest.fixture
def made() -> tuple[Program, dict[str, fx.Node], Numbers]:
    """The program, its numbers by their value for three samples and their operation, and `Numbers` of a slim graph in
    which one head is gone of what they are read off."""
    return with_one_gone(trace(Made({"q": nn.Linear(6, 8)}, sizes).eval(), (torch.zeros(3, 5, 6),)))


def with_one_gone(program: Program) -> tuple[Program, dict[str, fx.Node], Numbers]:
    """What `made` gives, of a program in which a node `reshape` gives the folded heads of three samples."""
    _, mapping = program.copy_graph_with_map()
    nodes = {node.name: node for node in program.graph.nodes}
    folded = (np.tile(np.arange(HEADS), 3).reshape(12, 1, 1),)
    numbers = Numbers({}, mapping, lambda node: folded if node is nodes["reshape"] else ())
    nodes["folded"] = mapping[nodes["reshape"]]
    nodes["folded"].meta["val"] = torch.empty(3 * LEFT, 5, 2, device="meta")
    for node in program.graph.nodes:
        known = node.meta.get("val")
        if isinstance(known, int | tuple) and node.op != "output" and numbers.differs(node):
            numbers.values[node] = mapping[node].meta["val"] = numbers.slim(node)
    return program, nodes, numbers


def computed(node: fx.Node, batch: int) -> int:
    """What a node of the slim graph is for a batch size."""
    if node.name == "reshape":
        return torch.empty(batch * LEFT, 5, 2)
    args = fx.node.map_arg(node.args, lambda n: computed(n, batch))
    return getattr(args[0], node.target)(*args[1:]) if node.op == "call_method" else node.target(*args)


def number(program: Program, view: int) -> fx.Node:
    """The first size of the view that the model gives at that place."""
    views = [node for node in program.graph.nodes if node.name.startswith("view")]
    return views[1 + view].args[1]


@pytest.mark.parametrize(("view", "wanted"), [(0, 3), (1, 6), (2, 3)], ids=["samples", "halves", "rounded up"])
def test_a_number_is_what_it_was_for_every_batch(made, view, wanted):
    program, _, numbers = made
    node = number(program, view)
    frozen = numbers.frozen(node)
    assert [computed(frozen, batch) for batch in (1, 2, 3, 7)] == [wanted * batch // 3 for batch in (1, 2, 3, 7)]


def test_a_number_that_is_right_for_the_example_alone_does_not_follow(made):
    """Nine heads in fours, rounded up, are three, as twelve were; of thirty heads that isn't so."""
    program, _, numbers = made
    node = number(program, 2)
    assert numbers.slim(node) == node.meta["val"] == 3
    assert numbers.differs(node)
    assert not numbers.follows(node, 3)


def test_a_number_that_is_other_for_the_example_alone_differs(made):
    """Ten holds nine heads once, and twelve not at all; of those of more samples it holds none, gone or not."""
    program, _, numbers = made
    node = program.graph.find_nodes(op="call_method", target="new_zeros")[0].args[1]
    assert node.meta["val"] == 5
    assert numbers.differs(node)
    assert numbers.values[node] == 4
    assert not numbers.follows(node, 5)


def test_the_old_size_is_made_of_what_is_left_and_what_follows(made):
    """Of [12, 5, 2], the heads are scaled back, the tokens are read off, and channels that have all stayed are a
    literal or are read off."""
    program, _, numbers = made
    fields = numbers.fields
    numbers.fields = lambda node: (*fields(node), *((np.arange(2).reshape(1, 1, 2),) if fields(node) else ()))
    [made_of] = program.graph.find_nodes(op="call_method", target="new_zeros")[1].args[1:]
    frozen = numbers.frozen(made_of)
    assert [computed(each, 6) if isinstance(each, fx.Node) else each for each in frozen] == [24, 5, 2]


@pytest.mark.parametrize(
    ("arithmetic", "sizes"),
    [("%s + (7,)", (1, 5, 2, 7)), ("%s * 2", (1, 5, 2) * 2), ("%s + %s", (1, 5, 2) * 2)],
    ids=["more behind it", "twice", "to itself"],
)
def test_arithmetic_on_a_whole_size_is_what_it_was_for_every_batch(arithmetic, sizes):
    text = wrap(
        "input %x : f32[3, 5, 8]",
        "%n = %x.size(0)",
        "%view = %x.view(%n, 5, 4, 2)",
        "%transpose = %view.transpose(1, 2)",
        "%folded = %n * 4",
        "%reshape = %transpose.reshape(%folded, 5, 2)",
        "%s = %reshape.shape",
        f"%joined = {arithmetic}",
        "%zeros = %reshape.new_zeros(%joined)",
        "return %zeros",
    )
    _, nodes, numbers = with_one_gone(from_text(text))
    joined = nodes["joined"]
    assert numbers.values[joined] == tuple(9 if size == 1 else size for size in sizes)
    for batch in (1, 3, 6):
        assert computed(numbers.frozen(joined), batch) == tuple(4 * batch if size == 1 else size for size in sizes)


def test_a_size_follows_by_itself(made):
    program, _, numbers = made
    node = number(program, 3)
    assert numbers.values[node] == 9
    assert numbers.follows(node, 9)
    assert not numbers.follows(node, 12)
    assert numbers.follows(7, 7)


def test_a_number_is_scaled_to_what_is_left(made):
    program, _, numbers = made
    scaled = numbers.scaled(number(program, 1), 9)
    assert scaled is not None
    assert [computed(scaled, batch) for batch in (2, 4, 6)] == [3 * batch for batch in (2, 4, 6)]


def test_what_counts_channels_alone_is_no_number_of_the_batch(made):
    program, _, numbers = made
    tokens = next(n for n in program.graph.nodes if isinstance(n.meta.get("val"), int) and n.meta["val"] == 5)
    assert numbers.scaled(tokens, 0) is None
    numbers.fields = lambda node: (np.arange(5).reshape(1, 5, 1),)
    assert numbers.scaled(tokens, 3) is None
