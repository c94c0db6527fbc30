"""The training engine, Lightning Fabric, as a plan's `train` sets it up.

    train: {accelerator: auto, devices: 1, strategy: auto, num_nodes: 1, precision: 32-true}

It is imported when a training pass runs, and no sooner. Several devices of this machine are a process each, which are
started for the training alone (`workers.py`). Where a launcher has started all processes (`torchrun`, `fabric run`,
`srun`), each of them compiles the plan, and they train together; the command line lets the first of them write.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch

from prunec.compiler.errors import ALONE, PassError, PrunecError, first_line
from prunec.compiler.pass_base import Context, Progress
from prunec.compiler.train_spec import TrainSpec
from prunec.compiler.user_code import running
from prunec.passes.training import board

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from prunec.passes.training.loop import Job, Trained

_DDP: Final = "ddp_find_unused_parameters_true"
"""The loss may be of some outputs alone, and not all parameters lead there."""

_BY_ENGINE: Final = "LT_CLI_USED"
"""Set where `fabric run` has started the process; the engine then reads its options from there."""


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
        board.ready(self.options)
        fabric = self.fabric()
        if self.options.num_nodes > 1 and not _outside(fabric):
            message = f"{self.options.num_nodes} machines train together, and no launcher has started this process"
            hint = "on each: torchrun --nnodes ... --no-python prunec compile PLAN; or fabric run, or srun"
            raise PassError(message, at=self.options.at, hint=hint)
        if self.options.precision == "16-mixed" and fabric.device.type == "cpu":
            message = "precision 16-mixed isn't for the CPU, which is all that there is here"
            raise PassError(message, at=self.options.at, hint="bf16-mixed is")

    def fabric(self, **changes: Any) -> Fabric:
        """The engine, not launched yet. Raises `PassError` where it refuses its options."""
        from lightning_fabric import Fabric  # noqa: PLC0415  (takes seconds, and is an optional extra)

        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="lightning_fabric")
                return Fabric(**{**self._arguments(), **changes})
        except (ValueError, RuntimeError, TypeError, ImportError) as error:
            raise self._refused(error) from error
        except Exception as error:  # the engine has an exception class of its own, which can't be named here
            if type(error).__name__ != "MisconfigurationException":
                raise
            raise self._refused(error) from error

    def _arguments(self) -> dict[str, Any]:
        options, said = self.options, self.options.model_fields_set
        given: dict[str, Any] = {
            "accelerator": options.accelerator,
            "devices": list(options.devices) if isinstance(options.devices, tuple) else options.devices,
            "strategy": _DDP if options.strategy == "ddp" else options.strategy,
            "num_nodes": options.num_nodes,
            "precision": options.precision,
        }
        if _BY_ENGINE in os.environ:
            return {key: value for key, value in {**given, "strategy": options.strategy}.items() if key in said}
        return {**given, "strategy": _DDP} if options.strategy == "auto" and options.is_for_several else given

    def _refused(self, error: Exception) -> PassError:
        return PassError(f"the plan's 'train' can't be had here: {error}", at=self.options.at)

    # -- one training ----------------------------------------------------------------------------------------------

    def run(self, job: Job) -> Trained:
        """Train in as many processes as the plan says; gives what the first of them has."""
        fabric = self.fabric()
        if _outside(fabric):
            return self._fit(fabric, job)
        count = getattr(fabric.strategy, "num_processes", 1)
        if count == 1:  # which a strategy for several has nothing to do for
            return self._fit(self.fabric(strategy="auto"), job)
        from prunec.passes.training import handover, workers  # noqa: PLC0415  (imports torch.distributed)

        progress, job = job.context.progress, replace(job, context=_alone(job.context))
        try:
            trained: Trained = workers.run(self._started, job, count, progress)
        except handover.CantGo as error:
            for what, part, hint in _parts(job):
                with running(f"{what} can't be handed to the {count} processes that train", PassError, hint=hint):
                    handover.check(part)
            raise error.__cause__ or error from None
        return trained

    def _started(self, job: Job, progress: Progress) -> Trained:
        """The training in one of the processes that were started for it."""
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment  # noqa: PLC0415

        fabric = self.fabric(plugins=[LightningEnvironment()])
        return self._fit(fabric, replace(job, context=replace(job.context, progress=progress)))

    def _fit(self, fabric: Fabric, job: Job) -> Trained:
        from prunec.passes.training.loop import fit  # noqa: PLC0415  (a job of it is what runs here)

        with warnings.catch_warnings(), _deterministic(self.options.deterministic):
            warnings.filterwarnings("ignore", module="lightning_fabric")
            warnings.filterwarnings("ignore", message=".*find_unused_parameters=True")
            if _BY_ENGINE not in os.environ:
                fabric.launch()
            _check_alike(fabric, job)
            try:
                return fit(fabric, job)
            except RuntimeError as error:
                if not self.options.deterministic or "deterministic" not in str(error):
                    raise
                message = f"an operation of the training isn't deterministic: {first_line(error)}"
                raise PassError(message, at=self.options.at, hint="leave out deterministic: true") from error
            except PrunecError as error:
                if fabric.global_rank and _outside(fabric):
                    error.message = f"process {fabric.global_rank + 1} of {fabric.world_size}: {error.message}"
                    error.add_note(ALONE)
                raise


def _outside(fabric: Fabric) -> bool:
    """Whether somebody else has started this process and those that train with it."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally


def _alone(context: Context) -> Context:
    """What a training needs of a context."""
    kept = {name: getattr(context, name) for name in ("seed", "traced", "loss", "metric", "round", "train", "keeper")}
    return Context(data=context.data, **kept)


_AT_TOP: Final = "functions and classes are found by other processes at the top level of a module or a file"


def _parts(job: Job) -> Iterator[tuple[str, Any, str]]:
    """What a job consists of, and how each part can be handed on."""
    context = job.context
    named = "name what makes them, and each process makes its own: data: package.module:name"
    yield "the data", job.data, named
    yield f"the loss {context.loss.name}", context.loss, _AT_TOP
    yield f"the metric {context.metric.name}", context.metric, _AT_TOP
    yield "what the pass says", job.options, _AT_TOP
    yield "the model", (job.program, context.traced), _AT_TOP


def _check_alike(fabric: Fabric, job: Job) -> None:
    """Raise `PassError` where processes that train together have different programs."""
    if fabric.world_size == 1:
        return
    shapes = str([(name, tuple(tensor.shape)) for name, tensor in job.program.tensors.items()])
    mine = hashlib.sha256(shapes.encode()).hexdigest()
    others: Any = fabric.all_reduce(
        torch.tensor(float(mine != fabric.broadcast(mine)), device=fabric.device), reduce_op="sum"
    )
    if float(others):
        message = "the processes that train together have come to different programs"
        raise PassError(
            message, hint="what a measured latency decides differs each time: compile the lock of one process"
        )


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """A context in which torch gives the same numbers each time, or raises."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
