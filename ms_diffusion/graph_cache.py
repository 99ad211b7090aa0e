"""Compiled graphs on the disk: a few files, each whole and for exactly one state of program, options and versions.

`graphs` uses it. The folder holds, for each key, graph-KEY: the SHA-256 of the key and the graph, a line's end, and the
graph as MindSpore wrote it. Files appear by a rename, so processes may share the folder. MS_DIFFUSION_GRAPHS=0 switches
all of it off.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional, Sequence

from ms_diffusion import caches

PACKAGE = Path(__file__).parent
KEPT = 32
"""Graphs in the folder, at most: those used last."""

_STALE = 3600.0  # seconds after which a file that was never renamed has no owner any more


def folder() -> Optional[Path]:
    """The folder `graphs` of `caches.cache_folder`; None where it is switched off or this user has no home."""
    if os.environ.get("MS_DIFFUSION_GRAPHS") == "0":
        return None
    with suppress(RuntimeError):
        return Path(os.path.abspath(caches.cache_folder("graphs")))
    return None


def program() -> Optional[dict[str, str]]:
    """The SHA-256 of each file that a graph may follow from: this package's sources and the script that was started.

    None where there is no script, where a file cannot be read, and where one changed after this process began: then
    nobody knows which of its contents was imported.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        return None
    files = [Path(script).resolve(), *(path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".cpp", ".h"})]
    digests = {}
    try:
        began = _began()
        for path in sorted(files):
            digests[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.stat().st_ctime >= began:
                return None
    except OSError:
        return None
    return digests


def key(parts: Sequence[Any]) -> str:
    """One name for `parts`, which JSON must be able to write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(store: Path, name: str) -> bytes:
    """The graph of the key `name` in the folder `store`; empty where it is absent or not as it was written."""
    path = _entry(store, name)
    try:
        digest, graph = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return b""
    if digest != _digest(name, graph):
        return b""
    with suppress(OSError):
        os.utime(path)
    return graph


def write(store: Path, name: str, graph: bytes) -> None:
    """Keep `graph` under the key `name`, and drop what is old; a folder that cannot be written is left alone."""
    with suppress(OSError):
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(store)
        descriptor, fresh = tempfile.mkstemp(prefix="writing-", dir=store)
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(name, graph) + b"\n" + graph)
            os.replace(fresh, _entry(store, name))
        except BaseException:
            os.unlink(fresh)
            raise


def remove(store: Path, name: str) -> None:
    """Forget the graph of the key `name`, if the folder lets it be removed."""
    with suppress(OSError):
        _entry(store, name).unlink()


def _entry(store: Path, name: str) -> Path:
    return store / f"graph-{name}"


def _digest(name: str, graph: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + graph).hexdigest().encode()


def _prune(store: Path) -> None:
    """Leave room for one more of the KEPT graphs, and remove what a killed process left."""
    ages = {}
    for path in store.iterdir():
        with suppress(OSError):  # another process may prune at the same time
            ages[path] = path.stat().st_mtime
    entries = sorted((path for path in ages if path.name.startswith("graph-")), key=ages.get)
    left = [path for path in ages if path.name.startswith("writing-") and ages[path] < time.time() - _STALE]
    for path in [*entries[:max(len(entries) - KEPT + 1, 0)], *left]:
        with suppress(OSError):
            path.unlink()


def _began() -> float:
    """When this process began, in the seconds of `time.time`. Raises `OSError` where Linux's /proc is missing."""
    words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(words[19])  # field 22 of proc(5), since the machine started
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
