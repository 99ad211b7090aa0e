"""The training loop around `train_step`: batches in; figures, pictures and checkpoints out."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from ms_diffusion import (
    batches,
    checkpoint,
    distributed,
    interrupt,
    layers,
    logs,
    profiling,
    randomness,
    runtime,
    stream,
    visualize,
)
from ms_diffusion.config import Config, to_yaml
from ms_diffusion.data import FolderDataset, ImageDataset, to_uint8
from ms_diffusion.diffusion import GaussianDiffusion, ReverseStep, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.logs import LOG
from ms_diffusion.metrics import Metrics
from ms_diffusion.samplers import sample
from ms_diffusion.train_step import TrainState, learning_rates, make_train_step
from ms_diffusion.unet import build_unet, init_weights

Dataset = Union[ImageDataset, FolderDataset]


def build(config: Config) -> tuple[TrainState, GaussianDiffusion]:
    """What `config` trains, with its first weights."""
    model = build_unet(config.model)
    init_weights(model, randomness.weights_generator(config.train.seed))
    layers.set_precision(model, config.train.precision)
    average = build_unet(config.model) if config.train.ema_decay else None
    return TrainState(model, config.train, average), build_diffusion(config.diffusion)


def train(config: Config, dataset: Dataset, folder: Path, resume: bool = False) -> int:
    """Train to step `config.train.steps` in the run folder `folder`; returns the exit status that is due.

    That is 0, or 130 where SIGINT ended the training early: as SIGTERM does, after the step and a checkpoint. `resume`
    goes on from the newest checkpoint that is whole, and repeats what the uninterrupted run would have done, exactly;
    `config` becomes the run's when all is ready for the first step.
    Started by msrun, this is one rank of several. The caller holds the run (`checkpoint.new_run`, `open_run`).

    Raises `UserError` where the gradients stay infinite, the disk refuses, a picture cannot be read, the ranks differ,
    or nothing is left to do.
    """
    options, jit = config.train, config.runtime.mode == "graph"
    rank, ranks = runtime.rank(), runtime.ranks()
    with logs.to_run(folder, rank), interrupt.stop_after_step() as stop:
        LOG.debug("%s", to_yaml(config))
        state, diffusion = build(config)
        window = _Window(config, state)
        start = _restore(folder, state, window, config, dataset) if resume else 0
        if start >= options.steps:
            raise UserError(f"{folder} has made its {options.steps} steps: give more --train.steps to go on")
        distributed.check_equal("the number of images", len(dataset))
        distributed.check_weights(state.model, start)

        average = distributed.make_average(((), *(weight.shape for weight in state.optimizer.parameters)))
        train_step = make_train_step(state, diffusion, jit, average if ranks > 1 else None)
        reverse_step = diffusion.reverse_step(state.sampled, jit)
        metrics = Metrics(folder, start, options.tensorboard) if rank == 0 else None
        if options.sample_every:
            # Once now: what cannot be compiled, or does not fit into memory, is found in the evening.
            zeros = Tensor(np.zeros((options.sample_num, *config.image_shape), np.float32))
            runtime.finish((reverse_step(zeros, Tensor(np.zeros(options.sample_num, np.int32)), zeros),))
        LOG.info("a step takes %s", _division(config, ranks))
        if jit:
            LOG.info("the first step compiles the network and takes longer than the others")

        due = False
        plan = (batches.draw_images(config, step, len(dataset), rank, ranks) for step in range(start, options.steps))
        interval = 0.5 if sys.stderr.isatty() else 30  # seconds between looks of the bar: a log needs fewer
        with tqdm(
            total=options.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=interval, disable=rank > 0
        ) as progress, closing(stream.batches(dataset, plan, config.data.workers)) as images, profiling.Profile(
            folder / "profile", start + 4, options.profile if rank == 0 else 0
        ) as profile:
            if resume and rank == 0:
                checkpoint.write_config(folder, config)  # only now: what is refused before this changes nothing
            for done in range(start + 1, options.steps + 1):
                began = time.perf_counter()
                try:
                    x_start = next(images)
                except UserError:
                    if rank == 0 and done - 1 > start:
                        _save(folder, done - 1, state, config, dataset)
                    raise
                with profile.step(done):
                    noise = batches.draw_noise(config, done - 1, rank, ranks)
                    outputs = train_step(*map(Tensor, (x_start, *noise)))
                    runtime.finish(outputs)
                if jit and done == start + 1:
                    LOG.info("the first step took %.1f s", time.perf_counter() - began)
                window.add(outputs, time.perf_counter() - began)
                progress.update()

                stopped = _stopped(stop, done, config)
                last = done == options.steps or stopped
                if done % options.log_every == 0 or last:
                    figures = window.figures(done)  # waits for the device
                    LOG.debug("step %d: %s", done, figures)
                    if metrics is not None:
                        metrics.write(done, figures)
                    progress.set_postfix(loss=figures["loss"], lr=f"{figures['lr']:.1e}", refresh=False)
                if options.check_ranks_every and done % options.check_ranks_every == 0:
                    distributed.check_weights(state.model, done)
                due = due or done % options.checkpoint_every == 0
                # Not while steps are skipped: what may be the end of the run must not push out the last good one.
                if last or (due and bool(outputs[2].asnumpy())):
                    due = False
                    if rank == 0:
                        _save(folder, done, state, config, dataset)
                if stopped:
                    LOG.info("stopped after step %d and saved: go on with --resume %s", done, folder)
                    break
                if options.sample_every and (done % options.sample_every == 0 or last):
                    _draw(config, diffusion, reverse_step, done, folder, metrics, stop)
        if rank == 0 and not stopped:
            try:
                visualize.plot_loss(folder / "metrics.jsonl", folder / "loss.png")
            except OSError as error:
                LOG.warning("cannot draw %s: %s", folder / "loss.png", error.strerror)
    return stop.status if stopped else 0


def _division(config: Config, ranks: int) -> str:
    """The whole batch of a step in words, and how it is divided."""
    factors = {"ranks": ranks, "micro-batches": config.train.accumulate, "images": config.train.batch_size}
    parts = [f"{count} {name}" for name, count in factors.items() if count > 1 or name == "images"]
    whole = f"{batches.whole_batch(config, ranks)} images"
    return whole if len(parts) == 1 else f"{whole}: {' x '.join(parts)}"


def _stopped(stop: interrupt.Stop, done: int, config: Config) -> bool:
    """Is this the last step, because of a signal? Of several ranks each asks the others once in log_every steps."""
    if runtime.ranks() == 1:
        return stop.signal is not None
    return done % config.train.log_every == 0 and distributed.any_of(stop.signal is not None)


class _Window:
    """The steps since the last line of metrics, whose outputs are still on the device."""

    def __init__(self, config: Config, state: TrainState) -> None:
        self._config, self._state = config, state
        self._rates = learning_rates(config.train)
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seconds = 0.0
        self._skipped_in_a_row = 0

    def add(self, outputs: tuple[Tensor, Tensor, Tensor], seconds: float) -> None:
        """What the step returned, and how long it took: pictures and checkpoints aside."""
        self._outputs.append(outputs)
        self._seconds += seconds

    def figures(self, done: int) -> dict[str, Optional[float]]:
        """A line of metrics after step `done`: means over the steps that were not skipped, None where all were.

        Raises `UserError` where too many steps in a row were skipped.
        """
        losses, norms, finite = (np.array([float(x.asnumpy()) for x in column]) for column in zip(*self._outputs))
        kept, count = finite > 0, len(finite)
        scale = float(self._state.loss_scaler.scale_value.asnumpy())
        for step, fine, loss in zip(range(done - count + 1, done + 1), kept, losses):
            self._skipped_in_a_row = 0 if fine else self._skipped_in_a_row + 1
            if self._skipped_in_a_row > self._config.train.max_skipped_steps:
                raise _hopeless(step, self._skipped_in_a_row, loss, scale)
        seconds = self._seconds / count
        updates = int(self._state.optimizer.global_step.asnumpy()[0])
        self._outputs, self._seconds = [], 0.0
        return {
            "loss": round(float(losses[kept].mean()), 6) if kept.any() else None,
            "lr": float(self._rates[max(updates - 1, 0)]),
            "grad_norm": round(float(norms[kept].mean()), 6) if kept.any() else None,
            "loss_scale": scale,
            "skipped": int((~kept).sum()),
            "skipped_total": done - updates,
            "seconds_per_step": seconds,
            "images_per_second": batches.whole_batch(self._config, runtime.ranks()) / seconds,
            "memory_mb": runtime.memory_mb(),
        }


def _hopeless(step: int, skipped: int, loss: float, scale: float) -> UserError:
    what = f"the loss is {loss}" if not np.isfinite(loss) else f"the gradients overflow at loss scale {scale:g}"
    return UserError(
        f"step {step}: {what}, and so for {skipped} steps in a row, more than train.max_skipped_steps; the last "
        "checkpoint is whole: start another run with a smaller train.lr, or with another train.precision"
    )


class _BrokenOff(Exception):
    """A signal came while a picture was drawn."""


def _draw(
    config: Config, diffusion: GaussianDiffusion, reverse_step: ReverseStep, done: int, folder: Path,
    metrics: Optional[Metrics], stop: interrupt.Stop,
) -> None:
    """A picture of samples after step `done`. Every rank draws it: a CPU's ranks must not wait for each other long.

    It may take longer than a batch system waits between SIGTERM and SIGKILL, so a signal breaks it off.
    """
    options = config.train

    def step(*inputs: Tensor) -> Tensor:
        if stop.signal is not None:
            raise _BrokenOff
        return reverse_step(*inputs)

    try:
        images, _ = sample(diffusion, step, config.image_shape, options.sample_num, options.seed)
    except _BrokenOff:
        LOG.info("the picture after step %d is left out, because of the signal", done)
        return
    if metrics is None:
        return
    if not np.isfinite(images).all():
        LOG.warning("step %d: the samples are not finite, so there is no picture of them", done)
        return
    grid = visualize.make_grid(to_uint8(images))
    metrics.image(done, np.asarray(grid))
    try:
        visualize.save_picture(grid, folder / "samples" / f"step_{done:08d}.png")
    except UserError as error:
        LOG.warning("%s", error)


def _save(folder: Path, step: int, state: TrainState, config: Config, dataset: Dataset) -> None:
    tensors = {name: parameter.asnumpy() for name, parameter in state.parameters().items()}
    tensors.update(_data_position(config, dataset))
    options = config.train
    checkpoint.save_checkpoint(folder, step, tensors, config, options.keep_checkpoints, options.keep_every)


def _data_position(config: Config, dataset: Dataset) -> dict[str, np.ndarray]:
    """What says, with the step, which images and which noise come next."""
    return {
        "data.images": np.array(len(dataset)),
        "data.whole_batch": np.array(batches.whole_batch(config, runtime.ranks())),
    }


def _restore(folder: Path, state: TrainState, config: Config, dataset: Dataset) -> int:
    """Load the newest checkpoint of `folder` that is whole, and return its step."""
    newest = checkpoint.newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"{folder} has no checkpoint to resume from: start it anew with --out {folder} --overwrite")
    path, step, tensors = newest
    parameters = state.parameters()
    for name, like in {**parameters, **_data_position(config, dataset)}.items():
        if name not in tensors or tensors[name].shape != like.shape:
            raise UserError(
                f"{path} cannot be resumed from: {name} is missing or misshapen; a run of an older version can only be "
                "sampled: start another with --out"
            )
    for name, value in _data_position(config, dataset).items():
        if tensors[name] != value:
            raise UserError(
                f"{folder} cannot be resumed: {name[len('data.'):]} was {tensors[name]} and is {value}; have the same "
                "images, and the same train.batch_size x train.accumulate x ranks"
            )
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(tensors[name]))
    return step
