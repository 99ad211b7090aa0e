import numpy as np
from mindspore import Tensor, ops

from ms_diffusion import likelihood
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.schedules import NoiseSchedule


def _process(betas):
    return GaussianDiffusion(
        timesteps=len(betas), beta_start=float(betas[0]), beta_end=float(betas[-1]), scale_betas=False,
        clip_x_start=False, variance="fixed_large",
    )


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    # The library has this divergence only inside a term of the bound.
    ratio = log_variance1 - log_variance2
    return 0.5 * (ops.expm1(ratio) - ratio + ops.square(mean1 - mean2) * ops.exp(-log_variance2))


def prior_term(x_start, alphas_cumprod):
    schedule = NoiseSchedule(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))
    return Tensor(likelihood.prior_term(schedule, x_start.asnumpy()).astype(np.float32))


def bound_term(model, x_start, t, noise, betas):
    return _process(betas).vlb_terms(model, x_start, t, noise, levels=None)


def variational_bound(model, x_start, noise, betas):
    process = _process(betas)
    step = likelihood.bound_step(process, model, jit=False, levels=None)
    bound = likelihood.variational_bound(step, process.schedule, x_start.asnumpy(), reversed(noise.asnumpy()))
    return Tensor(bound.total.astype(np.float32))
