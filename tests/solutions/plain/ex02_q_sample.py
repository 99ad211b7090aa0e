import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table, t, x_shape):
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0], 1, 1, 1))


def q_step(x_prev, t, noise, betas):
    signal = extract(np.sqrt(1 - betas), t, x_prev.shape)
    return signal * x_prev + extract(np.sqrt(betas), t, x_prev.shape) * noise


def q_sample(x_start, t, noise, betas):
    bar = np.cumprod(1 - betas)
    signal, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    return extract(signal, t, x_start.shape) * x_start + extract(sigma, t, x_start.shape) * noise
