"""Times of runs that take turns: what other programs do to a run only ever makes it slower, and a machine's speed
changes from minute to minute.

    interleaved([dense, slim], seconds=1.0)         the medians of each one's blocks
    run_seconds([dense, slim], 1.0, alone=True)     of these the lower quartile, by the thread's own clock

Each runs in short blocks, one after the other, for so many seconds each. Where a run is one thread that computes
without a pause, its time is the thread's own: where it had to wait for the processor, that isn't counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Final

WARM_UP: Final = 5
"""Runs before any counts; of a slow model, as many as fit into a block, but one."""
BLOCK: Final = 0.02
"""Seconds that one is run for before it is another's turn."""
RUNS: Final = 50
"""The most runs of one before it is another's turn: more make the time of a short one no more certain."""
FEWEST, MOST = 3, 50
"""Rounds, however long they take, and however short they are."""

Run = Callable[[], object]
Clock = Callable[[], float]


def interleaved(runs: Sequence[Run], seconds: float = 1.0, clock: Clock = time.perf_counter) -> list[tuple[float, ...]]:
    """For each the medians of its blocks, in seconds. They take turns, in blocks of runs as long as `BLOCK`, for about
    `seconds` each; of runs so short that `RUNS` of them are no block, `MOST` times `RUNS` are enough."""
    known = [_warm(run, clock) for run in runs]
    lengths = [min(RUNS, max(1, round(BLOCK / one))) for one in known]
    whole = sum(one * count for one, count in zip(known, lengths, strict=True))
    blocks = [
        [_median_run(run, count, clock) for run, count in zip(runs, lengths, strict=True)]
        for _ in range(rounds_of(whole, seconds * len(runs)))
    ]
    return list(zip(*blocks, strict=True))


def run_seconds(runs: Sequence[Run], seconds: float, *, alone: bool) -> list[float]:
    """The seconds of one run of each. Where the thread that calls computes `alone`, its own time counts, and of the
    blocks the lower quartile; else the wall clock's, and the median."""
    if alone:
        return lower_quartiles(runs, seconds, lambda: _own_clock())
    return [median(times) for times in interleaved(runs, seconds)]


def lower_quartiles(runs: Sequence[Run], seconds: float, clock: Clock) -> list[float]:
    """Of the blocks of each, in seconds: what others do makes the slower ones slow."""
    return [quantiles(times, n=4)[0] for times in interleaved(runs, seconds, clock)]


def _own_clock() -> float:
    """Seconds: the thread's own time, or, where the system counts that too coarsely, the wall clock's."""
    return time.thread_time() if _FINE else time.perf_counter()


_FINE: Final = time.get_clock_info("thread_time").resolution < 1e-5


def rounds_of(one: float, seconds: float) -> int:
    """How many rounds fill so many seconds, where one round takes `one`; but a few at least, and not all too many."""
    return min(MOST, max(FEWEST, round(seconds / one)))


def _warm(run: Run, clock: Clock) -> float:
    """Warm up, and give the seconds of a run. The first one, which allocates, doesn't count."""
    first = _median_run(run, 1, clock)
    return _median_run(run, min(WARM_UP - 1, max(1, round(BLOCK / max(first, 1e-9)))), clock)


def _median_run(run: Run, count: int, clock: Clock) -> float:
    times = []
    for _ in range(count):
        start = clock()
        run()
        times.append(clock() - start)
    return max(median(times), 1e-9)
