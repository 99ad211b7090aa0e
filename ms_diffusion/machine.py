"""The machine that numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Name of the processor, as far as the system tells it, and the number of its logical cores."""
    model = re.search(r"model name\s*: (.*)", _CPUINFO.read_text()) if _CPUINFO.exists() else None
    return f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} logical cores"
