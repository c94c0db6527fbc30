"""What all tests share: one thread a worker, a Ctrl-C that counts, and the fixture that runs pytest inside a test."""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; what tests start as processes inherits it

import torch

pytest_plugins = ["pytester"]

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, which the processes would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
