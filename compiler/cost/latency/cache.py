"""Measured times on disk, so that a layer is measured once on each machine and with each runtime.

    ~/.cache/prunec/latency/3f2a...json     {"key": {...}, "value": ...}

One small file an entry, called by the hash of what was measured: a layer's shape, the runtime's version, the CPU, the
number of threads. A file is written under another name and then renamed, so processes that measure at once overwrite
each other's whole files and never spoil one. What can't be read counts as not measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from prunec.compiler.errors import OutputError


def cache_folder() -> Path:
    """`PRUNEC_CACHE_DIR` where it is set; else `prunec` in the platform's folder for caches."""
    own = os.environ.get("PRUNEC_CACHE_DIR")
    return Path(own).expanduser() if own else _platform_folder() / "prunec"


def _platform_folder() -> Path:
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else "")
    if named:
        return Path(named)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


@dataclass(frozen=True)
class Cache:
    """The entries in one folder, as a mapping of JSON values to JSON values."""

    folder: Path

    def load(self, key: Mapping[str, Any]) -> Any:
        """What was stored under the key; None where nothing was, or where its file is broken."""
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # none yet, or half of one: it is measured again
            return None
        return entry.get("value") if isinstance(entry, dict) and entry.get("key") == _plain(key) else None

    def store(self, key: Mapping[str, Any], value: Any) -> None:
        """Keep a value. Raises `OutputError` where the folder can't be written."""
        path = self._path(key)
        fresh = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps({"key": _plain(key), "value": value}), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            hint = "name a folder that can be written: PRUNEC_CACHE_DIR=..."
            raise OutputError(f"can't keep measured times in '{self.folder}': {error.strerror}", hint=hint) from error

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(_plain(key), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """The key as it comes back from JSON."""
    return json.loads(json.dumps(dict(key)))
