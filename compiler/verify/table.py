"""What each operation does to the marks of its arguments: the verifier's own table of operations; see `masks`.

    moves           the operation itself is run on the marks                      reshape, cat, pixel_shuffle, pad, ...
    elementwise     removed where any operand is; nothing kept may be lost        add, relu, where, batch_norm, ...
    reductions      the dimensions that it runs over must not hold removed ones   softmax, argmax, sort, ...
    sums            removed elements are zeros                                    sum, mean, norm, ...
    windows         marks don't vary over space                                   max_pool2d, interpolate, ...
    readers         data are zeroed; the weight's removed positions must fit      conv2d, linear, matmul, einsum, ...
    norms           statistics of the kept elements alone                         layer_norm, group_norm, rms_norm

The rows stand in `verify/ops`, whose files bear the names of those in `compiler/ops` and share nothing with them. An
operation without a row is fine as long as no removed channel reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.errors import PrunecError
from prunec.compiler.ir.operations import OPERATIONS
from prunec.compiler.verify.masks import FREE, Call, Marked, freely, marks_of, plain

Rule = Callable[[Call], Any]

RULES: Final[dict[str, Rule]] = {}
"""By the operation's functional name (`Call.name`)."""
MARKING: Final[set[str]] = set()
"""Operations whose result has marks though no argument has."""


def row(*names: str, marking: bool = False) -> Callable[[Rule], Rule]:
    """Register what operations of these names do to marks; a second row for one name is an error."""

    def register(rule: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"the verifier has a row for {name} already"
            RULES[name] = rule
        MARKING.update(names if marking else ())
        return rule

    return register


def rule_of(name: str) -> Rule | None:
    """The row of an operation, also of one that another package has registered."""
    other = OPERATIONS.made().get(name)
    if other is None:
        return RULES.get(name)
    if name in RULES:
        raise PrunecError(f"the operation '{name}' has the name of one that prunec knows", hint="give it another")
    return other.marks


def marks_by_itself(name: str) -> bool:
    """Whether the result of an operation has marks though no argument has."""
    other = OPERATIONS.made().get(name)
    return name in MARKING if other is None else other.marking


def apply(call: Call) -> Any:
    """The operation's value: tensors that are kept everywhere, and `Marked` ones.

    Raises `VerifyError` where something kept would be lost, and where it isn't known what a removed channel does.
    """
    operands = call.operands()
    marked = [x for x in operands if isinstance(x, Marked)]
    if not operands:
        return pytree.tree_map(freely, call.plain())
    if not marked and not marks_by_itself(call.name):
        return call.plain()
    free = len(marked) == len(operands) and all(bool((x.marks == FREE).all()) for x in marked)
    rule = rule_of(call.name)
    if rule is not None:
        value = _written_in_place(call, rule(call))
    elif any(x.has_removed for x in marked):
        raise call.error("removed channels reach an operation that the reference doesn't know")
    else:
        value = call.plain()
    return pytree.tree_map(freely, value) if free else value


def _written_in_place(call: Call, value: Any) -> Any:
    first = call.args[0] if call.args else None
    if not call.in_place or not isinstance(first, Marked) or not isinstance(value, Tensor | Marked):
        return value
    first.write(marks_of(value))
    return first if plain(value).data_ptr() == first.data.data_ptr() else value
