"""What each operation does to marks (see `verify.masks`): the verifier's rules, a file for each family of operations.

The files bear the names of those in `compiler/ops`, and share nothing with them. To import this package is to import
them all: their rows register themselves in `verify.table`.
"""

from __future__ import annotations

from prunec.compiler.verify.ops import (  # noqa: F401
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
