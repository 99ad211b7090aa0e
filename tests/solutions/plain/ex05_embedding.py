import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def frequencies(dim):
    half = dim // 2
    return np.exp(-np.log(10000) * np.arange(half) / (half - 1))


def sinusoidal_embedding(t, dim):
    angles = ops.cast(t, ms.float32).reshape((-1, 1)) * Tensor(frequencies(dim), ms.float32)
    return ops.concat((ops.sin(angles), ops.cos(angles)), axis=-1)
