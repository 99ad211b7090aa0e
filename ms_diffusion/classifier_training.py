"""The training of `classifier.Classifier`: the step of `train_step` with another loss, in a small loop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Union

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from ms_diffusion import batches, checkpoint, layers, randomness, runtime
from ms_diffusion.classifier import Classifier, CrossEntropy
from ms_diffusion.config import Config
from ms_diffusion.data import FolderDataset, ImageDataset
from ms_diffusion.diffusion import build_diffusion
from ms_diffusion.train_step import TrainState, make_train_step
from ms_diffusion.unet import init_weights


def train_classifier(config: Config, dataset: Union[ImageDataset, FolderDataset], folder: Path) -> Classifier:
    """Train a classifier of the noisy images of `dataset` for train.steps steps, and save it in the run `folder`.

    Images, t and noise are those that the diffusion's training would take; no label is dropped. There is one process,
    one checkpoint, at the end, and no picture: the options of several are not looked at. Returns the moving average of
    the weights where there is one.
    """
    model = Classifier(config.model)
    init_weights(model, randomness.weights_generator(config.train.seed))
    layers.set_precision(model, config.train.precision)
    state = TrainState(model, config.train, Classifier(config.model) if config.train.ema_decay else None)
    step_of = make_train_step(state, CrossEntropy(build_diffusion(config.diffusion)), config.runtime.mode == "graph")
    losses: list[float] = []
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(range(config.train.steps), unit="step", dynamic_ncols=True, mininterval=interval) as bar:
        for step in bar:
            indices, flip = batches.draw_images(config, step, len(dataset))
            x_start, noise = dataset.batch(indices, flip), batches.draw_noise(config, step)
            outputs = step_of(*map(Tensor, (x_start, *noise, dataset.labels[indices])))
            runtime.finish(outputs)
            losses.append(float(outputs[0].asnumpy()))
            if (step + 1) % config.train.log_every == 0:
                bar.set_postfix(loss=f"{np.mean(losses[-config.train.log_every:]):.4f}", refresh=False)
    tensors = {name: parameter.asnumpy() for name, parameter in state.parameters().items()}
    checkpoint.save_checkpoint(folder, config.train.steps, tensors, config)
    return state.sampled
