"""Programs on other devices: here the meta device, which any machine has."""

from __future__ import annotations

import torch
from torch import nn

from prunec.compiler.ir.devices import device_of, full_precision, on_device
from prunec.compiler.tracing.trace import trace

CPU, META = torch.device("cpu"), torch.device("meta")


class Tied(nn.Module):
    """Two layers with one weight, and a tensor that is made on a device by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x)) + torch.zeros(x.shape[0], 1, device="cpu")


def test_a_copy_is_moved_and_the_program_stays():
    program = trace(Tied().eval(), (torch.zeros(2, 4),)).with_facts(scores=1)
    moved = on_device(program, META)
    assert (device_of(program), device_of(moved)) == (CPU, META)
    assert {tensor.device for tensor in (*moved.tensors.values(), *moved.inputs)} == {META}
    assert moved.tensors["a.weight"] is moved.tensors["b.weight"]
    assert moved.facts == {"scores": 1}
    assert program.tensors["a.weight"].device == CPU


def test_devices_that_the_graph_names_are_moved():
    program = trace(Tied().eval(), (torch.zeros(2, 4),))
    moved = on_device(program, META)
    assert moved.module(*moved.inputs).device == META
    assert on_device(moved, META) is moved
    assert program.module(*program.inputs).device == CPU


def test_a_model_on_several_devices_stays_where_it_is():
    program = trace(Tied().eval(), (torch.zeros(2, 4),))
    spread = program.derive(inputs=(torch.zeros(2, 4, device=META),))
    assert on_device(spread, META) is spread


def test_checks_on_a_gpu_do_not_round_what_is_multiplied():
    def flags() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()

    torch.set_float32_matmul_precision("high")
    before = flags()
    with full_precision(torch.device("cuda")):
        assert flags() == (True, True, False, "highest")
    assert flags() == before
    with full_precision(CPU):
        assert flags() == before
    torch.set_float32_matmul_precision("highest")
