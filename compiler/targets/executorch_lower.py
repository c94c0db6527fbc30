"""A program of torch's as one of ExecuTorch's, what XNNPACK can compute delegated to it; in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch.export import ExportedProgram

from prunec.compiler.targets.child import arrays_in


def lower(source: str, path: str) -> None:
    """Write what `torch.export.save` wrote to `source` as a file of ExecuTorch's at `path`."""
    _lower(torch.export.load(source), path)


def quantize(source: str, path: str, samples: Sequence[str], per_channel: bool) -> None:
    """In int8, by torchao's quantisation of exported programs: what XNNPACK has, with ranges from samples."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # noqa: PLC0415  (takes seconds)
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415

    exported = torch.export.load(source)
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=per_channel))
    prepared = prepare_pt2e(exported.module(check_guards=False), quantizer)
    for arrays in arrays_in(samples):
        prepared(*map(torch.from_numpy, arrays))
    inputs = exported.example_inputs
    assert inputs is not None, "the program has examples"
    _lower(torch.export.export(convert_pt2e(prepared), inputs[0]), path)


def _lower(exported: ExportedProgram, path: str) -> None:
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    Path(path).write_bytes(lowered.to_executorch().buffer)
