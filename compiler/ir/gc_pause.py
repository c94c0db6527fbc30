"""Python's cycle collector, held off while the compiler builds its large, long-lived structures.

A graph of ten thousand nodes is a million objects that all refer to each other and that all stay. The collector walks
over every one of them again and again and finds nothing to free: half the time of a compile. What is built here is
bounded by the size of the model, so nothing is lost by looking for garbage later.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """A context, or a decorator, in which the cycle collector doesn't run. Inside another one it changes nothing.

    At the end all objects join the oldest generation (`gc.freeze`, `gc.unfreeze`), which isn't collected before many
    more have been made.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()
