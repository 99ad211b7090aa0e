import numpy as np

from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.randomness import image_noise


def _process(betas, variance="fixed_small"):
    return GaussianDiffusion(
        timesteps=len(betas), beta_start=float(betas[0]), beta_end=float(betas[-1]), scale_betas=False,
        clip_x_start=False, variance=variance,
    )


def p_mean(x_t, t, eps, betas):
    mean, _, _ = _process(betas).p_mean_variance(lambda x_t, t: eps, x_t, t)
    return mean


def p_sample(model, x_t, t, noise, betas, variance="fixed_small"):
    return _process(betas, variance).p_sample(model, x_t, t, noise)


def p_sample_loop(model, noise, betas, variance="fixed_small"):
    return _process(betas, variance).sample(model, iter(noise.asnumpy()), jit=False)


def sample(model, shape, betas, variance="fixed_small"):
    seed = int(np.random.default_rng().integers(2**31))
    return _process(betas, variance).sample(model, image_noise(seed, range(shape[0]), shape[1:]), jit=False)
