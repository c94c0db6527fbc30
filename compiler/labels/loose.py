"""Labels of copies that have met no channels (`Flow.loose`): what sums them up would miss one.

gate.expand(-1, 8, -1, -1)              loose: a convolution that reads all eight gets a term from each
y * gate.expand(-1, 8, -1, -1)          y's labels stand for both: a copy goes with its channel
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Flow


def is_loose(flow: Flow, labels: IntArray) -> bool:
    """Whether any of the labels is a loose one."""
    return any(bool(_inside(labels, own).any()) for own in flow.loose)


def pin_loose(flow: Flow, fields: Iterable[IntArray], reason: str) -> None:
    """Of the fields' labels, the loose ones may not be removed."""
    for labels in fields if flow.loose else ():
        for own in flow.loose:
            inside = _inside(labels, own)
            if inside.any():
                flow.pin(labels[inside], reason)


def _inside(labels: IntArray, own: range) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return (labels >= own.start) & (labels < own.stop)
