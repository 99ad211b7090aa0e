import dataclasses

import numpy as np
import pytest

from ms_diffusion.batches import draw_batch, draw_images, draw_noise, whole_batch
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, TrainConfig
from ms_diffusion.data import ImageDataset

CONFIG = Config(
    data=DataConfig(horizontal_flip=True), diffusion=DiffusionConfig(timesteps=30), train=TrainConfig(batch_size=4),
)


def with_train(**options):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **options))


def dataset():
    return ImageDataset(np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8), "noise")


def test_a_batch_is_a_function_of_seed_and_step():
    first, again, later = (draw_batch(dataset(), CONFIG, step) for step in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not any(np.array_equal(a, b) for a, b in zip(first, later))
    x_start, t, noise = first
    assert (x_start.dtype, t.dtype, noise.dtype) == (np.float32, np.int32, np.float32)
    assert x_start.shape == noise.shape == (4, 1, 8, 8) and t.shape == (4,)


@pytest.mark.parametrize("batch_size, accumulate, ranks", [(2, 1, 4), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_however_a_batch_is_divided_it_is_the_same(batch_size, accumulate, ranks):
    whole = draw_batch(dataset(), with_train(batch_size=8), 5)
    config = with_train(batch_size=batch_size, accumulate=accumulate)
    assert whole_batch(config, ranks) == 8
    parts = [draw_batch(dataset(), config, 5, rank, ranks) for rank in range(ranks)]
    for expected, *found in zip(whole, *parts):
        assert np.array_equal(np.concatenate(found), expected)


def test_images_and_noise_are_the_batch_in_two_calls():
    x_start, t, noise = draw_batch(dataset(), CONFIG, 5)
    indices, flip = draw_images(CONFIG, 5, 10)
    assert np.array_equal(dataset().batch(indices, flip), x_start)
    assert all(np.array_equal(a, b) for a, b in zip(draw_noise(CONFIG, 5), (t, noise)))


def test_time_steps_are_uniform_and_flips_are_fair():
    images = np.zeros((4, 1, 1, 2), np.uint8)
    images[..., 1] = 255  # which side is white tells a flip
    config = with_train(batch_size=512)
    batches = [draw_batch(ImageDataset(images, "sides"), config, step) for step in range(40)]
    t = np.concatenate([batch[1] for batch in batches])
    expected = len(t) / 30
    chi_squared = ((np.bincount(t, minlength=30) - expected) ** 2 / expected).sum()
    assert chi_squared < 58.3  # the 99.9 % point for 29 degrees of freedom
    flipped = np.concatenate([batch[0][:, 0, 0, 0] > 0 for batch in batches])
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(flipped))
