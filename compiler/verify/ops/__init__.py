"""The verifier's own account of the operations; its files bear the names of those in `compiler/ops`.

To import this package is to import the families; their rows register themselves (`verify.table`).
"""

from __future__ import annotations

from prunec.compiler.verify.ops import (  # noqa: F401
    concat,
    conv,
    elementwise,
    fft,
    gather_scatter,
    image,
    linear,
    matmul,
    norm,
    pooling,
    reduction,
    reshape,
    rnn,
    setitem,
)
