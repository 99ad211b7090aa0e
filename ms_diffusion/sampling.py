"""From a seed to a row of images, batch by batch."""

from __future__ import annotations

import sys
from typing import Any, Callable, Collection, Iterator, Optional, Sequence

import numpy as np
from tqdm import tqdm

from ms_diffusion.randomness import image_noise

Loop = Callable[[Iterator[np.ndarray]], Iterator[Any]]
"""From the noise of a batch to x after each step: a sampler, or `p_sample_loop`, with all else filled in."""

BATCH_SIZE = 64
"""Images at a time, where nothing else is asked for."""


def sample(
    loop: Loop, steps: int, shape: Sequence[int], num: int, seed: int, *,
    batch_size: int = BATCH_SIZE, frame_steps: Collection[int] = (), progress: bool = False,
    before: Optional[Callable[[range], None]] = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Images 0..num-1 of the endless row that `seed` stands for, by the `steps` of `loop`, and frames on the way.

    The images are float32 (num, *shape), near [-1, 1]; image i does not depend on `num` or `batch_size`.
    The frames are the images of the first batch, (B, *shape), after each step 0..steps-1 in `frame_steps`.
    The last batch is filled up and cut, so that a compiled step meets one shape only. `before` is called with the
    numbers of a batch's images before its first step: for the labels of a `guidance.Guided` model.
    """
    batch_size = min(num, batch_size)
    starts = range(0, num, batch_size)
    samples, frames = [], []
    total = len(starts) * steps
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=total, unit="step", dynamic_ncols=True, disable=not progress, mininterval=interval) as bar:
        for start in starts:
            images = range(start, start + batch_size)
            if before is not None:
                before(images)
            noise = image_noise(seed, images, shape)
            for step, x in enumerate(loop(noise)):
                if start == 0 and step in frame_steps:
                    frames.append(np.asarray(x))
                bar.update()
            samples.append(np.asarray(x))
    return np.concatenate(samples)[:num], frames
