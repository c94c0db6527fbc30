"""Every target that is installed converts pruned networks, and runs them in its own runtime as torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_runtimes import Attention, Depthwise, programs

from prunec.compiler.errors import PrunecError
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.exporting import Calibration, export, missing
from prunec.compiler.tracing.trace import trace


def _exports(name):
    try:
        return bool(TARGETS.named(name).suffixes)
    except PrunecError:
        return True


NAMES = [name for name in TARGETS.names() if _exports(name)]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)


def _target(name):
    target = TARGETS.named(name)()
    if (lacking := missing(target)) is not None:
        pytest.skip(lacking.message)
    return target


@pytest.mark.parametrize("made", [Depthwise, Attention])
@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_network_is_converted_run_and_timed(name, made, tmp_path):
    target = _target(name)
    slim, dense = programs(made)
    found = export(target, slim, tmp_path, target.Options(), dense=dense)
    assert not found.failed, found.error + found.log
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(found.files)
    assert 0 < found.bytes < found.dense_bytes
    assert any(character.isdigit() for character in found.runtime), "its version"
    if found.unrunnable:
        assert found.difference is None
        return
    assert found.difference <= 10 * target.tolerance
    assert [timed.threads for timed in found.latency] == [1, 2]
    assert all(timed.slim > 0 and timed.dense > 0 for timed in found.latency)


@pytest.mark.parametrize("name", NAMES)
def test_files_in_int8_compute_nearly_the_same(name, tmp_path):
    target = _target(name)
    if not target.quantizes():
        assert target.name in WITHOUT_INT8
        return
    assert target.name not in WITHOUT_INT8
    slim, _ = programs()
    exact = slim.module(slim.inputs[0]).detach()

    def judged(model):
        got = model(slim.inputs[0])
        return "error", float((got - exact).abs().max() / exact.abs().max())

    def samples(count, batch):
        torch.manual_seed(1)
        return [[torch.randn(batch or 2, 3, 16, 16).numpy()] for _ in range(8)]

    options = target.Options.model_validate({"int8": True})
    found = export(target, slim, tmp_path, options, timed=False, calibration=Calibration(samples, judged))
    assert not found.failed, found.int8.error if found.int8 else found.error
    assert found.int8.bytes > 0
    if not found.unrunnable:
        assert found.int8.before < 1e-4
        assert 1e-4 < found.int8.after < 0.3, "it is rounded, and not broken"


WITHOUT_INT8 = frozenset({"coreml", "executorch", "litert", "mnn", "ncnn"})
"""Those whose tools for it don't fit beside the rest, or that have none."""


@pytest.mark.parametrize("name", NAMES)
def test_a_session_takes_numpy_arrays_and_gives_them_in_order(name, tmp_path):
    target = _target(name)
    if target.unrunnable():
        return

    class Two(torch.nn.Module):
        def forward(self, x, y):
            return (x + y, (x - y).relu())

    program = trace(Two(), (torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)))
    path = tmp_path / f"model{target.suffixes[0]}"
    x, y = (torch.randn(1, 3, 4, 4) for _ in range(2))
    with captured():
        target.convert(program, path, target.Options())
        found = target.load(path, 1).run([x.numpy(), y.numpy()])
    assert [type(value) for value in found] == [np.ndarray] * 2
    for got, expected in zip(found, (x + y, (x - y).relu()), strict=True):
        assert np.allclose(got, expected.numpy(), atol=1e-6)
