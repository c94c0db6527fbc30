"""The training engine, Lightning Fabric, as a plan's `train` sets it up.

    train: {accelerator: auto, devices: 1, strategy: auto, num_nodes: 1, precision: 32-true}

It is imported when a training pass runs, and no sooner.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prunec.compiler.errors import PassError
from prunec.compiler.train_spec import TrainSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from prunec.passes.training.loop import Job, Trained


@dataclass(frozen=True)
class Engine:
    """What a training runs on."""

    options: TrainSpec

    @staticmethod
    def of(options: TrainSpec | None) -> Engine:
        """The engine of a plan; with the defaults where it says nothing."""
        return Engine(options or TrainSpec())

    def ready(self) -> None:
        """Raise `PassError` where the engine isn't installed, or can't do what the plan wants on this machine."""
        if find_spec("lightning_fabric") is None:
            raise PassError(
                "training needs lightning-fabric, which isn't installed", hint="pip install 'prunec[train]'"
            )
        self.fabric()

    def fabric(self) -> Fabric:
        """The engine, not launched yet. Raises `PassError` where it refuses its options."""
        from lightning_fabric import Fabric  # noqa: PLC0415  (takes seconds, and is an optional extra)

        options = self.options
        try:
            return Fabric(
                accelerator=options.accelerator,
                devices=list(options.devices) if isinstance(options.devices, tuple) else options.devices,
                strategy=options.strategy,
                num_nodes=options.num_nodes,
                precision=options.precision,
            )
        except (ValueError, RuntimeError, TypeError, ImportError) as error:
            raise PassError(f"the plan's 'train' can't be had here: {error}") from error
        except Exception as error:  # the engine has an exception class of its own, which can't be named here
            if type(error).__name__ != "MisconfigurationException":
                raise
            raise PassError(f"the plan's 'train' can't be had here: {error}") from error

    def run(self, job: Job) -> Trained:
        """Train in as many processes as the plan says; gives what the first of them has."""
        from prunec.passes.training.loop import fit  # noqa: PLC0415  (a job of it is what runs here)

        fabric = self.fabric()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning_fabric")
            fabric.launch()
            return fit(fabric, job)
