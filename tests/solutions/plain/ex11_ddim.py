import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def ddim_sigma(alphas_cumprod, t, t_prev, eta):
    ab = alphas_cumprod[t]
    ab_prev = alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
    return float(eta * np.sqrt((1 - ab_prev) / (1 - ab)) * np.sqrt(1 - ab / ab_prev))


def ddim_step(x_t, eps, t, t_prev, noise, alphas_cumprod, eta=0.0, clip=False):
    ab = float(alphas_cumprod[t])
    ab_prev = float(alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0
    sigma = ddim_sigma(alphas_cumprod, t, t_prev, eta)
    x_start = (x_t - (1 - ab) ** 0.5 * eps) / ab**0.5
    if clip:
        x_start = ops.clamp(x_start, -1.0, 1.0)
    direction = max(1 - ab_prev - sigma**2, 0.0) ** 0.5
    return ab_prev**0.5 * x_start + direction * eps + sigma * noise


def ddim_loop(model, noise, times, alphas_cumprod, eta=0.0, clip=False):
    x = noise[0]
    for i, (now, then) in enumerate(zip(times, [*times[1:], -1])):
        eps = model(x, Tensor(np.full(x.shape[0], now), ms.int32))
        x = ddim_step(x, eps, now, then, noise[i + 1], alphas_cumprod, eta, clip)
    return x
