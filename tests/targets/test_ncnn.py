"""What ncnn can't take is told by the operation; files say what an app feeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.errors import TargetError
from prunec.compiler.targets.base import ExportOptions
from prunec.compiler.targets.exporting import ExportContext, export, missing
from prunec.compiler.targets.ncnn import Ncnn
from prunec.compiler.tracing.trace import trace

TARGET = Ncnn()
if (_lacking := missing(TARGET)) is not None:
    pytest.skip(_lacking.message, allow_module_level=True)

IMAGE = (1, 3, 8, 8)


def program(parts, run, *inputs):
    torch.manual_seed(0)
    return trace(Made(parts, run).eval(), inputs or (torch.randn(IMAGE),))


def conv():
    return {"conv": nn.Conv2d(3, 4, 3)}


REFUSED = {
    "an operation without a layer": (lambda m, x: m.conv(x).cumprod(1), r"no layer for the operation '.*cumprod'"),
    "what pnnx converts less of": (
        lambda m, x: m.conv(x).mean(),
        "pnnx can't convert all of the model: mean along batch",
    ),
    "what crashes pnnx": (
        lambda m, x: torch.linalg.eigvalsh(m.conv(x)[:, :, :4, :4]),
        r"pnnx crashes \(SIGABRT\)",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_can_not_be_taken_is_told(tmp_path, why):
    run, message = REFUSED[why]
    with pytest.raises(TargetError, match=message) as caught:
        TARGET.convert(program(conv(), run), tmp_path / "model.ncnn.param", ExportOptions())
    assert "pass_level" in caught.value.log, "what pnnx has printed"


def test_a_type_that_it_has_no_inputs_of_is_told(tmp_path):
    doubled = program(conv(), lambda m, x: m.conv(x.float()), torch.randn(IMAGE).double())
    with pytest.raises(TargetError, match=r"ncnn takes no input of torch\.float64"):
        TARGET.convert(doubled, tmp_path / "model.ncnn.param", ExportOptions())


FORMS = {
    "tokens": ({"embed": nn.Embedding(9, 6)}, lambda m, x: m.embed(x).relu(), (torch.randint(9, (1, 5)),)),
    "a vector": ({"fc": nn.Linear(6, 4)}, lambda m, x: m.fc(x), (torch.randn(1, 6),)),
    "a sequence": ({"fc": nn.Linear(6, 4)}, lambda m, x: m.fc(x), (torch.randn(1, 5, 6),)),
    "a clip": ({"conv": nn.Conv3d(2, 4, 3)}, lambda m, x: m.conv(x), (torch.randn(1, 2, 4, 5, 6),)),
    "two of each": (
        conv(),
        lambda m, x, y: (m.conv(x) * y[..., None, None], y + 1),
        (torch.randn(IMAGE), torch.randn(1, 4)),
    ),
    "bytes": (conv(), lambda m, x: m.conv(x.float() / 255), (torch.randint(256, IMAGE, dtype=torch.uint8),)),
    "an input that is an output": (conv(), lambda m, x: (m.conv(x), x), (torch.randn(IMAGE),)),
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_every_form_give_what_the_module_gives(tmp_path, form):
    parts, run, inputs = FORMS[form]
    found = export(TARGET, program(parts, run, *inputs), tmp_path, ExportOptions(), ExportContext(timed=False))
    assert not found.failed, found.error
    assert found.difference < 1e-5


def test_the_text_says_what_shape_an_app_feeds(tmp_path):
    TARGET.convert(program(conv(), lambda m, x: m.conv(x)), tmp_path / "model.ncnn.param", ExportOptions())
    first = (tmp_path / "model.ncnn.param").read_text().splitlines()[2].split()
    assert first[0] == "Input"
    assert first[-3:] == ["0=8", "1=8", "2=3"], "width, height, channels"


def test_a_run_leaves_its_inputs_as_they_are(tmp_path):
    made = program({}, lambda m, x: x.relu() + 1)
    TARGET.convert(made, tmp_path / "model.ncnn.param", ExportOptions())
    x = np.random.default_rng(0).standard_normal(IMAGE, dtype=np.float32)
    before = x.copy()
    (y,) = TARGET.load(tmp_path / "model.ncnn.param", 1).run([x])
    assert np.array_equal(x, before)
    assert np.allclose(y, np.maximum(before, 0) + 1)
