"""The loop of every training pass, on Lightning Fabric.

    for each epoch                    the data's next order
        for each update               `accumulate` batches for each process
            backward                  loss, distillation, penalties
            clip, before_step, step, after_step
        metric on val                 the best epoch's weights are remembered where they are asked for

What a training computes depends on its seed and on the number of the update alone: random numbers (of dropout) are
drawn from a stream that begins anew with every update, and the rate is a function of the update. So a training that was
killed goes on from its last checkpoint as if nothing had been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch
from torch import Tensor, nn

from prunec.compiler.data import Batch, Data
from prunec.compiler.driver.evaluation import evaluate, try_out
from prunec.compiler.errors import DataError, PassError, PrunecError
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.user_code import is_out_of_memory, running
from prunec.passes.training import masks
from prunec.passes.training.board import Board
from prunec.passes.training.carried import Carried, Memory, state_by_name
from prunec.passes.training.distill import Teacher
from prunec.passes.training.few import Few, divided, first_samples
from prunec.passes.training.freezing import frozen, once, trainable
from prunec.passes.training.optimizers import decayed, rate
from prunec.passes.training.options import TrainingOptions
from prunec.passes.training.scoring import Scoring
from prunec.passes.training.sharded import check_sharded, gathered, is_sharded, scatter
from prunec.passes.training.updates import in_order

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Row = dict[str, float | int]
"""A line of a run's table: epoch, update, rate, loss, metric, and the pass's own figures."""

_COLUMNS: Final = ("round", "epoch", "update", "lr", "loss")
"""Columns that every run has."""

_DISTANCE: Final = "distance"
"""The column of how far what is held out is from the original."""

TOLD: Final = 0.5
"""Seconds between two reports to the progress bar."""


@dataclass(frozen=True)
class Trained:
    """What a training gives back."""

    values: Mapping[str, Tensor]
    """Every parameter and buffer by name, on the CPU."""
    memory: Mapping[str, Memory]
    """What the optimizer keeps, by parameter."""
    rows: Sequence[Row]
    updates: int
    """After how many updates these values were reached."""
    epochs: int
    pace: float
    """Seconds of one update, in the mean."""
    device: str
    best: Mapping[str, float | int] = field(default_factory=dict)
    """Where the best metric was: of a training that keeps its best weights."""
    stopped: str = ""
    """Why it ended before its time."""
    measures: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """One training: what is trained, on what, and how."""

    options: TrainingOptions
    program: Program
    context: Context
    data: Data

    @classmethod
    def of(cls, options: TrainingOptions, program: Program, context: Context) -> Self:
        """The training of a program by a pass. Its data must be there."""
        assert context.data is not None, "`ready` has asked for data"
        return cls(options, program, context, context.data)

    def first_loss(self) -> None:
        """Run the first batch, and raise what is wrong with it: `DataError` where it doesn't fit model or loss."""
        batch = next(iter(self.data.read(self.options.split)), None)
        if batch is None:
            raise DataError(f"the data's split '{self.options.split}' is empty", at=self.data.at)
        device = next((tensor.device for tensor in self.program.tensors.values()), torch.device("cpu"))
        batch = batch.like(self.program.inputs, device)
        try:
            with torch.enable_grad():
                outputs = batch.through(self.program.deployed.module)
                if self.needs_labels:
                    self.with_gradient(self.context.loss.mean(outputs, batch))
        except (RuntimeError, MemoryError, PrunecError) as error:
            if is_out_of_memory(error):
                raise self.out_of_memory(batch, device) from error
            raise

    def out_of_memory(self, batch: Batch, device: torch.device) -> PassError:
        """The error of a batch that is too large, and what to set."""
        half, twice = max(batch.count // 2, 1), 2 * self.options.accumulate
        message = f"a batch of {batch.count} samples, {batch.shapes}, doesn't fit into the memory of {device}"
        hint = (
            f"data that give batches of {half} with 'accumulate: {twice}' take the same steps in half the memory; so "
            "does 'train: {precision: bf16-mixed}' for what is kept of each layer"
        )
        return PassError(message, hint=hint)

    def with_gradient(self, loss: Tensor) -> Tensor:
        """The loss. Raises `PassError` where no parameter that is trained can change it."""
        if loss.requires_grad or torch.is_inference_mode_enabled():
            return loss
        message = f"the loss {self.context.loss.name} has no gradient: no parameter that is trained leads to it"
        raise PassError(message, hint="a loss is computed from the outputs without detach() or no_grad()")

    # -- what is trained -------------------------------------------------------------------------------------------

    def trained(self, program: Program) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are trained, each once. Raises `PassError` where there are none."""
        every = trainable(program)
        still = frozen(self.options.freeze, every)
        left = once({name: parameter for name, parameter in every.items() if name not in still})
        if not left:
            raise PassError("no parameter is left to train: all are frozen", keys=("freeze",))
        return left

    def optimizer(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer of these parameters. Raises `PassError` where it can't be made."""
        groups = decayed(parameters, self.options.weight_decay, self.options.decay == "matrices")
        return self.options.optimizer.make(groups, self.options.lr)

    @property
    def is_measured(self) -> bool:
        """Whether the metric can be had of val."""
        if "val" not in self.data.splits:
            return False
        module = self.program.deployed.module
        return not try_out(module, self.data, self.program.inputs, self.context.metric, split="val").left_out

    @property
    def needs_labels(self) -> bool:
        """Whether the loss of the labels counts at all."""
        return self.options.distill is None or self.options.distill.weight < 1


def column_of(metric: str) -> str:
    """The column of a metric in the table of a run, where `loss` is that of the training; a callable goes by its own
    name."""
    name = metric.rpartition(":")[2]
    return f"val_{name}" if name in _COLUMNS else name


def fit(fabric: Fabric, job: Job) -> Trained:
    """Train; every process of the engine calls this.

    Raises `PassError` where the loss is NaN or memory runs out, with the place.
    """
    with _seeded(fabric.device), torch.inference_mode(False), torch.enable_grad():
        return _Run(fabric, job).result()


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """A context that leaves the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class _Run:
    """A training as it goes on: counts, the best weights, and the lines of its table."""

    def __init__(self, fabric: Fabric, job: Job) -> None:
        self.fabric, self.job, self.options = fabric, job, job.options
        state = with_own_tensors(job.program.state, fabric.device)
        own = job.program.derive(state=state, facts=job.program.facts)
        self.scoring = Scoring(self.options.score, job.program, job.context) if self.options.score else None
        self.module = (self.scoring.watched(own) if self.scoring else own).module.train()
        self.trained = self._freeze(own)
        self.teacher = self._teacher()
        self.optimizer, self.rates = self._optimizer()
        self.model, self.steps = fabric.setup(self.module, self.optimizer)
        self._to_train_mode()
        self.names = _named(self.module, own.tensors)
        self.sharded = is_sharded(fabric)
        self._remember()
        made = self.options.updates_for(self.module, own, job.context)
        constraints = self.options.constraints.updates(self.module, own)
        held = masks.updates_of(self.module, own)
        self.beside = in_order([*made, *constraints, *held])
        self.beside += [self.scoring] if self.scoring else []
        if self.sharded:
            check_sharded(self.options, len(self.beside) > len(held), bool(held))
        for update in self.beside:
            update.attach(self.optimizer)
        self.data, self.held = self._samples()
        self.epochs = self.data.epochs(self.options.split, _number(self.seed, "data"))
        self.at_once = self.options.accumulate * fabric.world_size
        self.total = self._total()
        for update in self.beside:
            update.planned(self.total)
        self.update = self.epoch = self.group = 0
        self.rows: list[Row] = []
        self.apart = frozenset[str]()
        self.best: dict[str, Any] = {}
        self.worse = 0
        self.stopped = ""
        self.sums: dict[str, float] = {}
        self.spent, self.told = 0.0, 0.0
        self.board = Board()
        self.sparse: list[nn.Parameter] | None = None
        self.evaluates = job.options.evaluate and job.is_measured

    # -- before the first step -------------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        assert self.options.seed is not None, "the pass has given its seed"
        return self.options.seed

    def _freeze(self, own: Program) -> list[tuple[str, nn.Parameter]]:
        """Take the gradient from what is frozen, and the train mode from norms that keep their statistics."""
        every, trained = trainable(own), self.job.trained(own)
        still = frozen(self.options.freeze, every)
        for name, parameter in every.items():
            parameter.requires_grad_(name not in still)
        self.still_norms = [
            part
            for name, part in own.state.items()
            if isinstance(part, nn.Module)
            for inner in part.modules()
            if isinstance(inner, nn.modules.batchnorm._NormBase)
            and (self.options.batch_norm == "freeze" or _all_frozen(name, inner, still))
        ]
        self._to_train_mode()
        return trained

    def _to_train_mode(self) -> None:
        """Train mode everywhere, but for norms that keep their statistics."""
        getattr(self, "model", self.module).train()
        for norm in self.still_norms:
            norm.eval()

    def _teacher(self) -> Teacher | None:
        if self.options.distill is None:
            return None
        original = self.job.context.traced or self.job.program
        own = original.derive(state=with_own_tensors(original.state, self.fabric.device))
        return Teacher(self.options.distill, own, self.job.program, self.job.context.loss.name)

    def _optimizer(self) -> tuple[torch.optim.Optimizer, list[float]]:
        optimizer = self.job.optimizer(self.trained)
        return optimizer, [group["lr"] for group in optimizer.param_groups]

    def _remember(self) -> None:
        """Give the optimizer what an earlier training left, as far as the parameters are still there."""
        carried = self.job.program.carried.get("optimizer")
        first = self.options.rounds is None or self.options.rounds[0] == 0
        if carried is None or first or carried["optimizer"] != self.options.optimizer.name:
            return
        if self.sharded:
            scatter(
                self.model._forward_module, self.optimizer, dict(Carried.of_plain(carried).fitted(self.job.program))
            )
            return
        by_name = dict(self.trained)
        for name, memory in Carried.of_plain(carried).fitted(self.job.program):
            if name in by_name:
                self.optimizer.state[by_name[name]] = {key: _own(x, by_name[name]) for key, x in memory.items()}

    def _total(self) -> int:
        """The updates of this training."""
        if self.options.updates is not None:
            return self.options.updates
        if not len(self.epochs):
            raise DataError(f"the data's split '{self.options.split}' is empty", at=self.job.data.at)
        each = math.ceil(len(self.epochs) / self.at_once)
        if self.fabric.world_size > 1:
            each = len(self.epochs) // self.at_once + (len(self.epochs) % self.at_once >= self.fabric.world_size)
        if not each:
            raise PassError(f"an epoch has {len(self.epochs)} batches, too few for {self.fabric.world_size} processes")
        return each * (self.options.epochs or 1)

    def _samples(self) -> tuple[Data, Sequence[Batch] | None]:
        """What is learned, and what isn't, of the samples that the plan names; all of the data where it names none."""
        if self.options.samples is None:
            return self.job.data, None
        batches = first_samples(self.job.data, self.options.split, self.options.samples)
        if not batches:
            raise DataError(f"the data's split '{self.options.split}' is empty", at=self.job.data.at)
        learned, held = divided(batches) if self.options.by_teacher else (batches, None)
        return Data.of(Few(learned), at=self.job.data.at), held

    # -- the loop --------------------------------------------------------------------------------------------------

    def result(self) -> Trained:
        """Train to the end."""
        keeper = self.job.context.keeper
        self._resume(self._agreed(keeper.load()))
        last = self.total if self.options.stop_at is None else min(self.options.stop_at, self.total)
        with Board.of(self.job.context.train, self.options.name, writes=self.fabric.is_global_zero) as self.board:
            self.board.write_rows(self.rows)
            if self.options.by_teacher and not self.update:
                self._compare(self._agreed(self._distance()))  # what is kept is never farther away than it was
            while self.update < last and not self.stopped:
                self._epoch(last)
        self._take_best()
        if self.options.batch_norm == "reestimate":
            self._reestimate()
        for each in self.beside:
            each.finish()
        return self._trained()

    def _epoch(self, last: int) -> None:
        """An epoch, or what is left of it."""
        beginning = self.epochs.state
        batches = self.epochs.read(self.group * self.at_once)
        grouped = iter(lambda: list(islice(batches, self.at_once)), [])
        count = self.update
        for group in grouped:
            if len(group) < self.fabric.world_size:
                break
            start = time.perf_counter()
            self._update(group[self.fabric.global_rank :: self.fabric.world_size])
            self.spent += time.perf_counter() - start
            self.update += 1
            self.group += 1
            self._tell()
            if self.update >= last:
                break
            if self._agreed(self.job.context.keeper.due()):
                self._save(beginning)
        if count == self.update and not self.group:
            raise DataError(f"the data's split '{self.options.split}' is empty", at=self.job.data.at)
        batches.close()  # type: ignore[attr-defined]
        self.epoch, self.group = self.epoch + 1, 0
        self._end_epoch(over=self.update >= last)

    def _update(self, batches: Sequence[Batch]) -> None:
        """One step of the optimizer."""
        torch.manual_seed(_number(self.seed, f"{self.update} {self.fabric.global_rank}"))
        first, total = self._place_in_schedule()
        factor = rate(self.options.schedule, self.options.warmup, first + self.update, total)
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor
        self.optimizer.zero_grad()
        device = self.fabric.device
        ready = [batch.like(self.job.program.inputs, device) for batch in batches]
        weights = self._weights([batch.count for batch in ready])
        loss = 0.0
        try:
            for number, (batch, weight) in enumerate(zip(ready, weights, strict=True)):
                whole = number == len(ready) - 1
                with self.fabric.no_backward_sync(self.model, enabled=not whole), self._scored(batch, weight):
                    found = self.job.with_gradient(self._loss(batch)) * weight
                    for each in self.beside if whole else ():
                        penalty = each.penalty()
                        found = found if penalty is None else found + penalty
                    self.fabric.backward(found)
                loss += float(found.detach())
        except (RuntimeError, MemoryError, PrunecError) as error:
            if is_out_of_memory(error):
                raise self.job.out_of_memory(batch, self.fabric.device) from error
            if batch.count == 1 and any(_is_norm(part) and part.training for part in self.module.modules()):
                raise _alone(batch) from error
            raise
        loss = self._mean(loss)
        self._check(loss, ready)
        self._densify()
        if self.options.clip is not None:
            self.fabric.clip_gradients(self.model, self.steps, max_norm=self.options.clip, error_if_nonfinite=False)
        elif self.beside:  # with float16 they are scaled until the step; clipping has taken that from them
            self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        for each in self.beside:
            each.before_step()
        self._step(ready[0])
        for each in self.beside:
            each.after_step()
        self.sums["loss"] = self.sums.get("loss", 0.0) + loss
        self.sums["updates"] = self.sums.get("updates", 0.0) + 1

    def _step(self, batch: Batch) -> None:
        """One step of the optimizer. Raises `PassError` with what it raises."""
        try:
            with running(f"the optimizer {self.options.optimizer.name} failed", PassError):
                self.steps.step()
        except PassError as error:
            if is_out_of_memory(error):
                raise self.job.out_of_memory(batch, self.fabric.device) from error
            raise

    def _densify(self) -> None:
        """Make gradients dense that are sparse, such as those of some embeddings: most optimizers, clipping and
        penalties can't take them. Which ones are is the same in every update."""
        if self.sparse is None:
            grads = ((parameter, parameter.grad) for _, parameter in self.trained)
            self.sparse = [parameter for parameter, grad in grads if grad is not None and grad.is_sparse]
        for parameter in self.sparse:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to_dense()

    def _scored(self, batch: Batch, weight: float) -> AbstractContextManager[None]:
        """Have the batch scored, where that is asked for."""
        return self.scoring.looking(batch, batch.count / weight) if self.scoring and weight else nullcontext()

    def _place_in_schedule(self) -> tuple[int, int]:
        """How many updates of the schedule are behind this training, and how many it has in all."""
        index, rounds = self.options.rounds or (0, 1)
        if rounds is None:  # nobody knows how many are to come: each round has a schedule of its own
            return 0, self.total
        return index * self.total, rounds * self.total

    def _weights(self, counts: Sequence[int]) -> list[float]:
        """What each batch's mean loss counts, so that the gradient is that of the mean over all samples."""
        total = sum(counts)
        everyone = self._mean(float(total))
        return [count / max(everyone, 1.0) for count in counts]

    def _mean(self, value: float) -> float:
        """The mean of what the processes have."""
        if self.fabric.world_size == 1:
            return value
        mean: Any = self.fabric.all_reduce(torch.tensor(value, device=self.fabric.device), reduce_op="mean")
        return float(mean)

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors of one kind, on the CPU."""
        found: Any = self.fabric.all_reduce(tensor.to(self.fabric.device), reduce_op="sum")
        return torch.as_tensor(found).cpu()

    def _agreed(self, value: Any) -> Any:
        """What the first process has, whose word decides: a clock, or a metric."""
        return value if self.fabric.world_size == 1 else self.fabric.broadcast(value)

    def _loss(self, batch: Batch) -> Tensor:
        loss, outputs = self.job.context.loss, None
        if self.teacher is None:
            return loss.mean(batch.through(self.model), batch)
        outputs, apart = self.teacher.loss(self.module, lambda: batch.through(self.model), batch)
        if not self.job.needs_labels:
            return apart
        return apart + (1 - self.teacher.options.weight) * loss.mean(outputs, batch)

    def _check(self, loss: float, batches: Sequence[Batch]) -> None:
        if math.isfinite(loss):
            return
        kept = self.job.context.keeper.place
        last = f"; the last good checkpoint is in {kept}" if kept else ""
        place = f"the loss is {loss} in epoch {self.epoch + 1}, update {self.update + 1} of {self.total}"
        for batch in batches:
            if not all(x.isfinite().all() for x in tensors_in((batch.inputs, batch.labels)) if x.is_floating_point()):
                raise batch.place.fault(f"it holds NaN or infinite values, and {place}{last}")
        message = f"{place}{last}"
        hint = f"a smaller rate than lr: {self.options.lr:g}, a 'warmup' or 'clip: 1.0' may help"
        raise PassError(message, keys=("lr",), hint=hint)

    # -- the end of an epoch ---------------------------------------------------------------------------------------

    def _end_epoch(self, *, over: bool) -> None:
        """Measure, tell, and decide whether it goes on."""
        count = self.sums.get("updates", 0.0)
        row: Row = {
            "epoch": self.epoch,
            "update": self.update,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": self.sums.get("loss", 0.0) / count if count else math.nan,
        }
        self.sums = {}
        if self.evaluates:
            row[column_of(self.job.context.metric.name)] = self._agreed(self._evaluated())
        if self.options.by_teacher:
            row[_DISTANCE] = self._agreed(self._distance())
        if self.judged in row:
            self._compare(row[self.judged])
        row |= self._measures()
        apart = {key: value for each in self.beside for key, value in each.figures().items()}
        self.apart = frozenset(apart)
        self.rows.append(row | apart)
        self.board.write(row | apart, self.update)
        if self.options.stop_at is None and not self.stopped:  # else nothing is decided anew
            self.stopped = self._agreed(next((reason for each in self.beside if (reason := each.ends())), ""))
        self._report(over)

    @property
    def judged(self) -> str:
        """The column that says which epoch is best."""
        return _DISTANCE if self.options.by_teacher else column_of(self.job.context.metric.name)

    def _distance(self) -> float:
        """How far what is held out of the samples, or the split val, is from what the original gives."""
        assert self.teacher is not None, "the options have asked for it"
        self.model.eval()
        total, count, inputs = 0.0, 0, self.job.program.inputs
        with torch.no_grad():
            for each in self.job.data.read("val") if self.held is None else self.held:
                batch = each.like(inputs, self.fabric.device)
                _, apart = self.teacher.loss(self.module, partial(batch.through, self.model), batch)
                total, count = total + float(apart) * batch.count, count + batch.count
        self._to_train_mode()
        return total / count if count and math.isfinite(total) else math.inf

    def _evaluated(self) -> float:
        """The metric on val."""
        self.model.eval()
        metric, inputs = self.job.context.metric, self.job.program.inputs
        found = evaluate(self.model, self.job.data, inputs, metric, split="val")
        self._to_train_mode()
        return math.nan if found.value is None else found.value

    def _compare(self, value: float) -> None:
        """Remember the best weights, and stop where they haven't become better for long."""
        metric, stop = self.job.context.metric, self.options.early_stop
        if not self.options.keeps_best:
            return
        margin = stop.min_delta if stop else 0.0
        if self.options.by_teacher:
            better = not self.best or value < self.best["value"] - margin
        else:
            shifted = value - margin if metric.higher_is_better else value + margin
            better = not self.best or metric.better(shifted, self.best["value"])
        if better:
            self.best = {
                "value": value,
                "epoch": self.epoch,
                "update": self.update,
                "weights": {name: tensor.detach().cpu().clone() for tensor, name in self.names.items()},
                "memory": state_by_name(self.optimizer, self.names),
            }
            self.worse = 0
            return
        self.worse += 1
        if stop is not None and self.worse >= stop.patience:
            what = "no nearer to the original" if self.options.by_teacher else f"no better {metric.title}"
            self.stopped = f"{what} for {self.worse} epochs"

    def _measures(self) -> Row:
        return {key: value for each in self.beside for key, value in each.measures().items()}

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.told >= TOLD:
            self._report()

    def _report(self, over: bool = False) -> None:
        self.told = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        last = self.rows[-1] if self.rows else {}
        count = self.sums.get("updates", 0.0)
        loss = self.sums["loss"] / count if count else last.get("loss", math.nan)
        kept = (key for key in last if key not in ("epoch", "update", "lr", "loss") and key not in self.apart)
        figures = {"loss": loss, **{key: last[key] for key in kept}}
        figures["lr"] = self.optimizer.param_groups[0]["lr"]
        if count:
            self.board.write({"loss": loss, "lr": figures["lr"]}, self.update)
        note = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        done = self.total if over or self.stopped else self.update
        self.job.context.progress(f"train: {self.options.name}", done, self.total, note)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, beginning: Mapping[str, Any]) -> None:
        """Write what a later process needs to go on behind this update."""
        state = {
            "module": self.model,
            "optimizer": self.steps,
            "counts": {"update": self.update, "epoch": self.epoch, "group": self.group, "worse": self.worse},
            "data": dict(beginning),
            "sums": self.sums,
            "rows": self.rows,
            "best": self.best,
            "beside": [each.state_dict() for each in self.beside],
            "spent": self.spent,
            "precision": self.fabric.strategy.precision.state_dict(),  # of float16, how gradients are scaled
        }
        if self.fabric.is_global_zero:
            self.job.context.keeper.save(lambda path: self.fabric.save(path, state))
        else:  # it writes nothing, and takes part in what is gathered
            self.fabric.save("", state)

    def _resume(self, path: Any) -> None:
        """Go on from a checkpoint, where there is one."""
        if path is None:
            return
        state: dict[str, Any] = {"module": self.model, "optimizer": self.steps}
        rest = self.fabric.load(path, state, strict=False, weights_only=True)
        counts = rest["counts"]
        self.update, self.epoch, self.group = counts["update"], counts["epoch"], counts["group"]
        self.worse, self.sums, self.rows, self.best = counts["worse"], rest["sums"], rest["rows"], rest["best"]
        self.spent = rest["spent"]
        self.epochs.restore(rest["data"])
        self.fabric.strategy.precision.load_state_dict(rest["precision"])
        for each, known in zip(self.beside, rest["beside"], strict=True):
            each.load_state_dict(known)

    # -- the end ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _take_best(self) -> None:
        """Put the best epoch's weights back, where they are kept."""
        if self.best:
            for tensor, name in self.names.items():
                tensor.copy_(self.best["weights"][name])

    def _reestimate(self) -> None:
        """Compute the running statistics anew: plain means over an epoch, with the weights as they are now."""
        norms = [part for part in self.module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
        norms = [norm for norm in norms if norm.track_running_stats and norm not in self.still_norms]
        momenta = [norm.momentum for norm in norms]
        self.model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in self.data.read(self.options.split):
                batch.like(self.job.program.inputs, self.fabric.device).through(self.model)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _statistics(self) -> list[str]:
        """The buffers, such as batch norm's statistics: each process has its own, of its own batches."""
        return [name for tensor, name in self.names.items() if not isinstance(tensor, nn.Parameter)]

    def _trained(self) -> Trained:
        if self.sharded:
            values, memory = self._agreed(gathered(self.model._forward_module, self.optimizer))
        else:
            values = {name: tensor.detach().cpu() for tensor, name in self.names.items()}
            values |= self._agreed({name: values[name] for name in self._statistics()})
            memory = state_by_name(self.optimizer, self.names)
        at = self.update
        best = {key: value for key, value in self.best.items() if key in ("value", "epoch", "update")}
        if self.best:
            memory, at = self.best["memory"], self.best["update"]
        facts: dict[str, Any] = {}
        if self.scoring and self.fabric.world_size > 1:
            self.scoring.together(self._sum)
        for each in self.beside:
            facts |= each.facts()
        return Trained(
            values=values,
            memory=memory,
            rows=self.rows,
            updates=at,
            epochs=self.epoch,
            pace=round(self.spent / max(self.update, 1), 6),
            device=str(self.fabric.device),
            best=best,
            stopped=self.stopped,
            measures=self._measures(),
            facts=facts,
        )


def _named(module: nn.Module, names: Iterable[str]) -> dict[Tensor, str]:
    """A module's tensors, with their names: a move to a device or a type makes new buffers."""
    found: dict[Tensor, str] = {}
    for name in names:
        found.setdefault(attrgetter(name)(module), name)  # a tied one goes by its first name
    return found


def _is_norm(part: nn.Module) -> bool:
    """Whether a module takes statistics of a batch."""
    return isinstance(part, nn.modules.batchnorm._NormBase)


def _alone(batch: Batch) -> DataError:
    """The error of a batch that is too small."""
    hint = "DataLoader(..., drop_last=True) leaves it out; batch_norm: freeze takes no statistics"
    return batch.place.fault("it has one sample, and batch norm takes statistics of several", hint)


def _own(value: Any, parameter: Tensor) -> Any:
    """What an optimizer keeps for a parameter, where and as the optimizer would have made it."""
    if not isinstance(value, Tensor):
        return value
    return value.to(parameter, copy=True) if value.shape == parameter.shape and value.ndim else value.clone()


def _all_frozen(name: str, norm: nn.Module, still: Iterable[str]) -> bool:
    """Whether a norm has parameters, and all of them are frozen."""
    own = [f"{name}.{key}" for key, tensor in norm._parameters.items() if tensor is not None]
    return bool(own) and set(own) <= set(still)


def _number(seed: int, text: str) -> int:
    """A number that depends on a seed and a text alone."""
    return int(np.random.default_rng([seed, *text.encode()]).integers(2**62))
