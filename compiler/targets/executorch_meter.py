"""Times in ExecuTorch: each operation is delegated by itself, and the runtime's own event tracer tells what it takes.

XNNPACK tells its operators apart, in whole microseconds, so what changes the layout around each of them isn't counted
as its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import fx
from torch.utils import _pytree as pytree

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import NodeTime, Profile
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.flat import exported_flat
from prunec.compiler.targets.metering import ROUNDED, OneThread, Origins, Times, turns
from prunec.compiler.targets.onnx_export import input_names

_ONNX: Final[Mapping[str, str]] = {
    **{"aten.convolution": "Conv", "aten.linear": "Gemm", "aten.addmm": "Gemm"},
    **{"aten.mm": "MatMul", "aten.bmm": "MatMul", "aten.matmul": "MatMul"},
}
"""torch's name of an operation -> ONNX's, of what multiplies."""
_CALLS: Final = frozenset({"DELEGATE_CALL", "OPERATOR_CALL"})
"""What the tracer calls a step of the program; what a delegate tells of its own stands before it."""


class ExecuTorchMeter(OneThread):
    """Measures in ExecuTorch on this machine's CPU, with one thread."""

    layout: frozenset[str] = frozenset()

    def profile(self, program: Program, seconds: float) -> Profile:
        """The steps of the program; a step's name is that of the input that it hangs on, where that is one."""
        from executorch.extension.pybindings import portable_lib  # noqa: PLC0415  (an extra)

        with TemporaryDirectory() as folder, captured():
            exported, held = self._last.of(program, lambda: _lowered(exported_flat(program)))
            if portable_lib._threadpool_get_thread_count() != 1:
                portable_lib._unsafe_reset_threadpool(1)
            opened = portable_lib._load_for_executorch_from_buffer(held.buffer, enable_etdump=True)
            for _ in turns(seconds):
                opened.run_method("forward", exported.example_inputs[0])
            path = Path(folder) / "run.etdp"
            opened.write_etdump_result_to_file(str(path))
            runs = list(_runs(path.read_bytes()))
        steps, times = list(_steps(held.exported_program(), input_names(program))), Times()
        for run in runs:
            if len(run) != len(steps):
                raise TargetError(f"ExecuTorch tells the times of {len(run)} steps of {len(steps)}")
            for number, took in enumerate(run):
                times.add(number, took)
        low = times.low()
        return tuple(NodeTime(step.op, step.elements, low[n], step.name) for n, step in enumerate(steps))


def _lowered(exported: Any) -> tuple[Any, Any]:
    """What torch exported, and a program of ExecuTorch's in which XNNPACK has each operation, with its activation, by
    itself."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415  (an extra)

    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner(per_op_mode=True)])
    return exported, lowered.to_executorch()


@dataclass(frozen=True)
class _Step:
    op: str
    elements: int
    name: str


def _steps(exported: Any, inputs: Sequence[str]) -> Iterator[_Step]:
    """What the runtime calls, in order. Buffers that nothing reads are placeholders as well as inputs are."""
    names, origins = dict(zip(exported.graph_signature.user_inputs, inputs, strict=True)), Origins()
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in names:
                origins.starts(node, names[node.name])
            continue
        name = origins.name(node.name, node.all_input_nodes, [node])
        called = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_function" and called not in ("alloc", "getitem"):
            yield _Step(_kind(node), _elements(node.meta.get("val")), name)


def _kind(node: fx.Node) -> str:
    """ONNX's name of what a step multiplies; of other steps, torch's name of what comes first."""
    delegated = next((each for each in node.all_input_nodes if each.op == "get_attr"), None)
    if delegated is None:
        return str(node.target)
    owner = delegated.graph.owning_module
    inner = getattr(owner, str(delegated.target)).original_module.graph
    called = [str(each.target).partition("aten.")[2] for each in inner.nodes if each.op == "call_function"]
    found = [f"aten.{name.split('.')[0]}" for name in called]
    return next((_ONNX[name] for name in found if name in _ONNX), found[0] if found else "")


def _elements(value: Any) -> int:
    return sum(leaf.numel() for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _runs(dump: bytes) -> Iterator[list[float]]:
    """The seconds of each step, in each run."""
    from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc  # noqa: PLC0415  (an extra)

    for run in deserialize_from_etdump_flatcc(dump).run_data:
        steps: list[float] = []
        own: list[tuple[str, float]] = []
        for event in run.events:
            each = event.profile_event
            if each is None:
                continue
            took = 1e-9 * (each.end_time - each.start_time)
            if each.name in _CALLS:
                steps.append(_own(own, took))
                own = []
            elif each.name is None:
                own.append((each.delegate_debug_id_str or "", took + ROUNDED))
        if steps:
            yield steps


def _own(operators: Sequence[tuple[str, float]], whole: float) -> float:
    """What a step takes but for changes of layout, where it is more than one."""
    computing = [took for name, took in operators if not name.startswith("Transpose")]
    return sum(computing) if computing else sum(took for _, took in operators) or whole
