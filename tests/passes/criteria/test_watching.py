"""The program that criteria run: the user's tensors in evaluation mode, without the user's modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.tracing.trace import trace
from prunec.passes.criteria.watching import evaluated


class Sequence(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.fc = kind(5, 4, batch_first=True, dropout=0.0), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_weights_are_replaced_and_take_gradients(kind):
    torch.manual_seed(0)
    model = Sequence(kind).eval()
    x = torch.rand(2, 6, 5)
    program = trace(model, (x,))
    leaf = nn.Parameter(torch.zeros_like(model.rnn.weight_hh_l0))
    alone = evaluated(program, {"rnn.weight_hh_l0": leaf})
    assert alone.state["rnn"]._flat_weights[1] is leaf  # else torch gathers, and on CUDA moves, them at every call
    outputs = alone.module(x)
    before = model(x).detach()
    with torch.no_grad():
        kept = model.rnn.weight_hh_l0.clone()
        model.rnn.weight_hh_l0.zero_()
        expected = model(x)
        model.rnn.weight_hh_l0.copy_(kept)
    torch.testing.assert_close(outputs.detach(), expected)
    (gradient,) = torch.autograd.grad(outputs.sum(), leaf)
    assert gradient.abs().sum() > 0
    assert torch.equal(model(x), before)


def test_nothing_of_the_users_model_takes_part():
    torch.manual_seed(0)
    model = Sequence(nn.LSTM).train()
    x = torch.rand(2, 6, 5)
    program = evaluated(trace(model, (x,)))
    assert not any(tensor.requires_grad for tensor in program.tensors.values())
    assert program.tensors["fc.weight"].data_ptr() == model.fc.weight.data_ptr()
    assert not program.module.training
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
