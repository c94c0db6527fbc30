"""Records what Python starts and opens: processes and connections."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prunec.compiler.targets.mnn_convert import FORBIDDEN

Event = tuple[str, tuple[Any, ...]]

_recorders: list[list[Event]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _recorders and event.startswith(FORBIDDEN):
        for recorder in _recorders:
            recorder.append((event, args))


@contextmanager
def audited() -> Iterator[list[Event]]:
    """A context that gives the audit events in it. A hook stays for good; outside of a context it records nothing."""
    if _hook not in _installed:
        _installed.append(_hook)
        sys.addaudithook(_hook)
    events: list[Event] = []
    _recorders.append(events)
    try:
        yield events
    finally:
        _recorders.remove(events)


_installed: list[Any] = []
