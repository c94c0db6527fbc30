"""The main job on the networks that people use: halve the MACs, verify, emit, export, load elsewhere, train on."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torchvision import models

from prunec.compiler.driver.compile import compile
from prunec.compiler.emit.python import emit_source, save_weights
from prunec.compiler.plan.plan import Plan
from prunec.compiler.targets.onnx_export import export_onnx

NAMES = (
    "resnet18 resnet50 vgg16_bn mobilenet_v2 mobilenet_v3_small densenet121 googlenet inception_v3 efficientnet_b0 "
    "regnet_y_400mf resnext50_32x4d squeezenet1_0 mnasnet0_5"
).split()
QUIET = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
"""Their own initialisation takes half a minute, and warns."""

LOAD_AND_TRAIN = """
    import importlib.util, json, sys
    sys.modules["prunec"] = sys.modules["safetensors"] = None      # any import of these fails
    import torch
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("model", "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load().eval()
    x, expected = torch.load("sample.pt", weights_only=True)
    with torch.no_grad():
        same = torch.equal(model(x), expected)
    before = [p.detach().clone() for p in model.parameters()]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.functional.cross_entropy(model(torch.cat([x, -x])), torch.tensor([1, 2]))
    loss.backward()
    optimizer.step()
    moved = sum(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    print(json.dumps({"same": same, "finite": bool(torch.isfinite(loss)), "moved": moved / len(before)}))
"""


def make(name: str) -> torch.nn.Module:
    """The network with seeded random weights."""
    torch.manual_seed(0)
    return getattr(models, name)(weights=None, **QUIET.get(name, {})).eval()


@pytest.mark.parametrize("name", NAMES)
def test_half_the_macs(name, tmp_path):
    torch.set_num_threads(1)
    x = torch.randn(1, 3, *(299, 299) if name == "inception_v3" else (224, 224))
    plan = Plan.from_dict(
        {"plan": 1, "passes": [{"score": {"normalize": "mean"}}, {"select": {"budget": {"macs": "50%"}}}, "shrink"]}
    )

    result = compile(make(name), plan, (x,))

    cost = result.report["cost"]
    assert 0.49 <= cost["after"]["macs"] / cost["before"]["macs"] <= 0.5
    assert result.report["passes"][-1]["verification"]["difference"] <= 1e-5

    onnx = export_onnx(result.program, tmp_path / "model.onnx")
    assert set(onnx.differences) == {1, 3}
    assert onnx.max_difference <= 1e-5
    assert onnx.dynamic_batch

    (tmp_path / "model.py").write_text(emit_source(result.program))
    save_weights(result.program, tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.save((x, result.module(x)), tmp_path / "sample.pt")
    run = [sys.executable, "-I", "-c", textwrap.dedent(LOAD_AND_TRAIN)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["same"], "the emitted model computes something else"
    assert answer["finite"]
    assert answer["moved"] > 0.9
