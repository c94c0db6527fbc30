"""The passes that a plan can name; one file each."""

from __future__ import annotations
