"""The verifier's table of operations: a functional name -> what the operation does to the marks of its arguments.

    file of `verify.ops`    what becomes of the marks (see `verify.masks`)                  operations
    reshape, indexing, ...  the operation itself is run on them                             view, permute, getitem, ...
    elementwise             removed where any operand is; nothing kept may be lost          add, relu, where, ...
    conv, linear, matmul    data are zeroed; the weight must lose what the data lose        conv2d, linear, einsum, ...
    norm                    statistics of the kept elements alone                           layer_norm, group_norm, ...
    reduction               of sums, removed terms are zeros; else none may be removed      mean, amax, softmax, ...
    distance                sums of differences: a channel is removed of both operands         cdist, pairwise_distance
    pooling, image          whole channels are removed: marks don't vary over space         max_pool2d, grid_sample, ...
    concat                  the same; padding is FREE, beside a removed channel REMOVED     cat, split, pad, ...
    expand                  copies are FREE: each may go with what it meets                 expand, repeat, ...
    fft, gather_scatter     along one dimension all is kept or all is removed               fft_rfft, scatter, ...
    rnn                     the hidden state loses the same in all tensors of the layer     lstm, gru, ...
    setitem                 constants are FREE; what is written brings its marks            zeros, x[i] = y

The files bear the names of those in `compiler/ops`, and share nothing with them. An operation of another package brings
its rule along (`ir.operations`). One without a rule is fine as long as no removed channel reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.errors import PrunecError
from prunec.compiler.ir.operations import OPERATIONS
from prunec.compiler.ir.table import Table
from prunec.compiler.verify.masks import Call, Marked, freely, marks_of, plain

Rule = Callable[[Call], Any]

RULES: Final[Table[str, Rule]] = Table()
"""Functional name (`Call.name`) -> rule."""
MARKING: Final[set[str]] = set()
"""Operations whose result may be FREE where every argument is kept: constants, padding, copies."""


def row(*names: str, marking: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operations of these names; `marking` says that it is needed even where no argument has marks.

    A second rule for one name is an error.
    """

    def register(rule: Rule) -> Rule:
        RULES.add(names, rule)
        MARKING.update(names if marking else ())
        return rule

    return register


def rule_of(name: str) -> Rule | None:
    """The rule of an operation, also of one that another package has registered; None where there is none."""
    other = OPERATIONS.made().get(name)
    if other is None:
        return RULES.get(name)
    if name in RULES:
        raise PrunecError(f"the operation '{name}' has the name of one that prunec knows", hint="give it another")
    return other.marks


def marks_by_itself(name: str) -> bool:
    """Whether the result of an operation may have marks where no argument has (`MARKING`)."""
    other = OPERATIONS.made().get(name)
    return name in MARKING if other is None else other.marking


def apply(call: Call) -> Any:
    """The operation's value: a plain tensor where all of it is kept, else a `Marked` one.

    Raises `VerifyError` where something kept would be lost, and where a removed channel reaches an operation without a
    rule.
    """
    operands = call.operands()
    marked = [x for x in operands if isinstance(x, Marked)]
    if not operands:
        return pytree.tree_map(freely, call.plain())
    if not marked and not marks_by_itself(call.name):
        return call.plain()
    free = len(marked) == len(operands) and all(x.is_free for x in marked)
    rule = rule_of(call.name)
    if rule is not None:
        value = _written_in_place(call, rule(call))
    elif any(x.has_removed for x in marked):
        raise call.error("removed channels reach an operation that the reference doesn't know")
    else:
        value = call.plain()
    return pytree.tree_map(freely, value) if free else value


def _written_in_place(call: Call, value: Any) -> Any:
    """Of an in-place operation, give the result's marks to the first operand as well."""
    first = call.args[0] if call.args else None
    if not call.in_place or not isinstance(first, Marked) or not isinstance(value, Tensor | Marked):
        return value
    first.write(marks_of(value))
    return first if plain(value).data_ptr() == first.data.data_ptr() else value
