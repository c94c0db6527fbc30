"""What all tests share: one thread a worker, and the fixture that runs pytest inside a test."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; what tests start as processes inherits it

import torch

pytest_plugins = ["pytester"]

torch.set_num_threads(1)
