"""Every row of the direct writer: its nodes compute in onnxruntime what torch does, at several batch sizes."""

from __future__ import annotations

import onnx
import pytest
from onnx_rows import CASES, DECLINED, FAMILIES, Calls, difference
from torch import nn

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.ops import op_name
from prunec.compiler.targets.onnx.call import MODULE_ROWS, OP_ROWS, Declined, module_row, on_module, on_op
from prunec.compiler.targets.onnx_export import comparable_bytes, direct_bytes, onnx_feed
from prunec.compiler.targets.ort_session import session
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import relative_difference

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:.*upsample.* is deprecated"),
]


def program_of(case):
    """The case traced; a function is wrapped in a module, and a module lies in another, so that it stays a leaf."""
    subject, inputs = case
    module = nn.Sequential(subject) if isinstance(subject, nn.Module) and len(inputs) == 1 else subject
    module = module if isinstance(module, nn.Module) else Calls(subject)
    return trace(module.eval(), inputs)


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("name", CASES)
def test_a_row_computes_what_torch_does(name, opset):
    if opset == 18 and "ircular" in name:
        opset = 19  # wrapping came with it
    if opset == 18 and "pad layers" in name and "2d" not in name:
        opset = 19
    program = program_of(CASES[name])
    model = direct_bytes(program, opset, open_batch=True)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    for size in (1, 2, 3):
        assert difference(model, program, size) < 2e-6


@pytest.mark.parametrize("name", DECLINED)
def test_what_a_row_cannot_write_it_declines(name):
    case, reason = DECLINED[name]
    with pytest.raises(Declined, match=reason):
        direct_bytes(program_of(case), 20, open_batch=True)


def test_every_row_has_a_case():
    called, modules = set(), set()
    for case in CASES.values():
        program = program_of(case)
        for node in program.graph.nodes:
            if node.op in {"call_function", "call_method"}:
                called.add(op_name(node))
            elif node.op == "call_module":
                modules.add(module_row(program.state[node.target]) and type(program.state[node.target]))
    assert set(OP_ROWS) - called == set()
    assert set(MODULE_ROWS) - modules - {nn.SyncBatchNorm} == set()  # that one runs on a GPU alone


NOT_FOR_THE_EXPORTER = {
    "matmul: attention, causal": "only 4D",
    "matmul: attention with a mask": "only 4D",
    "matmul: attention with a bias": "only 4D",
    "matmul: attention with a computed bias": "only 4D",
    "pooling: adaptive 3d": "_adaptive_avg_pool3d",
    "elementwise: maximum and minimum": "fmax",
    "reshape: cat of types": "different types",
    "reshape: F.native_channel_shuffle": "native_channel_shuffle",
}
"""Forms that torch's exporter refuses, or writes so that onnxruntime does."""
WRONG_IN_THE_EXPORTER = ("reduction: mean of integers", "reshape: data")
"""It rounds the mean to a whole number, and crashes on `x.data`: these are compared with torch alone."""


@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name in CASES if name not in WRONG_IN_THE_EXPORTER])
def test_a_row_computes_what_torchs_exporter_writes(name):
    program = program_of(CASES[name])
    if name in NOT_FOR_THE_EXPORTER:
        with pytest.raises(ModelError, match=NOT_FOR_THE_EXPORTER[name]):
            session(*comparable_bytes([program], writer="torch"))
        return
    (ours,), (theirs,) = (comparable_bytes([program], writer=kind) for kind in ("direct", "torch"))
    runs = [session(model).run(None, onnx_feed(model, program)) for model in (ours, theirs)]
    assert relative_difference(*runs) < 2e-6


def test_a_second_row_for_an_operation_is_refused():
    with pytest.raises(AssertionError, match="relu has a row already"):
        on_op("relu")(lambda call: "")
    with pytest.raises(AssertionError, match="Conv2d has a row already"):
        on_module(nn.Conv2d)(lambda call: "")


class Twice(nn.ReLU):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_module_that_is_another_operation_has_no_row():
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    assert module_row(Twice()) is None
    assert module_row(hooked) is None
    assert module_row(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))) is None


def test_families_bear_the_names_of_the_files():
    homes = {row.__module__.rpartition(".")[2] for row in (*OP_ROWS.values(), *MODULE_ROWS.values())}
    assert homes - FAMILIES.keys() == {"concat", "shuffle"}  # these move, too
