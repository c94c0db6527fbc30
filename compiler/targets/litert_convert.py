"""A program of torch's as a file of LiteRT's, by `litert_torch`, in a process of its own."""

from __future__ import annotations

import litert_torch
import torch


def convert(source: str, path: str) -> None:
    """Write what `torch.export.save` wrote to `source` at `path`."""
    exported = torch.export.load(source)
    inputs = exported.example_inputs
    assert inputs is not None, "the program has examples"
    module = exported.module(check_guards=False)
    litert_torch.convert(module, inputs[0], strict_export=False).export(path)
