"""What all tests share: the fixture that runs pytest inside a test, for the case-file plugin."""

from __future__ import annotations

pytest_plugins = ["pytester"]
