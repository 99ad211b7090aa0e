"""The training loop around `train_step`: batches in, figures, pictures and checkpoints out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from ms_diffusion import batches, checkpoint, layers, randomness, runtime, visualize
from ms_diffusion.config import Config
from ms_diffusion.data import ImageDataset, to_uint8
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.samplers import sample
from ms_diffusion.train_step import TrainState, learning_rates, make_train_step
from ms_diffusion.unet import build_unet, init_weights


def build(config: Config) -> tuple[TrainState, GaussianDiffusion]:
    """What `config` trains, with its first weights."""
    model = build_unet(config.model)
    init_weights(model, randomness.weights_generator(config.train.seed))
    layers.set_precision(model, config.train.precision)
    average = build_unet(config.model) if config.train.ema_decay else None
    return TrainState(model, config.train, average), build_diffusion(config.diffusion)


def train(config: Config, dataset: ImageDataset, folder: Path, resume: bool = False) -> None:
    """Train to step `config.train.steps` in the run folder `folder`, made by `checkpoint.create_run`.

    `resume` goes on from the latest checkpoint, and repeats what the uninterrupted run would have done, exactly.
    Raises `UserError` where the gradients stay infinite, the disk refuses, or nothing is left to do.
    """
    options = config.train
    jit = config.runtime.mode == "graph"
    state, diffusion = build(config)
    start = _restore(folder, state) if resume else 0
    if start >= options.steps:
        raise UserError(f"{folder} has made its {options.steps} steps: give more --train.steps to go on")

    train_step = make_train_step(state, diffusion, jit)
    reverse_step = diffusion.reverse_step(state.sampled, jit)
    rates = learning_rates(options)
    if options.sample_every:
        # Once now: what cannot be compiled, or does not fit into memory, is found in the evening.
        zeros = Tensor(np.zeros((options.sample_num, *config.image_shape), np.float32))
        runtime.finish((reverse_step(zeros, Tensor(np.zeros(options.sample_num, np.int32)), zeros),))
    if jit:
        print("the first step compiles the network and takes longer than the others", file=sys.stderr)
    window = []  # what the steps since the last line of metrics returned, still on the device
    seconds = 0.0  # spent in them, pictures and checkpoints aside
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds between looks of the bar: a log needs fewer
    progress = tqdm(total=options.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=interval)
    with progress, open(folder / "metrics.jsonl", "a") as metrics:
        for done in range(start + 1, options.steps + 1):
            last = done == options.steps
            began = time.perf_counter()
            outputs = train_step(*map(Tensor, batches.draw_batch(dataset, config, done - 1)))
            runtime.finish(outputs)
            window.append(outputs)
            if done % options.log_every == 0 or last:
                line = _summary(window, done, state)  # waits for the device
                line["lr"] = float(rates[max(int(state.optimizer.global_step.asnumpy()[0]) - 1, 0)])
                line["seconds_per_step"] = (seconds + time.perf_counter() - began) / len(window)
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
                progress.set_postfix(loss=line["loss"], lr=f"{line['lr']:.1e}", refresh=False)
                window, seconds = [], 0.0
            else:
                seconds += time.perf_counter() - began
            progress.update()
            if done % options.checkpoint_every == 0 or last:
                tensors = {name: parameter.asnumpy() for name, parameter in state.parameters().items()}
                checkpoint.save_checkpoint(folder, done, tensors, config)
            if options.sample_every and (done % options.sample_every == 0 or last):
                images, _ = sample(diffusion, reverse_step, config.image_shape, options.sample_num, options.seed)
                grid = visualize.make_grid(to_uint8(images))
                visualize.save_picture(grid, folder / "samples" / f"step_{done:08d}.png")
    visualize.plot_loss(folder / "metrics.jsonl", folder / "loss.png")


def _summary(window: list[tuple[Tensor, Tensor, Tensor]], step: int, state: TrainState) -> dict[str, Any]:
    """One line of metrics: means over the steps of `window` that were not skipped; null where all were."""
    losses, norms, finite = (np.array([float(value.asnumpy()) for value in column]) for column in zip(*window))
    kept = finite > 0
    scale = float(state.loss_scaler.scale_value.asnumpy())
    if not kept.any() and scale == 1:
        raise UserError(
            f"step {step}: the gradients are not finite even at loss scale 1, for {len(window)} steps in a row; "
            "the checkpoints before it are whole: resume with a smaller train.lr in a new run"
        )
    return {
        "step": step,
        "loss": round(float(losses[kept].mean()), 6) if kept.any() else None,
        "grad_norm": round(float(norms[kept].mean()), 6) if kept.any() else None,
        "loss_scale": scale,
        "skipped": int((~kept).sum()),
    }


def _restore(folder: Path, state: TrainState) -> int:
    """Load the latest checkpoint of `folder`, drop the lines of metrics after it, and return its step."""
    path = checkpoint.latest_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} has no checkpoint to resume from: start it anew with --out {folder} --overwrite")
    step, tensors = checkpoint.read_checkpoint(path)
    for name, parameter in state.parameters().items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise UserError(f"{path} cannot be resumed from: {name} is missing or misshapen")
    for name, parameter in state.parameters().items():
        parameter.set_data(Tensor(tensors[name]))
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
        metrics.write_text("".join(f"{line}\n" for line in lines))
    return step
