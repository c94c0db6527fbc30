"""ORT files in one order: onnxruntime writes the tables of what its kernels take in the order of a hash, which differs
from time to time.

    InferenceSession          the root, at the front
      KernelTypeStrResolver   operation -> names of types -> arguments: written anew, sorted
      Model                   stays as it is, at the end: positions in a flatbuffer count from there
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

IDENTIFIER: Final = b"ORTM"
ALIGNED: Final = 16
"""Bytes that every value's position divides by, counted from the end."""


def in_order(content: bytes) -> bytes:
    """The same ORT file, whose tables of kernels' types are sorted. Raises `ValueError` for what is no ORT file."""
    flatbuffers: Any = import_module("flatbuffers")  # untyped; it comes with onnxruntime
    fbs = _Tables()
    root = fbs.InferenceSession.InferenceSession
    if not root.InferenceSessionBufferHasIdentifier(content, 0):
        raise ValueError("this is no ORT file")
    held = root.GetRootAs(content, 0)
    model, version = held.Model()._tab, held._tab
    builder = flatbuffers.Builder(2 * len(content[: model.Pos]) + 4096)
    start = min(model.Pos, model.Pos - model.Get(flatbuffers.number_types.SOffsetTFlags, model.Pos))
    kept = content[start:]
    builder.Bytes += kept
    builder.minalign = ALIGNED
    at_version = version.Indirect(version.Pos + version.Offset(4))
    kernels = _resolver(builder, fbs, held.KernelTypeStrResolver())
    fbs.InferenceSession.Start(builder)
    fbs.InferenceSession.AddOrtVersion(builder, len(content) - at_version)
    fbs.InferenceSession.AddModel(builder, len(content) - model.Pos)
    fbs.InferenceSession.AddKernelTypeStrResolver(builder, kernels)
    builder.Finish(fbs.InferenceSession.End(builder), IDENTIFIER)
    return bytes(builder.Output())


class _Tables:
    """onnxruntime's modules that read and write the tables of its format, by the tables' names."""

    def __getattr__(self, name: str) -> Any:

        return import_module(f"ort_flatbuffers_py.fbs.{name}")


def _resolver(builder: Any, fbs: Any, held: Any) -> int:
    """The table of all operations, sorted by their names; and where it is in the builder."""
    kernels = fbs.KernelTypeStrResolver
    entries = [held.OpKernelTypeStrArgs(place) for place in range(held.OpKernelTypeStrArgsLength())]
    made = [_operation(builder, fbs, entry) for entry in sorted(entries, key=lambda each: bytes(each.OpId()))]
    vector = _vector(builder, kernels.StartOpKernelTypeStrArgsVector, made)
    kernels.Start(builder)
    kernels.AddOpKernelTypeStrArgs(builder, vector)
    return int(kernels.End(builder))


def _operation(builder: Any, fbs: Any, held: Any) -> int:
    operation = fbs.OpIdKernelTypeStrArgsEntry
    entries = [held.KernelTypeStrArgs(place) for place in range(held.KernelTypeStrArgsLength())]
    made = [_type(builder, fbs, entry) for entry in sorted(entries, key=lambda each: bytes(each.KernelTypeStr()))]
    vector, name = _vector(builder, operation.StartKernelTypeStrArgsVector, made), builder.CreateString(held.OpId())
    operation.Start(builder)
    operation.AddOpId(builder, name)
    operation.AddKernelTypeStrArgs(builder, vector)
    return int(operation.End(builder))


def _type(builder: Any, fbs: Any, held: Any) -> int:
    kind = fbs.KernelTypeStrArgsEntry
    made = [_argument(builder, fbs, held.Args(place)) for place in range(held.ArgsLength())]
    vector, name = _vector(builder, kind.StartArgsVector, made), builder.CreateString(held.KernelTypeStr())
    kind.Start(builder)
    kind.AddKernelTypeStr(builder, name)
    kind.AddArgs(builder, vector)
    return int(kind.End(builder))


def _argument(builder: Any, fbs: Any, held: Any) -> int:
    fbs.ArgTypeAndIndex.Start(builder)
    fbs.ArgTypeAndIndex.AddArgType(builder, held.ArgType())
    fbs.ArgTypeAndIndex.AddIndex(builder, held.Index())
    return int(fbs.ArgTypeAndIndex.End(builder))


def _vector(builder: Any, start: Any, made: Sequence[int]) -> int:
    start(builder, len(made))
    for offset in reversed(made):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
