"""What all targets have in common: parity, failures that are the target's alone, times, sizes and int8."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from fake_runtimes import Fake, programs
from torch import nn

from prunec.compiler.errors import TargetError
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import ExportOptions, Int8
from prunec.compiler.targets.exporting import Calibration, ExportContext, Runs, export, inputs_for, missing
from prunec.compiler.tracing.trace import trace


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    Fake.threads.clear()


def test_a_file_is_written_run_compared_weighed_and_timed_beside_the_original(tmp_path):
    slim, dense = programs()
    steps = []
    found = export(
        Fake(), slim, tmp_path, ExportOptions(), ExportContext(dense), lambda done, total: steps.append((done, total))
    )
    assert not found.failed
    assert (found.target, found.runtime, found.error) == ("fake", "fake 1.0", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.fake", "model.weights"] == sorted(found.files)
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found.dense_bytes > 0
    assert found.difference < 1e-6
    assert [(timed.threads, timed.slim > 0, timed.dense > 0) for timed in found.latency] == [
        (1, True, True),
        (2, True, True),
    ]
    assert set(Fake.threads) == {1, 2}
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_without_an_original_the_file_is_timed_alone_and_without_times_not_at_all(tmp_path):
    (slim, _) = programs()
    alone = export(Fake(), slim, tmp_path, ExportOptions())
    assert [timed.dense for timed in alone.latency] == [None, None]
    assert alone.dense_bytes is None
    assert alone.files == ("model.fake", "model.weights")
    assert export(Fake(), slim, tmp_path, ExportOptions(), ExportContext(timed=False)).latency == ()


class Refuses(Fake):
    refuses = nn.ChannelShuffle


def test_a_step_that_can_not_be_converted_is_named_with_its_line_and_what_was_printed(tmp_path, capfd):
    slim, _ = programs()
    found = export(Refuses(), slim, tmp_path, ExportOptions())
    assert found.failed
    assert "no form of ChannelShuffle; it begins with shuffle (ChannelShuffle)" in found.error
    assert re.search(r"\(ChannelShuffle\), .*fake_runtimes\.py:\d+$", found.error)
    assert found.hint == "leave fake out of the exports; the other files don't need it"
    assert found.log == "converting\nno form of shuffle"
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


class Shares(nn.Module):
    """Shares of a sum that is zero for some samples, where they are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.head(x), x.clamp(max=0)], 1).relu()
        return y[:, 4:] / y[:, 4:].sum(1, keepdim=True) + y[:, :4]


class SpoilsHeads(Fake):
    spoils: ClassVar = nn.Linear


def test_what_is_no_number_in_both_hides_no_difference(tmp_path):
    program = trace(Shares().eval(), (torch.rand(2, 4),))
    right = export(Fake(), program, tmp_path, ExportOptions())
    assert right.difference == 0, "nothing is a number"
    two = trace(Both().eval(), (torch.rand(2, 4),))
    assert export(Fake(), two, tmp_path, ExportOptions()).difference < 1e-6
    assert "computes something else" in export(SpoilsHeads(), two, tmp_path, ExportOptions()).error


class Overflowing(nn.Module):
    """What it gives is infinite in single precision, and has a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * 1e38 * 1e10


def test_other_infinities_are_no_rounding(tmp_path):
    torch.manual_seed(0)
    program = trace(Overflowing().eval(), (torch.rand(2, 4),))
    assert export(Fake(), program, tmp_path, ExportOptions()).difference == 0
    assert "computes something else" in export(SpoilsHeads(), program, tmp_path, ExportOptions()).error


class Both(Shares):
    """Beside numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(x), self.head(x)], 1)


class Spoils(Fake):
    spoils: ClassVar = nn.Linear


def test_what_differs_is_told_as_the_runtimes_with_the_first_step_and_no_file_stays(tmp_path):
    slim, _ = programs()
    found = export(Spoils(), slim, tmp_path, ExportOptions())
    assert found.failed
    assert "computes something else than the module" in found.error
    assert "it begins with head (Linear)" in found.error
    assert "the converter's or the runtime's" in found.hint
    assert "bug" not in found.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layer", "name"), [(nn.Conv2d, "stem (Conv2d)"), (nn.BatchNorm2d, "norm (BatchNorm2d)")])
def test_the_first_of_several_that_differ_is_named(layer, name, tmp_path):
    class SpoilsIt(Fake):
        spoils = layer

    assert f"it begins with {name}" in export(SpoilsIt(), programs()[0], tmp_path, ExportOptions()).error


class Crashes(Fake):
    def load(self, path, threads):
        raise MemoryError("no room")


class Silent(Fake):
    def convert(self, program, path, options):
        return super().convert(program, path.with_name("elsewhere.fake"), options)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Crashes, "its runtime can't load the file: MemoryError: no room"),
        (Silent, "its converter wrote no model.fake"),
    ],
)
def test_foreign_errors_and_missing_files_are_told(target, words, tmp_path):
    assert words in export(target(), programs()[0], tmp_path, ExportOptions()).error


class One(Fake):
    only_one = True
    batch = 1


def test_a_runtime_of_one_sample_is_handed_a_program_of_one_sample(tmp_path):
    slim, dense = programs(batch=4)
    found = export(One(), slim, tmp_path, ExportOptions(), ExportContext(dense=dense))
    assert not found.failed
    assert found.batch == 1
    assert found.other_batch == 1
    assert export(One(), programs(batch=1)[0], tmp_path, ExportOptions()).other_batch is None
    assert One.kept[str(tmp_path / "model.fake")].inputs[0].shape == (1, 3, 16, 16)


def test_a_file_of_one_sample_runs_batches_in_parts():
    (slim, _) = programs(batch=1)
    target = One()
    One.kept["here"] = slim
    images = torch.randn(5, 3, 16, 16)
    runs = Runs(slim, target.load("here", 1), 1)
    assert torch.allclose(runs(images), slim.module(images), atol=1e-6)
    One.kept["pairs"] = slim

    class Two(One):
        batch = 2

    assert torch.allclose(Runs(slim, Two().load("pairs", 1), 2)(images), slim.module(images), atol=1e-6)


class Elsewhere(Fake):
    def unrunnable(self):
        return "it runs on phones alone"

    def load(self, path, threads):
        raise AssertionError("it isn't run")


def test_what_can_not_be_run_here_is_weighed_alone(tmp_path):
    slim, dense = programs()
    found = export(Elsewhere(), slim, tmp_path, ExportOptions(), ExportContext(dense=dense))
    assert not found.failed
    assert found.unrunnable == "it runs on phones alone"
    assert found.difference is None
    assert found.latency == ()
    assert found.dense_bytes > 0


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (("no-such-package>=1",), "fake needs no-such-package, which isn't installed"),
        (("torch>=999",), "fake needs torch >=999, and 2"),
        (("torch>=2.0", 'no-such-package; python_version < "3"'), None),
    ],
)
def test_what_is_not_installed_is_told_with_what_to_install(needs, words, tmp_path):
    class Needs(Fake):
        extra = "fakes"

    Needs.needs = needs
    found = missing(Needs())
    if words is None:
        assert found is None
        return
    assert words in found.message
    assert found.hint == "pip install 'prunec[fakes]'; or leave fake out"
    assert export(Needs(), programs()[0], tmp_path, ExportOptions()).error == found.message
    assert not list(tmp_path.iterdir())


class Halves(Fake):
    def quantize(self, program, path, to, options, samples):
        assert len(samples) == options.int8.samples
        for each in self.beside(to):
            each.write_text("x")
        self.kept[str(to)] = program


class ByHand(Fake):
    without_int8 = "it is made by hand"


def samples(count, batch):
    return [[np.zeros((batch or 2, 3, 16, 16), np.float32)]] * count


def test_int8_is_calibrated_judged_in_the_runtime_and_timed(tmp_path):
    slim, _ = programs()
    judged = Calibration(samples, lambda model: ("spread", float(model(slim.inputs[0]).std())))
    found = export(
        Halves(), slim, tmp_path, ExportOptions(int8=Int8(samples=3)), ExportContext(calibration=judged)
    ).int8
    assert found.files == ("model.int8.fake", "model.int8.weights")
    assert (found.metric, found.before) == ("spread", pytest.approx(found.after))
    assert len(found.latency) == 2
    assert not found.error


@pytest.mark.parametrize(
    ("target", "calibration", "words"),
    [
        (Fake, Calibration(samples), "fake has no int8 yet; leave out 'int8'"),
        (ByHand, Calibration(samples), "it is made by hand"),
        (Halves, None, "int8 is calibrated on data"),
        (Halves, Calibration(lambda count, batch: []), "int8 can't be made: AssertionError"),
    ],
)
def test_where_int8_fails_the_float32_files_stand(target, calibration, words, tmp_path):
    found = export(
        target(), programs()[0], tmp_path, ExportOptions(int8=Int8(samples=3)), ExportContext(calibration=calibration)
    )
    assert found.failed
    assert not found.error
    assert words in found.int8.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.fake", "model.weights"]


def test_rounding_is_decided_by_a_float64_run(tmp_path):
    class Cancels(nn.Module):
        def forward(self, x):
            return (x + 1000.0) - 1000.0

    class Rounds(Fake):
        def load(self, path, threads):
            opened = super().load(path, threads)
            run = opened.run
            opened.run = lambda inputs: [value + np.float32(2e-5) for value in run(inputs)]
            return opened

    found = export(
        Rounds(), trace(Cancels(), (torch.randn(1, 4),)), tmp_path, ExportOptions(), ExportContext(timed=False)
    )
    assert not found.failed
    assert found.difference > 5e-6
    assert "from a float64 run" in found.note


def test_parity_looks_at_several_inputs_and_batches():
    (program, _) = programs(batch=2)
    assert [inputs[0].shape[0] for inputs in inputs_for(program, None)] == [1, 2, 3, 2, 2, 2]
    fixed = [inputs[0] for inputs in inputs_for(program, 2)]
    assert [len(inputs) for inputs in fixed] == [2, 2, 2, 2]
    assert not any(torch.equal(one, other) for place, one in enumerate(fixed) for other in fixed[:place])


def test_an_error_of_ours_is_told_as_the_targets(tmp_path):
    class Places(Fake):
        def convert(self, program, path, options):
            raise TargetError("not this one", hint="another way")

    found = export(Places(), programs()[0], tmp_path, ExportOptions())
    assert found.hint == "another way"
    assert "not this one; it begins with stem (Conv2d)" in found.error


def test_a_softmax_hides_nothing(tmp_path):
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 10)
            self.head.weight.data *= 1e-8
            self.head.bias.data.zero_()

        def forward(self, x):
            return self.head(x).softmax(1)

    program = trace(Alike().eval(), (torch.randn(2, 4),))
    found = export(Spoils(), program, tmp_path, ExportOptions())
    assert "it begins with head (Linear)" in found.error
    assert not export(Fake(), program, tmp_path, ExportOptions()).failed


def test_between_steps_that_can_not_be_cut_the_first_is_named(tmp_path):
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(torch.fft.fft2(torch.relu(self.conv(x))).real)

    class NoComplex(Fake):
        def convert(self, program, path, options):
            if any("fft" in str(node.target) for node in program.graph.nodes):
                raise TargetError("no complex numbers")
            return super().convert(program, path, options)

    program = trace(Spectrum().eval(), (torch.randn(1, 3, 6, 6),))
    error = export(NoComplex(), program, tmp_path, ExportOptions()).error
    assert "it begins with fft_fft2" in error, error


@torch.library.custom_op("prunec_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An operation that torch doesn't bring."""
    return x * 2


@twice.register_fake
def _twice_shape(x):
    return torch.empty_like(x)


class Odd(nn.Module):
    """A convolution, and behind it what a test wants."""

    def __init__(self, then) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 4, 3), then

    def forward(self, x):
        return self.then(self.conv(x))


class Then(nn.Module):
    def __init__(self, run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


@pytest.mark.parametrize(
    ("run", "operation", "step", "way_out"),
    [
        (lambda x: torch.fft.fft2(x).real, "fft", "fft_fft2", "compute it without complex numbers"),
        (lambda x: torch.fft.irfft(torch.fft.rfft(x), n=x.shape[-1]), "fft", "fft_rfft", "compute it without complex"),
        (lambda x: torch.fft.fft2(x), "fft", "fft_fft2", "compute it without complex numbers"),
        (lambda x: torch.ops.prunec_tests.twice(x), "twice", "twice", "it is no operation of torch's own"),
        (lambda x: x.double().sin(), "double", "double", "compute it in float32, not in float64, or leave fake out"),
        (lambda x: x.argmax(1), "argmax", "argmax", "leave fake out"),
        (lambda x: torch.linalg.svdvals(x), "svd", "linalg_svdvals", "leave fake out"),
    ],
)
def test_what_a_converter_can_not_take_is_named_with_its_layer_and_a_way_out(run, operation, step, way_out, tmp_path):
    class Lacks(Fake):
        def convert(self, program, path, options):
            if any(operation in str(node.target) for node in program.graph.nodes):
                raise KeyError("torch.complex64\n\nWhile executing %x\nOriginal traceback:\n...")
            return super().convert(program, path, options)

    found = export(Lacks(), trace(Odd(Then(run)).eval(), (torch.randn(1, 3, 6, 6),)), tmp_path, ExportOptions())
    assert found.error.startswith(f"its converter fails: KeyError: torch.complex64; it begins with {step} in then, ")
    assert re.search(r"test_exporting\.py:\d+$", found.error)
    assert found.hint.startswith(way_out)
    assert found.hint.endswith("leave fake out of the exports; the other files don't need it")
