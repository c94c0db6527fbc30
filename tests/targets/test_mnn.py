"""MNN's files take any batch where its runtime bears that; what crashes it or its converter is told."""

from __future__ import annotations

import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.errors import TargetError
from prunec.compiler.targets.base import ExportOptions
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.exporting import ExportContext, export, missing
from prunec.compiler.targets.mnn import Mnn
from prunec.compiler.targets.pixels import Folded, Pixels
from prunec.compiler.tracing.trace import trace

TARGET = Mnn()
if (_lacking := missing(TARGET)) is not None:
    pytest.skip(_lacking.message, allow_module_level=True)


def program(parts, run, *inputs):
    torch.manual_seed(0)
    return trace(Made(parts, run).eval(), inputs or (torch.randn(1, 3, 8, 8),))


def test_the_batch_stays_open(tmp_path):
    made = program({"conv": nn.Conv2d(3, 4, 3)}, lambda m, x: m.conv(x).relu().mean((2, 3)))
    found = export(TARGET, made, tmp_path, ExportOptions(), ExportContext(timed=False))
    assert not found.failed, found.error
    assert found.batch is None


def test_gelu_is_not_approximated(tmp_path):
    made = program({}, lambda m, x: nn.functional.gelu(x), torch.randn(1, 512) * 2)
    found = export(TARGET, made, tmp_path, ExportOptions(), ExportContext(timed=False))
    assert not found.failed, found.error
    assert found.difference < 1e-6


def test_where_another_batch_crashes_the_runtime_it_is_fixed(tmp_path):
    def normed(m, x):
        return nn.functional.local_response_norm(m.conv(x), 2)

    found = export(
        TARGET, program({"conv": nn.Conv2d(3, 4, 3)}, normed), tmp_path, ExportOptions(), ExportContext(timed=False)
    )
    assert not found.failed, found.error
    assert found.batch == 1
    assert "crashes when the batch changes" in found.note


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("ways", [1, 2])
def test_recurrent_layers_take_any_batch(kind, ways, tmp_path):
    rnn = kind(8, 4, num_layers=2, batch_first=True, bidirectional=ways == 2)
    made = program({"rnn": rnn}, lambda m, x: m.rnn(x)[0], torch.randn(1, 5, 8))
    found = export(TARGET, made, tmp_path, ExportOptions(), ExportContext(timed=False))
    assert not found.failed, found.error
    assert found.batch is None


def test_an_operation_that_it_lacks_is_told(tmp_path):
    made = program({"conv": nn.Conv2d(3, 4, 3)}, lambda m, x: torch.fft.rfft2(m.conv(x)).abs())
    with pytest.raises(TargetError, match="MNN has no form of the operation 'ONNX::DFT'"):
        TARGET.convert(made, tmp_path / "model.mnn", ExportOptions())


def test_weights_in_int8_make_a_smaller_file_that_takes_the_same_batches(tmp_path):
    made = program({"fc": nn.Linear(64, 256)}, lambda m, x: m.fc(x), torch.randn(1, 64))
    TARGET.convert(made, tmp_path / "model.mnn", ExportOptions())
    TARGET.quantize(made, tmp_path / "model.mnn", tmp_path / "model.int8.mnn", ExportOptions(), [])
    sizes = [(tmp_path / name).stat().st_size for name in ("model.mnn", "model.int8.mnn")]
    assert sizes[1] < 0.4 * sizes[0]
    x = torch.randn(3, 64)
    (got,) = TARGET.load(tmp_path / "model.int8.mnn", 1).run([x.numpy()])
    expected = made.module(x).detach()
    assert (torch.from_numpy(got) - expected).abs().max() / expected.abs().max() < 0.05


def test_pixels_in_int8_take_any_batch_too(tmp_path):
    made = Folded(Pixels(1 / 255, integer=True), softmax=True).into(
        program(
            {"conv": nn.Conv2d(3, 4, 3), "fc": nn.Linear(4, 5)}, lambda m, x: m.fc(m.conv(x).mean((2, 3)).flatten(1))
        )
    )
    assert TARGET.convert(made, tmp_path / "model.mnn", ExportOptions()).batch is None
    TARGET.quantize(made, tmp_path / "model.mnn", tmp_path / "model.int8.mnn", ExportOptions(), [])
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    (got,) = TARGET.load(tmp_path / "model.int8.mnn", 1).run([x.numpy()])
    assert (torch.from_numpy(got) - made.module(x).detach()).abs().max() < 0.05


def test_a_batch_that_a_file_does_not_take_is_told(tmp_path):
    made = program({"fc": nn.Linear(12, 5)}, lambda m, x: m.fc(x.reshape(1, 12)), torch.randn(1, 3, 2, 2))
    TARGET.convert(made, tmp_path / "model.mnn", ExportOptions())
    with captured(), pytest.raises(TargetError, match=r"MNN can't run the file on inputs of \[\[2, 3, 2, 2\]\]"):
        TARGET.load(tmp_path / "model.mnn", 1).run([torch.randn(2, 3, 2, 2).numpy()])
