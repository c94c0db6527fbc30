"""A pass of somebody else's: it lives outside `prunec`, and is found through the entry-point group `prunec.passes`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult


class EveryNth(Pass):
    """Select every n-th free unit of each group."""

    name: ClassVar[str] = "acme_every_nth"
    gives: ClassVar[frozenset[str]] = frozenset({"selection"})
    shorthand: ClassVar[str | None] = "n"

    n: Annotated[int, Field(ge=2)] = 2

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `selection`; groups that lose nothing get a note."""
        selection, notes = {}, []
        for group in analyse(program).groups.values():
            chosen = np.flatnonzero(group.free)[self.n - 1 :: self.n]
            if chosen.size:
                selection[group.name] = chosen
            else:
                notes.append(Note(group.name, group.pinned[0] or f"has fewer than {self.n} units"))
        return PassResult(program.with_facts(selection=selection), tuple(notes))
