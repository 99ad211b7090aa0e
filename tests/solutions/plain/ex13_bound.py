import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table, t, x_shape):
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    ratio = log_variance1 - log_variance2
    distance = ops.square(mean1 - mean2) * ops.exp(-log_variance2)
    return 0.5 * (-ratio + ops.exp(ratio) + distance - 1)


def prior_term(x_start, alphas_cumprod):
    ab = float(alphas_cumprod[-1])
    mean, zero = math.sqrt(ab) * x_start, ops.zeros_like(x_start)
    return normal_kl(mean, zero + math.log(1 - ab), zero, zero).mean((1, 2, 3))


def bound_term(model, x_start, t, noise, betas):
    def at(table):
        return extract(table, t, x_start.shape)

    alphas = 1 - betas
    ab = np.cumprod(alphas)
    before = np.append(1.0, ab[:-1])
    x_t = at(np.sqrt(ab)) * x_start + at(np.sqrt(1 - ab)) * noise
    eps = model(x_t, t)
    p_mean = (x_t - at(betas / np.sqrt(1 - ab)) * eps) / at(np.sqrt(alphas))
    q_mean = at(np.sqrt(before) * betas / (1 - ab)) * x_start + at(np.sqrt(alphas) * (1 - before) / (1 - ab)) * x_t
    p_log_variance = at(np.log(betas))
    q_variance = betas * (1 - before) / (1 - ab)
    q_variance[0] = 1.0
    divergence = normal_kl(q_mean, at(np.log(q_variance)), p_mean, p_log_variance)
    density = 0.5 * (math.log(2 * math.pi) + p_log_variance + ops.square(x_start - p_mean) / ops.exp(p_log_variance))
    first = ops.broadcast_to((t == 0).reshape((-1, 1, 1, 1)), density.shape)
    return ops.where(first, density, divergence).mean((1, 2, 3))


def variational_bound(model, x_start, noise, betas):
    total = prior_term(x_start, np.cumprod(1 - betas))
    for now in range(len(betas)):
        t = Tensor(np.full(x_start.shape[0], now), ms.int32)
        total = total + bound_term(model, x_start, t, noise[now], betas)
    return total
