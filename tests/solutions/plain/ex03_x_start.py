import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table, t, x_shape):
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0], 1, 1, 1))


def predict_x_start(x_t, t, noise, betas):
    bar = extract(np.cumprod(1 - betas), t, x_t.shape)
    return (x_t - ops.sqrt(1 - bar) * noise) / ops.sqrt(bar)


def predict_noise(x_t, t, x_start, betas):
    bar = extract(np.cumprod(1 - betas), t, x_t.shape)
    return (x_t - ops.sqrt(bar) * x_start) / ops.sqrt(1 - bar)
