"""The machine that numbers were measured on, and what a process takes of it."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")


def processor() -> str:
    """Name of the processor, as far as the system tells it, and the number of its logical cores."""
    model = re.search(r"model name\s*: (.*)", _CPUINFO.read_text()) if _CPUINFO.exists() else None
    return f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} logical cores"


def peak_memory() -> float:
    """The most memory that this process ever held, in bytes; NaN on other systems than Linux.

    Not `getrusage`'s ru_maxrss: a process inherits that from the one that started it.
    """
    held = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    return 1024.0 * int(held.group(1)) if held else math.nan
