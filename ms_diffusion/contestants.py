"""A contestant of the benchmark in its own process: it builds a workload in its framework and times its calls.

Pixels, t and noise are random numbers made beforehand: a step's time does not depend on them. Turning them into
tensors counts, as in `training.train`. The networks start from first weights. Everything runs on the CPU.

MindSpore and PyTorch are imported by their contestants only.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import statistics
import sys
import time
from itertools import islice, repeat
from typing import Any, Callable, Sequence

import numpy as np

from ms_diffusion import machine, native_build
from ms_diffusion.config import Config, RuntimeConfig
from ms_diffusion.errors import UserError
from ms_diffusion.workloads import SAMPLING_STEPS, Workload

CONTESTANTS = ("native", "mindspore", "native_pynative", "mindspore_pynative", "torch", "torch_channels_last")
"""This library with its own kernels and without, compiled and operator by operator; the twin, NCHW and NHWC."""

# The package's __init__ imports MindSpore, which PyTorch's process must not.
BOOT = """
import sys, types
package = types.ModuleType("ms_diffusion")
package.__path__ = [sys.argv[1]]
sys.modules["ms_diffusion"] = package
from ms_diffusion import contestants
contestants.work(sys.argv[2], int(sys.argv[3]))
"""
"""For `python -c`, with the folder of this package, a contestant and the number of its threads."""

Counts = Sequence[tuple[int, int]]
"""How often each call is made in a turn: first untimed, then timed."""
Groups = list[list[Callable[[], Any]]]
"""The calls of a workload; when one returns its work is done."""
Builders = dict[str, Callable[[Workload], Groups]]
"""What makes the calls of each kind of workload."""


def check_available(contestants: Sequence[str]) -> None:
    """Raises `UserError`, saying what is missing, where this machine lacks what one of `contestants` needs."""
    if any(name.startswith("torch") for name in contestants) and importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed: pip install torch==2.13.0 "
                        "--index-url https://download.pytorch.org/whl/cpu, or name --contestants without it")
    if any(name.startswith("native") for name in contestants):
        try:
            native_build.find()
        except native_build.NativeUnavailable as reason:
            raise UserError(f"{reason}, or name --contestants without native and native_pynative") from reason


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
        check_available([self.contestant])
        began = time.perf_counter()
        builders = _their_builders if self.contestant.startswith("torch") else _our_builders
        self.builders = builders(self.contestant, self.threads)
        return time.perf_counter() - began

    def build(self, workload: Workload) -> list[list[float]]:
        """Make the calls of `workload`; returns the seconds of the first call of each."""
        self.groups = self.builders[workload.kind](workload)
        return [[time_calls(call, 0, 1) for call in group] for group in self.groups]

    def turn(self, group: int, counts: Counts) -> list[float]:
        """Seconds of each call of `group`, the median of the timed ones; returns when the threads sleep."""
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
        return {"peak_memory": machine.peak_memory(), **cores}


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


def _clocks() -> np.ndarray:
    """Time of the day and time on the cores, in seconds, (2,)."""
    return np.array([time.perf_counter(), time.process_time()])


# ---- Its calls ----


def _batch(workload: Workload) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, t and noise."""
    t = np.random.default_rng(0).integers(
        0, workload.config.diffusion.timesteps, workload.batch_size, dtype=np.int32
    )
    return np.clip(_normal(workload.shape), -1, 1), t, _normal(workload.shape)


def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _our_builders(contestant: str, threads: int) -> Builders:
    """This library's calls, as `training.train` and `sampling.sample` make them."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from ms_diffusion import layers, runtime
    from ms_diffusion.diffusion import build_diffusion
    from ms_diffusion.randomness import weights_generator
    from ms_diffusion.train_step import TrainState, make_train_step
    from ms_diffusion.unet import build_unet, init_weights

    jit = not contestant.endswith("pynative")
    runtime.setup(RuntimeConfig(device="CPU", mode="graph" if jit else "pynative", threads=threads))

    def first_weights(cell: nn.Cell) -> nn.Cell:
        init_weights(cell, weights_generator(0))
        return cell

    def training(workload: Workload) -> Groups:
        config = workload.config
        model = first_weights(build_unet(config.model))
        state = TrainState(model, config.train)  # without a moving average, which the others do not keep either
        step = make_train_step(state, build_diffusion(config.diffusion), jit)
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
            groups.append([*harness, *calls(operator.inside(layer), _normal(operator.shape))])
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
            groups.append([*harness, *calls(operator.inside(layer), _normal(operator.shape))])
        return groups

    return {"training": training, "forward": forward, "sampling": sampling, "operators": operators}
