import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table, t, x_shape):
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0], 1, 1, 1))


def tables(betas):
    bar = np.cumprod(1 - betas)
    return bar, np.append(1.0, bar[:-1])


def posterior_variance(betas):
    bar, previous = tables(betas)
    return betas * (1 - previous) / (1 - bar)


def posterior_mean_coefficients(betas):
    bar, previous = tables(betas)
    coef1, coef2 = betas * np.sqrt(previous) / (1 - bar), (1 - previous) * np.sqrt(1 - betas) / (1 - bar)
    return coef1, coef2


def q_posterior(x_start, x_t, t, betas):
    coef1, coef2 = (extract(table, t, x_t.shape) for table in posterior_mean_coefficients(betas))
    mean, variance = coef1 * x_start + coef2 * x_t, extract(posterior_variance(betas), t, x_t.shape)
    return mean, variance
