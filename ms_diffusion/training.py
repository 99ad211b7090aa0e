"""The training loop around `train_step`: batches in; figures, pictures and checkpoints out."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from ms_diffusion import (
    batches,
    checkpoint,
    distributed,
    guidance,
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
from ms_diffusion.data import FolderDataset, ImageDataset, check_labels, to_uint8
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.logs import LOG
from ms_diffusion.metrics import Metrics
from ms_diffusion.sampling import BATCH_SIZE, sample
from ms_diffusion.train_step import TrainState, learning_rates, make_train_step
from ms_diffusion.unet import build_unet, init_weights

Dataset = Union[ImageDataset, FolderDataset]
_SKIPPED = "loss_scaler.skipped_in_a_row"  # in a checkpoint


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

    Raises `UserError` where the gradients stay infinite, the disk refuses, a picture cannot be read, the labels are not
    the network's, the ranks differ, or nothing is left to do.
    """
    check_labels(dataset, config.model.num_classes)
    with logs.to_run(folder, runtime.rank()), interrupt.stop_after_step() as stop:
        LOG.debug("%s", to_yaml(config))
        training = _Training(config, dataset, folder, stop)
        start = training.restore() if resume else 0
        if start >= config.train.steps:
            raise UserError(f"{folder} has made its {config.train.steps} steps: give more --train.steps to go on")
        training.compile(start)
        training.loop(start)
        return stop.status if stop.signal is not None else 0


class _Training:
    """A run on its way, as one of its ranks sees it."""

    def __init__(self, config: Config, dataset: Dataset, folder: Path, stop: interrupt.Stop) -> None:
        self.config, self.dataset, self.folder, self.stop = config, dataset, folder, stop
        self.rank, self.ranks = runtime.rank(), runtime.ranks()
        self.leads = self.rank == 0  # and writes
        self.state, self.diffusion = build(config)
        self.window = _Window(config, self.state)

    def compile(self, start: int) -> None:
        """Get both steps ready, with what they need around them; compare the ranks."""
        options, jit = self.config.train, self.config.runtime.mode == "graph"
        distributed.check_equal("the number of images", len(self.dataset))
        distributed.check_weights(self.state.model, start)
        shapes = ((), *(weight.shape for weight in self.state.optimizer.parameters))
        average = distributed.make_average(shapes) if self.ranks > 1 else None
        self.train_step = make_train_step(self.state, self.diffusion, jit, average)
        size, sampled = min(options.sample_num, BATCH_SIZE), self.state.sampled
        self.labels = None
        if self.config.model.num_classes:
            self.labels = guidance.label_images(range(options.sample_num), range(self.config.model.num_classes))
            sampled = guidance.Guided(sampled, self.labels[:size], null=self.config.model.num_classes)
        self.sampled, self.reverse_step = sampled, self.diffusion.reverse_step(sampled, jit)
        self.metrics = Metrics(self.folder, start, options.tensorboard) if self.leads else None
        if options.sample_every:
            # Once now: what cannot be compiled, or does not fit into memory, is found in the evening.
            zeros = Tensor(np.zeros((size, *self.config.image_shape), np.float32))
            runtime.finish((self.reverse_step(zeros, Tensor(np.zeros(size, np.int32)), zeros),))
        LOG.info("a step takes %s", _division(self.config, self.ranks))
        if jit:
            LOG.info("the first step compiles the network and takes longer than the others")

    def loop(self, start: int) -> None:
        """The steps after `start`, up to the last or a signal."""
        options, config, window = self.config.train, self.config, self.window
        plan = (
            batches.draw_images(config, step, len(self.dataset), self.rank, self.ranks)
            for step in range(start, options.steps)
        )
        interval = 0.5 if sys.stderr.isatty() else 30  # seconds between looks of the bar: a log needs fewer
        bar = tqdm(
            total=options.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=interval,
            disable=not self.leads, file=logs.TERMINAL,
        )
        profile = profiling.Profile(self.folder / "profile", start + 4, options.profile if self.leads else 0)
        with bar, profile, closing(stream.batches(self.dataset, plan, config.data.workers)) as images:
            if start and self.leads:
                checkpoint.write_config(self.folder, config)  # only now: what is refused before this changes nothing
            unsaved = False
            for done in range(start + 1, options.steps + 1):
                began = time.perf_counter()
                try:
                    x_start = next(images)
                except UserError:
                    if done - 1 > start:
                        self.save(done - 1)
                    raise
                with profile.step(done):
                    t, noise = batches.draw_noise(config, done - 1, self.rank, self.ranks)
                    condition = batches.draw_condition(self.dataset, config, done - 1, self.rank, self.ranks)
                    outputs = self.train_step(*map(Tensor, (x_start, t, noise, *condition)))
                    runtime.finish(outputs)
                if done == start + 1:
                    LOG.info("the first step took %.1f s", time.perf_counter() - began)
                window.add(outputs, time.perf_counter() - began)
                bar.update()

                stopped = self.stopped(done)
                last = done == options.steps or stopped
                if done % options.log_every == 0 or last:
                    figures = self.figures(done)
                    bar.set_postfix(loss=figures["loss"], lr=f"{figures['lr']:.1e}", refresh=False)
                if options.check_ranks_every and done % options.check_ranks_every == 0:
                    distributed.check_weights(self.state.model, done)
                unsaved = unsaved or done % options.checkpoint_every == 0
                # Not while steps are skipped: what may be the end of the run must not push out the last good one.
                if last or (unsaved and bool(outputs[2].asnumpy())):
                    self.save(done)
                    unsaved = False
                if stopped:
                    LOG.info("stopped after step %d and saved: go on with --resume %s", done, self.folder)
                    return
                if options.sample_every and (done % options.sample_every == 0 or last):
                    self.draw(done)
        if window.skipped_in_a_row:
            LOG.warning("the last %d steps were skipped, because of their gradients", window.skipped_in_a_row)
        if self.leads:
            try:
                visualize.plot_loss(self.folder / "metrics.jsonl", self.folder / "loss.png")
            except OSError as error:
                LOG.warning("cannot draw %s: %s", self.folder / "loss.png", error.strerror)

    def stopped(self, done: int) -> bool:
        """Is step `done` the last, because of a signal? Of several ranks each asks the others every log_every steps."""
        if self.ranks == 1:
            return self.stop.signal is not None
        return done % self.config.train.log_every == 0 and distributed.any_of(self.stop.signal is not None)

    def figures(self, done: int) -> dict[str, Optional[float]]:
        """Write a line of metrics after step `done`. Raises `UserError` where too many steps in a row were skipped."""
        figures = self.window.figures(done)  # waits for the device
        LOG.debug("step %d: %s", done, figures)
        if self.metrics is not None:
            self.metrics.write(done, figures)
        if self.window.hopeless:
            newest = checkpoint.latest_checkpoint(self.folder)
            left = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
            raise UserError(
                f"{self.window.hopeless}; {left}; start another run with a smaller train.lr, or with another "
                "train.precision"
            )
        return figures

    def draw(self, done: int) -> None:
        """A picture of samples after step `done`.

        It may take longer than a batch system waits between SIGTERM and SIGKILL, so a signal breaks it off. Every rank
        draws it, because the ranks of a CPU lose each other where one is late by half a minute.
        """
        options = self.config.train
        together = self.ranks > 1 and runtime.device() == "CPU"

        def step(*inputs: Tensor) -> Tensor:
            x = self.reverse_step(*inputs)
            runtime.finish((x,))
            signalled = self.stop.signal is not None
            if distributed.any_of(signalled) if together else signalled and self.ranks == 1:
                raise _BrokenOff
            return x

        def tell(images: range) -> None:
            self.sampled.tell(guidance.label_images(images, range(self.config.model.num_classes)))

        before = tell if self.labels is not None else None
        try:
            loop, shape = partial(self.diffusion.p_sample_loop, step), self.config.image_shape
            images, _ = sample(
                loop, self.diffusion.timesteps, shape, options.sample_num, options.seed, before=before
            )
        except _BrokenOff:
            LOG.info("the picture after step %d is left out, because of the signal", done)
            return
        if self.metrics is None:
            return
        if not np.isfinite(images).all():
            LOG.warning("step %d: the samples are not finite, so there is no picture of them", done)
            return
        images = to_uint8(images)
        grid = visualize.make_grid(images) if self.labels is None else visualize.label_grid(images, self.labels)
        self.metrics.image(done, np.asarray(grid))
        try:
            visualize.save_picture(grid, self.folder / "samples" / f"step_{done:08d}.png")
        except UserError as error:
            LOG.warning("%s", error)

    def save(self, step: int) -> None:
        """A checkpoint of all that the steps after `step` depend on."""
        if self.leads:
            tensors = {name: parameter.asnumpy() for name, parameter in self.state.parameters().items()}
            tensors.update(self.data_position(), **{_SKIPPED: np.array(self.window.skipped_in_a_row)})
            keep, keep_every = self.config.train.keep_checkpoints, self.config.train.keep_every
            checkpoint.save_checkpoint(self.folder, step, tensors, self.config, keep, keep_every)

    def data_position(self) -> dict[str, np.ndarray]:
        """What says, with the step, which images and which noise come next."""
        whole = batches.whole_batch(self.config, self.ranks)
        return {"data.images": np.array(len(self.dataset)), "data.whole_batch": np.array(whole)}

    def restore(self) -> int:
        """Load the newest checkpoint that is whole, and return its step."""
        newest = checkpoint.newest_checkpoint(self.folder)
        if newest is None:
            raise UserError(
                f"{self.folder} has no checkpoint to resume from: start it anew with --out {self.folder} --overwrite"
            )
        path, step, tensors = newest
        parameters, position = self.state.parameters(), self.data_position()
        for name, like in {**parameters, **position, _SKIPPED: np.array(0)}.items():
            if name not in tensors or tensors[name].shape != like.shape:
                raise UserError(
                    f"{path} cannot be resumed from: {name} is missing or misshapen; a run of an older version can "
                    "only be sampled: start another with --out"
                )
        for name, value in position.items():
            if tensors[name] != value:
                raise UserError(
                    f"{self.folder} cannot be resumed: {name[len('data.'):]} was {tensors[name]} and is {value}; have "
                    "the same images, and the same train.batch_size x train.accumulate x ranks"
                )
        for name, parameter in parameters.items():
            parameter.set_data(Tensor(tensors[name]))
        self.window.skipped_in_a_row = int(tensors[_SKIPPED])
        return step


class _BrokenOff(Exception):
    """A signal came while a picture was drawn."""


class _Window:
    """The steps since the last line of metrics, whose outputs are still on the device."""

    def __init__(self, config: Config, state: TrainState) -> None:
        self._config, self._state = config, state
        self._rates = learning_rates(config.train)
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seconds = 0.0
        self.skipped_in_a_row = 0
        """Up to the last line of metrics."""
        self.hopeless = ""
        """Why the run should end, where more than max_skipped_steps in a row were skipped."""

    def add(self, outputs: tuple[Tensor, Tensor, Tensor], seconds: float) -> None:
        """What the step returned, and how long it took: pictures and checkpoints aside."""
        self._outputs.append(outputs)
        self._seconds += seconds

    def figures(self, done: int) -> dict[str, Optional[float]]:
        """A line of metrics after step `done`: means over the steps that were not skipped, None where all were."""
        losses, norms, finite = (np.array([float(x.asnumpy()) for x in column]) for column in zip(*self._outputs))
        kept, count = finite > 0, len(finite)
        scale = float(self._state.loss_scaler.scale_value.asnumpy())
        for step, fine, loss in zip(range(done - count + 1, done + 1), kept, losses):
            self.skipped_in_a_row = 0 if fine else self.skipped_in_a_row + 1
            if self.skipped_in_a_row == self._config.train.max_skipped_steps + 1:
                why = f"the gradients overflow at loss scale {scale:g}" if np.isfinite(loss) else f"the loss is {loss}"
                self.hopeless = (
                    f"step {step}: {why}, and so for {self.skipped_in_a_row} steps in a row, more than "
                    "train.max_skipped_steps"
                )
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


def _division(config: Config, ranks: int) -> str:
    """The whole batch of a step in words, and how it is divided."""
    factors = {"ranks": ranks, "micro-batches": config.train.accumulate, "images": config.train.batch_size}
    parts = [f"{count} {name}" for name, count in factors.items() if count > 1 or name == "images"]
    whole = f"{batches.whole_batch(config, ranks)} images"
    return whole if len(parts) == 1 else f"{whole}: {' x '.join(parts)}"
