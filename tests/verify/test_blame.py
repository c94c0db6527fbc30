"""Single faults: each is traced to the first node whose value differs."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slimmed_by_hand import CASES, Net, program_of, seeded
from torch import Tensor

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.verify.reference import Masked, Same
from prunec.compiler.verify.verify import verify


def swaps() -> Iterator[tuple[str, str, int]]:
    for name, case in CASES.items():
        for key, tensor in case.slim().state_dict().items():
            for dim in (d for d in range(min(tensor.ndim, 2)) if tensor.shape[d] > 1):
                yield name, key, dim


@pytest.mark.parametrize(("name", "tensor", "dim"), swaps())
def test_every_swapped_pair_is_caught_where_it_is(name, tensor, dim):
    case = CASES[name]
    model = case.slim()
    data = model.state_dict()[tensor]
    first = list(range(data.shape[dim]))
    data.copy_(data.index_select(dim, torch.tensor([first[1], first[0], *first[2:]])))
    owner = tensor.rpartition(".")[0] or tensor
    with pytest.raises(VerifyError, match=rf"pass 'shrink'.*: node '{owner}' \({owner}\) is the first whose value"):
        verify(program_of(model, case.example()), Masked(case.before, case.axes()), pass_name="shrink", batches=(2,))


def fault(name: str, **tensors: Tensor) -> str:
    """The message that a slim network with some tensors set anew is refused with (`conv1__bias` is `conv1.bias`)."""
    case = CASES[name]
    model = case.slim()
    for key, value in tensors.items():
        owner, _, attribute = key.replace("__", ".").rpartition(".")
        getattr(model.get_submodule(owner), attribute).data = value.double()
    with pytest.raises(VerifyError) as caught:
        verify(program_of(model, case.example()), Masked(case.before, case.axes()), pass_name="shrink")
    assert caught.value.exit_code == 2
    return caught.value.message


def original(name: str, tensor: str) -> Tensor:
    return CASES[name].before.tensors[tensor].detach()


def test_a_wrong_column_is_caught():
    weight = original("conv-bn-relu-conv", "conv2.weight")
    assert "node 'conv2' (conv2) is the first" in fault("conv-bn-relu-conv", conv2__weight=weight[:, [0, 2, 3]])


def test_a_forgotten_bias_is_caught():
    assert "node 'conv1' (conv1) is the first" in fault("conv-bn-relu-conv", conv1__bias=torch.zeros(3))


def test_the_mean_of_another_channel_is_caught():
    mean = original("conv-bn-relu-conv", "bn1.running_mean")
    assert "node 'bn1' (bn1) is the first" in fault("conv-bn-relu-conv", bn1__running_mean=mean[[0, 1, 4]])


def test_a_reader_left_whole_is_caught_where_it_breaks():
    message = fault("residual", head__weight=original("residual", "head.weight"))
    assert "node 'head' (head) fails" in message


def test_a_writer_left_whole_is_named_though_the_crash_comes_later():
    whole = {f"conv1__{key}": original("conv-bn-relu-conv", f"conv1.{key}") for key in ("weight", "bias")}
    message = fault("conv-bn-relu-conv", **whole)
    assert "node 'conv1' (conv1) is the first whose value differs" in message
    assert "shape (2, 5, 6, 6), expected (2, 3, 6, 6)" in message
    assert "then node 'bn1' (bn1) fails" in message


def test_the_wrong_order_in_a_concatenation_is_caught():
    class Turned(Net):
        def forward(self, x):
            conv1 = self.conv1(x)
            return self.conv3(torch.cat([self.conv2(x), x, conv1], 1))

    case = CASES["concat"]
    slim = case.slim()
    turned = program_of(Turned(conv1=slim.conv1, conv2=slim.conv2, conv3=slim.conv3), case.example())
    with pytest.raises(VerifyError, match="node 'cat'"):
        verify(turned, Masked(case.before, case.axes()), pass_name="shrink")


def test_a_shuffle_that_changes_the_order_of_what_is_left():
    """Channels 0 2 | 3 4 of 0 1 2 | 3 4 5 come out as 0 3 2 4, where the old order without 1 and 5 is 0 3 4 2."""
    case = CASES["shuffle"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    for name in ("weight", "bias"):
        getattr(model.conv1, name).data = getattr(model.conv1, name).detach()[[0, 2, 3, 4]]
    arriving = model.conv2.weight.detach()
    old = {0: 0, 3: 1, 1: 2, 4: 3, 2: 4, 5: 5}
    removed = {Axis("conv1.weight", 0): [1, 5], Axis("conv1.bias", 0): [1, 5], Axis("conv2.weight", 1): [2, 5]}
    masked = Masked(before, {axis: np.array(lost) for axis, lost in removed.items()})
    model.conv2.weight.data = arriving[:, [old[i] for i in (0, 3, 2, 4)]]
    verify(program_of(model, case.example()), masked, pass_name="shrink")
    model.conv2.weight.data = arriving[:, [old[i] for i in (0, 3, 4, 2)]]
    with pytest.raises(VerifyError, match=r"the same elements in another order; in node 'conv2'"):
        verify(program_of(model, case.example()), masked, pass_name="shrink")


def folded(scale: float = 1.0) -> tuple[Program, Program]:
    """A network and the same with its batch norm folded into the convolution, times a factor."""
    case = CASES["conv-bn-relu-conv"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    gain = model.bn1.weight.detach() / torch.sqrt(model.bn1.running_var + model.bn1.eps)
    model.conv1.weight.data = model.conv1.weight.detach() * gain.view(-1, 1, 1, 1) * scale
    model.conv1.bias.data = (model.conv1.bias.detach() - model.bn1.running_mean) * gain + model.bn1.bias.detach()

    class Folded(Net):
        def forward(self, x):
            return self.conv2(F.relu(self.conv1(x)))

    return before, program_of(Folded(conv1=model.conv1, conv2=model.conv2), case.example())


def test_a_folded_batch_norm_is_the_same():
    before, after = folded()
    assert verify(after, Same(before), pass_name="fold_bn").difference <= 1e-9


def test_a_value_that_differs_on_purpose_is_not_the_culprit():
    """The folded convolution's own value differs, too; what counts is where the output's difference comes from."""
    before, after = folded()
    after.tensors["conv2.bias"].data[1] += 1
    with pytest.raises(VerifyError, match=r"node 'conv2' .* is the first"):
        verify(after, Same(before), pass_name="fold_bn")


def test_a_wrong_fold_is_traced_to_the_convolution():
    before, after = folded(1.001)
    with pytest.raises(VerifyError, match=r"node 'conv1' .* is the first"):
        verify(after, Same(before), pass_name="fold_bn")
