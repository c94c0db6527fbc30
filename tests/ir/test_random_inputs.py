"""Fresh inputs are like the example's, in other batch sizes and of smaller images."""

from __future__ import annotations

import torch
from slimmed_by_hand import Chain, program_of
from torch import fx, nn

from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import fresh_inputs


def test_integers_stay_within_the_example():
    tokens = torch.tensor([[0, 5, 2], [1, 1, 3]])
    program = program_of(Chain(a=nn.Embedding(6, 2)), tokens)
    (fresh,) = fresh_inputs(program, 200, seed=0)
    assert (fresh.shape, fresh.dtype, int(fresh.min()), int(fresh.max())) == ((200, 3), torch.int64, 0, 5)
    assert torch.equal(fresh, fresh_inputs(program, 200, seed=0)[0])


def test_what_is_cut_of_large_inputs():
    shapes = {
        (1, 3, 800, 640): (2, 3, 200, 160),
        (1, 256, 13, 13): (2, 256, 13, 13),
        (1000, 256, 7, 7): (250, 256, 7, 7),
    }
    program = Program(fx.Graph(), {}, ([torch.zeros(shape) for shape in (*shapes, (1, 5000))],))
    (found,) = fresh_inputs(program, 2, seed=0, smaller=4)
    assert [tuple(x.shape) for x in found] == [*shapes.values(), (2, 5000)]
