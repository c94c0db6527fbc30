"""Fresh inputs are like the example's, in other batch sizes and of smaller images."""

from __future__ import annotations

import pytest
import torch
from slimmed_by_hand import Chain, program_of
from torch import fx, nn

from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import fresh_inputs, is_large, seeded, with_batch


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


def test_random_numbers_are_drawn_from_the_seed_and_put_back():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(0):
        first = torch.rand(3)
    assert torch.equal(torch.rand(2), expected)
    with seeded(0):
        assert torch.equal(torch.rand(3), first)


def test_another_batch_repeats_whole_numbers_and_draws_others():
    tokens, image, table = torch.tensor([[0, 5], [1, 2]]), torch.randn(2, 3, 4, 4) * 9 + 7, torch.ones(5, 3)
    program = Program(fx.Graph(), {}, (tokens, [image, table]))
    new_tokens, (new_image, new_table) = with_batch(program, 40)
    assert new_tokens.tolist() == [[0, 5], [1, 2]] * 20
    assert new_image.shape == (40, 3, 4, 4)
    assert abs(float(new_image.mean()) - 7) < 2
    assert abs(float(new_image.std()) - 9) < 2
    assert new_table is table
    assert torch.equal(with_batch(program, 40)[1][0], new_image)


@pytest.mark.parametrize(
    ("shapes", "large"),
    [([(1, 3, 640, 640)], True), ([(4, 3, 500, 500)], False), ([(1, 600_000), (1, 600_000)], True), ([], False)],
    ids=["image", "by the sample", "together", "none"],
)
def test_which_samples_are_large(shapes, large):
    inputs = tuple(torch.empty(shape, device="meta") for shape in shapes)
    assert is_large(Program(fx.Graph(), {}, inputs)) is large
