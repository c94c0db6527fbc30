"""Elements, slices and positions of a value: the index is run on the marks."""

from __future__ import annotations

from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row

row("getitem", "index_select")(moved)
