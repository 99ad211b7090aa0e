"""Exercise 13: the variational bound / 练习 13：变分界

An upper bound of -log p(x_0) (Ho et al. 2020, eq. 5), in nats per dimension; a dimension is one channel of one pixel.
-log p(x_0) 的一个上界（Ho et al. 2020，式 5），单位是每维奈特；一维即一个像素的一个通道。

    L_T     = KL(q(x_T | x_0) || N(0, 1))
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))    code / 代码中 t = 1..T-1
    L_0     = -log p(x_0 | x_1)                                code / 代码中 t = 0

All of these are Gaussian, so each term is a closed form. p has the variance sigma_t^2 = beta_t. As before
alpha-bar_{-1} = 1. Clip nothing.
这些分布全是高斯分布，所以每一项都有闭式解。p 的方差取 sigma_t^2 = beta_t。和前面一样，alpha-bar_{-1} = 1。不要裁剪。

Images are MindSpore Tensors, float32 (B, C, H, W); `betas` is NumPy float64 (T,).
图像是 MindSpore 的 Tensor，float32 (B, C, H, W)；`betas` 是 NumPy float64 数组 (T,)。

Grade it / 评分： python scripts/grade.py my_work --exercise 13
"""

import math
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, x_shape: tuple) -> Tensor:
    """table[t] for each image, (B, 1, 1, 1). Given, see exercise 2. / 每幅图像的 table[t]，已给出，见练习 2。"""
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, v1) || N(mean2, v2)) of each element, in nats; given are the logarithms of the variances.

    逐元素计算 KL(N(mean1, v1) || N(mean2, v2))，单位为奈特；给出的是方差的对数。

        1/2 * (log v2 - log v1 + v1 / v2 + (mean1 - mean2)^2 / v2 - 1)

    mean1, log_variance1, mean2, log_variance2: float32, one shape / 形状相同
    Returns / 返回：Tensor float32, the same shape / 形状不变
    Hint / 提示：0 for two equal Gaussians, never negative, and another number if the two are swapped.
                两个分布相同时为 0，永远不为负；交换两个分布，结果会改变。
    """
    raise NotImplementedError("Exercise 13.1 / 练习 13.1: normal_kl")


def prior_term(x_start: Tensor, alphas_cumprod: np.ndarray) -> Tensor:
    """L_T of each image: the mean of its dimensions' KL(q(x_T | x_0) || N(0, 1)).

    每幅图像的 L_T：KL(q(x_T | x_0) || N(0, 1)) 在该图像所有维度上的平均值。

        q(x_T | x_0) = N(sqrt(ab) * x_0, 1 - ab),  ab = alphas_cumprod[-1]

    x_start: float32 (B, C, H, W)    alphas_cumprod: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B,)
    Hint / 提示：normal_kl with mean2 = 0 and log v2 = 0. / 在 normal_kl 中取 mean2 = 0，log v2 = 0。
    """
    raise NotImplementedError("Exercise 13.2 / 练习 13.2: prior_term")


def bound_term(model: Callable, x_start: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray) -> Tensor:
    """The term of each image at its t: the mean of its dimensions' L_{t-1}, or of L_0 where t = 0.

    每幅图像在 t 处的一项：L_{t-1} 在该图像所有维度上的平均值；t = 0 时为 L_0。

        x_t = sqrt(alpha-bar_t) * x_0 + sqrt(1 - alpha-bar_t) * noise,  eps = model(x_t, t)
        p:  mean = (x_t - beta_t / sqrt(1 - alpha-bar_t) * eps) / sqrt(alpha_t)
            variance = beta_t
        q:  mean = sqrt(alpha-bar_{t-1}) * beta_t / (1 - alpha-bar_t) * x_0
                   + sqrt(alpha_t) * (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) * x_t
            variance = beta_t * (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)
        t > 0:  KL(q || p)
        t = 0:  1/2 * (log(2 * pi * beta_0) + (x_0 - mean of p)^2 / beta_0)

    model: model(x_t, t) -> float32 (B, C, H, W)    x_start, noise: float32 (B, C, H, W)    t: int32 (B,)
    Returns / 返回：Tensor float32 (B,)
    Hint / 提示：At t = 0 the variance of q is 0 and its logarithm infinite: put any finite number there, before
                ops.where takes the other branch.
                t = 0 时 q 的方差为 0，对数为负无穷：先在那里填任意一个有限的数，再用 ops.where 取另一个分支。
    """
    raise NotImplementedError("Exercise 13.3 / 练习 13.3: bound_term")


def variational_bound(model: Callable, x_start: Tensor, noise: Tensor, betas: np.ndarray) -> Tensor:
    """The bound of each image: L_T and the SUM of the terms of all t.

    每幅图像的变分界：L_T 加上所有 t 的各项之和（求和，不是平均）。

    noise: float32 (T, B, C, H, W); noise[t] makes the x_t of the term at t / noise[t] 用来得到 t 处那一项的 x_t
    Returns / 返回：Tensor float32 (B,)
    Hint / 提示：For Gaussian data and the best possible model it is the data's entropy and a little more.
                数据服从高斯分布、模型又是最优时，它只比数据的熵大一点点。
    """
    raise NotImplementedError("Exercise 13.4 / 练习 13.4: variational_bound")
