"""What training runs on: a plan's `train`, in the engine's own words (Lightning Fabric)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

Count = Annotated[StrictInt, Field(ge=1)]


class TrainSpec(BaseModel):
    """Devices, processes and precision of every training pass of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps", "tpu"] = "auto"
    devices: Count | tuple[Annotated[StrictInt, Field(ge=0)], ...] | Literal["auto"] = 1
    """How many, or which ones by number; `auto` for all that there are."""
    strategy: Literal["auto", "ddp", "fsdp", "dp"] = "auto"
    num_nodes: Count = 1
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"] = "32-true"
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """After so many seconds of training a checkpoint is written; at 0 after every update."""
