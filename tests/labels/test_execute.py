"""Operations that move data are run on the labels, which may be read-only and compressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flowing import along, empty_flow

from prunec.compiler.labels.execute import constants, executed, writable

MOVES = {
    "flatten": lambda x: x.flatten(1),
    "roll": lambda x: x.roll(1, 1),
    "shuffle": lambda x: F.channel_shuffle(x.float(), 2).long(),
    "slice": lambda x: x[:, 1:3],
    "space to depth": lambda x: F.pixel_unshuffle(x.float(), 2).long(),
}


@pytest.mark.parametrize("op", MOVES.values(), ids=MOVES)
def test_labels_move_as_data_do(op):
    labels, shape = along(1, 4, 5, 6, 7, 8), (2, 4, 2, 2)
    full = np.broadcast_to(labels, shape).copy()
    assert np.array_equal(np.broadcast_to(executed(labels, shape, op), op(torch.from_numpy(full)).shape), op(
        torch.from_numpy(full)
    ))  # fmt: skip


def test_labels_that_may_not_be_written_to():
    labels = np.arange(3)
    labels.setflags(write=False)
    found = writable(labels)
    found += 1
    assert labels.tolist() == [0, 1, 2]
    assert writable(np.arange(6).reshape(2, 3).T).is_contiguous()


def test_arguments_are_read_as_numbers():
    flow, x = empty_flow(1)
    graph = flow.program.graph
    n, order, scale = (graph.placeholder("n"), graph.get_attr("order"), graph.get_attr("scale"))
    n.meta["val"] = 4
    flow.program.state.update(order=torch.tensor([1, 0]), scale=torch.ones(2))
    node = graph.call_method("view", (x, n, [-1, n], order), {"input": x, "dim": n, "scale": scale})
    args, kwargs = constants(flow, node)
    assert args[:2] == (4, [-1, 4])
    assert args[2].tolist() == [1, 0]
    assert kwargs == {"dim": 4, "scale": None}, "what is learned is no constant"
