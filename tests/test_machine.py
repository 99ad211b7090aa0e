import os
import platform

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
