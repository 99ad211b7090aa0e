from mindspore import Tensor
from mindspore import dtype as mstype

from ms_diffusion import GaussianDiffusion
from ms_diffusion.schedules import NoiseSchedule


def posterior_variance(betas):
    return NoiseSchedule(betas).posterior_variance


def posterior_mean_coefficients(betas):
    schedule = NoiseSchedule(betas)
    return schedule.posterior_mean_coef1, schedule.posterior_mean_coef2


def q_posterior(x_start, x_t, t, betas):
    process, schedule = GaussianDiffusion(timesteps=len(betas), scale_betas=False), NoiseSchedule(betas)
    for name in ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance"):
        setattr(process, name, Tensor(getattr(schedule, name), mstype.float32))
    return process.q_posterior(x_start, x_t, t)
