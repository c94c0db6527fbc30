"""The examples in README.md and docs/, which tests run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def block_of(page: str, name: str) -> str:
    """The fenced block of a page between `<!-- name -->` and `<!-- end -->`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```\n<!-- end -->", text, re.DOTALL)
    assert found, f"{page} has no block '{name}'"
    return found[1]
