"""Programs on devices: a copy of one that runs elsewhere, which leaves the original where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from prunec.compiler.ir.inputs import map_tensors, tensors_in
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Program


def device_of(program: Program) -> torch.device:
    """Where a program's first tensor is."""
    return next((tensor.device for tensor in _tensors(program)), torch.device("cpu"))


def on_device(program: Program, device: torch.device) -> Program:
    """The program with all its tensors and example inputs on a device; itself where they are there already, or where
    they are on several devices, which then the model knows.

    Devices that the graph names are moved, too.
    """
    found = {tensor.device for tensor in _tensors(program)}
    if len(found) != 1 or device in found:
        return program
    (old,) = found
    inputs = tuple(map_tensors(lambda x: x.to(device), value) for value in program.inputs)
    state = with_own_tensors(program.state, device)
    return program.derive(graph=_moved(program, old, device), state=state, inputs=inputs, facts=program.facts)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A context in which float32 is computed in float32: on CUDA, torch rounds what convolutions multiply (TF32)."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _tensors(program: Program) -> chain[torch.Tensor]:
    return chain(program.tensors.values(), tensors_in(program.inputs))


def _moved(program: Program, old: torch.device, new: torch.device) -> fx.Graph:
    """The program's graph with the new device where it says the old one; itself where it says none."""

    def names_it(node: fx.Node) -> bool:
        seen: list[Any] = []
        map_aggregate((node.args, dict(node.kwargs)), seen.append)
        return any(isinstance(value, torch.device) and value == old for value in (*seen, *_by_name(node).values()))

    if not any(map(names_it, program.graph.nodes)):
        return program.graph
    graph = program.copy_graph()

    def put(value: Any) -> Any:
        return new if isinstance(value, torch.device) and value == old else value

    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, {**node.kwargs, **_by_name(node)}), put)
    return graph


def _by_name(node: fx.Node) -> dict[str, torch.device]:
    """The device that a call names in a text: `device="cpu"`."""
    name = node.kwargs.get("device")
    return {"device": torch.device(name)} if isinstance(name, str) else {}
