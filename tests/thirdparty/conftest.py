"""Puts the third party's distribution on the path, as `pip install` would: its metadata lie beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from prunec.compiler import plugins

sys.path.insert(0, str(Path(__file__).parent))
plugins.refresh()


@pytest.fixture
def digit_image() -> torch.Tensor:
    """One grey image of 8x8."""
    return torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
