"""Our training, sampling and operators beside PyTorch's, in turns within one run.

Each contestant has a new process for each workload, so the threads of two frameworks never fight for the cores, and
the process's first call and peak memory are those of one framework and one workload. The processes take turns,
A B C A B C ...: one measures while the others sleep on a read, and each reports how much of a core it used asleep.
A figure is the median over the rounds, with the 10th and the 90th percentile; a ratio is formed within a round, so
that what slows down a whole round cancels.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence

import numpy as np
from tqdm import tqdm

from ms_diffusion import machine
from ms_diffusion.contestants import BOOT, Counts
from ms_diffusion.errors import UserError
from ms_diffusion.workloads import Workload

_TURN, _WAKING, _LONG = 0.02, 0.005, 0.25
"""Seconds: a call is repeated for so long in its turn, after it was repeated for so long untimed, because threads that
slept take a while to wake; a call longer than the last is not made untimed."""


# ---- Figures ----


class Spread(NamedTuple):
    """Of some numbers the median, and the bounds of their middle 80 %."""

    median: float
    low: float
    high: float


def spread(values: np.ndarray) -> Spread:
    """Median, 10th and 90th percentile; NaN if one of `values` is."""
    return Spread(*np.percentile(values, (50, 10, 90)).tolist())


@dataclass(frozen=True)
class Row:
    """What one contestant took for one thing."""

    source: str
    name: str
    shape: tuple[int, ...]
    """(B, C, H, W) that went in."""
    dim: int
    """model.dim of the network."""
    contestant: str
    samples: list[float]
    """Seconds in each round."""
    seconds: Spread
    ratios: dict[str, Spread]
    """`samples` over those of a reference in the same round."""
    more: dict[str, float] = field(default_factory=dict)
    """Of its process: import and first call in seconds, peak memory in bytes, cores used working and asleep."""


def references(contestants: Sequence[str]) -> list[str]:
    """Whom the ratios are to: PyTorch's contestants, or the first where none of them takes part."""
    return [name for name in contestants if name.startswith("torch")] or [contestants[0]]


def make_rows(
    workload: Workload, name: str, shape: tuple[int, ...], samples: Mapping[str, np.ndarray],
    more: Optional[Mapping[str, dict[str, float]]] = None,
) -> list[Row]:
    """A row for each contestant, of its seconds in each round, (rounds,)."""
    rows = []
    for contestant, seconds in samples.items():
        ratios = {}
        for reference in references(list(samples)):
            # What the harness hides, because too little is left of it, has no ratio.
            seen = spread(seconds).low > 0 and spread(samples[reference]).low > 0
            ratios[reference] = spread(seconds / samples[reference] if seen else np.full(seconds.shape, np.nan))
        rows.append(Row(
            workload.source, name, shape, workload.config.model.dim, contestant, seconds.tolist(), spread(seconds),
            ratios, more[contestant] if more else {},
        ))
    return rows


def split_operators(workload: Workload, seconds: Mapping[str, np.ndarray]) -> list[Row]:
    """Forward and backward of each operator from `seconds`, for each contestant (operators, rounds, 4).

    In its turn a contestant takes four times: of the harness, an identity layer (a ReLU of one positive number), the
    forward pass alone, and forward and backward together; then the same two of the operator. In each round

        forward = operator's forward - harness's forward
        backward = operator's both - harness's both - forward

    so starting a compiled graph or PyTorch's autograd engine, reading the clock and waiting for the result are in
    neither. What is left near 0, or below, is less than these can be told from.
    """
    harness = {name: array[:, :, :2].mean(0) for name, array in seconds.items()}
    rows = []
    for part, name in enumerate(("harness, forward", "harness, both")):
        rows += make_rows(workload, name, (1, 1, 1, 1), {key: array[:, part] for key, array in harness.items()})
    for index, operator in enumerate(workload.operators):
        net = {name: array[index, :, 2:] - array[index, :, :2] for name, array in seconds.items()}
        forward = {name: array[:, 0] for name, array in net.items()}
        backward = {name: array[:, 1] - array[:, 0] for name, array in net.items()}
        rows += make_rows(workload, f"{operator.name}, forward", operator.shape, forward)
        rows += make_rows(workload, f"{operator.name}, backward", operator.shape, backward)
    return rows


# ---- Tables ----


def steps_table(rows: Sequence[Row]) -> str:
    """A line for each contestant at each workload; times in the units of the head."""
    head = ["", "contestant", "median ms", "10 to 90 %", *(f"over {name}" for name in rows[0].ratios), "first call s",
            "import s", "peak MB", "cores", "asleep"]
    lines, above = [], None
    for row in rows:
        title = "" if above == (row.source, row.name) else f"{Path(row.source).stem}: {row.name}"
        above = row.source, row.name
        over = ["1" if name == row.contestant else _ratio(ratio) for name, ratio in row.ratios.items()]
        lines.append([
            title, row.contestant, _ms(row.seconds.median), f"{_ms(row.seconds.low)} to {_ms(row.seconds.high)}", *over,
            f"{row.more['first_call']:.2f}", f"{row.more['import']:.1f}", f"{row.more['peak_memory'] / 1e6:.0f}",
            f"{row.more['cores_working']:.2f}", f"{row.more['cores_asleep']:.3f}",
        ])
    return _columns([head, *lines])


def cross_table(rows: Sequence[Row]) -> str:
    """A column for each contestant: median ms, and the ratio to the first reference."""
    contestants = list(dict.fromkeys(row.contestant for row in rows))
    reference = references(contestants)[0]
    lines = {}
    for row in rows:
        shape = "x".join(map(str, row.shape))
        line = lines.setdefault((f"{Path(row.source).stem}: {row.name}", str(row.dim), shape), {})
        ratio = "" if row.contestant == reference else f"  {_ratio(row.ratios[reference])}"
        line[row.contestant] = _ms(row.seconds.median) + ratio
    head = [f"ms, and over {reference}", "dim", "input", *contestants]
    return _columns([head, *([*start, *cells.values()] for start, cells in lines.items())])


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or more."""
    size = abs(seconds) * 1e3
    return f"{seconds * 1e3:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def _ratio(ratio: Spread) -> str:
    return "-" if math.isnan(ratio.median) else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def to_json(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Every round of every row, and `about`; null where there is no number."""
    def plain(value: Any) -> Any:
        if isinstance(value, Spread):
            return plain(value._asdict())
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain({"about": about, "rows": [vars(row) for row in rows]}), indent=1) + "\n"


def about_this_run(command: str, contestants: Sequence[str], repeats: int, threads: int) -> dict[str, Any]:
    """What the figures depend on: command, processor, load of the machine at this moment, versions."""
    packages = ["mindspore", "numpy", *(["torch"] if any(name.startswith("torch") for name in contestants) else [])]
    return {
        "command": command, "contestants": list(contestants), "repeats": repeats, "threads": threads,
        "processor": machine.processor(), "load_average": round(os.getloadavg()[0], 2), "system": platform.platform(),
        "python": platform.python_version(), **{name: version(name) for name in packages},
    }


# ---- In turns ----


def measure(workload: Workload, contestants: Sequence[str], repeats: int, threads: int) -> list[Row]:
    """Let `contestants` take `repeats` turns at `workload`, after a first call and two turns to warm up.

    Their processes are new, and started one after another. Raises RuntimeError where one of them fails.
    """
    interval = 0.5 if sys.stderr.isatty() else 30
    title = f"{Path(workload.source).stem}: {workload.names[-1]}"
    bar = tqdm(total=repeats, desc=title, unit="round", dynamic_ncols=True, mininterval=interval)
    with bar, ExitStack() as stack:
        bar.refresh()
        processes, imports, first = {}, {}, {}
        for name in contestants:
            processes[name] = stack.enter_context(closing(Process(name, threads)))
            imports[name] = processes[name].ask("start")
            first[name] = processes[name].ask("build", workload)
        turns = {name: process.turn for name, process in processes.items()}
        groups = first[contestants[0]]
        seconds = take_turns(turns, len(groups), len(groups[0]), repeats, bar.update)
        usage = {name: process.ask("usage") for name, process in processes.items()}
    if workload.kind == "operators":
        return split_operators(workload, seconds)
    rows = []
    for part, name in enumerate(workload.names):
        rows += make_rows(workload, name, workload.shape, {key: array[0, :, part] for key, array in seconds.items()}, {
            key: {"import": imports[key], "first_call": first[key][0][part], **usage[key]} for key in contestants
        })
    return rows


Turn = Callable[[int, Counts], Sequence[float]]
"""(which group of calls, how often each) -> seconds of each, the median of the timed ones."""


def take_turns(
    turns: Mapping[str, Turn], groups: int, calls: int, repeats: int, after_round: Callable[[], Any] = lambda: None
) -> dict[str, np.ndarray]:
    """Seconds of each call, for each contestant (groups, repeats, calls): `calls` is how many a group has.

    In each round, and in each group, every contestant takes one turn. Two turns before tell how often each call must
    be made, and warm up.
    """
    seconds = {name: np.empty((groups, repeats, calls)) for name in turns}
    counts = {(name, group): [(0, 1)] * calls for name in turns for group in range(groups)}
    for group in range(groups):
        for name, turn in 2 * list(turns.items()):
            counts[name, group] = [_counts(taken) for taken in turn(group, counts[name, group])]
    for round_ in range(repeats):
        for group in range(groups):
            for name, turn in turns.items():
                seconds[name][group, round_] = turn(group, counts[name, group])
        after_round()
    return seconds


def _counts(seconds: float) -> tuple[int, int]:
    """How often to make a call that takes `seconds`, untimed and timed."""
    seconds = max(seconds, 1e-7)
    return 0 if seconds > _LONG else math.ceil(_WAKING / seconds), math.ceil(_TURN / seconds)


class Process:
    """A contestant's process, from this side of the pipe.

    Raises `UserError` where this machine lacks what the contestant needs, RuntimeError, with its last words, where the
    process ended.
    """

    def __init__(self, contestant: str, threads: int) -> None:
        self.contestant = contestant
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads),
            "MS_DIFFUSION_NATIVE": "1" if contestant.startswith("native") else "0",
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(Path(__file__).parent), contestant, str(threads)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the method `name` of its `Worker` returns."""
        with suppress(BrokenPipeError):  # `_answer` says why
            pickle.dump((name, *arguments), self._process.stdin)
            self._process.stdin.flush()
        return self._answer()

    def turn(self, group: int, counts: Counts) -> Sequence[float]:
        """A `Turn`."""
        return self.ask("turn", group, counts)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _answer(self) -> Any:
        try:
            answer = pickle.load(self._process.stdout)
        except EOFError as error:
            status = self._process.wait()
            self._log.seek(0)
            words = self._log.read().decode(errors="replace")
            raise RuntimeError(f"the process of {self.contestant} ended with status {status}:\n{words}") from error
        if isinstance(answer, UserError):
            raise answer
        return answer
