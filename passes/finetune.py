"""`finetune`: train the program as it is on the plan's data, by the plan's loss.

- finetune: {epochs: 5}
- finetune: {updates: 400, optimizer: adamw, lr: 0.001, schedule: one_cycle, early_stop: 3}
- finetune: {epochs: 2, distill: {weight: 0.7, temperature: 4}}       learns from the original, too
- finetune: {epochs: 3, freeze: ["features.*"]}
"""

from __future__ import annotations

from typing import ClassVar

from prunec.passes.training.base import TrainingPass


class Finetune(TrainingPass):
    """Train the slim model on, so that what is left makes up for what is gone."""

    name: ClassVar[str] = "finetune"
    shorthand: ClassVar[str | None] = "epochs"
