"""What each operation means: a file for each family, with its label rules, its literal sizes and its MACs.

To import this package is to import the families; their rows register themselves (`labels/registry.py`).
"""

from __future__ import annotations

from prunec.compiler.ops import (  # noqa: F401
    concat,
    conv,
    distance,
    elementwise,
    expand,
    fft,
    gather_scatter,
    image,
    indexing,
    linear,
    matmul,
    norm,
    pooling,
    reduction,
    reshape,
    rnn,
    setitem,
    shuffle,
)
