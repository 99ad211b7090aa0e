from mindspore import Tensor
from mindspore import dtype as mstype

from ms_diffusion import GaussianDiffusion, conversions
from ms_diffusion.schedules import NoiseSchedule


def _process(betas):
    process, schedule = GaussianDiffusion(timesteps=len(betas), scale_betas=False), NoiseSchedule(betas)
    for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
                 "sqrt_recipm1_alphas_cumprod"):
        setattr(process, name, Tensor(getattr(schedule, name), mstype.float32))
    return process


def predict_x_start(x_t, t, noise, betas):
    return _process(betas).predict_x_start(x_t, t, noise)


def predict_noise(x_t, t, x_start, betas):
    return conversions.to_eps(x_start, "x_start", x_t, *_process(betas).signal_and_sigma(t, x_t.shape))
