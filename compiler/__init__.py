"""The compiler: tracing, label flow, the dependency graph, verification and emission. It knows no pruning method."""

from __future__ import annotations

__version__ = "0.1.0"
