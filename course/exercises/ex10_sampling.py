"""Exercise 10: sampling / 练习 10：采样

Sampling begins with noise, x_T, and takes a little of it away in each step (Ho et al. 2020, Algorithm 2). Code
t = 0..T-1 is the paper's t = 1..T.
采样从纯噪声 x_T 开始，每一步去掉一点噪声（Ho et al. 2020，算法 2）。代码中的 t = 0..T-1 对应论文中的 t = 1..T。

    alpha_t = 1 - beta_t    alpha-bar_t = alpha_0 * ... * alpha_t    alpha-bar_{-1} = 1

Images are MindSpore Tensors, float32 (B, C, H, W); `betas` is NumPy float64 (T,); model(x_t, t) predicts the noise.
Clip nothing.
图像是 MindSpore 的 Tensor，float32 (B, C, H, W)；`betas` 是 NumPy float64 数组 (T,)；model(x_t, t) 预测噪声。
不要做任何裁剪。

Grade it / 评分： python scripts/grade.py my_work --exercise 10
"""

from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, x_shape: tuple) -> Tensor:
    """table[t] for each image, (B, 1, 1, 1). Given, see exercise 2. / 每幅图像的 table[t]，已给出，见练习 2。"""
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


def p_mean(x_t: Tensor, t: Tensor, eps: Tensor, betas: np.ndarray) -> Tensor:
    """The mean of p(x_{t-1} | x_t), given the predicted noise eps (Ho et al. 2020, eq. 11).

    已知预测的噪声 eps，求 p(x_{t-1} | x_t) 的均值（Ho et al. 2020，式 11）。

        (x_t - beta_t / sqrt(1 - alpha-bar_t) * eps) / sqrt(alpha_t)

    x_t, eps: float32 (B, C, H, W)    t: int32 (B,)    betas: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：Compute the tables in NumPy first. alpha-bar_t stands inside the brackets, alpha_t outside.
                先用 NumPy 算好各个表。括号里是 alpha-bar_t，括号外是 alpha_t。
    """
    raise NotImplementedError("Exercise 10.1 / 练习 10.1: p_mean")


def p_sample(
    model: Callable, x_t: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray, variance: str = "fixed_small"
) -> Tensor:
    """One reverse step: the mean and noise of standard deviation sigma_t; at t = 0 the mean alone.

    反向一步：均值加上标准差为 sigma_t 的噪声；t = 0 时只取均值，不加噪声。

        x_{t-1} = mean + sigma_t * noise
        sigma_t^2 = beta_t * (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)    variance = "fixed_small"
        sigma_t^2 = beta_t                                                variance = "fixed_large"

    model: model(x_t, t) -> float32 (B, C, H, W)    x_t, noise: float32 (B, C, H, W)    t: int32 (B,)
    betas: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：An image with t = 0 may stand beside one with t = 7: a mask (B, 1, 1, 1) of 0 and 1.
                同一批里可以既有 t = 0 的图像，也有 t = 7 的图像：用形状 (B, 1, 1, 1)、取值 0 或 1 的掩码。
    """
    raise NotImplementedError("Exercise 10.2 / 练习 10.2: p_sample")


def p_sample_loop(model: Callable, noise: Tensor, betas: np.ndarray, variance: str = "fixed_small") -> Tensor:
    """x_0 from x_T by T reverse steps, t = T-1, ..., 1, 0, with the noise given.

    从 x_T 出发，走 T 个反向步 t = T-1, ..., 1, 0 得到 x_0；噪声已给定。

    noise: float32 (T + 1, B, C, H, W); noise[0] is x_T, noise[1] is for the first step, noise[2] for the second.
           noise[0] 就是 x_T，noise[1] 用于第一步，noise[2] 用于第二步，依此类推。
    Returns / 返回：x_0, Tensor float32 (B, C, H, W)
    Hint / 提示：The last step is t = 0. The model takes t as int32 (B,).
                最后一步是 t = 0。传给模型的 t 是 int32 (B,)。
    """
    raise NotImplementedError("Exercise 10.3 / 练习 10.3: p_sample_loop")


def sample(model: Callable, shape: tuple, betas: np.ndarray, variance: str = "fixed_small") -> Tensor:
    """x_0 of this shape, with noise that you draw: standard normal, new for x_T and for each step.

    生成形状为 shape 的 x_0，噪声由你自己抽取：标准正态分布，x_T 和每一步都要重新抽取。

    shape: (B, C, H, W)
    Returns / 返回：x_0, Tensor float32 (B, C, H, W)
    Hint / 提示：np.random.default_rng().standard_normal(...). Graded are mean and spread of the pixels, with a model
                for which both are known exactly.
                评分看的是像素的均值和离散程度：对所用的模型，这两者的精确值都是已知的。
    """
    raise NotImplementedError("Exercise 10.4 / 练习 10.4: sample")
