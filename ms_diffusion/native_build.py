"""Compiling the C++ kernels of `kernels/` on this machine, and finding the library again.

The cache holds for each key (a hash of the sources, the flags, the processor's features, the C library and the version
of MindSpore):
    kernels-KEY.json          the SHA-256 of the library, the compiler, the flags
    kernels-KEY-SHA256.so     the library, whose name therefore never gets another content
The library appears first and both by a rename: no reader and no second builder ever sees half of it. Libraries are
kept, because a home folder may serve several machines and they are small (200 KB); what a killed build left is removed.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional, Sequence

from ms_diffusion import caches

SOURCES = Path(__file__).parent / "kernels"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-pthread", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-math-errno",
    "-ffp-contract=fast", "-Wall", "-Wextra",
)
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
ABI = 1
"""What the library's ms_diffusion_abi() must return."""
SECONDS = 300.0
"""That the compiler, or the trial of the library, may take."""

_STALE = 3600.0  # seconds after which a build's temporary folder has no owner any more
_CPUINFO = Path("/proc/cpuinfo")
_ASK = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).ms_diffusion_abi())"
_BUILD = "build them by python scripts/build_kernels.py"


class NativeUnavailable(Exception):
    """There are no native kernels here: the message says in one line why, and what would help."""


def find(folder: Optional[Path] = None) -> Path:
    """The library that was built for exactly this state; asks no compiler.

    `folder` is the cache (default: `cache_folder()`). Raises `NativeUnavailable` where the library was never built, or
    for other sources, flags, processor or MindSpore, and where its file is damaged.
    """
    return _read(_absolute(folder), _key(FLAGS))[0]


def built(folder: Optional[Path] = None, sanitize: bool = False) -> Optional[Path]:
    """The library that `build` would return without compiling: whole, and by the compiler of now; None if none is.

    Where the machine has lost its compiler, the library stays good. Raises `NativeUnavailable` where $CXX does not run,
    and where there can be no library: without sources, or on another system than Linux.
    """
    try:
        library, record = _read(_absolute(folder), _key(_flags(sanitize)))
    except _Absent:
        return None
    compiler = _compiler()
    return library if compiler is None or record.get("compiler") == compiler[1] else None


def build(folder: Optional[Path] = None, sanitize: bool = False, force: bool = False) -> Path:
    """Compile the kernels, unless the cache `folder` has them by the same compiler and `force` is not asked for.

    `sanitize` gives a library with GCC's address and undefined behaviour sanitizers, which `find` never returns; it can
    be loaded by a process that was started with the variables of `preload`. Raises `NativeUnavailable`, and leaves
    nothing, where there is no compiler, where it fails or hangs, where `folder` cannot
    be written, and where a process that loads the library dies or finds another ABI.
    """
    folder, flags = _absolute(folder), _flags(sanitize)
    library = None if force else built(folder, sanitize)
    if library is not None:
        return library
    key, compiler = _key(flags), _compiler()
    if compiler is None:
        raise NativeUnavailable("no C++ compiler here (g++, clang++, c++): install one, or name it by CXX")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as work:
            fresh = Path(work, "kernels.so")
            _compile(compiler[0], flags, fresh)
            _try(fresh, preload(compiler[0]) if sanitize else {})
            if _key(flags) != key:
                raise NativeUnavailable(f"{SOURCES} changed during the compilation: {_BUILD}")
            digest = hashlib.sha256(fresh.read_bytes()).hexdigest()
            record = fresh.with_suffix(".json")
            record.write_text(json.dumps({"sha256": digest, "compiler": compiler[1], "flags": flags}) + "\n")
            os.replace(fresh, _library(folder, key, digest))
            os.replace(record, _record(folder, key))
    except OSError as error:
        raise NativeUnavailable(
            f"the native kernels cannot be kept in {folder} ({error.strerror}): name a folder by MS_DIFFUSION_CACHE"
        ) from error
    return _library(folder, key, digest)


def load(library: Path) -> ctypes.CDLL:
    """Open `library` in this process. Raises `NativeUnavailable` where the system refuses, or it has another ABI."""
    try:
        opened = ctypes.CDLL(str(library))
        abi = opened.ms_diffusion_abi()
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{library} cannot be loaded ({error}): {_BUILD} --force") from error
    if abi != ABI:
        raise NativeUnavailable(f"{library} has ABI {abi}, not {ABI}: {_BUILD} --force")
    return opened


def cache_folder() -> Path:
    """The folder `native` of `caches.cache_folder`. Raises `NativeUnavailable` where this user has no home."""
    try:
        return caches.cache_folder("native")
    except RuntimeError as error:
        raise NativeUnavailable("no home folder for the native kernels: name one by MS_DIFFUSION_CACHE") from error


# The cache


class _Absent(NativeUnavailable):
    """There is no library, and `build` would mend it."""


def _absolute(folder: Optional[Path]) -> Path:
    path = Path(os.path.abspath(cache_folder() if folder is None else folder))
    if ":" in str(path):
        raise NativeUnavailable(f"MindSpore cannot read the colon in {path}: name a folder by MS_DIFFUSION_CACHE")
    return path


def _flags(sanitize: bool) -> tuple[str, ...]:
    return (*FLAGS, *SANITIZE) if sanitize else FLAGS


def _key(flags: tuple[str, ...]) -> str:
    """Of everything that the library must fit, but not of the compiler: to ask it takes time, and it may be gone."""
    if platform.system() != "Linux":
        raise NativeUnavailable("MindSpore takes native kernels on Linux only")
    sources = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    if not sources:
        raise NativeUnavailable(f"{SOURCES} holds no sources of the native kernels: install ms_diffusion again")
    parts = [*flags, _processor(), " ".join(platform.libc_ver()), _mindspore_version()]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for source in sources:
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The features that -march=native may use."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    features = {feature for line in lines if line.startswith(("flags", "Features")) for feature in line.split()[2:]}
    return f"{platform.machine()} {' '.join(sorted(features))}"


def _mindspore_version() -> str:
    try:
        return importlib.metadata.version("mindspore")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _record(folder: Path, key: str) -> Path:
    return folder / f"kernels-{key}.json"


def _library(folder: Path, key: str, digest: str) -> Path:
    return folder / f"kernels-{key}-{digest[:16]}.so"


def _read(folder: Path, key: str) -> tuple[Path, dict[str, Any]]:
    """The library of `key`, found whole, and its record."""
    path = _record(folder, key)
    if not path.is_file():
        raise _Absent(f"no native kernels were built for this machine and version: {_BUILD}")
    try:
        record = json.loads(path.read_text())
        path = _library(folder, key, record["sha256"])
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    except OSError as error:
        raise _Absent(f"{path} cannot be read ({error.strerror}): {_BUILD}") from error
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _Absent(f"{path} is damaged: {_BUILD}")
    return path, record


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("building-*"):
        with suppress(OSError):  # another process removes it too
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path)


# The compiler


def _compiler() -> Optional[tuple[list[str], str]]:
    """The command of $CXX, or of the first of g++, clang++ and c++ that runs, and its identity; None if none does."""
    asked = os.environ.get("CXX", "").split()
    for name, *words in [asked] if asked else [["g++"], ["clang++"], ["c++"]]:
        path = shutil.which(name)
        if path is None:
            continue
        with suppress(NativeUnavailable):
            status, output = _run([path, *words, "--version"])
            if status == 0:
                return [path, *words], " ".join([*output.splitlines()[:1], *words])
    if asked:
        raise NativeUnavailable(f"CXX is {' '.join(asked)!r}, which does not run: mend it, or unset it")
    return None


def _compile(compiler: list[str], flags: tuple[str, ...], library: Path) -> None:
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
    status, output = _run([*compiler, *flags, *sources, "-o", str(library)], TMPDIR=str(library.parent))
    if status != 0 or not library.is_file():
        lines = output.splitlines() or [f"status {status}, without a word"]
        line = next((line for line in lines if "error:" in line), lines[0]).strip()
        raise NativeUnavailable(f"{compiler[0]} cannot compile the native kernels ({line}): name another by CXX")


def preload(compiler: Sequence[str] = ("g++",)) -> dict[str, str]:
    """What a process needs in its environment to load a sanitized library.

    Without libstdc++ at hand the sanitizer ends a process, as soon as MindSpore throws an exception.
    """
    libraries = [_run([*compiler, f"-print-file-name={name}"])[1].strip() for name in ("libasan.so", "libstdc++.so")]
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


def _try(library: Path, environment: dict[str, str]) -> None:
    """Ask the library for its ABI in a process of its own, which may die of it."""
    status, output = _run([sys.executable, "-I", "-c", _ASK, str(library)], **environment)
    last = (output.strip().splitlines() or [""])[-1]
    if status == 0 and last == str(ABI):
        return
    if status < 0:
        reason = f"the process died of {signal.Signals(-status).name}"
    elif status > 0:
        reason = last or f"the process ended with status {status}"
    else:
        reason = f"ABI {last}, not {ABI}"
    raise NativeUnavailable(f"the native kernels were compiled but do not run here ({reason}): try another CXX")


def _run(command: list[str], **variables: str) -> tuple[int, str]:
    """Exit status and both outputs of `command`, in English; after SECONDS it is killed with all that it started."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env={**os.environ, "LC_ALL": "C", **variables}, start_new_session=True,
        )
    except OSError as error:
        raise NativeUnavailable(f"{command[0]} cannot be started ({error.strerror}): name another by CXX") from error
    with process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"{command[0]} took longer than {SECONDS:g} s and was stopped: name another by CXX"
                raise NativeUnavailable(message) from error
            raise
    return process.returncode, output
