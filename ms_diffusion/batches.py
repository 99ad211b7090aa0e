"""What a training step takes, drawn on the host: a function of (configuration, step, rank).

The whole batch of a step is train.batch_size x train.accumulate x ranks images. Each rank takes its own part of it, so
a step on several devices, or in micro-batches, is the step of one device with the whole batch.
"""

from __future__ import annotations

from typing import Optional, Union

import numpy as np

from ms_diffusion import randomness
from ms_diffusion.config import Config
from ms_diffusion.data import FolderDataset, ImageDataset


def whole_batch(config: Config, ranks: int = 1) -> int:
    """Images of one training step on all `ranks` devices."""
    return config.train.batch_size * config.train.accumulate * ranks


def draw_images(
    config: Config, step: int, num_images: int, rank: int = 0, ranks: int = 1
) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """Indices (B,) of the images of training step `step`, and which are mirrored: bool (B,), or None for no one."""
    whole, part = whole_batch(config, ranks), _part(config, rank)
    indices = randomness.batch_indices(config.train.seed, step, whole, num_images)[part]
    return indices, _drawn_for_all(config, step, whole)[0][part] if config.data.horizontal_flip else None


def draw_noise(config: Config, step: int, rank: int = 0, ranks: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Time steps int32 (B,), uniform in 0..T-1, and standard normal noise float32 (B, C, H, W) of step `step`.

    Where diffusion.offset_noise is not 0, the noise of a channel has also something in common.
    """
    whole, part = whole_batch(config, ranks), _part(config, rank)
    t = _drawn_for_all(config, step, whole)[1][part]
    offset = config.diffusion.offset_noise
    return t, randomness.step_noise(config.train.seed, step, range(whole)[part], config.image_shape, offset)


def draw_condition(
    dataset: Union[ImageDataset, FolderDataset], config: Config, step: int, rank: int = 0, ranks: int = 1
) -> tuple[np.ndarray, ...]:
    """What the network of step `step` is told besides: the images' labels, int32 (B,), or () without model.num_classes.

    Each label is replaced by the null class, model.num_classes, with probability train.label_drop.
    """
    if not config.model.num_classes:
        return ()
    dropped = _drawn_for_all(config, step, whole_batch(config, ranks))[2][_part(config, rank)]
    indices, _ = draw_images(config, step, len(dataset), rank, ranks)
    return (np.where(dropped, np.int32(config.model.num_classes), dataset.labels[indices]),)


def draw_batch(
    dataset: ImageDataset, config: Config, step: int, rank: int = 0, ranks: int = 1
) -> tuple[np.ndarray, ...]:
    """x_start (B, C, H, W), t (B,), noise (B, C, H, W) and, where there are classes, y (B,) of training step `step`."""
    x_start = dataset.batch(*draw_images(config, step, len(dataset), rank, ranks))
    noise = draw_noise(config, step, rank, ranks)
    return (x_start, *noise, *draw_condition(dataset, config, step, rank, ranks))


def _part(config: Config, rank: int) -> slice:
    size = whole_batch(config)
    return slice(rank * size, (rank + 1) * size)


def _drawn_for_all(config: Config, step: int, whole: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flips, time steps and dropped labels of the whole batch, each (whole,)."""
    generator = randomness.step_generator(config.train.seed, step)
    flips = generator.random(whole) < 0.5
    t = generator.integers(0, config.diffusion.timesteps, whole, dtype=np.int32)
    return flips, t, generator.random(whole) < config.train.label_drop
