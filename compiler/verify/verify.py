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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, fx

from prunec.compiler.errors import ModelError, Span, VerifyError
from prunec.compiler.ir.devices import device_of, full_precision
from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import SMALLER, fresh_inputs, has_smaller, is_large, seeded
from prunec.compiler.verify.blame import first_difference
from prunec.compiler.verify.compare import TOLERANCE, Trial, compare_values, difference, magnitude
from prunec.compiler.verify.given_products import Giving, Learning, Products, SideBySide
from prunec.compiler.verify.interpreter import Interpreter, StepError, describe
from prunec.compiler.verify.masks import leaves_of, plain
from prunec.compiler.verify.reference import Reference
from prunec.compiler.verify.sampled_products import Sampling

VIEWS: Final = frozenset(
    "view reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes movedim contiguous getitem".split()
)
"""Operations that only rearrange elements: they aren't compared, since a fault shows in what reads them."""

BLANK: Final = frozenset("empty empty_like empty_strided new new_empty new_empty_strided".split())
"""Operations that give uninitialised memory, which has no value to compare."""

COSTLY: Final = 5 * 10**6
"""From so many elements a sample on, over all nodes, only the first batch is computed in full."""

ROUNDED: Final[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The tolerance where a pass computed weights anew and rounded them to this dtype."""


@dataclass(frozen=True)
class Verification:
    """What was compared, and how close it came."""

    difference: float
    dtype: str
    batches: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "batches": list(self.batches)}


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
    a tiny layer scale. The batches hold two and three samples, or one and three (`_batches`) where a sample costs much.
    Then only the first is a whole sample, of which the new program alone computes costly products
    (`verify.sampled_products`). The others show whether what follows the batch size does so, for which smaller images
    do, or runs in which products are given (`verify.given_products`). A difference in these runs counts only if a full
    one shows it, too.
    A batch size that the old program itself refuses is left out; if it refuses all, the example's own is taken.
    Raises `VerifyError` where they differ in float64 too, and where the reference finds the rewrite inconsistent.
    """
    with full_precision(device_of(after)):
        return _verified(after, reference, pass_name, seed, batches or _batches(reference.before), exact)


def _verified(
    after: Program, reference: Reference, pass_name: str, seed: int, batches: Sequence[int], exact: bool
) -> Verification:
    try:
        for dtype in (torch.float64,) if exact else _dtypes(reference.before):
            trials = _trials(after, reference, dtype, seed, batches)
            worst = max(trials, key=lambda trial: trial.difference)
            if worst.difference <= _tolerance(reference, dtype, exact):
                name = str(dtype).removeprefix("torch.")
                return Verification(worst.difference, name, tuple(trial.batch for trial in trials))
        culprit = first_difference(after, reference, worst, dtype, _tolerance(reference, dtype, exact))
    except (VerifyError, StepError) as error:
        _check_original(reference.before, error)
        raise VerifyError(f"pass '{pass_name}' can't be checked: {error}") from error
    raise VerifyError(f"pass '{pass_name}' changed what the program computes: {culprit}")


def _batches(program: Program) -> tuple[int, ...]:
    """The batch sizes to run: two, and smaller ones where samples cost much, since a run's cost grows with them."""
    return (1, 2) if is_large(program) else (1, 3) if _is_costly(program) else (2, 3)


def _is_costly(program: Program) -> bool:
    """Whether a sample costs much: its input is large, or its values are, all together."""
    tensors = (node.meta.get("val") for node in program.graph.nodes)
    elements = sum(value.numel() for value in tensors if isinstance(value, Tensor))
    return is_large(program) or elements // (batch_of(program.inputs) or 1) > COSTLY


def _tolerance(reference: Reference, dtype: torch.dtype, exact: bool) -> float:
    """The largest relative difference of outputs that passes.

    A pass that computes weights anew has rounded each of them once, to the weight's dtype; a run in float64 doesn't
    undo that. Under a `nodewise` reference weights are only picked, bit for bit, so that the dtype of the run decides.
    """
    if exact or reference.nodewise:
        return TOLERANCE[dtype]
    kinds = {t.dtype for t in reference.before.tensors.values() if t.is_floating_point()}
    return max((ROUNDED[kind] for kind in kinds if kind in ROUNDED), default=TOLERANCE[dtype])


def _trials(after: Program, reference: Reference, dtype: torch.dtype, seed: int, batches: Sequence[int]) -> list[Trial]:
    """One trial for each batch size that the old program takes; or one of the example's size; or one on the example
    itself, where the model is made for certain values."""
    before = reference.before
    costly = _is_costly(before)
    nodewise = reference.nodewise and _same_nodes(before, after)
    products = Products(before, after, dtype, seed, TOLERANCE[dtype]) if costly and nodewise else None
    for sizes in (batches if batch_of(before.inputs) else (), [None]):
        found: list[Trial] = []
        for size in sizes:
            trial = _sized(after, reference, dtype, seed, size, products, costly and bool(found))
            found += [] if trial is None else [trial]
        if found:
            return found
    return [_compared(after, reference, dtype, seed, before.inputs)]


def _sized(
    after: Program,
    reference: Reference,
    dtype: torch.dtype,
    seed: int,
    batch: int | None,
    products: Products | None,
    cheap: bool,
) -> Trial | None:
    """A trial on a fresh batch of this size. A `cheap` one, which a full one has gone before, is on smaller images, or
    else with products given, unless that is refused or differs.

    Numbers in the graph may mean the example's size, so that both programs may read a small image wrongly, each in its
    own way; and a rewrite may leave elements in another order, which a given product hasn't. So a difference there
    proves nothing, and a full run decides.
    """
    before = reference.before
    inputs = partial(fresh_inputs, before, batch, seed)
    sizes = (SMALLER, 1) if has_smaller(before) else (1,)
    if cheap and products is not None:
        for smaller in sizes:
            if trial := _quick_trial(after, reference, inputs(smaller), dtype, seed, Giving(products)):
                return trial
    elif cheap and SMALLER in sizes:
        trial = _trial(after, reference, dtype, seed, inputs(SMALLER), None)
        if trial is not None and trial.difference <= TOLERANCE[dtype]:
            return trial
    elif (
        products is not None
        and products.costly
        and (trial := _quick_trial(after, reference, inputs(), dtype, seed, Sampling(products)))
    ):
        return trial
    return _trial(after, reference, dtype, seed, inputs(), products)


def _trial(
    after: Program,
    reference: Reference,
    dtype: torch.dtype,
    seed: int,
    inputs: tuple[Any, ...],
    products: Products | None,
) -> Trial | None:
    """Compare outputs on one batch; None where the old program itself fails on it."""
    try:
        found = _compared(after, reference, dtype, seed, inputs, products)
    except StepError:
        if _accepts(reference.before, inputs, dtype):
            raise
        return None
    # Where nodes are compared one by one, the new program may be the first that fails.
    return found if math.isfinite(found.difference) or _accepts(reference.before, inputs, dtype) else None


def _compared(
    after: Program,
    reference: Reference,
    dtype: torch.dtype,
    seed: int,
    inputs: tuple[Any, ...],
    products: Products | None = None,
) -> Trial:
    """Compare outputs, or all nodes, on one batch; `products` learn from it. Raises `StepError` where the old program
    fails."""
    size, run = batch_of(inputs) or 1, SideBySide() if products is None else Learning(products)
    if reference.nodewise and _same_nodes(reference.before, after):
        return Trial(size, inputs, _nodewise_difference(after, reference, inputs, dtype, seed, run))
    with seeded(seed):
        want = reference.run(inputs, dtype)
    try:
        with seeded(seed):
            got = Interpreter(after, dtype).run(inputs)
    except StepError:
        return Trial(size, inputs, float("inf"))
    return Trial(size, inputs, difference(got, want))


def _same_nodes(before: Program, after: Program) -> bool:
    """Whether the new program has the old one's nodes in the same order, and perhaps others between them. Tensors and
    sizes that nobody reads any more may be missing, and so may views."""
    present = [node.name for node in after.graph.nodes]
    names, known = iter(present), set(present)
    return all(node.name in names for node in before.graph.nodes if node.name in known or _computes(node))


def _computes(node: fx.Node) -> bool:
    """Whether a node computes numbers, rather than reading a tensor, viewing one, or asking for positions or sizes."""
    value = node.meta.get("val")
    numbers = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return node.op != "get_attr" and not _views(node) and (value is None or numbers)


def _views(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and name in VIEWS


def _is_blank(node: fx.Node) -> bool:
    """Whether a node gives uninitialised memory."""
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and name in BLANK


def _quick_trial(
    after: Program,
    reference: Reference,
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    seed: int,
    run: SideBySide,
) -> Trial | None:
    """A trial with products sampled or given; None where nodes differ or a program fails, since a full run decides."""
    try:
        with gc_paused():
            found = _nodewise_difference(after, reference, inputs, dtype, seed, run)
    except (StepError, VerifyError):
        return None
    return Trial(batch_of(inputs) or 1, inputs, found) if found <= TOLERANCE[dtype] else None


def _nodewise_difference(
    after: Program,
    reference: Reference,
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    seed: int,
    run: SideBySide,
) -> float:
    """The largest relative difference of any node's value; both programs run side by side, and values are freed.

    What `_excused` excuses isn't counted. Views and blank memory aren't compared: what is wrong shows in what reads it.
    `run` says what isn't computed, or by one of the programs alone.
    """
    sizes: dict[fx.Node, float] = {}
    worst = 0.0
    present = {node.name for node in after.graph.nodes}
    old, new = reference.interpreter(dtype), Interpreter(after, dtype)
    run.connect(old, new)
    with seeded(seed):
        ours = new.steps(inputs)
        for node, want in old.steps(inputs):
            run.take(node, want)
            if node.name not in present or _views(node) or _is_blank(node):
                viewed = _views(node) or _is_blank(node)
                sizes[node] = max((sizes[n] for n in node.all_input_nodes), default=0.0) if viewed else _largest(want)
                continue
            torch.default_generator.manual_seed(seed)
            try:
                got = next(value for other, value in ours if other.name == node.name)
            except StepError:
                return float("inf")
            torch.default_generator.manual_seed(seed)
            if run.settles(node, want, got):
                sizes[node] = _largest(got)
                continue
            found = compare_values(want, got)
            sizes[node] = _largest(want) if found is None else found.size
            relative = 0.0 if found is None else found.difference
            if found is not None and relative <= TOLERANCE[dtype]:
                run.note(node, want, got)
            if relative > TOLERANCE[dtype]:
                relative = _excused(node, want, got, sizes, relative)
            worst = max(worst, relative)
        reference.check_whole(want)
        return max(worst, run.difference, difference(got, plain(want)))


def _excused(node: fx.Node, want: Any, got: Any, sizes: Mapping[fx.Node, float], relative: float) -> float:
    """A node's relative difference, reduced where it is no fault: to 0.0 for the same elements in another order (their
    reader must put them right, or differs itself); measured against the operands where a sum nearly cancels."""
    found = compare_values(want, got, diagnose=True)
    if found is not None and found.reordered:
        return 0.0
    if not math.isfinite(relative) or not sizes[node]:
        return relative
    operands = max((sizes[operand] for operand in node.all_input_nodes), default=0.0)
    return relative * sizes[node] / max(operands, sizes[node])


def _largest(value: Any) -> float:
    """The largest finite magnitude in a nest of values."""
    leaves = leaves_of(plain(value))
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.numel() and x.is_floating_point() and not x.is_meta]
    return max(map(magnitude, tensors), default=0.0)


def _accepts(program: Program, inputs: tuple[Any, ...], dtype: torch.dtype) -> bool:
    """Whether a program runs on these inputs."""
    try:
        Interpreter(program, dtype).run(inputs)
    except StepError:
        return False
    return True


def _check_original(program: Program, error: Exception) -> None:
    """Raise `ModelError` where a check failed, and so does the original on its example inputs: no rewrite does that."""
    if not isinstance(error, StepError):
        return
    for dtype in _dtypes(program):
        try:
            Interpreter(program, dtype).run(program.inputs)
        except StepError as found:
            node, cause = found.node, found.__cause__
            scope = node.meta.get("scope") or program.name
            text = f"the model doesn't run on the example inputs: {scope}: {describe(node)}: {cause}"
            raise ModelError(text, at=Span.of_line(node.meta.get("at"))) from cause


def _dtypes(program: Program) -> tuple[torch.dtype, ...]:
    """float32 and then float64; float64 alone for models of another precision."""
    used = {t.dtype for t in (*program.tensors.values(), *tensors_in(program.inputs)) if t.is_floating_point()}
    return (torch.float32, torch.float64) if used <= {torch.float32} else (torch.float64,)
