"""What training runs on: a plan's `train`, in the engine's own words (Lightning Fabric)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt

from prunec.compiler.errors import Span

_RANKS: Final = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "LOCAL_RANK")
"""Where launchers say which process this is."""

Count = Annotated[StrictInt, Field(ge=1)]


class TrainSpec(BaseModel):
    """Devices, processes and precision of every training pass of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps", "tpu"] = "auto"
    devices: Count | Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], Field(min_length=1)] | Literal["auto"] = 1
    """How many, or which ones by number; `auto` for all that there are. Several are a process each."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes train one model; `ddp` where nothing is said."""
    num_nodes: Count = 1
    """Machines; on each the engine's launcher, or torchrun, starts the processes."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"] = "32-true"
    deterministic: StrictBool = False
    """Use algorithms alone that give the same numbers each time, which may be slower: for CUDA."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """After so many seconds of training a checkpoint is written; at 0 after every update."""
    tensorboard: Path | None = None
    """A folder for TensorBoard, which gets the curves of every training."""
    _at: Span | None = PrivateAttr(default=None)

    @property
    def at(self) -> Span | None:
        """Where the plan says it."""
        return self._at

    def placed(self, at: Span | None) -> Self:
        """The same, said at that place."""
        made = self.model_copy()
        made._at = at
        return made

    @staticmethod
    def rank(spec: TrainSpec | None) -> int:
        """Which of the processes this is that a launcher (torchrun, fabric run, srun) has started to train together,
        counted from 0; 0 where each trains for itself."""
        if "LT_CLI_USED" not in os.environ and (spec is None or not spec.is_for_several):
            return 0
        return next((int(os.environ[key]) for key in _RANKS if key in os.environ), 0)

    @property
    def is_for_several(self) -> bool:
        """Whether several processes may train together by it."""
        return self.strategy != "auto" or self.devices != 1 or self.num_nodes > 1

    @property
    def misfit(self) -> str:
        """What doesn't go together, whatever the machine; empty where all does."""
        one = self.devices == 1 or (isinstance(self.devices, tuple) and len(self.devices) == 1)
        if isinstance(self.devices, tuple) and len(set(self.devices)) < len(self.devices):
            return "must not name a device twice"
        if self.strategy == "fsdp" and self.accelerator in ("cpu", "mps"):
            return f"must not say strategy fsdp beside accelerator {self.accelerator}: it is for GPUs"
        if self.strategy == "fsdp" and one and self.num_nodes == 1:
            return "must give strategy fsdp several devices, among which it divides the model"
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            return "must not say precision 16-mixed beside accelerator cpu: there it is bf16-mixed"
        if isinstance(self.devices, tuple) and self.accelerator == "cpu":
            return "must say how many devices there are for accelerator cpu, not which ones"
        return ""
