"""Taking classes out of a classifier: its outputs have those that are kept, in the order that they had.

fc      Linear(64, 10)           keep [1, 4, 7]    Linear(64, 3)     rows 1, 4 and 7
head    Conv2d(64, 10, 1)                          Conv2d(64, 3, 1)
"""

from __future__ import annotations

from collections.abc import Sequence

from prunec.compiler.groups.classes import ClassAxis
from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.shrink import remove_units


def keep_classes(program: Program, axis: ClassAxis, kept: Sequence[int]) -> Program:
    """The program with these classes alone; `axis` is its class axis. Raises `ModelError` where the others can't go."""
    return remove_units(program, axis.without(kept), axis.analysis)
