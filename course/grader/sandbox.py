"""Starts the process of a submission, talks to it, ends it. What it may do is `inside/confinement.py`'s."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from course.grader.check import AsTensor, Call, Oracle
from course.grader.inside import messages
from ms_diffusion.errors import UserError

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"
HARNESSES = INSIDE / "harness"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one exercise's process."""

    call: float = 20.0
    """Seconds of wall clock for one call, and for importing the file."""
    exercise: float = 40.0
    """Seconds of wall clock for all calls and imports of an exercise, starts of the process aside."""
    start: float = 120.0
    """Seconds until MindSpore is imported, which takes two on an idle machine."""
    memory: int = 4 << 30
    """Bytes of private memory; MindSpore takes 1.3 GB of address space, 0.4 GB of them in use."""
    file_size: int = 16 << 20
    """Bytes of a file."""


class Leaf(NamedTuple):
    """One returned value."""

    kind: str
    """tensor, array, number or other."""
    type: str
    """The name of its class."""
    array: Optional[np.ndarray]
    """None for other."""


Value = Union[Leaf, "list[Leaf]"]


class Failure(NamedTuple):
    """A call that returned nothing."""

    kind: str
    """exception, late, died or forged."""
    error: str = ""
    """The exception's class; for died the exit status, negative for a signal."""
    text: str = ""
    line: Optional[int] = None


class Process:
    """One exercise's file, imported in a process of its own; a context manager.

    `missing` names the protections that this system lacks.
    """

    def __init__(
        self, name: str, source: bytes, limits: Limits, harness: Optional[Path] = None, library: bool = False
    ) -> None:
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="grade_")
        folder = os.path.realpath(self._folder.name)
        file = Path(folder, name)
        file.write_bytes(source)
        self._connection, other = socket.socketpair()
        path = [entry for entry in sys.path if entry and (library or not _ours(entry))]
        settings = {
            "connection": other.fileno(), "file": str(file), "harness": harness and str(harness),
            "library": library, "path": [*path, str(ROOT)] if library else path,
            "mindspore": harness is not None or b"mindspore" in source,
            "readable": [*_system(), *path, *([str(ROOT)] if library else [])],
            "limits": {
                "memory": limits.memory, "file_size": limits.file_size,
                "cpu_seconds": int(limits.start + 4 * limits.exercise) + 1,
            },
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(INSIDE / "worker.py"), json.dumps(settings)], cwd=folder,
            env=_environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[other.fileno()], start_new_session=True,
        )
        other.close()
        self.missing: list[str] = []

    def start(self) -> None:
        """Wait for the process. Nothing of the submission runs yet.

        Raises `UserError` where not even the process starts: no fault of the submission.
        """
        try:
            header, _ = messages.receive(self._connection, time.monotonic() + self._limits.start)
        except (EOFError, OSError) as error:
            status = self._ended()
            raise UserError(
                f"a process for a submission does not start within {self._limits.start:g} seconds: {error!r}, exit "
                f"status {status}; is MindSpore installed, is there memory?"
            ) from error
        self.missing = header["missing"]

    def load(self, seconds: float) -> Optional[Failure]:
        """Let it import the file within so many seconds; what went wrong, or None."""
        imported = self._ask({"function": None}, [], min(seconds, self._limits.call))
        return imported if isinstance(imported, Failure) else None

    def ask(self, call: Call, seconds: float) -> Union[Value, Failure]:
        """What the call returns, or why it did not within so many seconds; after late, died, forged ask no more."""
        return self._ask(*request(call), min(seconds, self._limits.call))

    def _ask(self, header: dict[str, Any], arrays: list[np.ndarray], seconds: float) -> Union[Value, Failure]:
        deadline = time.monotonic() + seconds
        try:
            self._connection.settimeout(seconds)
            messages.send(self._connection, header, arrays)
            return reply(*messages.receive(self._connection, deadline))
        except (TimeoutError, socket.timeout):  # two classes before Python 3.10
            return Failure("late")
        except messages.BadMessage:
            return Failure("forged")
        except (EOFError, OSError):
            return Failure("died", str(self._ended()))

    def _ended(self) -> int:
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it closed its connection and lives on
            return 0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError, RecursionError):  # without Landlock: a folder as deep as it likes
            self._folder.cleanup()


def request(call: Call) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The call as a message."""
    arrays: list[np.ndarray] = []
    return {
        "function": call.function, "harness": call.harness,
        "arguments": [_encode(value, arrays) for value in call.arguments],
        "keywords": {name: _encode(value, arrays) for name, value in call.keywords.items()},
    }, arrays


def _encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """An argument for a message: arrays go into `arrays`."""
    if isinstance(value, Oracle):
        return {"oracle": value.name, "arguments": [_encode(item, arrays) for item in value.arguments]}
    if isinstance(value, (AsTensor, np.ndarray)):
        arrays.append(value.array if isinstance(value, AsTensor) else value)
        return {"array": len(arrays) - 1, "tensor": isinstance(value, AsTensor)}
    if isinstance(value, (tuple, list)):
        return [_encode(item, arrays) for item in value]
    return value


def reply(header: dict[str, Any], arrays: list[np.ndarray]) -> Union[Value, Failure]:
    """A message of the student's process, of which nothing is believed but its form."""
    try:
        if "error" in header:
            line = header["line"]
            return Failure(
                "exception", plain(header["error"], 60), plain(header["text"], 200),
                line if type(line) is int and 0 < line < 10**6 else None,
            )
        if "one" in header:
            return _leaf(header["one"], arrays)
        if "many" in header:
            return [_leaf(item, arrays) for item in header["many"]]
        return []
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise messages.BadMessage("not what was asked for") from error


def _leaf(item: dict[str, Any], arrays: list[np.ndarray]) -> Leaf:
    index = item["array"]
    return Leaf(plain(item["kind"], 10), plain(item["type"], 40), None if index is None else arrays[index])


def plain(text: Any, length: int) -> str:
    """At most `length` characters that print as they are: no line ends, no control sequences of a terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text)[: 10 * length])
    line = " ".join(line.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _environment(folder: str) -> dict[str, str]:
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH", "PATH") if name in os.environ}
    return {
        **kept, **dict.fromkeys(threads, "1"), "HOME": folder, "TMPDIR": folder, "GLOG_v": "4", "MALLOC_ARENA_MAX": "2",
        "MS_DIFFUSION_NATIVE": "0", "MS_DIFFUSION_GRAPHS": "0",
    }


def _ours(entry: str) -> bool:
    """Is this folder part of the course's repository, and no environment in it?"""
    place = Path(entry).resolve()
    prefix = Path(sys.prefix).resolve()
    return (place == ROOT or ROOT in place.parents) and not (place == prefix or prefix in place.parents)


def exposed() -> bool:
    """Does this repository, solutions and all, lie where a submission can read?"""
    return any(folder == ROOT or folder in ROOT.parents for folder in map(Path.resolve, map(Path, _readable())))


def _readable() -> list[str]:
    """The system, and the folders that Python imports from, this repository aside."""
    return [*_system(), *(entry for entry in sys.path if entry and not _ours(entry))]


def _system() -> list[str]:
    return [
        sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc", "/opt", "/proc", "/sys",
        "/dev/random", "/dev/urandom", "/dev/zero",
        *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")),
    ]
