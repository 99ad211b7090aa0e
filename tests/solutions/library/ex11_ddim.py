import numpy as np
from mindspore import Tensor

from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.samplers import ddim


def _process(alphas_cumprod, clip=False):
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return GaussianDiffusion(
        timesteps=len(betas), beta_start=float(betas[0]), beta_end=float(betas[-1]), scale_betas=False,
        clip_x_start=clip,
    )


def _times(t, t_prev):
    return [t] if t_prev < 0 else [t, t_prev]


def ddim_sigma(alphas_cumprod, t, t_prev, eta):
    def nothing(x_t, t):
        return 0.0, 0.0

    steps = ddim(nothing, _process(alphas_cumprod).schedule, iter([0.0, 1.0]), _times(t, t_prev), eta=eta)
    return float(next(steps))


def ddim_step(x_t, eps, t, t_prev, noise, alphas_cumprod, eta=0.0, clip=False):
    process = _process(alphas_cumprod, clip)
    denoise = process.denoiser(lambda x_t, t: eps, jit=False, rederive_eps=False)
    noises = iter([x_t.asnumpy(), noise.asnumpy()])
    return Tensor(next(ddim(denoise, process.schedule, noises, _times(t, t_prev), eta=eta)))


def ddim_loop(model, noise, times, alphas_cumprod, eta=0.0, clip=False):
    process = _process(alphas_cumprod, clip)
    denoise = process.denoiser(model, jit=False, rederive_eps=False)
    *_, x_start = ddim(denoise, process.schedule, iter(noise.asnumpy()), list(times), eta=eta)
    return Tensor(x_start)
