"""The updates as a callback of PyTorch Lightning, or of a loop of one's own on Lightning Fabric.

    callback = PruneCallback(lambda module: [L1(batch_norm_scales(module), 1e-4)])
    Trainer(callbacks=[callback]).fit(model, batches)

    fabric = Fabric(callbacks=[callback])                  # in the loop, around the step:
    fabric.call("on_before_optimizer_step", None, model, optimizer)
    optimizer.step()
    fabric.call("on_train_batch_end", None, model, loss, batch, number)

It is for training by one optimizer. Lightning clips gradients behind `on_before_optimizer_step`: there a penalty is
clipped together with the loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from prunec.passes.training.updates import Update, in_order


class PruneCallback:
    """Calls updates around every step. `make` gives them for the module, before its first step.

    Where PyTorch Lightning has been imported, it is one of its callbacks, too.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance that is also a `Callback` of the Lightning that has been imported: a trainer takes no other."""
        base = _callback()
        kind: type[Self] = cls if base is None or issubclass(cls, base) else type(cls.__name__, (cls, base), {})
        return object.__new__(kind)

    def __init__(self, make: Callable[[nn.Module], Iterable[Update]]) -> None:
        self.make = make
        self.updates: list[Update] | None = None
        self._kept: list[Mapping[str, Any]] = []

    def _bound(self, module: nn.Module, optimizer: Optimizer) -> list[Update]:
        if self.updates is None:
            self.updates = in_order(self.make(module))
            for update in self.updates:
                update.attach(getattr(optimizer, "optimizer", optimizer))
            for update, state in zip(self.updates, self._kept, strict=bool(self._kept)):
                update.load_state_dict(state)
        return self.updates

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Any) -> None:
        """Between `backward()` and `step()`."""
        for update in self._bound(pl_module, optimizer):
            update.before_step()

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After `step()`; also behind batches that are only accumulated, which changes nothing."""
        for update in self.updates or ():
            update.after_step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the updates' own figures, where the module can; have the trainer stop where an update says so."""
        updates = self.updates or ()
        figures = {
            name: value for each in updates for name, value in (*each.measures().items(), *each.figures().items())
        }
        if figures and hasattr(pl_module, "log_dict"):
            pl_module.log_dict(figures)
        if trainer is not None and any(update.ends() for update in updates):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Behind the last step."""
        for update in self.updates or ():
            update.finish()

    def state_dict(self) -> dict[str, Any]:
        """What the updates remember, for a checkpoint."""
        return {"updates": [update.state_dict() for update in self.updates or ()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a checkpoint; the updates get it when they are made."""
        self._kept, self.updates = list(state_dict["updates"]), None


def _callback() -> Any:
    """Lightning's own base of callbacks, under the name by which it has been imported; None where it hasn't."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return sys.modules[name].Callback
    return None
