"""`verify`: networks slimmed by hand pass, in the precision and at the batch sizes that can tell."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from slimmed_by_hand import IMAGE, Net, Plain, by_case, conv, program_of, seeded
from torch import nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.interpreter import Interpreter
from prunec.compiler.verify.reference import Masked, Same
from prunec.compiler.verify.verify import verify


@by_case
def test_hand_slimmed_networks_pass_in_float64(case):
    report = verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink")
    assert report.difference <= 1e-9
    assert report.dtype == "float64"
    assert report.batches == (2, 3)


@by_case
def test_the_slim_network_differs_from_the_whole_one(case):
    """Else the passing tests would show nothing."""
    with pytest.raises(VerifyError):
        verify(case.after(), Same(case.before), pass_name="shrink")


# --- inputs, outputs and precision ----------------------------------------------------------------------------------


def test_float32_is_enough_where_it_is_close():
    model = seeded(Plain(conv1=conv(3, 5), bn1=nn.BatchNorm2d(5), conv2=conv(5, 4)))
    program = program_of(model, torch.zeros(IMAGE))
    report = verify(program, Same(program), pass_name="nothing", batches=(1, 4))
    assert json.loads(json.dumps(report.as_dict())) == {"difference": 0.0, "dtype": "float32", "batches": [1, 4]}


def test_float64_decides_where_float32_is_too_coarse():
    class Cancelling(Net):
        def forward(self, x):
            return (self.fc(x) + self.large) - self.large

    class Regrouped(Net):
        def forward(self, x):
            return self.fc(x) + (self.large - self.large)

    parts = {"fc": seeded(nn.Linear(4, 3)), "large": nn.Parameter(torch.tensor(1e4))}
    before, after = (program_of(kind(**parts), torch.zeros(2, 4)) for kind in (Cancelling, Regrouped))
    report = verify(after, Same(before), pass_name="regroup", batches=(2,))
    assert report.dtype == "float64"


def test_a_fault_behind_a_tiny_scale_shows_in_float64_alone():
    class Scaled(Net):
        def forward(self, x):
            return x + self.fc(x) * self.scale

    fc, other = seeded(nn.Linear(4, 4)), seeded(nn.Linear(4, 4))
    other.weight.data = other.weight.detach()[:, [1, 0, 2, 3]]
    scale = nn.Parameter(torch.tensor(1e-6))
    before, after = (program_of(Scaled(fc=each, scale=scale), torch.zeros(2, 4)) for each in (fc, other))
    assert verify(after, Same(before), pass_name="shrink").dtype == "float32"
    with pytest.raises(VerifyError, match="node 'fc'"):
        verify(after, Same(before), pass_name="shrink", exact=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_compared_in_float64(dtype):
    class Half(Net):
        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)).half().to(torch.bfloat16)) + torch.ones(3)

    model = seeded(Half(fc1=nn.Linear(4, 5), fc2=nn.Linear(5, 3))).to(dtype)
    program = program_of(model, torch.zeros(2, 4, dtype=dtype))
    assert verify(program, Same(program), pass_name="nothing").dtype == "float64"
    assert program.tensors["fc1.weight"].dtype == dtype


def test_a_model_made_for_one_batch_size_is_compared_on_that():
    class Fixed(Net):
        def forward(self, x):
            return self.fc(x.view(4, -1))

    program = program_of(seeded(Fixed(fc=nn.Linear(6, 2))), torch.zeros(4, 2, 3))
    assert verify(program, Same(program), pass_name="nothing").batches == (4,)


def test_a_program_that_lost_its_dynamic_batch_is_refused():
    class Fixed(Net):
        def forward(self, x):
            return self.fc(x.view(2, -1))

    class Free(Net):
        def forward(self, x):
            return self.fc(x.flatten(1))

    fc = seeded(nn.Linear(6, 2))
    before, after = (program_of(kind(fc=fc), torch.zeros(2, 2, 3)) for kind in (Free, Fixed))
    with pytest.raises(VerifyError, match=r"node 'fc' .* fails"):
        verify(after, Same(before), pass_name="shrink")


class Outputs(Net):
    def forward(self, x):
        return {"a": self.fc(x), "b": (self.fc(x) > 0, [self.fc(x).log()])}


def test_every_output_of_a_nest_is_compared():
    """The logarithm of negative numbers is not a number, in both."""
    before, after = (program_of(seeded(Outputs(fc=nn.Linear(4, 3))), torch.zeros(2, 4)) for _ in range(2))
    assert verify(after, Same(before), pass_name="nothing").difference == 0
    after.tensors["fc.bias"].data[0] += 100
    with pytest.raises(VerifyError, match="node 'fc'"):
        verify(after, Same(before), pass_name="shift")


def test_another_structure_of_the_outputs_is_a_mismatch():
    class Listed(Outputs):
        def forward(self, x):
            return [self.fc(x), self.fc(x) > 0, self.fc(x).log()]

    fc = seeded(nn.Linear(4, 3))
    before, after = (program_of(kind(fc=fc), torch.zeros(2, 4)) for kind in (Outputs, Listed))
    with pytest.raises(VerifyError, match="nested in another way"):
        verify(after, Same(before), pass_name="nothing")


class Clipped(nn.Module):
    """Some rows of a convolution, averaged; the view is of the example's own size."""

    def __init__(self, rows: slice = slice(100, None), view: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.conv, self.fc, self.rows, self.view = nn.Conv2d(3, 6, 1), nn.Linear(6, 4), rows, view

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x.view(self.view) if self.view else x)[:, :, self.rows].mean((2, 3)))


FULL, SMALL = [(1, 3, 640, 640), (2, 3, 640, 640)], (2, 3, 160, 160)
SMALLER_IMAGES = {
    "any size": (Clipped(), Clipped(), [FULL[0], SMALL]),
    "one size": (Clipped(), Clipped(view=(-1, 6, 640, 640)), [FULL[0], SMALL, FULL[1]]),
    "the same at one size": (Clipped(), Clipped(slice(-540, None)), [FULL[0], SMALL, FULL[1]]),
}


@pytest.mark.parametrize("name", SMALLER_IMAGES)
def test_large_images_are_checked_once_and_then_smaller(name, monkeypatch):
    """A difference on smaller images alone convicts nobody: full ones decide."""
    old, new, expected = SMALLER_IMAGES[name]
    new.load_state_dict(old.state_dict())
    before, after = (program_of(model, torch.zeros(FULL[0])) for model in (old, new))
    seen, steps = [], Interpreter.steps
    monkeypatch.setattr(Interpreter, "steps", lambda self, xs: seen.append(tuple(xs[0].shape)) or steps(self, xs))
    assert verify(after, Same(before), pass_name="nothing").batches == (1, 2)
    assert list(dict.fromkeys(seen)) == expected


def test_a_fault_in_large_images_is_found():
    before, after = (program_of(Clipped(rows), torch.zeros(FULL[0])) for rows in (slice(100, None), slice(101, None)))
    after = after.derive(state=before.state)
    with pytest.raises(VerifyError, match="'getitem'"):
        verify(after, Same(before), pass_name="nothing")


@pytest.mark.parametrize(("size", "batches"), [(8, (2, 3)), (1100, (1, 2))])
def test_large_samples_come_in_smaller_batches(size, batches):
    program = trace(nn.Sequential(nn.Conv2d(1, 2, 1, stride=64), nn.ReLU()).eval(), (torch.randn(1, 1, size, size),))
    assert verify(program, Same(program), pass_name="none").batches == batches
