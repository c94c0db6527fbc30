"""Each operation as ONNX: a file for each family of operations, which bear the names of those in `compiler/ops`.

To import this package is to import them all: their rows register themselves in `call.OP_ROWS` and `call.MODULE_ROWS`.
"""

from __future__ import annotations

from prunec.compiler.targets.onnx.ops import (  # noqa: F401
    concat,
    conv,
    elementwise,
    expand,
    image,
    indexing,
    linear,
    matmul,
    norm,
    pooling,
    reduction,
    reshape,
    shuffle,
)
