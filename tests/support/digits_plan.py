"""The embedded network of handwritten digits, as a plan names it: `{**DIGITS, "passes": [...]}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

DIGITS: Final[dict[str, Any]] = {
    "plan": 1,
    "model": {
        "factory": "prunec.models.digits:cnn",
        "weights": str(Path(__file__).parents[2] / "models/weights/digits.safetensors"),
    },
    "inputs": [[1, 1, 8, 8]],
    "data": "prunec.models.data:digits",
}

HALVED: Final[dict[str, Any]] = {
    **DIGITS,
    "passes": [
        {"score": {"criterion": "bn_scale", "normalize": "none"}},
        {"select": {"budget": {"macs": "52%"}}},
        "shrink",
    ],
}
"""What plans/digits.yaml does, but for folding batch norms."""
