"""Device, execution mode, threads and ranks: the only file that sets MindSpore's state."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any, Optional

from ms_diffusion import gpu_libraries, machine
from ms_diffusion.config import RuntimeConfig
from ms_diffusion.errors import UserError
from ms_diffusion.gpu_libraries import loads

with gpu_libraries.offered():
    import mindspore as ms
    from mindspore import Tensor, communication, ops
    from mindspore import dtype as mstype

# What MindSpore 2.8's plug-ins open first, and whose it is.
_LIBRARIES = {
    "Ascend": {"libascendcl.so": "CANN", "libge_runner.so": "CANN"},
    "GPU": {"libcuda.so.1": "the NVIDIA driver"},  # and gpu_libraries
}
_PLUGINS = {"Ascend": "libmindspore_ascend.so*", "GPU": "libmindspore_gpu.so*"}
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MENDS = {
    "Ascend": "install CANN and source its set_env.sh",
    "GPU": "pip install -r requirements-gpu.txt and import ms_diffusion before mindspore, or have CUDA 11.1 or 11.6 "
           "with cuDNN 8 on LD_LIBRARY_PATH and its folder in CUDA_HOME",
}
_SETUP: dict[str, Any] = {
    "device": None, "threads": None, "hf32": None, "deterministic": None, "jit_level": "O0", "rank": 0, "ranks": 1,
    "local_ranks": 1,
}


def setup(config: RuntimeConfig) -> str:
    """Take the device that `config` asks for and apply the settings measured for it; returns the device's name.

    In a process that msrun started, meets the other ranks, each on a card of its own; msrun's scheduler stays in here
    until the ranks have ended, and ends too. Raises `UserError`, saying what is missing, where this machine lacks the
    device, where the ranks do not meet, and for another number of threads, another `hf32` or another `deterministic`
    than the process began with.
    """
    device = _choose(config.device)
    if device != "CPU":
        missing = _missing(device)
        if missing:
            raise UserError(
                f"runtime.device is {device}: this machine lacks {missing}; {_MENDS[device]}, or take "
                "--runtime.device CPU"
            )
    _set_device(device)
    if device != "CPU":
        _set_numbers(device, config)  # before the ranks meet, as MindSpore advises
    _meet()
    _set_threads(config.threads)
    _SETUP["jit_level"] = "O0" if device == "CPU" else config.jit_level
    # Outside ms.jit everything is PyNative in both modes; `config.mode` says whether a step is compiled.
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if device == "CPU":
        # Without this, short operators in PyNative wait for whole 4 ms ticks of the launch threads.
        ms.runtime.launch_blocking()
    return device


def device() -> str:
    """Where this process computes: CPU, GPU or Ascend."""
    return _SETUP["device"] or ms.get_context("device_target")


def threads() -> int:
    """How many cores of the CPU one operator of this process may use; `setup` decides."""
    return _SETUP["threads"] or cores()


def require_precision(precision: str) -> None:
    """Raise `UserError` where this device has no convolution or matrix product in `precision`: fp32, fp16 or bf16."""
    if precision == "fp32":
        return
    dtype = {"fp16": mstype.float16, "bf16": mstype.bfloat16}[precision]
    image, kernel = ops.ones((1, 16, 4, 4), dtype), ops.ones((16, 16, 3, 3), dtype)
    try:
        convolved = ops.Conv2D(out_channel=16, kernel_size=3, pad_mode="pad", pad=1)(image, kernel)
        ops.cast(ops.BatchMatMul()(convolved, convolved), mstype.float32).asnumpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"train.precision is {precision}: {device()} cannot compute in it with MindSpore {ms.__version__}; "
            "take --train.precision fp32"
        ) from error


def jit_level() -> str:
    """The optimisation level for `ms.jit`; `setup` decides."""
    return _SETUP["jit_level"]


def rank() -> int:
    """The number of this process among those that train together, from 0; `setup` learns it from msrun."""
    return _SETUP["rank"]


def ranks() -> int:
    """How many processes train together; 1 without msrun."""
    return _SETUP["ranks"]


def finish(outputs: tuple[Tensor, ...]) -> None:
    """On a CPU, wait for `outputs`; elsewhere return at once, so that the host prepares the next step meanwhile.

    Steps that queue up on a CPU fight for its cores: they took more than twice as long (README, "Speed on a CPU").
    MindSpore spins meanwhile; steps with native kernels have ended before they come here (`native.asleep`).
    """
    if _SETUP["device"] == "CPU":
        for output in outputs:
            output.asnumpy()


def memory_mb() -> float:
    """The most memory held so far, in units of 10^6 bytes: on a CPU by this process, else by Tensors on the device.

    NaN on a CPU under other systems than Linux.
    """
    return (machine.peak_memory() if device() == "CPU" else ms.runtime.max_memory_allocated()) / 1e6


def _choose(device: str) -> str:
    """The device that `auto` means here: the first whose card is in the machine and whose libraries are installed."""
    if device != "auto":
        return device
    for name, nodes in (("Ascend", "davinci[0-9]*"), ("GPU", "nvidia[0-9]*")):
        if any(Path("/dev").glob(nodes)):
            missing = _missing(name)
            if not missing:
                return name
            print(f"warning: the {name} of this machine is not used, for lack of {missing}: {_MENDS[name]}",
                  file=sys.stderr)
    return "CPU"


def _missing(device: str) -> str:
    """What MindSpore would need for `device` and this machine has not, in words; empty if nothing."""
    plugins = Path(ms.__file__).parent / "lib" / "plugin"
    if not any(plugins.glob(_PLUGINS[device])):
        return f"the {device} plug-in in its MindSpore wheel"
    absent = {name: owner for name, owner in _LIBRARIES[device].items() if not loads(name)}
    if device == "GPU":
        lacking = gpu_libraries.load()
        if not all(loads(name) for name in gpu_libraries.NEEDED):  # the system's will do
            absent.update(lacking)
    return ", ".join(f"{name} ({owner})" for name, owner in absent.items())


def _set_device(device: str) -> None:
    if _SETUP["device"] == device:
        return
    try:
        if os.environ.get("MS_ROLE") == "MS_WORKER" and device != "CPU":
            ms.set_device(device, int(os.environ["DEVICE_ID"]))  # the rank's number on its host, by msrun
        else:
            ms.set_device(device)
    except RuntimeError as error:
        failures = re.findall(rf"Load dynamic library: (\S*{device.lower()}.*)", str(error))
        reasons = failures or [str(error).split("\n")[0]]
        raise UserError(
            f"runtime.device is {device}: MindSpore {ms.__version__} cannot open it: {' '.join(reasons)} "
            f"({_MENDS.get(device, 'reinstall MindSpore')})"
        ) from error
    _SETUP["device"] = device


def _meet() -> None:
    """Where msrun started this process, open the communication of its device: HCCL, NCCL, or on a CPU MCCL."""
    if "MS_ROLE" not in os.environ or _SETUP["ranks"] > 1:
        return
    try:
        communication.init()
    except RuntimeError as error:
        raise UserError(
            f"the ranks do not meet at {os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}: "
            f"{str(error).splitlines()[0]} (the folder of logs has worker_*.log and scheduler.log)"
        ) from error
    _SETUP.update(
        rank=communication.get_rank(), ranks=communication.get_group_size(),
        local_ranks=communication.get_local_rank_size(),
    )


def _set_threads(asked: Optional[int]) -> None:
    """MindSpore takes its number of threads once, before its first operator."""
    wanted = asked or max(1, cores() // _SETUP["local_ranks"])
    if _SETUP["threads"] not in (None, wanted):
        raise UserError(f"runtime.threads is {wanted}, and this process computes with {_SETUP['threads']}: begin anew")
    if _SETUP["threads"] is None and wanted < (os.cpu_count() or 1):
        # MindSpore counts the cores of the machine, also where the process may not use them all.
        ms.device_context.cpu.op_tuning.threads_num(wanted)
    _SETUP["threads"] = wanted


def _set_numbers(device: str, config: RuntimeConfig) -> None:
    """How a card computes with float32, and whether always alike; MindSpore takes both once. Not run on Ascend."""
    for name in ("hf32", "deterministic"):
        wanted = getattr(config, name)
        if _SETUP[name] not in (None, wanted):
            raise UserError(f"runtime.{name} is {wanted}, and this process began with {_SETUP[name]}: begin anew")
    if _SETUP["hf32"] is None:
        # Unless told, Ascend takes HF32 and a GPU TF32 for the convolutions.
        if device == "Ascend":
            precision = ms.device_context.ascend.op_precision
            precision.conv_allow_hf32(config.hf32)
            precision.matmul_allow_hf32(config.hf32)
        else:
            precision = ms.device_context.gpu.op_precision
            precision.conv_allow_tf32(config.hf32)
            precision.matmul_allow_tf32(config.hf32)
    if config.deterministic and _SETUP["deterministic"] is None:
        ms.set_deterministic(True)
        if device == "GPU":
            # cuDNN's other algorithms for these gradients add in any order.
            ms.device_context.gpu.op_tuning.conv_wgrad_algo("algo_1")
            ms.device_context.gpu.op_tuning.conv_dgrad_algo("algo_1")
    _SETUP.update(hf32=config.hf32, deterministic=config.deterministic)


def cores() -> int:
    """How many cores this process may use: by its affinity, and by the quota of a container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def versions() -> dict[str, Any]:
    """What a run's numbers depend on: versions, device, threads and processor."""
    import numpy

    return {
        "mindspore": ms.__version__, "numpy": numpy.__version__, "python": platform.python_version(),
        "device": device(), "threads": threads(), "ranks": ranks(), "machine": platform.machine(),
        "system": platform.platform(),
    }
