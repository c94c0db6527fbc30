"""Core ML, the runtime of Apple's devices: a package, which `coremltools` writes from what torch exports."""

from __future__ import annotations

import json
import struct
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Session, Target
from prunec.compiler.targets.flat import exported_flat, pixels_as_floats

_TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.int32: np.int32, torch.int64: np.int32}
"""Types of inputs -> what Core ML takes for them."""
_SENTINEL = 0xDEADBEEF
"""The first word before each tensor in a file of weights."""
_MACOS = sys.platform == "darwin"


class CoreML(Target):
    """Apple names no number of channels that its neural engine prefers. 16 is two SIMD vectors in half precision."""

    name = "coreml"
    multiple = 16
    suffixes = (".mlpackage",)
    extra = "coreml"
    needs = ("coremltools>=9.0",)

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """An ML program of the example's sizes for iOS 16 and macOS 13, in float32."""
        import coremltools  # noqa: PLC0415  (an extra)

        from prunec.compiler.targets.onnx_export import input_names, output_names  # noqa: PLC0415

        inputs = pixels_as_floats(tuple(tensors_in(program.inputs)))
        strange = [value.dtype for value in inputs if value.dtype not in _TYPES]
        if strange:
            raise TargetError(f"Core ML takes no input of {strange[0]}", hint="make it float32")
        exported = exported_flat(program, inputs)
        tensor = coremltools.TensorType
        model = coremltools.convert(
            exported.run_decompositions(_decompositions(exported)),
            inputs=[
                tensor(name=name, shape=tuple(value.shape), dtype=_TYPES[value.dtype])
                for name, value in zip(input_names(program), inputs, strict=True)
            ],
            outputs=[tensor(name=name) for name in output_names(program.graph)],
            convert_to="mlprogram",
            compute_precision=coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
        model.save(str(path))
        _without_chance(path)
        _check(path, [tuple(value.shape) for value in inputs])
        return Converted(batch_of(program.inputs))

    def load(self, path: Path, threads: int) -> Session:
        """The package on the CPU; Core ML decides on the threads itself."""
        return CoreMLSession(path)

    def unrunnable(self) -> str:
        """Off macOS there is no Core ML."""
        return "" if _MACOS else "Core ML runs on macOS alone; the structure of the package was checked"

    def describe(self) -> str:
        """The version of the tools; the runtime has that of the system."""
        return f"Core ML by coremltools {version('coremltools')}"


def _decompositions(exported: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """How to write out what the program calls and `coremltools` doesn't know, where torch knows how."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY  # noqa: PLC0415

    called = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    table = torch.export.default_decompositions()
    return {
        operation: table[operation]
        for operation in called
        if isinstance(operation, torch._ops.OpOverload)
        and operation in table
        and _TORCH_OPS_REGISTRY.get_func(str(operation)) is None
    }


class CoreMLSession:
    """A package that Core ML has loaded."""

    def __init__(self, path: Path) -> None:
        import coremltools  # noqa: PLC0415  (an extra)

        self._model: Any = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        described = self._model.get_spec().description
        self._inputs = [entry.name for entry in described.input]
        self._outputs = [entry.name for entry in described.output]

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Inputs and outputs by their names; pixels are float32."""
        fed = [value.astype(np.float32) if value.dtype == np.uint8 else value for value in inputs]
        found = self._model.predict(dict(zip(self._inputs, fed, strict=True)))
        return [np.asarray(found[name]) for name in self._outputs]


# -- the package -----------------------------------------------------------------------------------------------------


def _spec_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def _spec(package: Path) -> Any:
    from coremltools.proto import Model_pb2  # noqa: PLC0415  (an extra)

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
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if "val" not in operation.attributes:  # reading it would put it in
                    continue
                value = operation.attributes["val"]
                if value.WhichOneof("value") == "blobFileValue":
                    yield operation.outputs[0].name, value.blobFileValue.offset
