"""Exercise 13: the variational bound. / 练习 13：变分下界（以负对数似然的上界形式写出）。

The bound of -log p(x_0), eq. 5 of Ho et al. 2020, in nats per dimension (a dimension is one channel of one pixel):
-log p(x_0) 的上界，Ho 等人 2020 年论文的公式 5，单位是每维奈特（一维即一个像素的一个通道）：

    L_T      = KL(q(x_T | x_0) || N(0, I))
    L_{t-1}  = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))     code / 代码中 t = T-1, ..., 1
    L_0      = -log p(x_0 | x_1)                                 code / 代码中 t = 0

Everything is Gaussian, so each term is a closed form. Code t = 0..T-1 is the paper's t = 1..T, alpha-bar_{-1} = 1.
The variance of p is sigma_t^2 = beta_t. Images are float32 (B, C, H, W), `betas` is NumPy float64 (T,). Do not clip.

所有分布都是高斯分布，所以每一项都有闭式解。代码中的 t = 0..T-1 对应论文中的 t = 1..T，alpha-bar_{-1} = 1。p 的方差取
sigma_t^2 = beta_t。图像是 float32 张量 (B, C, H, W)，`betas` 是 NumPy float64 数组 (T,)。不要裁剪。
"""

from __future__ import annotations

import math
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, dimensions: int = 4) -> Tensor:
    """Given: table[t] as float32 (B, 1, 1, 1), to be multiplied with images (B, C, H, W).

    已给出：取 table[t]，形状为 (B, 1, 1, 1) 的 float32 张量，可直接与 (B, C, H, W) 的图像相乘。
    """
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((-1,) + (1,) * (dimensions - 1))


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, variance1) || N(mean2, variance2)) of each element, in nats; shaped like the inputs.

        1/2 (log v2 - log v1 + v1 / v2 + (m1 - m2)^2 / v2 - 1)

    The logarithms of the variances are given, v = exp(log v).
    Hint: it is 0 if the two are equal, and never negative; it changes if the two are swapped.

    逐元素计算 KL(N(mean1, variance1) || N(mean2, variance2))，单位为奈特，形状与输入相同。公式见上。
    给出的是方差的对数，v = exp(log v)。
    提示：两个分布相同时结果为 0，并且永远不为负；交换两个分布，结果会改变。
    """
    raise NotImplementedError("Exercise 13.1 / 练习 13.1: the divergence of two Gaussians / 两个高斯分布的 KL 散度")


def prior_term(x_start: Tensor, alphas_cumprod: np.ndarray) -> Tensor:
    """L_T of each image, (B,): the mean over its dimensions of KL(q(x_T | x_0) || N(0, 1)).

        q(x_T | x_0) = N(sqrt(alpha-bar_T) x_0, 1 - alpha-bar_T)

    x_start is (B, C, H, W); alphas_cumprod is NumPy float64 (T,), its last entry is alpha-bar_T.
    Hint: `normal_kl` with mean2 = 0 and log_variance2 = 0. The mean is over channels and pixels, not over images.

    每张图像的 L_T，形状 (B,)：KL(q(x_T | x_0) || N(0, 1)) 在该图像所有维度上的平均值。q(x_T | x_0) 见上。
    x_start 的形状是 (B, C, H, W)；alphas_cumprod 是 NumPy float64 数组 (T,)，最后一个元素就是 alpha-bar_T。
    提示：在 `normal_kl` 中取 mean2 = 0、log_variance2 = 0。在通道和像素上求平均，不在图像之间求平均。
    """
    raise NotImplementedError("Exercise 13.2 / 练习 13.2: the prior's term L_T / 先验项 L_T")


def bound_term(
    model: Callable[[Tensor, Tensor], Tensor], x_start: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray
) -> Tensor:
    """The bound's term at t of each image, (B,), a mean over its dimensions: L_{t-1}, and L_0 where t = 0.

    1. x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise, and eps = model(x_t, t).
    2. p(x_{t-1} | x_t) has the mean (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t), the variance beta_t.
    3. q(x_{t-1} | x_t, x_0) has the mean
       (sqrt(alpha-bar_{t-1}) beta_t x_0 + sqrt(alpha_t) (1 - alpha-bar_{t-1}) x_t) / (1 - alpha-bar_t)
       and the variance beta_t (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t).
    4. At t > 0 it is the divergence of the two, at t = 0 the logarithm of a density:
       L_0 = 1/2 (log(2 pi beta_0) + (x_0 - mean of p)^2 / beta_0).

    t is int32 (B,): one image may have t = 0 and another t = 7.
    Hint: at t = 0 the variance of q is 0 and its logarithm infinite; put a finite number there (any will do) before
    `ops.where` takes the other branch.

    每张图像在 t 处的一项，形状 (B,)，在该图像的所有维度上取平均：一般为 L_{t-1},t = 0 时为 L_0。
    1. 由公式得到 x_t，再算 eps = model(x_t, t)。
    2. p(x_{t-1} | x_t) 的均值和方差(beta_t)。
    3. q(x_{t-1} | x_t, x_0) 的均值和方差。
    4. t > 0 时取二者的 KL 散度；t = 0 时取概率密度的负对数 L_0。公式均见上。
    t 是 int32 张量 (B,)：同一批里可以既有 t = 0 的图像，也有 t = 7 的图像。
    提示：t = 0 时 q 的方差为 0，它的对数是负无穷；先在那里填一个有限的数（任意即可），再用 `ops.where` 选另一个分支。
    """
    raise NotImplementedError("Exercise 13.3 / 练习 13.3: one term of the bound / 变分界的一项")


def variational_bound(
    model: Callable[[Tensor, Tensor], Tensor], x_start: Tensor, noise: Tensor, betas: np.ndarray
) -> Tensor:
    """The bound of each image, (B,): L_T and the SUM of the terms of all t.

    noise is (T, B, C, H, W): noise[t] makes the x_t of the term at t.
    Hint: for Gaussian data and the best possible network the bound is the entropy of the data and a little more.

    每张图像的变分界，形状 (B,)：L_T 加上所有 t 的各项之和（是求和，不是平均）。
    noise 的形状是 (T, B, C, H, W)：noise[t] 用来得到 t 处那一项的 x_t。
    提示：数据服从高斯分布且网络为最优时，这个界只比数据的熵大一点点。
    """
    raise NotImplementedError("Exercise 13.4 / 练习 13.4: the bound / 变分界")
