"""The check of every rewrite: the new program against an independent reading of the old one.

    report = verify(after, Masked(before, removed), pass_name="shrink")
    report.difference       3.1e-07: the largest relative difference of any output
    report.dtype            'float32', or 'float64' where float32 was too coarse to tell
    report.batches          (2, 3)

Both run in evaluation mode on fresh random inputs of several batch sizes. A difference of an output is
`max|new - old| / max|old|`. A mismatch is never the user's fault: it raises `VerifyError`, which names the pass and the
first node whose value differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir import Program
from prunec.compiler.masks import FREE, Marked
from prunec.compiler.reference import Interpreter, Masked, Reference, Replaced, Same, StepError, describe

__all__ = ["Masked", "Reference", "Replaced", "Same", "Verification", "difference", "fresh_inputs", "verify"]

TOLERANCE: Final[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(frozen=True)
class Verification:
    """What was compared, and how close it came."""

    difference: float
    dtype: str
    batches: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "batches": list(self.batches)}


@dataclass(frozen=True)
class _Trial:
    """One comparison of outputs: the batch size, the inputs and the largest relative difference."""

    batch: int
    inputs: tuple[Tensor, ...]
    difference: float


def verify(
    after: Program, reference: Reference, *, pass_name: str, seed: int = 0, batches: Sequence[int] = (2, 3)
) -> Verification:
    """Compare the outputs of `after` with the reference's, in float32 and, where these differ, in float64.

    A batch size that the old program itself refuses is left out; if it refuses all, the example's own is taken.
    Raises `VerifyError` where they differ in float64 too, and where the reference finds the rewrite inconsistent.
    """
    try:
        for dtype in _dtypes(reference.before):
            trials = _trials(after, reference, dtype, seed, batches)
            worst = max(trials, key=lambda trial: trial.difference)
            if worst.difference <= TOLERANCE[dtype]:
                name = str(dtype).removeprefix("torch.")
                return Verification(worst.difference, name, tuple(trial.batch for trial in trials))
        culprit = _first_difference(after, reference, worst, dtype)
    except (VerifyError, StepError) as error:
        raise VerifyError(f"pass '{pass_name}' can't be checked: {error}") from error
    raise VerifyError(f"pass '{pass_name}' changed what the program computes: {culprit}")


def _trials(
    after: Program, reference: Reference, dtype: torch.dtype, seed: int, batches: Sequence[int]
) -> list[_Trial]:
    """One trial for each batch size that the old program takes, or one of the example's size."""
    inputs = reference.before.inputs
    batched = bool(inputs) and all(x.ndim and x.shape[0] == inputs[0].shape[0] for x in inputs)
    for sizes in (tuple(batches) if batched else (), (None,)):
        tried = [_trial(after, reference, dtype, seed, batch) for batch in sizes]
        if found := [trial for trial in tried if trial is not None]:
            break
    return found


def _trial(after: Program, reference: Reference, dtype: torch.dtype, seed: int, batch: int | None) -> _Trial | None:
    """Outputs compared on one batch; None where the old program itself is made for another batch size."""
    inputs = fresh_inputs(reference.before, batch, seed)
    size = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
    try:
        with _seeded(seed):
            want = reference.run(inputs, dtype)
    except StepError:
        if batch is None or _accepts(reference.before, inputs, dtype):
            raise
        return None
    try:
        with _seeded(seed):
            got = Interpreter(after, dtype).run(inputs)
    except StepError:
        return _Trial(size, inputs, float("inf"))
    return _Trial(size, inputs, difference(got, want))


def _accepts(program: Program, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
    try:
        Interpreter(program, dtype).run(inputs)
    except StepError:
        return False
    return True


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Programs that draw random numbers draw the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _dtypes(program: Program) -> tuple[torch.dtype, ...]:
    """float32 and then float64; float64 alone for models of another precision."""
    used = {t.dtype for t in (*program.tensors.values(), *program.inputs) if t.is_floating_point()}
    return (torch.float32, torch.float64) if used <= {torch.float32} else (torch.float64,)


def fresh_inputs(program: Program, batch: int | None, seed: int) -> tuple[Tensor, ...]:
    """Seeded random inputs like the program's: normal, or up to the example's largest integer.

    `batch` replaces the first dimension of every input; None keeps the example's.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_fresh(example, batch, generator) for example in program.inputs)


def _fresh(example: Tensor, batch: int | None, generator: torch.Generator) -> Tensor:
    shape = example.shape if batch is None else (batch, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(example)
    low, high = (int(x) for x in (example.min(), example.max())) if example.numel() else (0, 0)
    return torch.randint(min(low, 0), max(high, 0) + 1, tuple(shape), generator=generator).to(example)


def difference(got: Any, want: Any) -> float:
    """The largest relative difference between two nests of outputs; infinite where their structure isn't the same."""
    (new, new_spec), (old, old_spec) = pytree.tree_flatten(got), pytree.tree_flatten(want)
    if new_spec != old_spec:
        return float("inf")
    return max((_leaf_difference(a, b) for a, b in zip(new, old, strict=True)), default=0.0)


def _leaf_difference(got: Any, want: Any) -> float:
    if not isinstance(want, Tensor):
        return 0.0 if got is want or got == want else float("inf")
    if not isinstance(got, Tensor) or got.shape != want.shape or got.is_floating_point() != want.is_floating_point():
        return float("inf")
    if not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else float("inf")
    finite = want.isfinite()
    if not torch.allclose(got[~finite], want[~finite], equal_nan=True) or not bool(got[finite].isfinite().all()):
        return float("inf")
    distance, scale = ((x.abs().max() if x.numel() else x.sum()) for x in (got[finite] - want[finite], want[finite]))
    return 0.0 if float(distance) == 0 else float(distance / scale)


@dataclass(frozen=True)
class _Comparison:
    """One node's value in both programs."""

    difference: float
    got: tuple[int, ...]
    want: tuple[int, ...]


def _first_difference(after: Program, reference: Reference, trial: _Trial, dtype: torch.dtype) -> str:
    """A sentence on the first node that differs, and that the difference of the output comes from.

    A rewrite may change a value on purpose (a convolution with a batch norm folded in). Then the values agree again
    further on, so only those nodes count from which a path of nodes that don't agree leads to the output.
    """
    got, crash = _all_values(after, trial.inputs, dtype)
    compared: dict[fx.Node, _Comparison | None] = {}
    with _seeded(0):
        for node, value in reference.values(trial.inputs, dtype):
            compared[node] = _compare(value, got[node.name]) if node.name in got else None
    tolerance = TOLERANCE[dtype]
    agreeing = {node for node, found in compared.items() if found is not None and found.difference <= tolerance}
    reached = _leading_to_output(compared, agreeing)
    for node, found in compared.items():
        if found is not None and node in reached:
            return (
                f"{describe(node)} is the first whose value differs: relative difference {found.difference:.2g} in "
                f"{str(dtype).removeprefix('torch.')}, shape {found.got}, expected {found.want}"
            ) + (f"; then {crash}" if crash else "")
    return str(crash) if crash else "the outputs differ, but no node that both programs have does"


def _all_values(program: Program, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[dict[str, Any], str]:
    """Every value by its node's name (copies, as later nodes may write in place), and where the run broke off."""
    values: dict[str, Any] = {}
    try:
        with _seeded(0):
            for node, value in Interpreter(program, dtype).steps(inputs):
                values[node.name] = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)
    except StepError as error:
        return values, str(error)
    return values, ""


def _leading_to_output(order: Iterable[fx.Node], agreeing: Set[fx.Node]) -> Set[fx.Node]:
    """The nodes from which a path of nodes that don't agree leads to the output."""
    reached: set[fx.Node] = set()
    for node in reversed(list(order)):
        if node not in agreeing and (node.op == "output" or any(user in reached for user in node.users)):
            reached.add(node)
    return reached


def _compare(want: Any, got: Any) -> _Comparison | None:
    """Two values of a node, the old one without its removed elements; None where that can't be told.

    Sizes and other numbers may well differ. Kept elements stand in the same order in both, whatever the shape.
    """
    olds = [leaf for leaf in pytree.tree_leaves(want) if isinstance(leaf, Tensor | Marked)]
    news = [leaf for leaf in pytree.tree_leaves(got) if isinstance(leaf, Tensor)]
    if not olds or len(olds) != len(news):
        return None
    found = [_compare_tensors(old, new) for old, new in zip(olds, news, strict=True)]
    known = [comparison for comparison in found if comparison is not None]
    return max(known, key=lambda comparison: comparison.difference) if len(known) == len(found) else None


def _compare_tensors(want: Tensor | Marked, got: Tensor) -> _Comparison | None:
    if not isinstance(want, Marked):
        return _Comparison(_leaf_difference(got, want), tuple(got.shape), tuple(want.shape))
    kept = want.kept
    if bool((want.marks == FREE).any()) and int(kept.sum()) != got.numel():
        return None
    shape = tuple(int(_any_but(kept, dim).sum()) for dim in range(kept.ndim))
    return _Comparison(_leaf_difference(got.flatten(), want.data[kept]), tuple(got.shape), shape)


def _any_but(kept: Tensor, dim: int) -> Tensor:
    """Which positions of a dimension hold anything kept."""
    return kept.movedim(dim, 0).flatten(1).any(1) if kept.ndim > 1 else kept
