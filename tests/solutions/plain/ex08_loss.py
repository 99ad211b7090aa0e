import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table, t, x_shape):
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


def l1_loss(prediction, target):
    return ops.mean(ops.abs(prediction - target))


def l2_loss(prediction, target):
    return ops.mean(ops.square(prediction - target))


def huber_loss(prediction, target):
    d = ops.abs(prediction - target)
    return ops.mean(ops.select(d < 1.0, 0.5 * d * d, d - 0.5))


def p_losses(model, x_start, t, noise, alphas_cumprod, loss="huber"):
    signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    x_t = extract(signal, t, x_start.shape) * x_start + extract(sigma, t, x_start.shape) * noise
    distance = {"l1": l1_loss, "l2": l2_loss, "huber": huber_loss}[loss]
    return distance(model(x_t, t), noise)
