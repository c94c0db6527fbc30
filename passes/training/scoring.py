"""Scores that are found while a program trains: what its gradients say of every unit anyway, added up over all updates.

    - repeat: {each: 512, to: {macs: 40%}, passes: [{finetune: {epochs: 1, score: taylor}}, select, shrink]}

The reads of units are watched as a criterion of gates watches them (`criteria/gates.py`), with the gradients of the
loss that the training goes by, in train mode, of weights that change from one update to the next (Molchanov et al.
2017). So they cost no further pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.data import Batch
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.criteria.gates import Gates, Table, product
from prunec.passes.criteria.reads import Read
from prunec.passes.criteria.taylor import Gated, GateSums
from prunec.passes.criteria.watching import tapped
from prunec.passes.score import Score
from prunec.passes.training.updates import Update


class Scoring(Update):
    """Adds up what a criterion of gates sees of every batch; the fact `scores` at the end."""

    def __init__(self, score: Score, program: Program, context: Context) -> None:
        assert isinstance(score.criterion, Gated), "the plan was refused"
        self.score, self.setting = score, score.setting(program, context)
        gates = Gates.of(self.setting, score.criterion.joint)
        self.sums, self._table = GateSums.of(score.criterion, gates), Table(gates)
        self._scale: float | None = None

    def watched(self, program: Program) -> Program:
        """The program with a watcher on every read."""
        return tapped(program, self.sums.gates.reads, self._look)

    def _look(self, read: Read, value: Tensor, gradient: Tensor) -> None:
        if self._scale is not None:
            self._table.add(read, product(read, value.detach(), gradient.detach() * self._scale))

    @contextmanager
    def looking(self, batch: Batch, scale: float) -> Iterator[None]:
        """While the context is open, a batch runs forwards and backwards; a sample's own gradient is `scale` times what
        it is there."""
        self._table.clear(batch)
        self._scale = scale
        yield
        self._scale = None
        self.sums.add(self._table.terms, batch.count)

    def together(self, everyone: Callable[[Tensor], Tensor]) -> None:
        """Take in what other processes have seen: `everyone` gives the sum of their tensors and this one's."""
        self.sums.totals = [everyone(total) for total in self.sums.totals]
        self.sums.count = int(everyone(torch.tensor(self.sums.count)))

    def facts(self) -> Mapping[str, Any]:
        """The scores."""
        return {"scores": self.score.scored(self.setting, self.sums.evidence())[0]}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"totals": self.sums.totals, "count": self.sums.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these sums."""
        self.sums.totals, self.sums.count = list(state["totals"]), state["count"]
