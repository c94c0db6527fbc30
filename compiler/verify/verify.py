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

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import SMALLER, fresh_inputs, is_large, seeded
from prunec.compiler.verify.compare import difference, leaf_difference, magnitude, parts
from prunec.compiler.verify.masks import FREE, REMOVED, Marked, plain
from prunec.compiler.verify.reference import Interpreter, Reference, StepError, describe

TOLERANCE: Final[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float64: 1e-9}

VIEWS: Final = frozenset(
    "view reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes movedim contiguous getitem".split()
)
"""Operations that compute nothing."""

BLANK: Final = frozenset("empty empty_like empty_strided new new_empty new_empty_strided".split())
"""Operations that make memory and leave it as it is."""

ROUNDED: Final[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The tolerance where weights were computed anew and rounded to this type."""


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
    inputs: tuple[Any, ...]
    difference: float


def verify(
    after: Program,
    reference: Reference,
    *,
    pass_name: str,
    seed: int = 0,
    batches: Sequence[int] | None = None,
    exact: bool = False,
) -> Verification:
    """Compare `after` with the reference, in float32 and, where these differ, in float64.

    Outputs are compared; where the reference is `nodewise`, every node's value is, each relative to its own size: so a
    fault shows even in a network whose output hardly depends on its input.
    `exact` compares in float64 alone, which also tells faults in branches that hardly count yet, such as blocks behind
    a tiny layer scale. The batches hold two and three samples, or one and two where samples are large; then all but the
    first hold smaller images, if the old program takes them: a difference there counts only if full ones show it, too.
    A batch size that the old program itself refuses is left out; if it refuses all, the example's own is taken.
    Raises `VerifyError` where they differ in float64 too, and where the reference finds the rewrite inconsistent.
    """
    batches = batches or _batches(reference.before)
    try:
        for dtype in (torch.float64,) if exact else _dtypes(reference.before):
            trials = _trials(after, reference, dtype, seed, batches)
            worst = max(trials, key=lambda trial: trial.difference)
            if worst.difference <= _tolerance(reference, dtype, exact):
                name = str(dtype).removeprefix("torch.")
                return Verification(worst.difference, name, tuple(trial.batch for trial in trials))
        culprit = _first_difference(after, reference, worst, dtype, _tolerance(reference, dtype, exact))
    except (VerifyError, StepError) as error:
        raise VerifyError(f"pass '{pass_name}' can't be checked: {error}") from error
    raise VerifyError(f"pass '{pass_name}' changed what the program computes: {culprit}")


def _batches(program: Program) -> tuple[int, ...]:
    """Two sizes, smaller ones for clips and volumes: what is run grows with their sum."""
    return (1, 2) if is_large(program) else (2, 3)


def _tolerance(reference: Reference, dtype: torch.dtype, exact: bool) -> float:
    """How far outputs may be apart. A pass that computes weights anew has rounded each of them once, which no wider run
    takes back; gathered weights are the old ones, bit for bit."""
    if exact or reference.nodewise:
        return TOLERANCE[dtype]
    kinds = {t.dtype for t in reference.before.tensors.values() if t.is_floating_point()}
    return max((ROUNDED[kind] for kind in kinds if kind in ROUNDED), default=TOLERANCE[dtype])


def _trials(
    after: Program, reference: Reference, dtype: torch.dtype, seed: int, batches: Sequence[int]
) -> list[_Trial]:
    """One trial for each batch size that the old program takes; or one of the example's size; or one on the example
    itself, where the model is made for certain values."""
    before = reference.before
    small = is_large(before)
    for sizes in (batches if batch_of(before.inputs) else (), [None]):
        tried = [_sized(after, reference, dtype, seed, size, small and i > 0) for i, size in enumerate(sizes)]
        if found := [trial for trial in tried if trial is not None]:
            return found
    return [_compared(after, reference, dtype, seed, before.inputs)]


def _sized(
    after: Program, reference: Reference, dtype: torch.dtype, seed: int, batch: int | None, small: bool
) -> _Trial | None:
    """A trial on a fresh batch; on small images, where these are wanted, taken, and show no difference.

    Numbers in the graph may mean the example's size. So a small image may be read wrongly by both programs, each in its
    own way: it can't convict, and full ones decide.
    """
    before = reference.before
    quick = _trial(after, reference, dtype, seed, fresh_inputs(before, batch, seed, SMALLER)) if small else None
    if quick is not None and quick.difference <= TOLERANCE[dtype]:
        return quick
    return _trial(after, reference, dtype, seed, fresh_inputs(before, batch, seed))


def _trial(
    after: Program, reference: Reference, dtype: torch.dtype, seed: int, inputs: tuple[Any, ...]
) -> _Trial | None:
    """Outputs compared on one batch; None where the old program itself doesn't take it."""
    try:
        return _compared(after, reference, dtype, seed, inputs)
    except StepError:
        if _accepts(reference.before, inputs, dtype):
            raise
        return None


def _compared(after: Program, reference: Reference, dtype: torch.dtype, seed: int, inputs: tuple[Any, ...]) -> _Trial:
    """Outputs compared on one batch. Raises `StepError` where the old program doesn't take it."""
    size = batch_of(inputs) or 1
    if reference.nodewise and _same_nodes(reference.before, after):
        return _Trial(size, inputs, _nodewise_difference(after, reference, inputs, dtype, seed))
    with seeded(seed):
        want = reference.run(inputs, dtype)
    try:
        with seeded(seed):
            got = Interpreter(after, dtype).run(inputs)
    except StepError:
        return _Trial(size, inputs, float("inf"))
    return _Trial(size, inputs, difference(got, want))


def _same_nodes(before: Program, after: Program) -> bool:
    """Whether the new program has the nodes of the old one in their order, and perhaps others between them. Tensors and
    sizes that nobody reads any more may be gone, and so may views, of which others do the work."""
    present = [node.name for node in after.graph.nodes]
    names, known = iter(present), set(present)
    return all(node.name in names for node in before.graph.nodes if node.name in known or _computes(node))


def _computes(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op != "get_attr" and not _views(node) and (value is None or isinstance(value, Tensor))


def _views(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and name in VIEWS


def _is_blank(node: fx.Node) -> bool:
    """Whether a value is memory that nothing was written into yet: it holds anything."""
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and name in BLANK


def _nodewise_difference(
    after: Program, reference: Reference, inputs: tuple[Any, ...], dtype: torch.dtype, seed: int
) -> float:
    """The largest relative difference of any node's value; both programs run side by side, and values are freed.

    What `_excused` excuses isn't counted. Views and blank memory aren't compared: what is wrong shows in what reads it.
    """
    sizes: dict[fx.Node, float] = {}
    worst = 0.0
    present = {node.name for node in after.graph.nodes}
    with seeded(seed):
        ours = Interpreter(after, dtype).steps(inputs)
        for node, want in reference.values(inputs, dtype):
            viewed = _views(node) or _is_blank(node)
            sizes[node] = max((sizes[n] for n in node.all_input_nodes), default=0.0) if viewed else _largest(want)
            if viewed or node.name not in present:
                continue
            torch.default_generator.manual_seed(seed)
            try:
                got = next(value for other, value in ours if other.name == node.name)
            except StepError:
                return float("inf")
            torch.default_generator.manual_seed(seed)
            found = _compare(want, got)
            relative = 0.0 if found is None else found.difference
            if relative > TOLERANCE[dtype]:
                relative = _excused(node, want, got, sizes, relative)
            worst = max(worst, relative)
        reference.check_whole(want)
        return max(worst, difference(got, plain(want)))


def _excused(node: fx.Node, want: Any, got: Any, sizes: Mapping[fx.Node, float], relative: float) -> float:
    """A difference, less what is no fault.

    The same elements in another order are none: what reads them must put them right, or differs itself. A value that
    nearly cancels may be off by more than its own size allows; it is measured against its operands.
    """
    found = _compare(want, got, diagnose=True)
    if found is not None and found.reordered:
        return 0.0
    if not math.isfinite(relative) or not sizes[node]:
        return relative
    operands = max((sizes[operand] for operand in node.all_input_nodes), default=0.0)
    return relative * sizes[node] / max(operands, sizes[node])


def _largest(value: Any) -> float:
    """The largest finite magnitude in a nest of values."""
    tensors = [
        x for x in pytree.tree_leaves(plain(value)) if isinstance(x, Tensor) and x.numel() and x.is_floating_point()
    ]
    return max(map(magnitude, tensors), default=0.0)


def _accepts(program: Program, inputs: tuple[Any, ...], dtype: torch.dtype) -> bool:
    try:
        Interpreter(program, dtype).run(inputs)
    except StepError:
        return False
    return True


def _dtypes(program: Program) -> tuple[torch.dtype, ...]:
    """float32 and then float64; float64 alone for models of another precision."""
    used = {t.dtype for t in (*program.tensors.values(), *tensors_in(program.inputs)) if t.is_floating_point()}
    return (torch.float32, torch.float64) if used <= {torch.float32} else (torch.float64,)


@dataclass(frozen=True)
class _Comparison:
    """One node's value in both programs."""

    difference: float
    got: tuple[int, ...]
    want: tuple[int, ...]
    reordered: bool = False
    """The same elements, in another order."""


def _first_difference(after: Program, reference: Reference, trial: _Trial, dtype: torch.dtype, tolerance: float) -> str:
    """A sentence on the first node that differs, and that the difference of the output comes from.

    A rewrite may change a value on purpose (a convolution with a batch norm folded in). Then the values agree again
    further on, so only those nodes count from which a path of nodes that don't agree leads to the output.
    """
    got, crash = _all_values(after, trial.inputs, dtype)
    compared: dict[fx.Node, _Comparison | None] = {}
    with seeded(0):
        for node, value in reference.values(trial.inputs, dtype):
            compared[node] = _compare(value, got[node.name], diagnose=True) if node.name in got else None
    agreeing = {node for node, found in compared.items() if found is not None and found.difference <= tolerance}
    reached = _leading_to_output(compared, agreeing)
    suspects = [(node, found) for node, found in compared.items() if found is not None and node in reached]
    if not suspects:
        return crash or "all values agree, but the outputs are nested in another way or hold other numbers"
    return _sentence(suspects, dtype) + (f"; then {crash}" if crash else "")


def _sentence(suspects: Sequence[tuple[fx.Node, _Comparison]], dtype: torch.dtype) -> str:
    """What is said of the first node that differs, and, where only its order does, of the next one that does more."""
    node, found = suspects[0]
    text = (
        f"{describe(node)} is the first whose value differs: relative difference {found.difference:.2g} in "
        f"{str(dtype).removeprefix('torch.')}, shape {found.got}, expected {found.want}"
    )
    other = next((node for node, found in suspects if not found.reordered), None)
    if not found.reordered:
        return text
    return f"{text} (the same elements in another order" + (f"; in {describe(other)} others)" if other else ")")


def _all_values(program: Program, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[dict[str, Any], str]:
    """Every value by its node's name (copies, as later nodes may write in place), and where the run broke off."""
    values: dict[str, Any] = {}
    try:
        with seeded(0):
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


def _compare(want: Any, got: Any, *, diagnose: bool = False) -> _Comparison | None:
    """Two values of a node, the old one without its removed elements; None where that can't be told.

    Sizes and other numbers may well differ. Kept elements stand in the same order in both, whatever the shape.
    """
    olds = [leaf for leaf in pytree.tree_leaves(want) if isinstance(leaf, Tensor | Marked)]
    news = [leaf for leaf in pytree.tree_leaves(got) if isinstance(leaf, Tensor)]
    if not olds or len(olds) != len(news):
        return None
    found = [_compare_tensors(old, new, diagnose=diagnose) for old, new in zip(olds, news, strict=True)]
    known = [comparison for comparison in found if comparison is not None]
    return max(known, key=lambda comparison: comparison.difference) if len(known) == len(found) else None


def _compare_tensors(want: Tensor | Marked, got: Tensor, *, diagnose: bool) -> _Comparison | None:
    if not got.numel() and not plain(want).numel():
        return _Comparison(0.0, tuple(got.shape), tuple(got.shape))
    if not isinstance(want, Marked):
        return _Comparison(leaf_difference(got, want), tuple(got.shape), tuple(want.shape))
    kept = want.kept
    if want.data.dtype == torch.int64 and bool((want.marks == REMOVED).all()):
        return None  # places among channels, which nothing reads
    if bool((want.marks == FREE).any()) and int(kept.sum()) != got.numel():
        return None
    shape = tuple(int(_any_but(kept, dim).sum()) for dim in range(kept.ndim)) if diagnose else ()
    old, new = _without_removed(want, kept), got.flatten()
    old, new = parts(old), parts(new)
    relative = leaf_difference(new, old)
    reordered = diagnose and leaf_difference(new.sort().values, old.sort().values) <= TOLERANCE[torch.float64]
    return _Comparison(relative, tuple(got.shape), shape, reordered)


def _without_removed(value: Marked, kept: Tensor) -> Tensor:
    """The kept elements in row-major order; by whole slices where one dimension decides, which is much faster."""
    varying = [dim for dim, size in enumerate(value.marks.shape) if size > 1]
    if len(varying) != 1:
        return value.data[kept]
    places = (value.marks.flatten() != REMOVED).nonzero().flatten()
    return value.data.index_select(varying[0], places).flatten()


def _any_but(kept: Tensor, dim: int) -> Tensor:
    """Which positions of a dimension hold anything kept."""
    return kept.movedim(dim, 0).flatten(1).any(1) if kept.ndim > 1 else kept
