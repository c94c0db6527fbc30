"""A Core ML package of what torch exports, by `coremltools`, in a process of its own; and its structure, checked."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import coremltools
import numpy as np
import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from coremltools.optimize import coreml as optimize
from coremltools.proto import MIL_pb2, Model_pb2
from torch.export import ExportedProgram

from prunec.compiler.errors import TargetError

_TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.int32: np.int32, torch.int64: np.int32}
"""Types of inputs -> what Core ML takes for them."""
_SENTINEL = 0xDEADBEEF
"""The first word before each tensor in a file of weights."""
_DEQUANTIZED: Final = "constexpr_affine_dequantize"
"""The operation of an ML program that gives weights of those in int8."""


def convert(source: str, path: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write what `torch.export.save` wrote to `source` as an ML program for iOS 16 and macOS 13, in float32. `inputs`
    and `outputs` are the names that they get. Raises `TargetError` where the package isn't whole."""
    exported = torch.export.load(source)
    examples = exported.example_inputs
    assert examples is not None, "the program has examples"
    tensor = coremltools.TensorType
    model = coremltools.convert(
        exported.run_decompositions(_decompositions(exported)),
        inputs=[
            tensor(name=name, shape=tuple(value.shape), dtype=_TYPES[value.dtype])
            for name, value in zip(inputs, examples[0], strict=True)
        ],
        outputs=[tensor(name=name) for name in outputs],
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    model.save(path)
    _without_chance(Path(path))
    _check(Path(path), [tuple(value.shape) for value in examples[0]])


def quantize(path: str, to: str, per_channel: bool) -> None:
    """Write the package at `path` with its weights in int8, whose ranges lie around zero; each channel has a scale of
    its own, or each weight one. Raises `TargetError` where there is none to quantise, or the package isn't whole."""
    config = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric",
        dtype=np.int8,
        granularity="per_channel" if per_channel else "per_tensor",
        weight_threshold=0,
    )
    before = _spec(Path(path))
    places = {  # its tools would round places in a table, too
        operation.outputs[0].name: None
        for operation in _operations(before)
        if operation.type == "const" and operation.outputs[0].type.tensorType.dataType != MIL_pb2.FLOAT32
    }
    model = coremltools.models.MLModel(path, skip_model_load=True)
    wanted = optimize.OptimizationConfig(global_config=config, op_name_configs=places)
    optimize.linear_quantize_weights(model, wanted).save(to)
    _without_chance(Path(to))
    if not any(operation.type == _DEQUANTIZED for operation in _operations(_spec(Path(to)))):
        raise TargetError("the model has no weights that Core ML's tools quantise")
    _check(Path(to), [tuple(entry.type.multiArrayType.shape) for entry in before.description.input])


def _decompositions(exported: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """How to write out what the program calls and `coremltools` doesn't know, where torch knows how."""
    called = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    table = torch.export.default_decompositions()
    return {
        operation: table[operation]
        for operation in called
        if isinstance(operation, torch._ops.OpOverload)
        and operation in table
        and _TORCH_OPS_REGISTRY.get_func(str(operation)) is None
    }


# -- the package -----------------------------------------------------------------------------------------------------


def _spec_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def _spec(package: Path) -> Any:
    found: Any = Model_pb2.Model()
    found.ParseFromString(_spec_file(package).read_bytes())
    return found


def _without_chance(package: Path) -> None:
    """One program gives the same bytes: the day of conversion goes, and identities follow from what they stand for."""
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # it is no part of a package
    spec = _spec(package)
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    _spec_file(package).write_bytes(spec.SerializeToString(deterministic=True))
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    entries = manifest["itemInfoEntries"]
    fixed = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for name, entry in entries.items()}
    manifest["itemInfoEntries"] = dict(sorted((fixed[name], entry) for name, entry in entries.items()))
    manifest["rootModelIdentifier"] = fixed[manifest["rootModelIdentifier"]]
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def _check(package: Path, shapes: Sequence[tuple[int, ...]]) -> None:
    """The structure of a package, as far as it can be seen without Core ML. Raises `TargetError`."""
    spec = _spec(package)
    found = [tuple(entry.type.multiArrayType.shape) for entry in spec.description.input]
    if found != [shape or (1,) for shape in shapes]:
        raise TargetError(f"the package takes inputs of {found} for {list(shapes)}")
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    held = weights.read_bytes() if weights.exists() else b""
    for name, offset in _stored(spec):
        word, _, size, start = struct.unpack_from("<IIQQ", held, offset) if offset + 24 <= len(held) else (0, 0, 0, 0)
        if word != _SENTINEL or not size or start + size > len(held):
            raise TargetError(f"the package's weights don't hold '{name}'")


def _stored(spec: Any) -> Iterator[tuple[str, int]]:
    """The constants of an ML program that lie in the file of weights, each with its place there."""
    for operation in _operations(spec):
        for value in operation.attributes.values():  # of a constant, or of int8 with its scales
            if value.WhichOneof("value") == "blobFileValue":
                yield operation.outputs[0].name, value.blobFileValue.offset


def _operations(spec: Any) -> Iterator[Any]:
    """The operations of an ML program."""
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from block.operations
