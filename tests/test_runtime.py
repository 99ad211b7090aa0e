import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from ms_diffusion import machine, runtime
from ms_diffusion.config import RuntimeConfig
from ms_diffusion.errors import UserError


def test_setup_takes_the_cpu():
    assert runtime.setup(RuntimeConfig(device="CPU")) == "CPU"
    assert ms.get_context("device_target") == "CPU"
    assert ms.get_context("mode") == ms.PYNATIVE_MODE
    assert runtime.versions()["device"] == "CPU" and runtime.versions()["mindspore"] == ms.__version__


@pytest.mark.parametrize(
    "device, library, mend",
    [("Ascend", "CANN", "set_env.sh"), ("GPU", "the NVIDIA driver", "pip install -r requirements-gpu.txt")],
)
def test_a_missing_device_is_answered_by_what_is_missing(device, library, mend, monkeypatch):
    monkeypatch.setattr(runtime, "loads", lambda name: False)
    with pytest.raises(UserError, match=f"runtime.device is {device}: this machine lacks") as caught:
        runtime.setup(RuntimeConfig(device=device))
    message = str(caught.value)
    assert library in message and mend in message and "--runtime.device CPU" in message and "\n" not in message


def test_a_wheel_without_the_plug_in_is_named(monkeypatch):
    monkeypatch.setitem(runtime._PLUGINS, "GPU", "no_such_plugin.so*")
    with pytest.raises(UserError, match="lacks the GPU plug-in in its MindSpore wheel"):
        runtime.setup(RuntimeConfig(device="GPU"))


def test_a_device_that_mindspore_cannot_open_is_one_line(monkeypatch):
    """The libraries are there, and MindSpore still refuses: on this machine it does."""
    if Path("/dev/davinci0").exists():
        pytest.skip("this machine has an Ascend card")
    monkeypatch.setattr(runtime, "loads", lambda name: True)
    with pytest.raises(UserError, match="MindSpore .* cannot open it") as caught:
        runtime.setup(RuntimeConfig(device="Ascend"))
    assert "\n" not in str(caught.value)


def test_auto_names_the_card_it_cannot_use(monkeypatch, capsys):
    monkeypatch.setattr(Path, "glob", lambda self, nodes: iter([self / "card"]))
    monkeypatch.setattr(runtime, "loads", lambda name: False)
    assert runtime.setup(RuntimeConfig(device="auto")) == "CPU"
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in warnings] == ["Ascend", "GPU"]


@pytest.mark.parametrize("version", [(3, 8), (3, 13)])
def test_a_python_without_wheels_is_refused_in_one_line(version):
    code = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0, 'final', 0); import ms_diffusion"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "needs Python 3.9 to 3.12" in last and f"this is {version[0]}.{version[1]}" in last


def test_threads_are_those_that_the_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda process: set(range(6)))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(runtime, "_CPU_QUOTA", quota)
    for text, cores in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), ("?", 6)):
        quota.write_text(text)
        assert runtime.cores() == cores, text
    monkeypatch.setattr(runtime, "_CPU_QUOTA", tmp_path / "absent")
    assert runtime.cores() == 6


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_reach_the_kernels(threads):
    code = (
        "import os; from ms_diffusion import native, runtime, config;"
        f"runtime.setup(config.RuntimeConfig(device='CPU', threads={threads})); assert runtime.threads() == {threads};"
        "import mindspore as ms, numpy as np;"
        "f = native.operator('silu'); f and f(ms.Tensor(np.ones((1, 64, 64, 64), np.float32))).asnumpy();"
        "names = [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')];"
        "print(sum(name.startswith('ms_diffusion') for name in names) if f else 'none')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] in (str(threads - 1), "none")


def test_threads_are_chosen_once(monkeypatch):
    monkeypatch.setitem(runtime._SETUP, "threads", 2)
    runtime.setup(RuntimeConfig(device="CPU", threads=2))
    with pytest.raises(UserError, match="runtime.threads is 5, and this process computes with 2"):
        runtime.setup(RuntimeConfig(device="CPU", threads=5))


def test_memory_is_the_process_own_on_a_cpu_and_the_tensors_elsewhere(monkeypatch):
    assert runtime.memory_mb() == pytest.approx(machine.peak_memory() / 1e6, rel=0.01)
    monkeypatch.setitem(runtime._SETUP, "device", "Ascend")
    monkeypatch.setattr(ms.runtime, "max_memory_allocated", lambda: 3_500_000)
    assert runtime.memory_mb() == 3.5


ASCEND, GPU = ms.device_context.ascend, ms.device_context.gpu
CALLS = {
    "conv_allow_hf32": ASCEND.op_precision, "matmul_allow_hf32": ASCEND.op_precision,
    "conv_allow_tf32": GPU.op_precision, "matmul_allow_tf32": GPU.op_precision,
    "conv_wgrad_algo": GPU.op_tuning, "conv_dgrad_algo": GPU.op_tuning, "set_deterministic": ms,
}
ALGORITHMS = {"conv_wgrad_algo": "algo_1", "conv_dgrad_algo": "algo_1"}


@pytest.fixture
def calls(monkeypatch):
    """What `runtime.setup` tells MindSpore, in a process that began with nothing, on a machine with every card."""
    made = {}
    for name, module in CALLS.items():
        monkeypatch.setattr(module, name, lambda value, name=name: made.update({name: value}))
    monkeypatch.setattr(runtime, "_missing", lambda device: "")
    monkeypatch.setattr(runtime, "_set_device", lambda device: None)
    for name in ("hf32", "deterministic"):
        monkeypatch.setitem(runtime._SETUP, name, None)
    monkeypatch.setitem(runtime._SETUP, "jit_level", "O0")
    return made


@pytest.mark.parametrize("fast", [False, True])
def test_float32_is_rounded_only_where_that_is_asked_for(fast, calls):
    for device, kind in (("Ascend", "hf32"), ("GPU", "tf32")):
        calls.clear()
        runtime._SETUP.update(hf32=None, deterministic=None)
        runtime.setup(RuntimeConfig(device=device, hf32=fast))
        assert calls == {f"conv_allow_{kind}": fast, f"matmul_allow_{kind}": fast}


def test_determinism_is_asked_for(calls):
    for device, algorithms in (("Ascend", {}), ("GPU", ALGORITHMS)):
        calls.clear()
        runtime._SETUP.update(hf32=None, deterministic=None)
        runtime.setup(RuntimeConfig(device=device, deterministic=True))
        other = {name: value for name, value in calls.items() if "allow" not in name}
        assert other == {"set_deterministic": True, **algorithms}


def test_a_cpu_is_told_nothing_of_that(calls):
    runtime.setup(RuntimeConfig(device="CPU", hf32=True, deterministic=True, jit_level="O1"))
    assert calls == {} and runtime.jit_level() == "O0"


def test_mindspore_takes_these_settings_once(calls):
    runtime.setup(RuntimeConfig(device="Ascend"))
    calls.clear()
    runtime.setup(RuntimeConfig(device="Ascend"))
    assert calls == {}
    for name in ("hf32", "deterministic"):
        with pytest.raises(UserError, match=f"runtime.{name} is True, and this process began with False"):
            runtime.setup(RuntimeConfig(device="Ascend", **{name: True}))


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_the_level_reaches_the_compiler(level, calls, monkeypatch):
    from ms_diffusion import graphs

    runtime.setup(RuntimeConfig(device="Ascend", jit_level=level))
    given = {}
    monkeypatch.setattr(graphs.ms, "jit", lambda function, **options: given.update(options) or function)
    graphs.compiled(len, "a step", [])
    assert given == {"jit_level": level}
