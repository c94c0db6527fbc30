"""A training's curves for TensorBoard, where a plan wants them: `train: {tensorboard: runs}`.

    runs/finetune/version_0       a run for each training; its steps are the updates of the optimizer

The first process alone writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from prunec.compiler.errors import PassError
from prunec.compiler.train_spec import TrainSpec

if TYPE_CHECKING:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

_COUNTS: Final = ("epoch", "update")


def ready(spec: TrainSpec) -> None:
    """Raise `PassError` where a plan wants what isn't installed."""
    if spec.tensorboard is not None and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        message = "the plan's 'train' wants curves for tensorboard, which isn't installed"
        raise PassError(message, at=spec.at, hint="pip install tensorboard; or leave out train: {tensorboard: ...}")


class Board:
    """Where the figures of one training are written; a context, behind which all of them are."""

    def __init__(self, logger: TensorBoardLogger | None = None) -> None:
        self._logger = logger

    @staticmethod
    def of(spec: TrainSpec | None, name: str, *, writes: bool) -> Board:
        """The board of a training; one that keeps nothing where nobody wants one, or another process writes.

        Raises `PassError` where the folder can't be written.
        """
        folder = spec.tensorboard if spec is not None and writes else None
        return Board() if spec is None or folder is None else Board(_logger(folder, name, spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._logger is not None:
            self._logger.finalize("success" if error is None else "failed")

    def write(self, figures: Mapping[str, float], update: int) -> None:
        """Write the figures that hold behind an update."""
        if self._logger is not None:
            self._logger.log_metrics({key: value for key, value in figures.items() if key not in _COUNTS}, update)

    def write_rows(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Write the lines of a run's table: those that an earlier process has found."""
        for row in rows:
            self.write(row, int(row["update"]))


def _logger(folder: Path, name: str, spec: TrainSpec) -> TensorBoardLogger:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger  # noqa: PLC0415  (takes seconds, and is an optional extra)

    logger = TensorBoardLogger(folder, name=name)
    try:
        logger.experiment  # noqa: B018  (makes the folder and its file)
    except OSError as error:
        message = f"the curves for tensorboard can't be written to '{folder}': {error.strerror}"
        raise PassError(message, at=spec.at) from error
    return logger
