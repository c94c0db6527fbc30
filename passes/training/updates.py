"""What is done beside an optimizer's step: plain functions for a loop of one's own, and `Update`s that bind them.

    loss.backward()
    add_l1_subgradient(batch_norm_scales(model), 1e-4)      # network slimming
    with held_below(model.parameters(), 1e-5, optimizer):   # entries with small gradients stay as they are
        optimizer.step()
    clamp(weights, -1.0, 1.0)

    updates = [L1(batch_norm_scales(model), 1e-4), HoldBelow([(p, 1e-5) for p in model.parameters()])]
    for update in updates:
        update.attach(optimizer)
    ...
    loss.backward()                                         # then clip, if at all
    for update in updates:
        update.before_step()
    optimizer.step()
    for update in updates:
        update.after_step()

What edits gradients comes once an update, behind the last `backward()` of an accumulated batch, behind unscaling and
clipping: clipping would bound the penalty together with the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunec.passes.training.slices import over_slices, slice_sums

WATCHES: Final = 0
"""The rank of updates that only look at the loss's gradients."""
EDITS: Final = 1
"""The rank of those that add to gradients."""
HOLDS: Final = 2
"""The rank of those that keep entries from moving."""
PROJECTS: Final = 3
"""The rank of those that put parameters where they may be."""


class Update:
    """What is done beside the optimizer's step. Bound to parameters when it is made."""

    rank: ClassVar[int] = EDITS
    """Where it stands among others, see `in_order`."""

    def attach(self, optimizer: Optimizer) -> None:
        """Told once, before the first step, which optimizer steps: torch's own, not an engine's wrapper of it."""
        return

    def planned(self, steps: int) -> None:
        """Told once, before the first step, how many there will be. Raises `PassError` where it needs more."""
        return

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the loss before `backward()`; None where there is none."""
        return None

    def before_step(self) -> None:
        """Between `backward()` (after clipping) and `step()`: edits gradients in place."""
        return

    def after_step(self) -> None:
        """After `step()`: edits parameters in place. Called again without a step between, it changes nothing."""
        return

    def measures(self) -> Mapping[str, float]:
        """Figures of its own for the progress bar and the table of a run; read once in a while."""
        return {}

    def figures(self) -> Mapping[str, float]:
        """More figures, which are too many for a progress bar: for the table and its curves alone."""
        return {}

    def ends(self) -> str:
        """Why the training may end now; empty while it shouldn't. Asked behind each epoch."""
        return ""

    def finish(self) -> None:
        """Told once, behind the last step, when the weights are those that are kept: may put them where they belong."""
        return

    def facts(self) -> Mapping[str, Any]:
        """What passes behind the training may use, asked for at its end: facts of the program."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from step to step: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        return


def in_order(updates: Iterable[Update]) -> list[Update]:
    """Updates in the order in which they are called; those of one rank as they are given."""
    return sorted(updates, key=lambda update: update.rank)


# -- gradients -----------------------------------------------------------------------------------------------------


def accumulate(loss: Tensor, count: int) -> Tensor:
    """Add the gradients of one of `count` equal parts of a batch; gives the part's loss, detached.

    `loss` is the part's mean. After all parts, gradients are those of the mean loss of the whole batch, but for what
    depends on the batch itself, as batch norm's statistics do.
    """
    (loss / count).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def batch_norm_scales(module: nn.Module) -> list[nn.Parameter]:
    """The scales (gamma, [channels]) of all batch norms that have one, each once."""
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    return list(dict.fromkeys(norm.weight for norm in norms if norm.weight is not None))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, to be edited in place; zeros where the loss hasn't reached it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@torch.no_grad()
def add_l1_subgradient(parameters: Iterable[nn.Parameter], strength: float) -> None:
    """Add `strength * sign(p)` to the gradients, the subgradient of `strength * sum |p|`; it is 0 at 0.

    With batch norm's scales that is network slimming (Liu et al. 2017). Frozen parameters are left alone.
    """
    trained = [p for p in parameters if p.requires_grad]
    if trained and strength:
        signs = torch._foreach_sign(list[Tensor](trained))
        torch._foreach_add_([gradient_of(p) for p in trained], signs, alpha=strength)


class L1(Update):
    """Adds the subgradient of `strength * sum |p|` before every step: of batch norm's scales, network slimming."""

    small = 0.01
    """Scales under this count as small: batch norm starts with 1."""

    def __init__(self, parameters: Iterable[nn.Parameter], strength: float) -> None:
        self.parameters = list(parameters)
        self.strength = strength

    def before_step(self) -> None:
        """Add it to the gradients."""
        add_l1_subgradient(self.parameters, self.strength)

    @torch.no_grad()
    def measures(self) -> Mapping[str, float]:
        """`small_scales`: the share of entries that are near zero."""
        small = sum(int((p.abs() < self.small).sum()) for p in self.parameters)
        return {"small_scales": small / max(sum(p.numel() for p in self.parameters), 1)}


# -- held entries --------------------------------------------------------------------------------------------------


class _Held(NamedTuple):
    """Which entries of a parameter stay, and what the entries of it and of its optimizer state were."""

    parameter: nn.Parameter
    held: Tensor
    values: Tensor
    state: dict[str, Tensor]


class HoldBelow(Update):
    """Entries whose gradient is smaller than a threshold sit out the step: `|g| < t`.

    For such an entry it is as if there had been no step. Its value is put back, bit for bit, since momentum and weight
    decay move entries without a gradient. So are the entries of the optimizer's state that have the parameter's shape
    (momentum, Adam's moments), since what they took up meanwhile would move the entry as soon as it is let go. What the
    optimizer counts for the whole parameter, such as its steps, goes on. That holds for any optimizer whose step is
    elementwise; one that calls a closure several times (L-BFGS) can't be held.
    """

    rank: ClassVar[int] = HOLDS

    def __init__(self, thresholds: Iterable[tuple[nn.Parameter, float]], optimizer: Optimizer | None = None) -> None:
        self.thresholds = [(p, t) for p, t in thresholds if p.requires_grad]
        self.optimizer = optimizer
        self._held: list[_Held] = []
        self._last: list[Tensor] = []

    def attach(self, optimizer: Optimizer) -> None:
        """The optimizer whose state goes with the entries."""
        self.optimizer = optimizer

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember the entries that will be held, and take their gradients away."""
        assert self.optimizer is not None, "attach the optimizer first"
        self._held = [self._remember(p, p.grad.abs() < t) for p, t in self.thresholds if t > 0 and p.grad is not None]
        self._last = [found.held for found in self._held]

    def _remember(self, parameter: nn.Parameter, held: Tensor) -> _Held:
        assert self.optimizer is not None
        assert parameter.grad is not None
        state = {key: value.clone() for key, value in _entries(self.optimizer, parameter)}
        values = parameter.detach().clone()
        parameter.grad.masked_fill_(held, 0)
        if not state:  # it is made in this step: of a zero, so that no weight decay gets into it
            parameter.masked_fill_(held, 0)
        return _Held(parameter, held, values, state)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the held entries back."""
        for parameter, held, values, state in self._held:
            assert self.optimizer is not None
            parameter.copy_(torch.where(held, values, parameter))
            for key, value in _entries(self.optimizer, parameter):
                if key in state:
                    value.copy_(torch.where(held, state[key], value))
        self._held = []

    def measures(self) -> Mapping[str, float]:
        """`held`: the share of entries that sat out the last step."""
        held = sum(int(mask.sum()) for mask in self._last)
        return {"held": held / max(sum(p.numel() for p, _ in self.thresholds), 1)}


def _entries(optimizer: Optimizer, parameter: nn.Parameter) -> list[tuple[str, Tensor]]:
    """The parts of a parameter's optimizer state that have an entry for each of its own."""
    state = optimizer.state.get(parameter, {})
    return [(k, v) for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape]


@contextmanager
def held_below(parameters: Iterable[nn.Parameter], threshold: float, optimizer: Optimizer) -> Iterator[None]:
    """Around `optimizer.step()`: entries with `|gradient| < threshold` are bit for bit as before, see `HoldBelow`."""
    update = HoldBelow([(p, threshold) for p in parameters], optimizer)
    update.before_step()
    try:
        yield
    finally:
        update.after_step()


# -- projections ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def clamp(parameters: Iterable[nn.Parameter], low: float, high: float) -> None:
    """Put every entry into [low, high]; to be called after each step."""
    trained: list[Tensor] = [p for p in parameters if p.requires_grad]
    if trained:
        torch._foreach_clamp_min_(trained, low)
        torch._foreach_clamp_max_(trained, high)


class Filters(NamedTuple):
    """A weight, and what counts as a filter of it: slices along a dimension; see `slices.py` for groups."""

    weight: nn.Parameter
    dim: int = 0
    groups: int = 1


@torch.no_grad()
def limit_norms(filters: Iterable[Filters], limit: float) -> None:
    """Scale every filter down to an Euclidean norm of at most `limit`; those below it stay bit for bit.

    To be called after each step.
    """
    for weight, dim, groups in filters:
        if weight.requires_grad:
            norms = slice_sums(weight.square(), dim, groups).sqrt_()
            weight.mul_(over_slices((limit / norms).clamp_(max=1.0), weight.shape, dim, groups))


class Clamp(Update):
    """Puts entries into their bounds after every step."""

    rank: ClassVar[int] = PROJECTS

    def __init__(self, parameters: Sequence[nn.Parameter], low: float, high: float) -> None:
        self.parameters, self.low, self.high = list(parameters), low, high

    def after_step(self) -> None:
        """Project the parameters."""
        clamp(self.parameters, self.low, self.high)


class MaxNorm(Update):
    """Scales filters down to a norm after every step."""

    rank: ClassVar[int] = PROJECTS

    def __init__(self, filters: Iterable[Filters], limit: float) -> None:
        self.filters, self.limit = list(filters), limit

    def after_step(self) -> None:
        """Project the weights."""
        limit_norms(self.filters, self.limit)
