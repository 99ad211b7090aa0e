"""All randomness of a run, drawn on the host: NumPy generators made of (seed, what for, where).

The same numbers reach Ascend, GPU, CPU and PyTorch; a resumed run draws what the uninterrupted one would have drawn.
What a training step draws belongs to an image's place in the step's whole batch, so it is the same however the batch
is divided among devices and micro-batches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Iterator, Sequence

import numpy as np

# First word of each stream's key, so that no two purposes share numbers.
_WEIGHTS, _ORDER, _STEP, _IMAGE = range(4)


def _generator(seed: int, *key: int) -> np.random.Generator:
    # A Philox stream is the same on every platform and NumPy version.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def weights_generator(seed: int) -> np.random.Generator:
    """The generator of the network's first weights: the same on every rank."""
    return _generator(seed, _WEIGHTS)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of what is drawn once for the whole batch of step `step`: flips, time steps, dropped labels."""
    return _generator(seed, _STEP, step)


def step_noise(
    seed: int, step: int, places: Sequence[int], shape: Sequence[int], offset: float = 0.0
) -> np.ndarray:
    """Standard normal float32 (len(places), *shape): the noise of the images at `places` in the batch of step `step`.

    Where `offset` is not 0, each channel of each image gets one normal number of that standard deviation on top.
    Each place has a stretch of 2^128 numbers of one Philox stream to itself; Salmon et al. 2011, section 2.
    """
    key = np.random.SeedSequence(seed, spawn_key=(_STEP,)).generate_state(2, np.uint64)
    philox = np.random.Philox(key=key)
    generator, state = np.random.Generator(philox), philox.state
    noise = np.empty((len(places), *shape), np.float32)
    for place, values in zip(places, noise):
        state["state"]["counter"][:] = (0, 0, place, step)
        philox.state = state  # ten times as fast as a generator for each
        generator.standard_normal(dtype=np.float32, out=values)
        if offset:
            values += np.float32(offset) * generator.standard_normal((shape[0], 1, 1), dtype=np.float32)
    return noise


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """Indices (B,) of the images of training step `step`: an endless row of shuffled epochs, cut into batches.

    Each epoch is a permutation of its own; a batch may reach over its end, so no image is ever left out.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_images
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        indices[epochs == epoch] = _epoch_order(seed, int(epoch), num_images)[positions[epochs == epoch] % num_images]
    return indices


@lru_cache(maxsize=2)  # two, for a batch that reaches over an epoch's end; of a million images one takes 20 ms
def _epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    order = _generator(seed, _ORDER, epoch).permutation(num_images)
    order.setflags(write=False)
    return order


def image_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Iterator[np.ndarray]:
    """An endless stream of standard normal float32 (B, *shape): first x_T, then the noise of each reverse step.

    Image i has a generator of its own, so it does not depend on the images it shares a batch with.
    """
    generators = [_generator(seed, _IMAGE, int(index)) for index in indices]
    while True:
        yield np.stack([generator.standard_normal(tuple(shape), dtype=np.float32) for generator in generators])
