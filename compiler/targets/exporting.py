"""What is the same for every target: its files are written, run in its runtime, compared with the module, and timed.

    missing(target)                                         why it can't be used here; None where it can
    export(target, slim, folder, options)                   the files, and a `TargetReport` of them
    export(..., ExportContext(dense=original))              with the original's size and latency beside

A target that fails fails alone: its report holds the error, and none of its files stay. The error tells the first step
of the model that the converter can't take, or after which values differ: the model is cut in halves to find it. What
converters and runtimes print is shown with the error, and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from packaging.requirements import Requirement
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import PlanError, PrunecError, Span, TargetError, first_line
from prunec.compiler.ir.inputs import batch_of, is_batched, map_tensors, tensors_in
from prunec.compiler.ir.modules import evaluating
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import fresh_inputs, with_batch
from prunec.compiler.targets.base import Array, Converted, ExportOptions, Session, Target
from prunec.compiler.targets.captured import Log, captured
from prunec.compiler.targets.child import workers
from prunec.compiler.targets.interleaved import run_seconds
from prunec.compiler.targets.sources import (
    at_batch,
    deployed,
    described,
    is_complex,
    is_foreign,
    steps,
    types_of,
    until,
)
from prunec.compiler.verify.compare import relative_difference
from prunec.compiler.verify.interpreter import Interpreter

THREADS: Final = (1, 2)
"""How many threads a runtime is timed with."""
TIMES_TORCH: Final = 10.0
"""How much farther from a float64 run a runtime may be than torch's float32 run, where they differ by more than the
target's tolerance."""
SEEDS: Final = (0, 1)
"""Of the random inputs on which parity is checked, beside the example's own kind."""
BATCHES: Final = (1, 3)
"""Batch sizes at which a file that takes any is checked."""
SECONDS: Final = 0.5
"""For about so long each file is timed with each number of threads."""

Progress = Callable[[int, int], None]
"""Told how many of how many steps of one export are done."""


@dataclass(frozen=True)
class Timed:
    """The latency of one number of threads, in seconds."""

    threads: int
    slim: float
    dense: float | None
    """None where there is no original, or it can't be converted."""


@dataclass(frozen=True)
class Int8Report:
    """The files in int8."""

    files: tuple[str, ...] = ()
    bytes: int = 0
    latency: tuple[Timed, ...] = ()
    metric: str = ""
    """What both were judged by on the plan's data; empty without data."""
    before: float | None = None
    """The metric of the float32 files in the runtime."""
    after: float | None = None
    share: bool = False
    """Whether the metric reads in per cent."""
    error: str = ""
    """Why there are none."""


@dataclass(frozen=True)
class TargetReport:
    """What was exported to one target, and what came of it."""

    target: str
    runtime: str
    """What executed it, with its version."""
    files: tuple[str, ...] = ()
    bytes: int = 0
    dense_bytes: int | None = None
    """The size of the original's files; None where it wasn't converted."""
    batch: int | None = None
    """The batch size that the file is fixed at; None where it takes any."""
    difference: float | None = None
    """The largest relative difference between runtime and module; None where it wasn't executed."""
    note: str = ""
    unrunnable: str = ""
    """Why it wasn't executed."""
    latency: tuple[Timed, ...] = ()
    int8: Int8Report | None = None
    error: str = ""
    """Why there are no files."""
    hint: str = ""
    log: str = ""
    """The end of what the converter printed, where it failed."""
    details: Any = None
    """Those of `Converted`."""
    example: int | None = None
    """The batch size of the program's example inputs."""

    @property
    def other_batch(self) -> int | None:
        """The batch size that the file is fixed at, where it isn't the example's."""
        return None if self.batch == self.example else self.batch

    @property
    def failed(self) -> bool:
        """Whether something that was asked for isn't there."""
        return bool(self.error or (self.int8 and self.int8.error))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of what was exported; what there isn't has no key."""
        told = asdict(replace(self, details=None, example=None))
        said = {key: value for key, value in told.items() if value not in (None, "", ())}
        return {**said, "files": list(self.files)}


Judge = Callable[[Callable[..., Any]], tuple[str, float]]
"""Measures the plan's metric on a model, called as the module is: the metric's name, and its value."""


@dataclass(frozen=True)
class Calibration:
    """What int8 is made and judged with."""

    samples: Callable[[int, int | None], Sequence[Sequence[Array]]]
    """The inputs of so many samples, in runs of this batch size; of any where it is None."""
    judge: Judge | None = None
    share: bool = False
    """Whether the metric reads in per cent."""


@dataclass(frozen=True)
class ExportContext:
    """What all exports of one program share."""

    dense: Program | None = None
    """The original, which is weighed and timed beside; None leaves it out."""
    timed: bool = True
    calibration: Calibration | None = None
    """None where there are no data."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Texts by their keys, for files that have a place for them."""


ALONE: Final = ExportContext()
"""Of a program without an original and without data."""


# -- whether it can be used ------------------------------------------------------------------------------------------


def missing(target: Target, int8: bool = False) -> TargetError | None:
    """Why a target can't be used on this machine, for `int8` or at all, with what to install; None where all that it
    needs is there."""
    hint = f"pip install 'prunec[{target.extra}]'; or leave {target.name} out" if target.extra else None
    for text in (*target.needs, *(target.int8_needs if int8 else ())):
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            return TargetError(f"{target.name} needs {need.name}, which isn't installed", hint=hint)
        if not need.specifier.contains(version, prereleases=True):
            message = f"{target.name} needs {need.name} {need.specifier}, and {version} is installed"
            return TargetError(message, hint=hint)
    return None


# -- one export ------------------------------------------------------------------------------------------------------


def export(
    target: Target,
    slim: Program,
    folder: Path,
    options: ExportOptions,
    context: ExportContext = ALONE,
    progress: Progress = lambda done, total: None,
) -> TargetReport:
    """Write a program's files for a target into a folder, run them there, and compare and time them.

    Nothing is raised for what is the target's, the converter's or the runtime's fault: the report tells it, and none of
    its files stay.
    """
    path = folder / f"model{target.suffixes[0]}"
    try:
        if (lacking := missing(target)) is not None:
            raise lacking
        with workers():
            found = Export(target, _fitting(target, slim), path, options, context).report(progress)
        return replace(found, example=batch_of(slim.inputs))
    except (TargetError, PlanError) as error:
        _remove(target, path)
        _remove(target, _in_int8(target, path))
        hint = error.hint or ""
        at = f", {error.at.file}:{error.at.line}" if error.at else ""
        return TargetReport(
            target.name, _name(target), error=f"{error.message}{at}", hint=hint, log=getattr(error, "log", "")
        )


def _name(target: Target) -> str:
    try:
        return target.describe()
    except Exception:  # whatever its packages raise where they aren't installed whole
        return target.name


def _fitting(target: Target, program: Program) -> Program:
    program = deployed(program)
    return at_batch(program, 1) if target.only_one else program


def _remove(target: Target, path: Path) -> None:
    for each in target.beside(path):
        shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)


def _in_int8(target: Target, path: Path) -> Path:
    return path.with_name(path.name.replace(target.suffixes[0], f".int8{target.suffixes[0]}"))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return (
        sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
    )


def way_out(target: Target, step: fx.Node | None = None) -> str:
    """What to do where a target can't take a step of the model, or all of it, and nothing better is known."""
    leave = f"leave {target.name} out of the exports; the other files don't need it"
    if step is None:
        return leave
    if is_foreign(step):
        return f"it is no operation of torch's own: write it in torch's, or {leave}"
    if is_complex(step):
        return f"compute it without complex numbers, such as with real and imaginary parts, or {leave}"
    strange = sorted(str(each) for each in types_of(step) if each.is_floating_point and each != torch.float32)
    return f"compute it in float32, not in {strange[0].removeprefix('torch.')}, or {leave}" if strange else leave


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """A context for the target's own code: what it raises becomes a `TargetError` with what was printed."""
    log = Log()
    try:
        with captured() as log:
            yield
    except PlanError:  # it tells of an option, and no step of the model is at fault
        raise
    except PrunecError as error:
        printed = getattr(error, "log", "") or log.text
        raise TargetError(error.message, at=error.at, hint=error.hint, log=printed) from error
    except Exception as error:  # converters and runtimes raise errors of many unrelated kinds
        raise TargetError(f"{what}: {first_line(error)}", log=log.text) from error


@dataclass(frozen=True)
class Export:
    """One export under way."""

    target: Target
    program: Program
    path: Path
    options: ExportOptions
    context: ExportContext = ALONE

    def report(self, progress: Progress) -> TargetReport:
        wants_int8 = self.options.int8 is not None
        total = 2 + self.context.timed + wants_int8
        progress(0, total)
        converted = self.convert()
        if self.context.metadata:
            with guarded("the file takes no metadata"):
                self.target.label(self.path, self.context.metadata)
        progress(1, total)
        files = self.target.beside(self.path)
        found = TargetReport(
            self.target.name,
            self.target.describe(),
            files=tuple(path.name for path in files),
            bytes=self._size(self.path),
            batch=converted.batch,
            note=converted.note or ("" if converted.batch is None else f"it takes batches of {converted.batch} alone"),
            unrunnable=self.target.unrunnable(),
            details=converted.details,
        )
        if not found.unrunnable:
            difference, note = self.compare(converted)
            found = replace(found, difference=difference, note="; ".join(filter(None, (found.note, note))))
        progress(2, total)
        if self.context.timed:
            found = self._with_times(found, converted)
            progress(3, total)
        if wants_int8:
            found = replace(found, int8=self.int8(converted.batch))
            progress(total, total)
        return found

    # -- converting ----------------------------------------------------------------------------------------------

    def convert(self) -> Converted:
        """Write the files. Raises `TargetError`, which tells the first step that can't be converted."""
        try:
            return self._convert(self.program, self.path)
        except TargetError as error:
            step = self._first(self._converts)
            raise self._placed(error, step) from error

    def _convert(self, program: Program, path: Path) -> Converted:
        with guarded("its converter fails"):
            with evaluating(program.module), torch.no_grad():
                converted = self.target.convert(program, path, self.options)
            absent = [each.name for each in self.target.beside(path) if not each.exists()]
            if absent:
                raise TargetError(f"its converter wrote no {absent[0]}")
        return converted

    def _converts(self, program: Program) -> bool:
        with TemporaryDirectory() as folder:
            try:
                self._convert(program, Path(folder) / self.path.name)
            except TargetError:
                return False
        return True

    # -- running and comparing -----------------------------------------------------------------------------------

    def load(self, path: Path, threads: int = 1) -> Session:
        """The files at `path`, loaded. Raises `TargetError`."""
        with guarded("its runtime can't load the file"):
            return self.target.load(path, threads)

    def compare(self, converted: Converted) -> tuple[float, str]:
        """The largest relative difference from the module, over several inputs; and a note where a float64 run had to
        decide. Raises `TargetError` for more than rounding, which tells the first step that differs."""
        try:
            found = self._compare(self.program, self.path, converted)
            return max(found, self._before_softmax(), key=lambda each: each[0])
        except TargetError as error:
            raise self._placed(error, self._first(self._agrees)) from error

    def _before_softmax(self) -> tuple[float, str]:
        """What `_compare` finds of a program that ends in a softmax, without it: probabilities that are nearly alike
        would hide a difference. Raises `TargetError`."""
        computed = steps(self.program)
        part = until(self.program, len(computed) - 1) if computed and _is_softmax(self.program, computed[-1]) else None
        if part is None:
            return 0.0, ""
        with TemporaryDirectory() as folder:
            path = Path(folder) / self.path.name
            return self._compare(part, path, self._convert(part, path))

    def _compare(self, program: Program, path: Path, converted: Converted) -> tuple[float, str]:
        opened = self.load(path)
        worst, told = 0.0, ""
        for inputs in inputs_for(program, converted.batch):
            with guarded("its runtime can't run the file"):
                got = list(opened.run(arrays(inputs)))
            expected = outputs(program.module, inputs)
            difference = relative_difference(got, expected)
            if difference > self.target.tolerance:
                told = self._arbitrated(program, inputs, got, expected, difference)
            worst = max(worst, difference)
        return worst, told

    def _arbitrated(
        self, program: Program, inputs: tuple[Any, ...], got: Sequence[Array], expected: Sequence[Array], found: float
    ) -> str:
        """Who is how far from a float64 run. Raises `TargetError` where it is the runtime that is far."""
        exact = outputs(lambda *given: Interpreter(program, torch.float64).run(given), inputs)
        ours, torchs = relative_difference(got, exact), relative_difference(expected, exact)
        figures = f"the runtime is {ours:.1e} from a float64 run, torch's float32 {torchs:.1e}"
        if not isfinite(ours) or not ours <= TIMES_TORCH * torchs:
            shapes = [value.shape for value in got], [value.shape for value in expected]
            other = f"gives outputs of {shapes[0]} for {shapes[1]}" if shapes[0] != shapes[1] else ""
            apart = other or f"computes something else than the module, by {found:.1e}"
            raise TargetError(
                f"the file {apart}: {figures}",
                hint="the difference is the converter's or the runtime's: another version of them may convert it",
            )
        return figures

    def _agrees(self, program: Program) -> bool:
        with TemporaryDirectory() as folder:
            path = Path(folder) / self.path.name
            try:
                self._compare(program, path, self._convert(program, path))
            except TargetError:
                return False
        return True

    def _first(self, good: Callable[[Program], bool]) -> fx.Node | None:
        """The first step with which the program isn't good any more; None where no part of it alone is bad."""
        computed = steps(self.program)
        low, high = 0, len(computed)  # the first `low` steps are good, the first `high` aren't
        while (found := _part(self.program, low, high)) is not None:
            count, part = found
            low, high = (count, high) if good(part) else (low, count)
        whole = until(self.program, high)
        if whole is not None and good(whole):
            return None
        return next(filter(types_of, computed[low:high]), None)

    def _placed(self, error: TargetError, step: fx.Node | None) -> TargetError:
        """The error with the step that it comes from, the line of the user's model, and a way out."""
        hint = error.hint or way_out(self.target, step)
        if step is None:
            return TargetError(error.message, at=error.at, hint=hint, log=error.log)
        message = f"{error.message}; it begins with {described(self.program, step)}"
        return TargetError(message, at=error.at or Span.of_line(step.meta.get("at")), hint=hint, log=error.log)

    def _size(self, path: Path) -> int:
        """Bytes of what an app ships."""
        shipped = (each for each in self.target.beside(path) if not each.name.endswith(self.target.aside or ("/",)))
        return sum(map(size_of, shipped))

    # -- times ---------------------------------------------------------------------------------------------------

    def _with_times(self, found: TargetReport, converted: Converted) -> TargetReport:
        """The report with the original's size and both latencies; the original's are left out where it can't be
        converted, and the note says why."""
        with TemporaryDirectory() as folder:
            paths = [self.path]
            if self.context.dense is not None:
                path = Path(folder) / self.path.name
                try:
                    paths = [self._original(_fitting(self.target, self.context.dense), path, converted), path]
                    found = replace(found, dense_bytes=self._size(path))
                except TargetError as error:
                    note = f"the original isn't timed: {error.message}"
                    found = replace(found, note="; ".join(filter(None, (found.note, note))))
            return found if found.unrunnable else replace(found, latency=self._times(*paths))

    def _original(self, dense: Program, path: Path, converted: Converted) -> Path:
        """Write the original's files, and give the slim one's to time beside them. Raises `TargetError`."""
        if converted.alike is None:
            self._convert(dense, path)
            return self.path
        with guarded("its converter fails"):
            return converted.alike(dense, path)

    def _times(self, slim: Path, dense: Path | None = None) -> tuple[Timed, ...]:
        """Both latencies with each number of threads; they take turns."""
        given = self.program.inputs
        fed = arrays(given)
        timed = []
        for threads in THREADS:
            with guarded("its runtime can't load the file"):
                sessions = [self.target.load_for(path, threads, given) for path in (slim, dense) if path is not None]
            alone = self.target.alone and threads == 1
            with guarded("its runtime can't run the file"):
                times = run_seconds([partial(opened.run, fed) for opened in sessions], SECONDS, alone=alone)
            timed.append(Timed(threads, *times, *(() if dense else (None,))))
        return tuple(timed)

    # -- int8 ----------------------------------------------------------------------------------------------------

    def int8(self, batch: int | None) -> Int8Report:
        """Write the files in int8 beside the others, and judge both in the runtime. What fails is told."""
        wanted, calibration = self.options.int8, self.context.calibration
        assert wanted is not None, "int8 was asked for"
        to = _in_int8(self.target, self.path)
        try:
            if not self.target.quantizes():
                raise TargetError(self.target.without_int8 or f"{self.target.name} has no int8 yet; leave out 'int8'")
            if (lacking := missing(self.target, int8=True)) is not None:
                raise lacking
            if calibration is None:
                raise TargetError("int8 is calibrated on data, and there are none")
            samples = calibration.samples(wanted.samples, batch)
            with guarded("int8 can't be made"), evaluating(self.program.module), torch.no_grad():
                self.target.quantize(self.program, self.path, to, self.options, samples)
            files = self.target.beside(to)
            found = Int8Report(tuple(path.name for path in files), self._size(to))
            if self.target.unrunnable():
                return found
            if calibration.judge is not None:
                (name, before), (_, after) = (calibration.judge(self.runs(path, batch)) for path in (self.path, to))
                found = replace(found, metric=name, before=before, after=after, share=calibration.share)
            return replace(found, latency=self._times(to)) if self.context.timed else found
        except PrunecError as error:
            _remove(self.target, to)
            return Int8Report(error=error.message)

    def runs(self, path: Path, batch: int | None) -> Callable[..., Any]:
        """The files at `path` as a function of the module's inputs that gives what the module gives."""
        return Runs(self.program, self.load(path), batch)


class Runs:
    """A loaded file, called as the module is; a batch that the file doesn't take is run in parts."""

    def __init__(self, program: Program, opened: Session, batch: int | None) -> None:
        self.opened = opened
        self.batch = batch
        self.structure = pytree.tree_structure(_values(program))

    def __call__(self, *inputs: Any) -> Any:
        """The outputs, nested as the module returns them."""
        size = batch_of(inputs)
        if self.batch is None or size is None or size == self.batch:
            return self._run(inputs)
        starts = range(0, size, self.batch)
        parts = [self._run(_rows(inputs, size, start, self.batch)) for start in starts]
        leaves = zip(*(pytree.tree_leaves(part) for part in parts), strict=True)
        whole = [torch.cat(list(values))[:size] if values[0].ndim else values[0] for values in leaves]
        return pytree.tree_unflatten(whole, self.structure)

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        with guarded("its runtime can't run the file"):
            got = self.opened.run(arrays(inputs))
        return pytree.tree_unflatten([torch.from_numpy(value.copy()) for value in got], self.structure)


def _values(program: Program) -> Any:
    """The outputs' nest; of values that are no tensors nothing is left."""
    return pytree.tree_map(lambda leaf: leaf, program.module(*map_tensors(torch.clone, program.inputs)))


def _rows(inputs: tuple[Any, ...], size: int, start: int, count: int) -> tuple[Any, ...]:
    """Some rows of a batch; the last ones again where it doesn't divide."""
    rows = torch.arange(start, start + count).clamp(max=size - 1)
    return tuple(map_tensors(lambda x: x[rows] if is_batched(x, size) else x, value) for value in inputs)


def _part(program: Program, low: int, high: int) -> tuple[int, Program] | None:
    """The part of a program that ends nearest to the middle between two numbers of steps, with its number; None where
    none ends between them: what flows there, such as complex numbers, is nothing to compare."""
    for count in sorted(range(low + 1, high), key=lambda count: abs(2 * count - low - high)):
        part = until(program, count)
        if part is not None:
            return count, part
    return None


def _is_softmax(program: Program, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(program.state[str(node.target)], nn.Softmax)
    return op_name(node) == "softmax"


# -- inputs and outputs ----------------------------------------------------------------------------------------------


def inputs_for(program: Program, batch: int | None) -> Iterator[tuple[Any, ...]]:
    """Inputs on which a file is compared with the module: the example's own kind at each batch size that the file
    takes, and random ones."""
    own = batch_of(program.inputs)
    sizes = {own or 1, *BATCHES} if batch is None and own is not None else {own}
    for size in sorted(sizes, key=lambda each: each or 0):
        yield with_batch(program, size) if size is not None else program.inputs
    yield program.inputs
    for seed in SEEDS:
        yield fresh_inputs(program, own, seed)


def arrays(inputs: Any) -> list[Array]:
    """The tensors in a nest of inputs."""
    return [value.detach().contiguous().numpy(force=True) for value in tensors_in(inputs)]


def outputs(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Array]:
    """The tensors that a function gives, in order. The inputs are copied: a model may write into them."""
    with torch.no_grad():
        found = pytree.tree_leaves(function(*map_tensors(torch.clone, inputs)))
    return [leaf.numpy(force=True) for leaf in found if isinstance(leaf, torch.Tensor)]
