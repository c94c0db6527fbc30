"""Channel shuffles: the channels' marks come in the same order as the channels."""

from __future__ import annotations

from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row

row("channel_shuffle")(moved)
