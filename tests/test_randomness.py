import numpy as np
import pytest

from ms_diffusion import randomness


@pytest.mark.parametrize("num_images, batch_size", [(10, 3), (7, 7), (5, 12)])
def test_every_epoch_shows_every_image_once(num_images, batch_size):
    drawn = np.concatenate([randomness.batch_indices(3, step, batch_size, num_images) for step in range(35)])
    epochs = drawn[: len(drawn) // num_images * num_images].reshape(-1, num_images)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_images), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1, "the epochs have one and the same order"


def test_a_step_is_a_function_of_seed_step_and_place():
    def draw(seed, step, place=None):
        if place is None:
            return randomness.step_generator(seed, step).standard_normal(4).tolist()
        return randomness.step_noise(seed, step, [place], (4,))[0].tolist()

    assert draw(0, 5) == draw(0, 5) and draw(0, 5, 0) == draw(0, 5, 0)
    others = [draw(*key) for key in ((0, 5), (1, 5), (0, 6), (5, 0))]
    others += [draw(*key) for key in ((0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0), (5, 0, 0), (0, 0, 5))]
    others += [randomness.weights_generator(0).standard_normal(4).tolist()]
    assert len({tuple(values) for values in others}) == len(others)


def test_noise_of_a_place_does_not_depend_on_the_others():
    whole = randomness.step_noise(3, 7, range(6), (1, 4, 4))
    assert whole.shape == (6, 1, 4, 4) and whole.dtype == np.float32
    assert np.array_equal(randomness.step_noise(3, 7, [2, 5], (1, 4, 4)), whole[[2, 5]])


def test_offset_noise_is_one_more_number_for_each_channel():
    plain = randomness.step_noise(3, 7, range(400), (2, 3, 3))
    added = randomness.step_noise(3, 7, range(400), (2, 3, 3), offset=0.1) - plain
    assert np.abs(added - added[:, :, :1, :1]).max() < 1e-6, "a channel has more than one offset"
    offsets = added[:, :, 0, 0]
    assert abs(offsets.mean()) < 4 * 0.1 / np.sqrt(800) and abs(offsets.std() / 0.1 - 1) < 4 / np.sqrt(1600)
    # Neither the two channels nor offset and noise have anything in common.
    for other in (offsets[:, 1], plain[:, 0, 0, 0], plain[:, 0].mean(axis=(1, 2))):
        assert abs(np.corrcoef(offsets[:, 0], other)[0, 1]) < 4 / np.sqrt(400)
    alone = randomness.step_noise(3, 7, [5], (2, 3, 3), offset=0.1)
    assert np.abs(alone[0] - (plain + added)[5]).max() < 1e-6


def test_noise_of_steps_is_standard_normal_and_uncorrelated():
    noise = np.stack([randomness.step_noise(0, step, range(8), (500,)) for step in range(50)])
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    for one, other in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 1:], noise[..., :-1])):
        assert abs((one * other).mean()) < 4 / np.sqrt(one.size)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    alone = randomness.image_noise(7, [4], (1, 2, 2))
    together = randomness.image_noise(7, [2, 4, 9], (1, 2, 2))
    for _ in range(5):
        one, three = next(alone), next(together)
        assert one.dtype == np.float32 and three.shape == (3, 1, 2, 2)
        assert np.array_equal(one[0], three[1])


def test_noise_is_standard_normal():
    noise = np.concatenate([n for n, _ in zip(randomness.image_noise(0, range(8), (1, 64, 64)), range(8))])
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * count)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 4 / np.sqrt(noise[0].size)
