"""CUDA 11 from Python packages: made-up ones, and the real ones where they are installed. No card is needed."""

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ms_diffusion import gpu_libraries, runtime
from ms_diffusion.config import RuntimeConfig
from ms_diffusion.errors import UserError

ROOT = Path(__file__).parents[1]
PLUGINS = Path(importlib.util.find_spec("mindspore").origin).parent / "lib" / "plugin"
# The C library's, the compiler's and the driver's.
NOT_CUDA = re.compile(r"lib(pthread|dl|rt|m|c|gcc_s|stdc\+\+|gomp|cuda)\.so\.\d+|ld-linux.*")
# Real libraries that are linked with real libraries.
LINKED = {"libcublas.so.11": "libcublasLt.so.11", "libcusolver.so.11": "libcublas.so.11"}
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="this machine has no C compiler")
# The module by its file: the package would import MindSpore.
IMPORT = (
    "import ctypes, importlib.util, os, re, subprocess, sys\n"
    f"spec = importlib.util.spec_from_file_location('gpu_libraries', {gpu_libraries.__file__!r})\n"
    "module = importlib.util.module_from_spec(spec)\n"
    "spec.loader.exec_module(module)\n"
    "def mapped(): return set(re.findall(r'/\\S*/lib(?:cu|nvrtc)\\S*', open('/proc/self/maps').read()))\n"
)
WITH_CARD = (
    "module.has_card = lambda: True\n"
    "sys.modules['ms_diffusion.gpu_libraries'] = module\n"
    "from ms_diffusion import UserError, runtime\n"
    "from ms_diffusion.config import RuntimeConfig\n"
)
# What the plug-in calls in the driver's library.
CALLS = (
    "cuDeviceGetAttribute", "cuGetErrorName", "cuLaunchKernel", "cuModuleGetFunction", "cuModuleLoadDataEx",
    "cuModuleUnload", "cuStreamSynchronize",
)


def needed(path):
    """The names that an x86-64 ELF file asks the linker for: its DT_NEEDED entries."""
    with path.open("rb") as file:

        def read(layout, offset):
            file.seek(offset)
            return struct.unpack(layout, file.read(struct.calcsize(layout)))

        table, size, count = *read("<Q", 0x28), *read("<HH", 0x3A)
        sections = [read("<IIQQQQIIQQ", table + size * index) for index in range(count)]
        _, _, _, _, offset, length, link, *_ = next(section for section in sections if section[1] == 6)  # SHT_DYNAMIC
        strings = sections[link]
        (text,) = read(f"{strings[5]}s", strings[4])
        entries = [read("<qQ", offset + place) for place in range(0, length, 16)]
        return [text[value:text.index(b"\0", value)].decode() for tag, value in entries if tag == 1]  # DT_NEEDED


def folder_of(package):
    return package.replace("nvidia-", "").replace("-cu11", "").replace("-", "_")


def compile_library(path, *words, source="int present(void) { return 1; }"):
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [COMPILER, "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{path.name}", "-o", path, *words]
    subprocess.run(command, input=source, text=True, check=True)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A site-packages with a file for each library, of which none can be loaded; this process looks there first."""
    for name, package in gpu_libraries.LIBRARIES.items():
        path = tmp_path / "nvidia" / folder_of(package) / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no library\n" * 100)
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A site-packages whose libraries are tiny and have the right names, and are linked as the real ones are."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "nvidia").mkdir()
    (site / "nvidia" / "__init__.py").write_text("")
    places = {name: site / "nvidia" / folder_of(package) / "lib" for name, package in gpu_libraries.LIBRARIES.items()}
    for name, place in places.items():
        other = LINKED.get(name)
        words = ["-Wl,--no-as-needed", f"-L{places[other]}", f"-l:{other}"] if other else []
        compile_library(place / name, *words)
    return site


def python(code, site, **variables):
    """Lines that `code` prints in a process of its own that has `site` among its packages."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "CUDA_HOME")}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, [site, ROOT])), **variables}
    result = subprocess.run([sys.executable, "-c", IMPORT + code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_wheels_plug_in_needs_what_is_listed():
    """Also: the version is that of the wheel's newest plug-in, and its other GPU files need no more."""
    newest = max(PLUGINS.glob("libmindspore_gpu.so.*"), key=lambda path: [int(n) for n in path.name.split(".")[2:]])
    assert newest.name == f"libmindspore_gpu.so.{gpu_libraries.PLUGIN}"
    folders = (PLUGINS.parent, PLUGINS, PLUGINS / "gpu", PLUGINS / f"gpu{gpu_libraries.PLUGIN}")
    own = {path.name for folder in folders for path in folder.iterdir()}
    asked = set(needed(newest))
    assert "libcuda.so.1" in asked and "libcuda_ops.so.11" in asked & own
    others = [path for folder in folders[2:] for path in folder.iterdir()]
    assert {"libcuda_ops.so.11", "libnccl.so.2", "libnvidia_collective.so"} <= {path.name for path in others}
    asked = asked.union(*map(needed, others))
    assert {name for name in asked - own if not NOT_CUDA.fullmatch(name)} == gpu_libraries.NEEDED.keys()


def test_the_requirements_are_the_packages_of_the_list():
    lines = (ROOT / "requirements-gpu.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert sorted(name for name, _ in pins) == sorted(set(gpu_libraries.LIBRARIES.values()))
    assert all(re.fullmatch(r"[\d.]+", version) for _, version in pins)


@needs_compiler
def test_every_library_is_found_by_its_name(compiled):
    code = "before = [name for name in module.LIBRARIES if module.loads(name)]\nprint(before, module.load())\n"
    code += "for name in module.LIBRARIES: ctypes.CDLL(name)\nprint(*sorted(mapped()))"
    first, paths = python(code, compiled)
    if first != "[] {}":
        pytest.skip(f"this machine has CUDA's libraries without packages: {first}")
    expected = [
        str(compiled / "nvidia" / folder_of(package) / "lib" / name)
        for name, package in gpu_libraries.LIBRARIES.items()
    ]
    assert paths.split() == sorted(expected)


@needs_compiler
def test_the_packages_win_over_the_library_path(compiled, tmp_path):
    for name in gpu_libraries.LIBRARIES:
        compile_library(tmp_path / name)
    code = "print(module.load())\nfor name in module.LIBRARIES: ctypes.CDLL(name)\nprint(*sorted(mapped()))"
    absent, paths = python(code, compiled, LD_LIBRARY_PATH=str(tmp_path))
    assert absent == "{}"
    assert len(paths.split()) == len(gpu_libraries.LIBRARIES)
    assert all(path.startswith(str(compiled)) for path in paths.split())


@pytest.mark.parametrize("name, package", gpu_libraries.LIBRARIES.items())
def test_a_missing_library_is_named_with_its_package(name, package, packages):
    (packages / "nvidia" / folder_of(package) / "lib" / name).unlink()
    assert gpu_libraries.load() == {name: package}


def test_without_packages_one_library_of_each_is_named(packages):
    shutil.rmtree(packages / "nvidia")
    (packages / "nvidia").mkdir()
    (packages / "nvidia" / "__init__.py").write_text("")
    assert sorted(gpu_libraries.load().values()) == sorted(set(gpu_libraries.LIBRARIES.values()))


def test_a_damaged_library_is_named(packages):
    ((name, reason),) = gpu_libraries.load().items()
    assert reason.startswith(gpu_libraries.LIBRARIES[name]) and "invalid ELF header" in reason


def test_a_person_is_told_the_package_and_the_command(packages, monkeypatch):
    (packages / "nvidia" / "cudnn" / "lib" / "libcudnn_cnn_infer.so.8").unlink()
    monkeypatch.setattr(runtime, "loads", lambda name: name == "libcuda.so.1")
    with pytest.raises(UserError) as caught:
        runtime.setup(RuntimeConfig(device="GPU"))
    message = str(caught.value)
    assert "lacks libcudnn_cnn_infer.so.8 (nvidia-cudnn-cu11);" in message and "\n" not in message
    assert "pip install -r requirements-gpu.txt" in message


@needs_compiler
def test_a_card_with_its_driver_and_the_packages_count_as_a_gpu(compiled, tmp_path):
    compile_library(tmp_path / "libcuda.so.1")
    code = (
        "from ms_diffusion import runtime\n"
        "runtime.Path.glob = lambda folder, nodes: [folder / nodes] if 'davinci' not in nodes else []\n"
        "print(runtime._choose('auto'))"
    )
    assert python(code, compiled, LD_LIBRARY_PATH=str(tmp_path)) == ["GPU"]


@needs_compiler
def test_mindspore_is_offered_a_toolkit_while_it_is_imported(compiled, tmp_path):
    """What MindSpore 2.8 reads: the answer of $CUDA_HOME/bin/nvcc, and the file names that `ldd` tells."""
    compile_library(tmp_path / "libcuda.so.1")
    code = (
        "module.has_card = lambda: True\n"
        "os.environ['CUDA_HOME'] = 'mine'\n"
        "with module.offered():\n"
        "    home = os.environ['CUDA_HOME']\n"
        "    print(subprocess.run([f'{home}/bin/nvcc', '--version'], capture_output=True, text=True).stdout.strip())\n"
        "    print(sum('libcuda.so' not in path for path in mapped()))\n"
        "print(os.environ['CUDA_HOME'], home)\n"
        "print(*sorted(os.listdir(f'{home}/lib')))\n"
        "from mindspore.run_check._check_version import GPUEnvChecker\n"
        f"checker = GPUEnvChecker({str(PLUGINS / f'libmindspore_gpu.so.{gpu_libraries.PLUGIN}')!r})\n"
        "print(checker._check_version(), checker.get_cudart_version())"
    )
    nvcc, count, homes, links, checked = python(code, compiled, LD_LIBRARY_PATH=str(tmp_path))
    assert nvcc.startswith("Cuda compilation tools, release 11.6,")
    assert int(count) == len(gpu_libraries.LIBRARIES)
    mine, home = homes.split()
    assert mine == "mine" and not Path(home).exists()
    assert links.split() == ["libcudart.so.11.0", "libcudart.so.11.6.0", "libcudnn.so.8"]
    assert checked == "True 11.6.0"


@needs_compiler
@pytest.mark.parametrize("card, driver", [(False, True), (True, False)])
def test_without_card_or_driver_nothing_is_loaded(card, driver, compiled, tmp_path):
    compile_library(tmp_path / "libcuda.so.1")
    code = (
        f"module.has_card = lambda: {card}\n"
        f"module.loads = lambda name: {driver}\n"
        "with module.offered(): print(len(mapped()), os.environ.get('CUDA_HOME'))"
    )
    assert python(code, compiled) == ["0 None"]


@needs_compiler
def test_mindspore_finds_each_library_of_its_plug_in(compiled, tmp_path):
    """The libraries have no functions, so the plug-in is refused for the first that it asks for, not for a library."""
    compile_library(tmp_path / "libcuda.so.1")
    code = WITH_CARD + (
        "try: runtime.setup(RuntimeConfig(device='GPU'))\n"
        "except UserError as error: print(error)"
    )
    line = python(code, compiled, LD_LIBRARY_PATH=str(tmp_path))[-1]
    assert f"libmindspore_gpu.so.{gpu_libraries.PLUGIN} failed." in line and "undefined symbol: cu" in line
    assert "cannot open shared object file" not in line


def test_mindspore_opens_its_plug_in_with_the_real_packages(tmp_path):
    """All but the driver is real; where there is none, its library is made up, which this machine must compile."""
    if gpu_libraries._path("libcudart.so.11.0", "nvidia-cuda-runtime-cu11") is None:
        pytest.skip("the packages are not installed: pip install -r requirements-gpu.txt")
    variables = {"LD_BIND_NOW": "1"}
    if not gpu_libraries.loads("libcuda.so.1"):
        if COMPILER is None:
            pytest.skip("this machine has neither NVIDIA's driver nor a C compiler")
        # Each answers CUDA_ERROR_NO_DEVICE.
        source = "".join(f"int {name}(void) {{ return 100; }}" for name in CALLS)
        compile_library(tmp_path / "libcuda.so.1", source=source)
        variables["LD_LIBRARY_PATH"] = str(tmp_path)
    code = "os.dup2(1, 2)\n" + WITH_CARD + (
        "print(runtime.setup(RuntimeConfig(device='GPU')), runtime.ms.get_context('device_target'))\n"
        "print(*(os.path.basename(path) for path in mapped()))\n"
        "print(re.findall('libmindspore_gpu.so.*', open('/proc/self/maps').read())[0])"
    )
    *complaints, devices, libraries, plugin = python(code, ROOT, **variables)
    assert not complaints
    assert devices == "GPU GPU" and plugin == f"libmindspore_gpu.so.{gpu_libraries.PLUGIN}"
    assert gpu_libraries.LIBRARIES.keys() <= set(libraries.split())
