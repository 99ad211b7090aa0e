import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from ms_diffusion import GaussianDiffusion, diffusion
from ms_diffusion.schedules import NoiseSchedule


def extract(table, t, x_shape):
    return diffusion.extract(Tensor(table, mstype.float32), t, x_shape)


def _process(schedule):
    process = GaussianDiffusion(timesteps=len(schedule), scale_betas=False)
    process.sqrt_alphas_cumprod = Tensor(schedule.sqrt_alphas_cumprod, mstype.float32)
    process.sqrt_one_minus_alphas_cumprod = Tensor(schedule.sqrt_one_minus_alphas_cumprod, mstype.float32)
    return process


def q_step(x_prev, t, noise, betas):
    schedule = NoiseSchedule(betas)
    schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod = np.sqrt(schedule.alphas), np.sqrt(betas)
    return _process(schedule).q_sample(x_prev, t, noise)


def q_sample(x_start, t, noise, betas):
    return _process(NoiseSchedule(betas)).q_sample(x_start, t, noise)
