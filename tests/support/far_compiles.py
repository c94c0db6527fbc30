"""Compiles that run on a second device (`far_device.py`), each against the same on the CPU; run as a script."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import far_device
import torch
from several import splits
from torch import nn
from torch.nn import functional as F
from training_nets import small

from prunec.compiler import compile

CUT: list[Any] = [{"select": "30%"}, "shrink"]
CRITERIA = (
    "l2 bn_scale fpgm random tile gate fisher_gate taylor taylor_signed taylor_weight activation_mean activation_std "
    "apoz mutual_information obd obd_fisher obs oracle class_maps class_weights"
).split()

IMAGES = {"layers": "all", "steps": 3, "clusters": 2, "blur_width": 1.0, "blur_every": 1} | dict.fromkeys(
    ("small_norm", "small_contribution"), "20%"
)


class Mixed(nn.Module):
    """Grouped, depthwise and transposed convolutions, group norm, a concatenation, views, and an assignment."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.act = nn.GroupNorm(2, 8), nn.PReLU(8)
        self.up, self.b = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Linear(14, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x))
        z = torch.cat([self.act(self.norm(self.depthwise(self.grouped(y)))), y], 1)
        z = z.view(z.shape[0], 2, 8, *z.shape[2:]).sum(1)
        out = torch.zeros(x.shape[0], 14, device=x.device)
        out[:, :6] = self.up(z).mean((2, 3))
        out[:, 6:] = z.mean((2, 3))
        return self.b(out)


class Attention(nn.Module):
    """A transformer's block on rows of the image."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.a, self.n = nn.Linear(18, 16), nn.LayerNorm(16)
        self.m = nn.MultiheadAttention(16, 4, batch_first=True)
        self.f = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.b, self.place = nn.Linear(16, 5), nn.Parameter(torch.randn(1, 6, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x.movedim(1, 2).flatten(2)) + self.place
        y = self.n(x)
        x = x + self.m(y, y, y)[0]
        return self.b((x + self.f(x)).mean(1))


PLANS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "criteria": (small, [*({"score": name} for name in CRITERIA), *CUT]),
    "budget": (small, [{"score": "taylor"}, {"select": {"budget": {"macs": "60%"}}}, "shrink", "fold_bn"]),
    "greedy": (small, [{"score": "l1"}, {"select": "20%"}, {"score": "greedy_l1"}, *CUT]),
    "merge": (small, [{"cluster": "20%"}, {"merge": {"inexact": "mean"}}]),
    "mixed": (Mixed, [{"score": "taylor"}, *CUT]),
    "attention": (Attention, [{"score": "taylor"}, *CUT]),
    "images": (small, [{"visualise": IMAGES}, {"score": "l1"}, *CUT]),
    "classes": (small, ["class_evidence", {"score": "class_evidence"}, *CUT]),
    "train": (small, [{"score": "l1"}, *CUT, {"finetune": {"updates": 2, "distill": {"features": 1.0}}}]),
}


def main() -> None:
    """Compile all, and print the name of each that gives what it gives on the CPU."""
    x = torch.zeros(2, 3, 6, 6)
    for name, (net, passes) in PLANS.items():
        plan = {"plan": 1, "passes": passes, "train": {"accelerator": "cpu"}}
        plan |= {"classes": [0, 1]} if name == "classes" else {}
        wanted = compile(net().eval(), plan, (x,), splits(2, 4)).module.state_dict()
        with far_device.there():
            given = net().eval()
            found = compile(given, {**plan, "device": "far:0"}, (x,), splits(2, 4))
            _check(given, "cpu", found, wanted)
            if name in ("budget", "mixed"):
                given = far_device.moved(net().eval())
                found = compile(given, {**plan, "export": ["onnx"]}, (x.to(far_device.FAR),), splits(2, 4))
                _check(given, "far", found, wanted)
                with tempfile.TemporaryDirectory() as folder:
                    found.save(Path(folder) / "out")
        sys.stdout.write(f"{name}\n")


def _check(given: nn.Module, home: str, found: Any, wanted: dict[str, torch.Tensor]) -> None:
    assert {tensor.device.type for tensor in given.state_dict().values()} == {home}, "the model was moved"
    for name, tensor in found.module.state_dict().items():
        assert tensor.device.type == home, f"{name} is on {tensor.device}"
        assert torch.allclose(tensor.cpu().double(), wanted[name].double(), atol=1e-5), f"{name} differs"


if __name__ == "__main__":
    main()
