"""Numbers of a program: which follow the batch, and nodes for what has to be made of them."""

from __future__ import annotations

import numpy as np
import pytest
from program_texts import wrap

from prunec.compiler.ir.sizes import comes_again, dims_read, is_open, item, reads, scaled
from prunec.compiler.text.parser import from_text

NUMBERS = from_text(
    wrap(
        "input %x : f32[2, 12, 4]",
        "%n = %x.size(0) : 2",
        "%c = %x.size(1) : 12",
        "%last = %x.size(-3) : 2",
        "%shape = %x.shape : (2, 12, 4)",
        "%first = %shape[0] : 2",
        "%second = %shape[1] : 12",
        "%count = %x.numel() : 96",
        "%both = %n * %c : 24",
        "%heads = %c // 3 : 4",
        "%out = %x.view(%first, -1) : f32[2, 48]",
        "return %out",
    )
)
NODES = {node.name: node for node in NUMBERS.graph.nodes}


@pytest.mark.parametrize(
    ("name", "dims", "open_"),
    [
        ("n", 0, True),
        ("last", 0, True),
        ("first", 0, True),
        ("c", 1, False),
        ("second", 1, False),
        ("shape", (0, 1, 2), True),
        ("count", None, True),
        ("both", "computed", True),
        ("heads", "computed", False),
    ],
)
def test_where_a_number_comes_from(name, dims, open_):
    node = NODES[name]
    channels = (np.arange(12).reshape(1, 12, 1),)
    assert reads(node) is (dims != "computed")
    assert dims == "computed" or dims_read(node) == (NODES["x"], dims)
    assert is_open(node, lambda value: channels) is open_


def test_a_dimension_that_samples_and_channels_are_folded_into_is_open():
    assert not is_open(NODES["c"], lambda value: (np.arange(12).reshape(1, 12, 1),))
    assert is_open(NODES["c"], lambda value: (np.arange(12).reshape(1, 12, 1) % 4,))


def test_a_label_comes_again():
    grid = np.arange(8).reshape(4, 2)
    assert not any(comes_again(labels, dim) for labels in (grid, grid.T, np.zeros((1, 5), int)) for dim in (0,))
    assert comes_again(np.concatenate([grid, grid]), 0)
    assert not comes_again(np.concatenate([grid, grid]), 1)


def test_without_channels_every_size_is_open():
    assert is_open(NODES["c"], lambda value: ())


@pytest.mark.parametrize(
    ("times", "over", "calls"),
    [(1, 1, []), (3, 1, ["mul"]), (1, 4, ["floordiv"]), (3, 4, ["mul", "floordiv"])],
    ids=["as it is", "times", "over", "both"],
)
def test_a_scaled_number_is_multiplied_before_it_is_divided(times, over, calls):
    graph, mapping = NUMBERS.copy_graph_with_map()
    number = mapping[NODES["c"]]
    made = scaled(number, times, over, 12 * times // over)
    new = [node for node in graph.nodes if node not in mapping.values()]
    assert [node.target.__name__ for node in new] == calls
    assert made is (new[-1] if new else number)
    assert made.meta["val"] == 12 * times // over
    assert [node.meta["val"] for node in new][: times > 1] == [36][: times > 1]
    graph.lint()


def test_an_item_stands_right_behind_its_size():
    _, mapping = NUMBERS.copy_graph_with_map()
    made = item(mapping[NODES["shape"]], 1, 12)
    assert (made.prev, made.meta["val"]) == (mapping[NODES["shape"]], 12)
    assert made.args == (mapping[NODES["shape"]], 1)
