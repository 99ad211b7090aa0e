import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table, t, x_shape):
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


def p_mean(x_t, t, eps, betas):
    alphas = 1 - betas
    alphas_cumprod = np.cumprod(alphas)
    drift = extract(betas / np.sqrt(1 - alphas_cumprod), t, x_t.shape)
    return (x_t - drift * eps) / extract(np.sqrt(alphas), t, x_t.shape)


def p_sample(model, x_t, t, noise, betas, variance="fixed_small"):
    alphas_cumprod = np.cumprod(1 - betas)
    before = np.append(1.0, alphas_cumprod[:-1])
    small = betas * (1 - before) / (1 - alphas_cumprod)
    sigma = np.sqrt(small if variance == "fixed_small" else betas)
    mask = (t > 0).astype(ms.float32).reshape((-1, 1, 1, 1))
    return p_mean(x_t, t, model(x_t, t), betas) + mask * extract(sigma, t, x_t.shape) * noise


def p_sample_loop(model, noise, betas, variance="fixed_small"):
    x, steps = noise[0], len(betas)
    for i, now in enumerate(reversed(range(steps))):
        t = Tensor(np.full(x.shape[0], now), ms.int32)
        x = p_sample(model, x, t, noise[i + 1], betas, variance)
    return x


def sample(model, shape, betas, variance="fixed_small"):
    noise = np.random.default_rng().standard_normal((len(betas) + 1, *shape))
    return p_sample_loop(model, Tensor(noise, ms.float32), betas, variance)
