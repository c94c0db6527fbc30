"""The model zoo of the field, and its data factories. Depends on nothing else of ours."""

from __future__ import annotations
