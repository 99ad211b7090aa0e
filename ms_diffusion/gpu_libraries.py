"""NVIDIA's CUDA 11 libraries from Python packages, put where MindSpore's GPU plug-in finds them.

MindSpore 2.8 opens its plug-ins once, while it is imported, and the GPU's only if $CUDA_HOME/bin/nvcc tells CUDA's
version. The packages of requirements-gpu.txt bring the libraries, in folders that no linker looks into, and no nvcc.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

PLUGIN = "11.6"  # of the wheel's two plug-ins, the one that takes the packages' libnvrtc
_CUDNN, _CUBLAS, _NVRTC = "nvidia-cudnn-cu11", "nvidia-cublas-cu11", "nvidia-cuda-nvrtc-cu11"
# What the libraries below open by name, or are linked with, and the package that has it.
COMPANIONS = {
    "libnvrtc-builtins.so.11.8": _NVRTC,
    "libcublasLt.so.11": _CUBLAS,
    "libcudnn_ops_infer.so.8": _CUDNN,
    "libcudnn_ops_train.so.8": _CUDNN,
    "libcudnn_cnn_infer.so.8": _CUDNN,
    "libcudnn_cnn_train.so.8": _CUDNN,
    "libcudnn_adv_infer.so.8": _CUDNN,
    "libcudnn_adv_train.so.8": _CUDNN,
}
# What the plug-in is linked with. The driver's libcuda.so.1 comes with the card.
NEEDED = {
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "libnvrtc.so.11.2": _NVRTC,
    "libcublas.so.11": _CUBLAS,
    "libcudnn.so.8": _CUDNN,
    "libcufft.so.10": "nvidia-cufft-cu11",
    "libcurand.so.10": "nvidia-curand-cu11",
    "libcusparse.so.11": "nvidia-cusparse-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11",
}
LIBRARIES = {**COMPANIONS, **NEEDED}  # in the order of loading: each after those that it is linked with
_KEPT: list[tempfile.TemporaryDirectory] = []  # MindSpore looks into them again when the device is set


def has_card() -> bool:
    """Whether an NVIDIA card is in this machine."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def loads(library: str) -> bool:
    """Whether the linker finds the library by its name, or this process has it already."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def load() -> dict[str, str]:
    """Load the packages' libraries into this process, all or none; returns what they lack, a library for each package.

    Where all are installed, they win over the system's, also over $LD_LIBRARY_PATH: cuDNN and cuBLAS are several
    libraries each, which must be of one version, and these were chosen for the plug-in. A loaded library answers to its
    name, so the plug-in and cuDNN, which ask by name, get these. Not RTLD_GLOBAL: PyTorch's own must not bind to them.
    """
    paths = {name: _path(name, package) for name, package in LIBRARIES.items()}
    lacking = {package: name for name, package in LIBRARIES.items() if paths[name] is None}
    if lacking:
        return {name: package for package, name in lacking.items()}
    for name, path in paths.items():
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            return {name: f"{LIBRARIES[name]}: {error}"}
    return {}


@contextlib.contextmanager
def offered() -> Iterator[None]:
    """Import MindSpore within: with a card, its driver and the packages, MindSpore opens its GPU plug-in.

    For that time CUDA_HOME is a folder that looks like CUDA's to MindSpore: an nvcc that tells the plug-in's version.
    MindSpore checks the versions by `ldd` besides, in another process: LD_LIBRARY_PATH is for that one.
    """
    if not has_card() or not loads("libcuda.so.1") or load():
        yield
        return
    home, toolkit = os.environ.get("CUDA_HOME"), _toolkit()
    os.environ["CUDA_HOME"] = str(toolkit)
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [f"{toolkit}/lib", os.environ.get("LD_LIBRARY_PATH")]))
    try:
        yield
    finally:
        del os.environ["CUDA_HOME"]
        if home is not None:
            os.environ["CUDA_HOME"] = home


def _path(library: str, package: str) -> Optional[Path]:
    """nvidia-cuda-nvrtc-cu11 has its libraries in nvidia/cuda_nvrtc/lib."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else []
    folder = package[len("nvidia-"):-len("-cu11")].replace("-", "_")
    paths = [Path(root, folder, "lib", library) for root in roots or []]
    return next((path for path in paths if path.exists()), None)


def _toolkit() -> Path:
    """A folder with what MindSpore looks at in CUDA's; it is deleted when the process ends."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="ms_diffusion_"))
    folder = Path(_KEPT[-1].name)
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {PLUGIN}, V{PLUGIN}.0"\n')
    nvcc.chmod(0o755)
    (folder / "lib").mkdir()
    runtime, cudnn = "libcudart.so.11.0", "libcudnn.so.8"
    # MindSpore reads the version off the file's name; the packages' files have none in theirs.
    for link, name in ((runtime, runtime), (f"libcudart.so.{PLUGIN}.0", runtime), (cudnn, cudnn)):
        (folder / "lib" / link).symlink_to(_path(name, NEEDED[name]))
    return folder
