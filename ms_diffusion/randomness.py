"""All randomness of a run, drawn on the host: NumPy generators made of (seed, what for, where).

The same numbers reach Ascend, GPU, CPU and PyTorch; a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

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


def step_generator(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The generator of everything random about training step `step` on rank `rank`."""
    return _generator(seed, _STEP, step, rank)


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """Indices (B,) of the images of training step `step`: an endless row of shuffled epochs, cut into batches.

    Each epoch is a permutation of its own; a batch may reach over its end, so no image is ever left out.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_images
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = _generator(seed, _ORDER, int(epoch)).permutation(num_images)
        indices[epochs == epoch] = order[positions[epochs == epoch] % num_images]
    return indices


def image_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Iterator[np.ndarray]:
    """An endless stream of standard normal float32 (B, *shape): first x_T, then the noise of each reverse step.

    Image i has a generator of its own, so it does not depend on the images it shares a batch with.
    """
    generators = [_generator(seed, _IMAGE, int(index)) for index in indices]
    while True:
        yield np.stack([generator.standard_normal(tuple(shape), dtype=np.float32) for generator in generators])
