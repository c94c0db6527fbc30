"""Which layers are given, and which of them have no numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from slimmed_by_hand import Net, conv, program_of
from torch import nn

from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify import verify as verifying
from prunec.compiler.verify.given_products import Products
from prunec.compiler.verify.products import is_costly, shape_of
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify


class Parts(Net):
    def forward(self, x):
        return self.last(self.middle(self.norm(self.first(x))))


def given(kind, norm, middle):
    layers = Net(first=conv(3, 4), norm=norm, middle=middle, last=conv(4, 2))._modules
    program = program_of(kind(**layers).eval(), torch.zeros(1, 3, 6, 6))
    products = Products(program, program, torch.float32, 0, 1e-5)
    return set(products.names), set(products.unseen)


NORM = nn.BatchNorm2d(4)


def test_what_lies_between_products_alone_has_no_numbers():
    assert given(Parts, NORM, nn.ReLU(inplace=True)) == (
        {"first", "norm", "middle", "last"},
        {"first", "norm", "middle"},
    )


def test_samples_that_meet_in_a_norm_are_computed():
    assert given(Parts, nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()) == (
        {"first", "middle", "last"},
        {"middle"},
    )


def test_an_activation_with_another_reader_is_computed():
    class Added(Net):
        def forward(self, x):
            x = self.middle(self.norm(self.first(x)))
            return self.last(x + x.roll(x.shape[0], 0))

    assert given(Added, NORM, nn.ReLU()) == ({"first", "norm", "last"}, {"first"})


@pytest.mark.parametrize(("inplace", "unseen"), [(False, {"middle"}), (True, set())])
def test_what_is_written_into_and_read_elsewhere_is_computed(inplace, unseen, monkeypatch):
    monkeypatch.setattr(verifying, "COSTLY", -1)

    class Seen(Net):
        def forward(self, x):
            x = self.first(x) * 2
            y = self.norm(self.last(self.middle(x)))
            return y + x

    layers = Net(first=conv(3, 4), norm=nn.BatchNorm2d(4), middle=nn.ReLU(inplace), last=conv(4, 4))._modules
    program = program_of(Seen(**layers).eval(), torch.zeros(1, 3, 6, 6))
    products = Products(program, program, torch.float32, 0, 1e-5)
    assert set(products.unseen) == unseen | {"last"}
    assert verify(program, Masked(program, {}), pass_name="shrink").batches == (1, 3)


def test_what_the_new_program_reads_elsewhere_has_numbers():
    class Longer(Parts):
        def forward(self, x):
            return self.last(self.middle(self.norm(self.first(x)).roll(0, 0)))

    layers = Net(first=conv(3, 4), norm=NORM, middle=nn.ReLU(), last=conv(4, 2))._modules
    programs = [program_of(kind(**layers).eval(), torch.zeros(1, 3, 6, 6)) for kind in (Parts, Longer)]
    assert set(Products(*programs, torch.float32, 0, 1e-5).unseen) == {"first", "middle"}


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, groups=2),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same"),
    "valid": nn.Conv2d(4, 6, 3, padding="valid"),
    "circular": nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    "linear": nn.Linear(11, 5),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_shapes_are_those_of_the_layers(name):
    x = torch.zeros(3, 4, 13, 11)
    program = trace(nn.Sequential(CONVOLUTIONS[name]).eval(), (x[:1],))
    node = next(node for node in program.graph.nodes if node.op == "call_module")
    assert shape_of(program, node, (x,), {}) == CONVOLUTIONS[name](x).shape


def test_the_shapes_of_functions():
    class Functions(Net):
        def forward(self, q, k, v):
            return F.linear(F.scaled_dot_product_attention(q, k, v), self.weight)

    q, k, v = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 6)
    program = trace(Functions(weight=nn.Parameter(torch.zeros(8, 6))), (q, k, v))
    attention, linear = (node for node in program.graph.nodes if node.op == "call_function")
    assert shape_of(program, attention, (q, k, v), {}) == (2, 3, 5, 6)
    assert shape_of(program, linear, (torch.zeros(9, 2, 6), torch.zeros(8, 6)), {}) == (9, 2, 8)


def test_multiplications_are_counted():
    """A convolution of 64 to 64 channels, 3x3: 36,864 for each place."""
    for edge, costly in ((16, False), (17, True)):
        program = trace(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)).eval(), (torch.zeros(1, 64, edge, edge),))
        node = next(node for node in program.graph.nodes if node.op == "call_module")
        assert is_costly(program, node) == costly
