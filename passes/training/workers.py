"""A function in several processes of this machine, which are started for it; what the first of them gives comes back.

The processes are fresh ones. The script that runs isn't run again in them, unless what they are given is defined in it.
An error of ours that one of them raises is raised here; the others are ended.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

from torch import multiprocessing as mp
from torch.distributed import destroy_process_group, is_initialized
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from prunec.compiler.errors import PassError, PrunecError
from prunec.compiler.pass_base import Progress, silent
from prunec.passes.training import handover

POLL: Final = 0.1
"""Seconds between two looks at the processes."""

_ADDRESS: Final = "127.0.0.1"
_LEVEL: Final = "TORCH_CPP_LOG_LEVEL"
_STARTED: Final = "PRUNEC_WORKER"
"""Set in a process that was started here."""


def run(function: Callable[[Any, Progress], Any], given: Any, count: int, progress: Progress = silent) -> Any:
    """What `function(given, progress)` gives in the first of `count` processes.

    Each finds its rank and the way to the others in the environment, as torch.distributed reads it. Raises what a
    process raises that is an error of ours, and `PassError` where one is killed.
    """
    if _STARTED in os.environ:
        message = "a process that trains would start others: the script that is run again in it compiles, too"
        raise PassError(message, hint='put the call of compile under `if __name__ == "__main__":`')
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that processes are ended is no news
    with TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        handover.write((function, given), folder / _JOB)
        told = mp.get_context("spawn").SimpleQueue()
        with _without_main():
            started = start_processes(  # type: ignore[no-untyped-call]
                _work, (name, count, _free_port(), told), nprocs=count, join=False, start_method="spawn"
            )
        assert isinstance(started, ProcessContext), "it was asked not to wait"
        try:
            done = False
            while not done:
                done = started.join(POLL)
                while not told.empty():
                    progress(*told.get())
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise _error(folder, count, error) from error
        finally:
            _end(started)
        if not (folder / _RESULT).exists():
            raise PassError("the processes that train were interrupted")
        return handover.read(folder / _RESULT)


_JOB: Final = "job.pt"
_RESULT: Final = "result.pt"


@contextmanager
def _without_main() -> Iterator[None]:
    """A context in which processes start that don't run the main script again, and are silent about torch's advice."""
    main, level = sys.modules["__main__"], os.environ.get(_LEVEL)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.setdefault(_LEVEL, "ERROR")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if level is None:
            del os.environ[_LEVEL]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_ADDRESS, 0))
        port: int = found.getsockname()[1]
        return port


def _end(started: ProcessContext) -> None:
    """End what still runs."""
    for process in started.processes:
        if process.is_alive():
            process.terminate()
    for process in started.processes:
        process.join()


# -- in the process ------------------------------------------------------------------------------------------------


def _work(rank: int, name: str, count: int, port: int, told: Any) -> None:
    folder, place = Path(name), {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "NODE_RANK": 0}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ.update({"MASTER_ADDR": _ADDRESS, "MASTER_PORT": str(port), _STARTED: "1"})
    warnings.simplefilter("ignore")  # the first process of all has told what there is to tell
    try:
        function, given = handover.read(folder / _JOB)
        result = function(given, _Telling(told) if rank == 0 else silent)
        if rank == 0:
            handover.write(result, folder / _RESULT)
        if is_initialized():
            destroy_process_group()
    except Exception as error:
        _leave(error, folder / f"error-{rank}.pickle")
        raise


class _Telling:
    """A `Progress` that reports to the process that has started this one."""

    def __init__(self, told: Any) -> None:
        self._told = told

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        self._told.put((what, done, total, note))


def _leave(error: Exception, path: Path) -> None:
    """Write down an error, and when it came."""
    ours = error if isinstance(error, PrunecError) else None
    path.with_suffix(".part").write_bytes(pickle.dumps((time.time(), ours, traceback.format_exc())))
    path.with_suffix(".part").rename(path)


def _error(folder: Path, count: int, error: ProcessRaisedException | ProcessExitedException) -> BaseException:
    """The error that came first: the others may be of processes that have lost it."""
    found = [pickle.loads(path.read_bytes()) for path in folder.glob("error-*.pickle")]
    if found:
        _, ours, text = min(found, key=lambda each: each[0])
        return ours or RuntimeError(f"in one of {count} processes that train: {text}")
    which = f"process {error.error_index + 1} of {count} that train"
    if isinstance(error, ProcessExitedException) and error.exit_code is not None and error.exit_code < 0:
        ended = signal.Signals(-error.exit_code).name
        return PassError(f"{which} was ended by {ended}", hint="if nobody did, the system did for want of memory")
    return RuntimeError(f"{which} has ended: {error}")
