from ms_diffusion.schedules import NoiseSchedule, cosine_beta_schedule, linear_beta_schedule  # noqa: F401


def alphas_cumprod(betas):
    return NoiseSchedule(betas).alphas_cumprod


def alphas_cumprod_prev(betas):
    return NoiseSchedule(betas).alphas_cumprod_prev
