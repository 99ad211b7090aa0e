"""Our training, sampling and operators beside PyTorch's, in turns within one run.

Each contestant has a new process for each workload, so the threads of two frameworks never fight for the cores, and
the process's first call and peak memory are those of one framework and one workload. The processes take turns,
A B C A B C ...: one measures while the others sleep on a read, and each reports how much of a core it used asleep.
A figure is the median over the rounds, with the 10th and the 90th percentile; a ratio is formed within a round, so
that what slows down a whole round cancels.

Pixels, t and noise are random numbers made beforehand: a step's time does not depend on them. Turning them into
tensors counts, as in `training.train`. The networks start from first weights. Everything runs on the CPU.

MindSpore and PyTorch are imported by their contestants only, inside the process.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, NamedTuple, Optional, Sequence

import numpy as np
from tqdm import tqdm

from ms_diffusion.config import Config, RuntimeConfig
from ms_diffusion.errors import UserError

CONTESTANTS = ("native", "mindspore", "native_pynative", "mindspore_pynative", "torch", "torch_channels_last")
"""This library with its own kernels and without, compiled and operator by operator; the twin, NCHW and NHWC."""

SAMPLES, SAMPLING_STEPS = 64, 20
"""Images of the sampling, and the reverse steps they take."""

_TURN, _WAKING, _LONG = 0.02, 0.005, 0.25
"""Seconds: a call is repeated for so long in its turn, after it was repeated for so long untimed, because threads that
slept take a while to wake; a call longer than the last is not made untimed."""


# ---- What is measured ----


@dataclass(frozen=True)
class Operator:
    """A layer that `layers` and `torch_twin` both have: `maker(**options)`, or the layer at `path` within it."""

    name: str
    maker: str
    options: dict[str, Any]
    path: str
    shape: tuple[int, ...]
    """Of its input, (B, C, H, W)."""


@dataclass(frozen=True)
class Workload:
    """What every contestant does in its turn."""

    config: Config
    source: str
    """The file the configuration came from."""
    kind: Literal["training", "forward", "sampling", "operators"]
    batch_size: int
    operators: tuple[Operator, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its calls in words; those of the operators are `split_operators`'s."""
        if self.kind == "sampling":
            return f"reverse step, batch {self.batch_size}", f"sampling, {SAMPLING_STEPS} steps of {self.batch_size}"
        return (f"{self.kind}, batch {self.batch_size}",)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, C, H, W) of the images."""
        return (self.batch_size, *self.config.image_shape)


def steps(config: Config, source: str, batch_sizes: Sequence[int]) -> list[Workload]:
    """Training and forward at each of `batch_sizes`, and the sampling. Raises `UserError` for too few timesteps."""
    timesteps = config.diffusion.timesteps
    if timesteps < SAMPLING_STEPS:
        raise UserError(f"{source}: diffusion.timesteps is {timesteps}: the benchmark samples {SAMPLING_STEPS} steps")
    loads = [Workload(config, source, kind, size) for kind in ("training", "forward") for size in batch_sizes]
    return [*loads, Workload(config, source, "sampling", SAMPLES)]


def growth(
    config: Config, source: str, batch_sizes: Sequence[int], image_sizes: Sequence[int], dims: Sequence[int]
) -> list[Workload]:
    """Training at each width and image size. Raises `UserError` for a size that cannot be."""
    loads = []
    for dim in dims:
        for size in image_sizes:
            grown = dataclasses.replace(
                config, model=dataclasses.replace(config.model, dim=dim),
                data=dataclasses.replace(config.data, image_size=size),
            )
            loads += [Workload(grown, source, "training", batch_size) for batch_size in batch_sizes]
    return loads


def operators(config: Config, source: str, batch_size: int) -> Workload:
    """Single layers at the width and the image size of each stage; those that the network lacks stand there too."""
    model = config.model
    found = []
    for stage, mult in enumerate(model.dim_mults):
        dim, size = model.dim * mult, config.data.image_size // 2**stage
        narrow, wide = ((batch_size, width, size, size) for width in (dim, dim * model.convnext_mult))
        block = {
            "dim": dim, "dim_out": dim, "mult": model.convnext_mult, "norm_kind": model.norm,
            "conv_bias": model.conv_bias, "gelu_form": model.gelu,
        }
        attention = ("LinearAttention", {"dim": dim, "scale_values": model.scale_values, "norm": model.attention_norm})
        found += [
            Operator("conv 3x3", "ConvNextBlock", block, "net.1", narrow),
            Operator("conv 1x1", *attention, "to_qkv", narrow),
            Operator("depthwise 7x7", "ConvNextBlock", block, "ds_conv", narrow),
            Operator("GELU erf", "ConvNextBlock", {**block, "gelu_form": "erf"}, "net.2", wide),
            Operator("GELU tanh", "ConvNextBlock", {**block, "gelu_form": "tanh"}, "net.2", wide),
            Operator("SiLU", "Block", {"dim": dim, "dim_out": dim}, "act", narrow),
            Operator("group norm", "make_norm", {"kind": "group", "dim": wide[1]}, "", wide),
            Operator("layer norm", "make_norm", {"kind": "layer", "dim": dim}, "", narrow),
            Operator("linear attention", *attention, "", narrow),
        ]
        if stage > 0:
            above = model.dim * model.dim_mults[stage - 1]
            options = {"dim": above, "conv_bias": model.conv_bias}
            found += [
                Operator("4x4 down", "Downsample", options, "", (batch_size, above, 2 * size, 2 * size)),
                Operator("4x4 up", "Upsample", options, "", (batch_size, above, size, size)),
            ]
    found.append(Operator("attention", "Attention", {"dim": dim}, "", narrow))
    return Workload(config, source, "operators", batch_size, tuple(found))


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
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    packages = ["mindspore", "numpy", *(["torch"] if any(name.startswith("torch") for name in contestants) else [])]
    return {
        "command": command, "contestants": list(contestants), "repeats": repeats, "threads": threads,
        "processor": f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} logical cores",
        "load_average": round(os.getloadavg()[0], 2), "system": platform.platform(),
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


Counts = Sequence[tuple[int, int]]
"""How often each call is made in a turn: first untimed, then timed."""
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
            [sys.executable, "-c", _BOOT, str(Path(__file__).parent), contestant, str(threads)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
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


# ---- In a contestant's process ----

# The package's __init__ imports MindSpore, which PyTorch's process must not.
_BOOT = """
import sys, types
package = types.ModuleType("ms_diffusion")
package.__path__ = [sys.argv[1]]
sys.modules["ms_diffusion"] = package
from ms_diffusion import benchmark
benchmark.work(sys.argv[2], int(sys.argv[3]))
"""

Groups = list[list[Callable[[], Any]]]
"""The calls of a workload; when one returns its work is done."""
Builders = dict[str, Callable[[Workload], Groups]]
"""What makes the calls of each kind of workload."""


def work(contestant: str, threads: int) -> None:
    """Answer requests on stdin with what `Worker`'s methods return, on stdout, until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the frameworks print is no answer
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    worker = Worker(contestant, threads)
    while True:
        lay_down = _clocks()
        try:
            name, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        worker.asleep += _clocks() - lay_down
        try:
            answer = getattr(worker, name)(*arguments)
        except UserError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


class Worker:
    """Builds a workload and times its calls."""

    def __init__(self, contestant: str, threads: int) -> None:
        self.contestant, self.threads = contestant, threads
        self.builders, self.groups = {}, []
        self.awake, self.asleep = np.zeros(2), np.zeros(2)

    def start(self) -> float:
        """Import the framework and set it up; returns the seconds that this took."""
        began = time.perf_counter()
        builders = _their_builders if self.contestant.startswith("torch") else _our_builders
        self.builders = builders(self.contestant, self.threads)
        return time.perf_counter() - began

    def build(self, workload: Workload) -> list[list[float]]:
        """Make the calls of `workload`; returns the seconds of the first call of each."""
        self.groups = self.builders[workload.kind](workload)
        return [[time_calls(call, 0, 1) for call in group] for group in self.groups]

    def turn(self, group: int, counts: Counts) -> list[float]:
        """A `Turn`."""
        began = _clocks()
        seconds = [time_calls(call, *count) for call, count in zip(self.groups[group], counts)]
        self.awake += _clocks() - began
        settle()
        return seconds

    def usage(self) -> dict[str, float]:
        """Largest memory so far in bytes, and how many cores were busy, in turns and between them."""
        cores = {name: float(cpu / max(wall, 1e-9)) for name, (wall, cpu) in (
            ("cores_working", self.awake), ("cores_asleep", self.asleep),
        )}
        return {"peak_memory": peak_memory(), **cores}


def time_calls(
    call: Callable[[], Any], untimed: int, timed: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of `call`: the median of `timed` calls in a row, after `untimed` ones."""
    for _ in range(untimed):
        call()
    seconds = []
    for _ in range(timed):
        began = clock()
        call()
        seconds.append(clock() - began)
    return statistics.median(seconds)


def settle(cores: Callable[[], float] = time.process_time, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when the threads of this process sleep: OpenMP's spin for milliseconds after the last call.

    They would take the cores of the one whose turn is next. Gives up after half a second.
    """
    for _ in range(100):
        before = cores()
        sleep(0.005)
        if cores() - before < 0.0005:
            return


def peak_memory() -> float:
    """The most memory that this process ever held, in bytes; NaN on other systems than Linux.

    Not `getrusage`'s ru_maxrss: a process inherits that from the one that started it.
    """
    status = Path("/proc/self/status")
    held = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024.0 * int(held.group(1)) if held else math.nan


def _clocks() -> np.ndarray:
    """Time of the day and time on the cores, in seconds, (2,)."""
    return np.array([time.perf_counter(), time.process_time()])


def _batch(workload: Workload) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, t and noise."""
    t = np.random.default_rng(0).integers(
        0, workload.config.diffusion.timesteps, workload.batch_size, dtype=np.int32
    )
    return np.clip(_normal(workload.shape), -1, 1), t, _normal(workload.shape)


def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _inside(layer: Any, path: str) -> Any:
    """The layer at `path` in `layer`, of either framework."""
    for name in path.split(".") if path else ():
        layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
    return layer


def _our_builders(contestant: str, threads: int) -> Builders:
    """This library's calls, as `training.train` and `samplers.sample` make them; OMP_NUM_THREADS has `threads`."""
    import mindspore as ms
    from mindspore import Tensor, nn
    from mindspore.amp import DynamicLossScaler

    from ms_diffusion import layers, native, runtime
    from ms_diffusion import training as train
    from ms_diffusion.diffusion import build_diffusion
    from ms_diffusion.randomness import weights_generator
    from ms_diffusion.unet import build_unet, init_weights

    jit = not contestant.endswith("pynative")
    runtime.setup(RuntimeConfig(device="CPU", mode="graph" if jit else "pynative"))
    if contestant.startswith("native") and not native.enabled():
        raise UserError(f"this machine has no kernels for {contestant}: leave it out of --contestants")

    def first_weights(cell: nn.Cell) -> nn.Cell:
        init_weights(cell, weights_generator(0))
        return cell

    def training(workload: Workload) -> Groups:
        config, options = workload.config, workload.config.train
        model = first_weights(build_unet(config.model))
        step = train.make_train_step(
            model, build_diffusion(config.diffusion), train.make_optimizer(model, options),
            DynamicLossScaler(options.loss_scale, options.loss_scale_factor, options.loss_scale_window),
            options.max_grad_norm, jit,
        )
        batch = _batch(workload)
        return [[lambda: runtime.finish(step(*map(Tensor, batch)))]]

    def forward(workload: Workload) -> Groups:
        model = first_weights(build_unet(workload.config.model))
        x, t, _ = _batch(workload)

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return model(x_t, t)

        step = ms.jit(predict) if jit else predict
        return [[lambda: runtime.finish((step(Tensor(x), Tensor(t)),))]]

    def sampling(workload: Workload) -> Groups:
        diffusion = build_diffusion(workload.config.diffusion)
        step = diffusion.reverse_step(first_weights(build_unet(workload.config.model)), jit)
        x_t, t, noise = _batch(workload)

        def sample() -> np.ndarray:
            *_, x = islice(diffusion.p_sample_loop(step, repeat(noise)), SAMPLING_STEPS)
            return x.asnumpy()

        return [[lambda: runtime.finish((step(Tensor(x_t), Tensor(t), Tensor(noise)),)), sample]]

    def operators(workload: Workload) -> Groups:
        def calls(layer: nn.Cell, x: np.ndarray) -> list[Callable[[], Any]]:
            weights = layer.trainable_params()
            x = Tensor(x)
            sensitivity = Tensor(_normal(layer(x).shape))

            @ms.jit
            def forward(x: Tensor) -> Tensor:
                return layer(x)

            @ms.jit
            def both(x: Tensor, sensitivity: Tensor) -> tuple[Tensor, ...]:
                # Without the output the compiler would leave out what the gradients do not need.
                output, backward = ms.vjp(layer, x, weights=weights)
                (of_x,), of_weights = backward(sensitivity)
                return output, of_x, *of_weights

            return [lambda: runtime.finish((forward(x),)), lambda: runtime.finish(both(x, sensitivity))]

        harness, groups = calls(nn.ReLU(), np.ones((1, 1, 1, 1), np.float32)), []
        for operator in workload.operators:
            layer = first_weights(getattr(layers, operator.maker)(**operator.options))
            groups.append([*harness, *calls(_inside(layer, operator.path), _normal(operator.shape))])
        return groups

    return {"training": training, "forward": forward, "sampling": sampling, "operators": operators}


def _their_builders(contestant: str, threads: int) -> Builders:
    """The twin's calls, as a PyTorch program makes them: eager, `inference_mode` without gradients."""
    import torch
    from torch import nn

    from ms_diffusion import torch_twin

    torch.set_num_threads(threads)
    memory_format = torch.channels_last if contestant.endswith("channels_last") else torch.contiguous_format

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).contiguous(memory_format=memory_format)

    def twin(config: Config) -> nn.Module:
        return torch_twin.Unet(**dataclasses.asdict(config.model)).to(memory_format=memory_format)

    def training(workload: Workload) -> Groups:
        config, options = workload.config, workload.config.train
        model, diffusion = twin(config), torch_twin.GaussianDiffusion(**dataclasses.asdict(config.diffusion))
        optimizer = torch.optim.Adam(
            model.parameters(), lr=options.lr, betas=(options.adam_beta1, options.adam_beta2), eps=options.adam_eps
        )
        x_start, t, noise = _batch(workload)

        def step() -> float:
            optimizer.zero_grad()
            loss = diffusion.p_losses(model, tensor(x_start), torch.from_numpy(t), tensor(noise))
            loss.backward()
            if options.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
            optimizer.step()
            return loss.item()

        return [[step]]

    def forward(workload: Workload) -> Groups:
        model = twin(workload.config)
        x, t, _ = _batch(workload)

        @torch.inference_mode()
        def predict() -> torch.Tensor:
            return model(tensor(x), torch.from_numpy(t))

        return [[predict]]

    def sampling(workload: Workload) -> Groups:
        options = workload.config.diffusion
        model, diffusion = twin(workload.config), torch_twin.GaussianDiffusion(**dataclasses.asdict(options))
        x_t, t, noise = _batch(workload)

        @torch.inference_mode()
        def reverse() -> torch.Tensor:
            return diffusion.p_sample(model, tensor(x_t), torch.from_numpy(t), tensor(noise))

        @torch.inference_mode()
        def sample() -> np.ndarray:
            x = tensor(noise)
            for step in islice(reversed(range(options.timesteps)), SAMPLING_STEPS):
                x = diffusion.p_sample(model, x, torch.full((workload.batch_size,), step), tensor(noise))
            return x.numpy()

        return [[reverse, sample]]

    def operators(workload: Workload) -> Groups:
        def calls(layer: nn.Module, x: np.ndarray) -> list[Callable[[], Any]]:
            layer = layer.to(memory_format=memory_format)
            x = tensor(x)
            inputs = [x.clone().requires_grad_(), *layer.parameters()]
            sensitivity = tensor(_normal(tuple(layer(x).shape)))

            @torch.inference_mode()
            def forward() -> torch.Tensor:
                return layer(x)

            def both() -> Any:
                output = layer(inputs[0])
                return output, torch.autograd.grad(output, inputs, sensitivity)

            return [forward, both]

        harness, groups = calls(nn.ReLU(), np.ones((1, 1, 1, 1), np.float32)), []
        for operator in workload.operators:
            layer = getattr(torch_twin, operator.maker)(**operator.options)
            groups.append([*harness, *calls(_inside(layer, operator.path), _normal(operator.shape))])
        return groups

    return {"training": training, "forward": forward, "sampling": sampling, "operators": operators}
