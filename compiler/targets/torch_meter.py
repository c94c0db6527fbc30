"""Times in torch, in eager mode: each node of the graph as it is called."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import fx, nn

from prunec.compiler.ir.inputs import map_tensors, tensors_in
from prunec.compiler.ir.modules import evaluating
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import NodeTime, Profile
from prunec.compiler.targets.interleaved import Run
from prunec.compiler.targets.metering import Times, turns
from prunec.compiler.targets.processor import processor

_ONNX: Final[Mapping[str, str]] = {
    **{f"conv{rank}d": "Conv" for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": "ConvTranspose" for rank in (1, 2, 3)},
    **{"linear": "Gemm", "scaled_dot_product_attention": "Attention"},
    **dict.fromkeys(("matmul", "bmm", "einsum", "baddbmm", "mm", "addmm"), "MatMul"),
}
"""An operation's name -> ONNX's, of what multiplies."""


class TorchMeter:
    """Measures eager torch on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.name = f"torch {torch.__version__}, {processor()}, 1 thread"

    def profile(self, program: Program, seconds: float) -> Profile:
        """The nodes of the graph, by their own names."""
        timed = _Timed(program.deployed)
        with _alone(), evaluating(timed.module), torch.no_grad():
            for _ in turns(seconds):
                timed.run(*map_tensors(torch.clone, program.deployed.inputs))
        low = timed.times.low()
        return tuple(NodeTime(op, elements, low[name], name) for name, (op, elements) in timed.found.items())

    def loaded(self, program: Program) -> Run:
        """The module."""
        return partial(_run, program.deployed.graph_module, program.deployed.inputs)


def _run(module: nn.Module, inputs: tuple[Any, ...]) -> object:
    with _alone(), evaluating(module), torch.no_grad():
        return module(*inputs)


class _Timed(fx.Interpreter):
    """Runs a program node by node, and notes what each takes."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.times = Times()
        self.found: dict[str, tuple[str, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        start = time.perf_counter()
        value = super().run_node(n)
        took = time.perf_counter() - start
        if n.op.startswith("call"):
            self.times.add(n.name, took)
            self.found[n.name] = self._kind(n), sum(tensor.numel() for tensor in tensors_in(value))
        return value

    def _kind(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return _ONNX.get(op_name(node), op_name(node))
        module = self.module.get_submodule(str(node.target))
        return next((name for kind, name in _MODULES.items() if isinstance(module, kind)), type(module).__name__)


_MODULES: Final[Mapping[type[nn.Module], str]] = {
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "ConvTranspose"),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "Conv"),
    **{nn.Linear: "Gemm", nn.Bilinear: "Gemm", nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "RNN"},
}
"""Class of a layer that multiplies -> ONNX's name of what it computes."""


@contextmanager
def _alone() -> Iterator[None]:
    """With one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
