import numpy as np


def linear_beta_schedule(timesteps, beta_start=1e-4, beta_end=0.02):
    return np.linspace(beta_start, beta_end, timesteps)


def cosine_beta_schedule(timesteps, s=0.008, max_beta=0.999):
    i = np.arange(timesteps + 1)
    f = np.cos((i / timesteps + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


def alphas_cumprod(betas):
    return np.cumprod(1 - betas)


def alphas_cumprod_prev(betas):
    return np.append(1.0, alphas_cumprod(betas)[:-1])
