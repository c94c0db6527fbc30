"""ONNX: export a program, check the file, run it with onnxruntime and compare it with the module.

The direct writer (`targets/onnx`) writes the file where it knows every operation of the program; else, and where its
file isn't what the module computes, torch's exporter does, and the report says why.

The batch dimension stays dynamic where the model allows it; where it doesn't, the file is static and the report says
why. A difference is relative, `max|onnx - torch| / max|torch|`, because a network's outputs may be of any size. Two
float32 runtimes differ by 1e-7 to 1e-6 (they add in another order). Where they differ by more than 1e-5, a float64
run of the module decides: deep networks with cancellation are as far from the truth in torch as in onnxruntime.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import ModelError, PlanError, VerifyError, first_line
from prunec.compiler.ir.devices import on_device
from prunec.compiler.ir.inputs import batch_of, is_batched, map_tensors, names_of, tensors_in
from prunec.compiler.ir.modules import evaluating
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import with_batch
from prunec.compiler.targets.base import Array, Feed
from prunec.compiler.targets.onnx.call import Declined
from prunec.compiler.targets.onnx.writer import LARGEST, write
from prunec.compiler.targets.ort_session import feed, session
from prunec.compiler.verify.compare import relative_difference
from prunec.compiler.verify.interpreter import Interpreter

TOLERANCE = 1e-5
"""The largest relative difference that passes without a look at a float64 run."""
TIMES_TORCH = 10.0
"""How much farther from the float64 run onnxruntime may be than torch's float32 run."""
OLDEST_OPSET = 18
"""Torch's exporter writes nothing older, and doesn't say so."""
BATCHES = (1, 3)
"""Batch sizes at which a file with an open batch is checked, beside the example's."""

Values = tuple[Any, ...]
Open = frozenset[str]
"""The names of sizes that the file leaves open."""
IMAGE: Open = frozenset({"height", "width"})
"""Open sizes of images."""


Weights = Literal["inside", "beside"] | None
"""Where the weights are: in the ONNX file, in one beside it, or there if one file can't hold them."""
Writer = Literal["direct", "torch"]
"""What wrote a file: the direct writer, or torch's exporter."""


@dataclass(frozen=True)
class OnnxReport:
    """What was exported, and how near it is to the module."""

    opset: int
    ir_version: int
    bytes: int
    dynamic_batch: bool
    static_reason: str
    """Why the batch size is fixed; empty where it isn't."""
    differences: Mapping[int, float]
    """Batch size -> largest relative difference between onnxruntime and torch."""
    max_difference: float
    float64_note: str
    """Where the difference is over the tolerance: how far both are from a float64 run. Else empty."""
    writer: Writer
    fallback: str
    """Why the direct writer didn't write it, with the operation that stood in its way; empty where it did."""


@dataclass(frozen=True)
class Check:
    """How near onnxruntime is to torch at one batch size; the note is the report's `float64_note`."""

    difference: float
    note: str = ""


Checks = dict[int, Check]


@dataclass(frozen=True)
class _Written:
    """A file that was written and compared with the module."""

    model: onnx.ModelProto
    checks: Checks
    writer: Writer
    fallback: str = ""


def export_onnx(
    program: Program,
    path: Path,
    *,
    opset: int = 20,
    dynamic: Collection[str] = ("batch",),
    weights: Weights = None,
) -> OnnxReport:
    """Write the program as an ONNX file, and compare it with the module.

    `dynamic` are the sizes to leave open: `batch` where the model allows it, `height` and `width` (the last dimensions
    of inputs that have four) or the export fails. The same program gives the same bytes. Raises `PlanError` for an
    opset that can't be written, `ModelError` where an operation has no ONNX form or a size can't be left open,
    `VerifyError` where onnxruntime computes something else than the module. Of a program of both modes, the half of
    eval mode is exported. The weights stand inside the file, or `beside` it, in one of the same name with `.data`
    behind; None puts those beside that are too large for one file.
    """
    program = _deployed(program)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise PlanError(f"opset {opset} can't be exported", hint=f"valid: {OLDEST_OPSET} to {newest}")
    if any(tensor.dtype == torch.bfloat16 for tensor in (*program.tensors.values(), *tensors_in(program.inputs))):
        raise ModelError("a model in bfloat16 can't be checked as ONNX", hint="onnxruntime's CPU runs no bfloat16")
    with evaluating(program.module), torch.no_grad():
        written, reason = _export(program, path, opset, frozenset(dynamic), weights)
    data = data_of(path)
    worst = max(written.checks.values(), key=lambda check: check.difference)
    return OnnxReport(
        opset=opset,
        ir_version=written.model.ir_version,
        bytes=path.stat().st_size + (data.stat().st_size if data.exists() else 0),
        dynamic_batch=not reason,
        static_reason=reason,
        differences={size: check.difference for size, check in written.checks.items()},
        max_difference=worst.difference,
        float64_note=worst.note,
        writer=written.writer,
        fallback=written.fallback,
    )


def data_of(path: Path) -> Path:
    """The file with the weights of the ONNX file at `path`, where they are beside it."""
    return path.with_name(f"{path.name}.data")


def write_alike(slim: Program, file: Path, report: OnnxReport, program: Program, path: Path) -> Path:
    """Write another program as an ONNX file of fixed sizes, unchecked, by the writer of the slim one's `file`; and give
    the file whose times compare with it: where the other can't be written so, both are by torch's exporter.

    Raises `ModelError` where there is none.
    """
    if sum(tensor.nbytes for tensor in program.tensors.values()) > LARGEST:
        raise ModelError("its weights are too large for one file")
    if report.writer == "direct":
        with contextlib.suppress(Declined):
            path.write_bytes(direct_bytes(program, report.opset))
            return file
        file = path.with_name(f"slim_{path.name}")
        file.write_bytes(_bytes_by_torch(_deployed(slim), report.opset))
    path.write_bytes(_bytes_by_torch(_deployed(program), report.opset))
    return file


def onnx_bytes(program: Program, opset: int = 20) -> bytes:
    """The program in eval mode as an ONNX model of fixed sizes, unchecked. Raises `ModelError` where there is none."""
    (found,) = comparable_bytes([program], opset)
    return found


def comparable_bytes(programs: Sequence[Program], opset: int = 20, *, writer: Writer = "direct") -> list[bytes]:
    """ONNX models of fixed sizes of several programs, unchecked and all by one writer, so that their times compare: by
    torch's exporter where the direct writer declines one of them. Raises `ModelError` where there is none."""
    if writer == "direct":
        try:
            return [direct_bytes(program, opset) for program in programs]
        except Declined:
            pass
    return [_bytes_by_torch(_deployed(program), opset) for program in programs]


def direct_bytes(program: Program, opset: int, *, open_batch: bool = False) -> bytes:
    """The program in eval mode as the direct writer writes it, unchecked. Raises `Declined` where it can't."""
    return bytes(_write_directly(_deployed(program), opset, open_batch).SerializeToString())


def _bytes_by_torch(program: Program, opset: int) -> bytes:
    with evaluating(program.module), torch.no_grad():
        model = _convert(program, opset, frozenset())
    _strip_all(model)
    return bytes(model.SerializeToString())


def onnx_feed(model: bytes, program: Program) -> Feed:
    """The program's example inputs, by the names that they have in its ONNX model."""
    names = [entry.name for entry in onnx.load_from_string(model).graph.input]
    inputs = tensors_in(program.deployed.inputs)
    return {name: value.detach().numpy(force=True) for name, value in zip(names, inputs, strict=True)}


def _deployed(program: Program) -> Program:
    """What is exported: the half of eval mode, on the CPU."""
    return on_device(program.deployed, torch.device("cpu"))


# --- exporting ---------------------------------------------------------------------------------------------------


def _batch(program: Program) -> int:
    return batch_of(program.inputs) or 1


def _export(program: Program, path: Path, opset: int, dynamic: Open, weights: Weights) -> tuple[_Written, str]:
    """The file, and why its batch size is fixed; empty where it is open."""
    reason = _why_static(program) if "batch" in dynamic else "the plan leaves it out of 'dynamic'"
    if not reason:
        try:
            return _write_and_check(program, path, opset, dynamic, weights), ""
        except VerifyError as error:  # such as `x.squeeze()`, which gives a batch of 1 another shape
            reason = error.message
        except ModelError as error:
            if _operator_in(error.__cause__):
                raise
            reason = error.message
    return _write_and_check(program, path, opset, dynamic - {"batch"}, weights), reason


def _write_and_check(program: Program, path: Path, opset: int, dynamic: Open, weights: Weights) -> _Written:
    """Write the file with these sizes open, and compare it with the module at several sizes; by torch's exporter where
    the direct writer can't."""
    try:
        if IMAGE & dynamic:
            raise Declined("the size of images is left open")
        model = _write_directly(program, opset, "batch" in dynamic, one_file=False)
        return _Written(model, _check(program, path, model, dynamic, weights), "direct")
    except Declined as error:
        fallback = str(error)
    except (ModelError, VerifyError) as error:
        fallback = f"its file fails the check: {error.message}"
    model = _convert(program, opset, dynamic)
    _strip_all(model)
    written = {entry.domain: entry.version for entry in model.opset_import}[""]
    if written != opset:
        raise PlanError(f"opset {opset} can't be exported", hint=f"for this model the exporter gives opset {written}")
    return _Written(model, _check(program, path, model, dynamic, weights), "torch", fallback)


def _write_directly(program: Program, opset: int, open_batch: bool, *, one_file: bool = True) -> onnx.ModelProto:
    names = input_names(program), output_names(program.graph)
    return write(program, opset=opset, open_batch=open_batch, inputs=names[0], outputs=names[1], one_file=one_file)


def _save(model: onnx.ModelProto, path: Path, weights: Weights) -> None:
    """Write the model's file, and where they go there, its weights beside; then the model holds them no more."""
    data_of(path).unlink(missing_ok=True)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights == "beside" or (weights is None and size > LARGEST):
        onnx.external_data_helper.convert_model_to_external_data(
            model, location=data_of(path).name, size_threshold=1024
        )
        onnx.external_data_helper.write_external_data_tensors(model, str(path.parent))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _check(program: Program, path: Path, model: onnx.ModelProto, dynamic: Open, weights: Weights) -> Checks:
    """Write the model's file, and compare it with the module at several sizes."""
    try:
        _save(model, path, weights)
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        path.unlink(missing_ok=True)
        data_of(path).unlink(missing_ok=True)
        raise ModelError(f"the exporter made a graph that is no valid ONNX: {first_line(error)}") from error
    opened = session(path)
    sizes = sorted({_batch(program), *(BATCHES if "batch" in dynamic else ())})
    checks = {size: _compare(opened, program, with_batch(program, size), size) for size in sizes}
    if IMAGE & dynamic:
        larger = map_tensors(lambda value: _larger(value, dynamic), with_batch(program, sizes[0]))
        other = _compare(opened, program, larger)
        checks[sizes[0]] = max(checks[sizes[0]], other, key=lambda check: check.difference)
    return checks


def _convert(program: Program, opset: int, dynamic: Open) -> onnx.ModelProto:
    for name, module in program.state.items():
        if isinstance(module, nn.LSTM) and module.proj_size:  # the exporter leaves the projection out
            message = f"ONNX has no form of an LSTM that projects its state, as {name} does"
            raise ModelError(message)
    # A batch of 1 would let the exporter take the 1 for a constant.
    inputs = with_batch(program, max(_batch(program), 2)) if "batch" in dynamic else program.inputs
    dims: dict[str, Any] = {name: torch.export.Dim(name) for name in sorted(dynamic)}
    old = batch_of(program.inputs)
    shapes = tuple(map_tensors(lambda x: _open_dims(x, old, dims), value) for value in program.inputs)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program.module,  # its `forward` has a signature, unlike that of a module without code
                inputs,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=shapes if dims else None,
                input_names=input_names(program),
                output_names=output_names(program.graph),
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many unrelated kinds
        raise _refusal(error) from error
    assert exported is not None, "torch.onnx.export gave no program"
    model = exported.model_proto
    if "batch" in dynamic and not any(value.type.tensor_type.shape.dim[0].dim_param for value in _ranked(model)):
        raise ModelError(f"the exporter can't leave the batch size open, and fixed it at {max(_batch(program), 2)}")
    for place, name in ((2, "height"), (3, "width")):
        sizes = [value.type.tensor_type.shape.dim for value in _ranked(model)]
        if name in dynamic and not any(len(dims) == 4 and dims[place].dim_param for dims in sizes):
            raise ModelError(f"the {name} can't be left open: the model is made for one", hint=f"export without {name}")
    return model


def _open_dims(value: torch.Tensor, batch: int | None, dims: Mapping[str, Any]) -> dict[int, Any] | None:
    """Dimension -> its symbol, for the open dimensions of an input; None where it has none."""
    places = {"batch": 0} if is_batched(value, batch) else {}
    places |= {"height": 2, "width": 3} if value.ndim == 4 else {}
    return {place: dims[name] for name, place in places.items() if name in dims} or None


def _larger(value: torch.Tensor, dynamic: Open) -> torch.Tensor:
    """An image of twice the size along its open dimensions: a model that wants multiples of a size takes it."""
    if value.ndim != 4:
        return value
    return value.repeat(1, 1, 2 if "height" in dynamic else 1, 2 if "width" in dynamic else 1)


def _ranked(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that aren't scalars."""
    return [value for value in model.graph.input if value.type.tensor_type.shape.dim]


def _why_static(program: Program) -> str:
    """Why the batch size can't be left open; empty where the model runs at several."""
    if batch_of(program.inputs) is None:
        return "no input has a batch dimension"
    for size in BATCHES:
        try:
            with _quiet():  # fx prints the code of a module that fails
                _outputs(program, size)
        except Exception as error:  # whatever the model's own code raises
            return f"the model doesn't run on a batch of {size}: {first_line(error)}"
    return ""


def _strip_all(model: onnx.ModelProto) -> None:
    for part in (model.graph, *model.functions):
        _strip(part)


def _strip(part: Any) -> None:
    """Take out the exporter's notes: they name files of this machine, and are longer than many a graph."""
    for repeated in ("input", "output", "value_info", "initializer", "node"):
        for item in getattr(part, repeated, ()):
            if hasattr(item, "metadata_props"):
                del item.metadata_props[:]
            for attribute in getattr(item, "attribute", ()):
                for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                    _strip(graph)
    del part.metadata_props[:]


def input_names(program: Program) -> list[str]:
    """A name for each tensor: the input's, with the keys that lead to it."""
    inputs = zip(program.graph.find_nodes(op="placeholder"), program.inputs, strict=True)
    return [name for node, value in inputs for name in names_of(str(node.target), value)]


def output_names(graph: fx.Graph) -> list[str]:
    """Names from the keys of a dict, with the keys that lead on to nested tensors; or `output`, `output_1`, ..."""
    returned = next(node for node in graph.nodes if node.op == "output").args[0]
    values = pytree.tree_map(lambda leaf: leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf, returned)
    if isinstance(values, dict):
        return [name for key, value in values.items() for name in names_of(str(key), value)]
    count = sum(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(values))
    return [f"output_{index}" if index else "output" for index in range(count)]


def _operator_in(error: BaseException | None) -> str:
    """The operation that the exporter's error names: `aten.linalg_eig`; empty where it names none."""
    while error is not None:
        match = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", str(error))
        if match:
            return match[1]
        error = error.__cause__
    return ""


def _refusal(error: Exception) -> ModelError:
    operator = _operator_in(error)
    if operator:
        return ModelError(f"ONNX has no form of the operation '{operator}'")
    return ModelError(f"torch's ONNX exporter can't take this model: {first_line(error)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, warns and logs; nothing of it is for the user of a compile."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(disabled)


# --- comparing ---------------------------------------------------------------------------------------------------


def _compare(opened: Any, program: Program, inputs: Values, known: int | None = None) -> Check:
    """Compare onnxruntime with the module on these inputs; `known` is their batch where they are `with_batch`'s own.

    Raises `VerifyError` for more than rounding.
    """
    size = batch_of(inputs) or 1
    try:
        got = opened.run(None, feed(opened, inputs))
    except Exception as error:  # onnxruntime's errors have no root of their own
        raise VerifyError(f"onnxruntime can't run the ONNX file at batch {size}: {first_line(error)}") from error
    expected = _run(program.module, inputs) if known is None else _outputs(program, known)
    difference = relative_difference(got, expected)
    if difference <= TOLERANCE:
        return Check(difference)
    exact = _run(lambda *given: Interpreter(program, torch.float64).run(given), inputs)
    ours, torchs = relative_difference(got, exact), relative_difference(expected, exact)
    figures = f"onnxruntime is {ours:.1e} from the float64 run, torch's float32 {torchs:.1e}"
    if not isfinite(ours) or not ours <= TIMES_TORCH * torchs:
        raise VerifyError(f"the ONNX file differs from the module by {difference:.1e} at batch {size}: {figures}")
    return Check(difference, figures)


def _outputs(program: Program, size: int) -> list[Array]:
    """What the module gives for `with_batch` inputs, run once for whoever asks."""
    return program.cached(f"outputs of batch {size}", lambda: _run(program.module, with_batch(program, size)))


def _run(module: Callable[..., Any], inputs: Values) -> list[Array]:
    """The module's tensors in the order of ONNX outputs. The inputs are copied: a model may write into them."""
    outputs = pytree.tree_leaves(module(*map_tensors(torch.clone, inputs)))
    return [leaf.numpy(force=True) for leaf in outputs if isinstance(leaf, torch.Tensor)]
