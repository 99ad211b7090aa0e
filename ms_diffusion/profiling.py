"""A MindSpore profile of a few training steps, and the ten operators that take the most of them."""

from __future__ import annotations

import csv
import io
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Optional

import mindspore as ms
from mindspore import profiler
from mindspore.profiler import ProfilerActivity

from ms_diffusion import native, runtime
from ms_diffusion.logs import LOG

_ACTIVITIES = {
    "CPU": [ProfilerActivity.CPU], "GPU": [ProfilerActivity.CPU, ProfilerActivity.GPU],
    "Ascend": [ProfilerActivity.CPU, ProfilerActivity.NPU],
}
# By device: MindSpore's file, its columns of type, calls and time, and milliseconds in a unit of that time. That of
# Ascend has a row for every call.
_FILES = {
    "CPU": ("cpu_op_type_info_*.csv", "op_type", "type_occurrences", "total_compute_time", 1.0),
    "GPU": ("gpu_op_type_info_*.csv", "op_type", "type_occurrences", "total_time(us)", 1e-3),
    "Ascend": ("kernel_details.csv", "Type", None, "Duration(us)", 1e-3),
}


class Operator(NamedTuple):
    """What all calls of one type of operator took."""

    name: str
    calls: int
    milliseconds: float


class Profile:
    """Profiles `steps` steps from `first` on into `folder`; 0 steps profile nothing.

        with Profile(folder, first=4, steps=5) as profile:
            for done in range(1, 101):
                with profile.step(done):
                    ...  # the step, waited for on a CPU

    The step before `first` warms MindSpore's profiler up. After the last the dearest operators are logged; the block's
    end does that for a run that ends earlier. A profiler that fails costs a warning, and the training goes on.
    """

    def __init__(self, folder: Path, first: int, steps: int) -> None:
        self._folder = folder
        self._first, self._last = first, first + steps - 1
        self._profiler: Optional[Any] = None
        self._before: set[Path] = set()
        self._clocks: dict[str, tuple[int, float]] = {}
        self._done = 0

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._profiler is not None:
            self._stop()

    @contextmanager
    def step(self, done: int) -> Iterator[None]:
        """Around the step that is the `done`-th, counted as `first` is."""
        if done == self._first - 1 and self._last >= self._first:
            self._start()
        yield
        if self._profiler is None:
            return
        if runtime.device() != "CPU":
            ms.runtime.synchronize()
        if done == self._first - 1:
            self._clocks = native.clocks()
        self._done += done >= self._first
        if done == self._last:
            self._stop()
        else:
            self._profiler.step()

    def _start(self) -> None:
        steps = self._last - self._first + 1
        try:
            self._folder.mkdir(exist_ok=True)
            self._before = set(self._folder.rglob("*.csv"))
            self._profiler = profiler.profile(
                activities=_ACTIVITIES[runtime.device()], start_profile=False,
                schedule=profiler.schedule(wait=0, warmup=1, active=steps, repeat=1),
                on_trace_ready=profiler.tensorboard_trace_handler(str(self._folder)),
            )
            self._profiler.start()
        except Exception as error:  # whatever MindSpore's profiler cannot do here, the training can do without
            self._profiler = None
            LOG.warning("no profile: MindSpore's profiler does not start: %r", error)

    def _stop(self) -> None:
        taken, self._profiler = self._profiler, None
        kernels = _difference(native.clocks(), self._clocks)
        try:
            with redirect_stdout(io.StringIO()):  # its progress
                taken.step()
                taken.stop()
            files = set(self._folder.rglob(_FILES[runtime.device()][0])) - self._before
            operators = read(max(files, key=lambda path: path.stat().st_mtime)) if files and self._done else []
        except Exception as error:
            LOG.warning("no profile: MindSpore's profiler failed: %r", error)
            return
        if not operators:
            LOG.warning("no profile: MindSpore wrote no operator of %d steps into %s", self._done, self._folder)
            return
        LOG.info("profile of %d steps, for chrome://tracing or MindStudio Insight: %s", self._done, self._folder)
        LOG.info("%s", table(named(operators, kernels), self._done))


def read(path: Path) -> list[Operator]:
    """The operators of a file that MindSpore's profiler wrote, by their type."""
    _, name, calls, time, unit = next(columns for columns in _FILES.values() if path.match(columns[0]))
    found: dict[str, Operator] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            old = found.get(row[name], Operator(row[name], 0, 0.0))
            found[row[name]] = Operator(
                old.name, old.calls + (int(row[calls]) if calls else 1), old.milliseconds + unit * float(row[time])
            )
    return list(found.values())


def named(operators: list[Operator], kernels: list[Operator]) -> list[Operator]:
    """`operators` with the native `kernels` in the place of "Custom", which MindSpore calls all of them."""
    return [operator for operator in operators if not kernels or operator.name != "Custom"] + kernels


def table(operators: list[Operator], steps: int, rows: int = 10) -> str:
    """The dearest `rows` operators of `steps` steps, with their share of the time in all operators."""
    total = sum(operator.milliseconds for operator in operators)
    dearest = sorted(operators, key=lambda operator: -operator.milliseconds)[:rows]
    width = max(len(operator.name) for operator in dearest)
    lines = [f"{len(dearest)} dearest of {len(operators)} operators; all take {total / steps:.2f} ms a step",
             f"{'operator':{width}}    calls    total ms   share"]
    lines += [
        f"{name:{width}} {calls:8d} {milliseconds:11.3f} {milliseconds / total:7.1%}"
        for name, calls, milliseconds in dearest
    ]
    return "\n".join(lines)


def _difference(after: dict[str, tuple[int, float]], before: dict[str, tuple[int, float]]) -> list[Operator]:
    """What the native kernels did meanwhile."""
    taken = []
    for name, (calls, seconds) in after.items():
        earlier_calls, earlier_seconds = before.get(name, (0, 0.0))
        if calls > earlier_calls and name != "end":  # what that takes is its waiting caller's awakening
            taken.append(Operator(f"{name} (native)", calls - earlier_calls, 1e3 * (seconds - earlier_seconds)))
    return taken
