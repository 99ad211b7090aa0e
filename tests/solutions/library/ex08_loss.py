import numpy as np
from mindspore import Tensor

from ms_diffusion.diffusion import GaussianDiffusion


def _distance(prediction, target, loss):
    t = Tensor(np.zeros(len(target), np.int32))
    return GaussianDiffusion(loss=loss).p_losses(lambda x_t, t: prediction, target, t, target)


def l1_loss(prediction, target):
    return _distance(prediction, target, "l1")


def l2_loss(prediction, target):
    return _distance(prediction, target, "l2")


def huber_loss(prediction, target):
    return _distance(prediction, target, "huber")


def p_losses(model, x_start, t, noise, alphas_cumprod, loss="huber"):
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    diffusion = GaussianDiffusion(
        timesteps=len(betas), beta_start=float(betas[0]), beta_end=float(betas[-1]), scale_betas=False, loss=loss
    )
    return diffusion.p_losses(model, x_start, t, noise)
