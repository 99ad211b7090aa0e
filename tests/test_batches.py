import dataclasses

import numpy as np
import pytest

from ms_diffusion.batches import draw_batch, draw_condition, draw_images, draw_noise, whole_batch
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
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


# ---- Labels ----


def labelled(sides=False):
    """Ten images, or a hundred of two pixels, whose first pixel is their label."""
    labels = np.arange(100 if sides else 10, dtype=np.int32) % 10
    images = np.tile(labels.astype(np.uint8).reshape(-1, 1, 1, 1), (1, 1, 1, 2) if sides else (1, 1, 8, 8))
    images[..., -1] = 100
    return ImageDataset(images, "labelled", labels)


def conditional(**train):
    return dataclasses.replace(with_train(**train), model=ModelConfig(num_classes=10))


def test_labels_follow_their_images_through_shuffling_and_flips():
    seen = []
    for step in range(30):
        x_start, _, _, labels = draw_batch(labelled(sides=True), conditional(label_drop=0.0), step)
        pixels = np.rint((x_start + 1) * 127.5)[:, 0, 0]
        mirrored = pixels[:, 0] == 100
        assert np.array_equal(np.where(mirrored, pixels[:, 1], pixels[:, 0]), labels) and labels.dtype == np.int32
        seen += mirrored.tolist()
    assert 30 < sum(seen) < 90, "some are mirrored and some are not"


def test_labels_disturb_nothing_else_that_is_drawn():
    for step in range(5):
        with_labels, without = (draw_batch(labelled(), config, step) for config in (conditional(), CONFIG))
        assert len(with_labels) == 4 and len(without) == 3
        assert all(np.array_equal(a, b) for a, b in zip(with_labels, without))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropped_labels_are_bernoulli(rate):
    """Their share, and that of two neighbours both dropped, are those of independent coins."""
    config = conditional(batch_size=500, label_drop=rate)
    dropped = np.stack([draw_condition(labelled(), config, step)[0] == 10 for step in range(40)])
    pairs = dropped[:, 1:] & dropped[:, :-1]
    assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(pairs.mean() - rate**2) < 6 * rate / np.sqrt(pairs.size)


@pytest.mark.parametrize("batch_size, accumulate, ranks", [(2, 1, 4), (2, 2, 2), (1, 8, 1)])
def test_however_a_batch_is_divided_its_labels_are_the_same(batch_size, accumulate, ranks):
    (whole,) = draw_condition(labelled(), conditional(batch_size=8, label_drop=0.5), 5)
    assert 0 < (whole == 10).sum() < 8
    config = conditional(batch_size=batch_size, accumulate=accumulate, label_drop=0.5)
    parts = [draw_condition(labelled(), config, 5, rank, ranks)[0] for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), whole)
