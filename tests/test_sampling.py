from functools import partial

import numpy as np
from mindspore import ops

from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.sampling import sample
from ms_diffusion.unet import Unet, init_weights

SHAPE = (1, 4, 4)


def ancestral(diffusion, jit=True):
    model = Unet(dim=8, dim_mults=(1,))
    init_weights(model, np.random.default_rng(0))
    return partial(diffusion.p_sample_loop, diffusion.reverse_step(model, jit))


def test_an_image_depends_on_seed_and_place_alone(jit):
    diffusion = GaussianDiffusion(timesteps=30)
    loop = ancestral(diffusion, jit)
    seven, _ = sample(loop, 30, SHAPE, 7, seed=3)
    assert seven.shape == (7, *SHAPE) and seven.dtype == np.float32
    by_threes, _ = sample(loop, 30, SHAPE, 7, seed=3, batch_size=3)
    fewer, _ = sample(loop, 30, SHAPE, 2, seed=3)
    other, _ = sample(loop, 30, SHAPE, 2, seed=4)
    assert np.abs(seven - by_threes).max() < 1e-5
    assert np.abs(seven[:2] - fewer).max() < 1e-5
    assert np.abs(fewer - other).max() > 0.1
    again, _ = sample(loop, 30, SHAPE, 7, seed=3)
    assert np.array_equal(seven, again)
    assert np.abs(seven[0] - seven[1]).max() > 0.1


def test_one_shape_for_every_batch():
    diffusion = GaussianDiffusion(timesteps=30)
    shapes = set()

    def step(x, t, noise):
        shapes.add((x.shape, t.shape, noise.shape))
        return ops.zeros_like(x)

    samples, _ = sample(partial(diffusion.p_sample_loop, step), 30, SHAPE, 7, seed=0, batch_size=3)
    assert len(samples) == 7 and shapes == {((3, *SHAPE), (3,), (3, *SHAPE))}


def test_frames_are_the_first_batch_on_its_way():
    diffusion = GaussianDiffusion(timesteps=30)
    loop = ancestral(diffusion)
    samples, frames = sample(loop, 30, SHAPE, 5, seed=0, batch_size=2, frame_steps=[0, 15, 29])
    assert [frame.shape for frame in frames] == [(2, *SHAPE)] * 3
    assert np.array_equal(frames[-1], samples[:2])
    assert np.abs(frames[0] - frames[-1]).max() > 0.1
