"""Names this machine's processor: a measured time holds for it alone."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """This machine's processor: its name, and a hash of its features, in which two of one name may differ."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, value in fields.items()}
        can = known.get("flags", known.get("Features", ""))
        name = known.get("model name", known.get("CPU part", platform.machine()))
        return f"{name}, {platform.machine()}, {hashlib.sha256(can.encode()).hexdigest()[:8]}"
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return f"{platform.processor()}, {platform.machine()}"
