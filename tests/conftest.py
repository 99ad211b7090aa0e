import importlib.util
import os
import sys
from pathlib import Path

import pytest

from ms_diffusion import runtime
from ms_diffusion.config import RuntimeConfig

ROOT = Path(__file__).parents[1]


os.environ["MS_DIFFUSION_GRAPHS"] = "0"  # the user's own cache is not the tests'


@pytest.fixture(scope="session", autouse=True)
def cpu():
    """The tests' numbers are those of the CPU, also on a machine with a card."""
    runtime.setup(RuntimeConfig(device="CPU"))


@pytest.fixture(params=["pynative", "graph"])
def jit(request):
    """Both execution modes."""
    return request.param == "graph"


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run scripts/NAME.py in this process: returns its exit status, stdout and stderr."""

    def run(name, *words):
        spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        status = 0
        try:
            module.exit_on_user_error(module.main)
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
