import os
import platform
from pathlib import Path

import numpy as np
import pytest

from ms_diffusion import machine


@pytest.mark.parametrize(
    "cpuinfo, name",
    [
        ("processor\t: 0\nmodel name\t: Xeon @ 2 GHz\nprocessor\t: 1\nmodel name\t: Xeon @ 2 GHz\n", "Xeon @ 2 GHz"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "aarch64"), (None, "aarch64"),
    ],
)
def test_the_processor_has_a_name(cpuinfo, name, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    if cpuinfo is not None:
        machine._CPUINFO.write_text(cpuinfo)
    assert machine.processor() == f"{name}, 2 logical cores"


def test_memory_is_the_most_ever_held():
    before = machine.peak_memory()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    held = np.ones(int(before) - resident + 2**26, np.uint8)
    del held
    assert machine.peak_memory() >= before + 2**25
