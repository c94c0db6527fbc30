"""OpenVINO and NNCF are used without the usage data that they would send."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WATCH = """
import os, sys

def told(event, args):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.system")) or (
        event == "open" and "intel" in str(args[0]).split(os.sep)
    ):
        os.write(file, f"{event} {args}\\n".encode())

file = os.open(os.environ["TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.addaudithook(told)
"""
"""Run by Python as it starts, here and in the process that converts."""
CHILD = """
import sys
import numpy as np
import torch
from pathlib import Path
from prunec.compiler.targets.base import Int8
from prunec.compiler.targets.openvino import OpenVino, OpenVinoOptions
from prunec.compiler.tracing.trace import trace

net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
program = trace(net, (torch.zeros(1, 3, 8, 8),))
target, path, other = OpenVino(), Path("model.xml"), Path("model.int8.xml")
target.convert(program, path, OpenVinoOptions())
samples = [[np.ones((1, 3, 8, 8), dtype=np.float32)]]
if sys.argv[1:] == ["int8"]:
    target.quantize(program, path, other, OpenVinoOptions(int8=Int8()), samples)
    path = other
(given,) = target.load(path, 1).run(samples[0])
print("shape", given.shape)
"""


@pytest.mark.parametrize("how", [(), ("int8",)], ids=["float32", "int8"])
def test_no_process_is_started_and_nothing_is_sent_or_counted(tmp_path, how):
    pytest.importorskip("openvino", reason="the extra 'openvino' isn't installed")
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "TOLD": str(tmp_path / "told")}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *how], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "shape (1, 8, 6, 6)"
    told = (tmp_path / "told").read_text().splitlines()
    told = [line for line in told if "ldconfig" not in line]  # ctypes asks it where libraries are
    assert all("prunec.compiler.targets.child" in line for line in told), told
    assert told, "converters run in a process of their own"
