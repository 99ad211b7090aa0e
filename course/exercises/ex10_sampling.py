"""Exercise 10: sampling, Algorithm 2 of Ho et al. 2020. / 练习 10：采样，Ho 等人 2020 年论文的算法 2。

Sampling begins with noise, x_T, and takes away a little of it in each step. Code t = 0..T-1 is the paper's t = 1..T.
采样从纯噪声 x_T 开始，每一步去掉一点噪声。代码中的 t = 0..T-1 对应论文中的 t = 1..T。

    alpha_t = 1 - beta_t,  alpha-bar_t = alpha_0 * ... * alpha_t,  alpha-bar_{-1} = 1

`betas` is NumPy float64 (T,); images are MindSpore float32 (B, C, H, W). Do not clip anything.
`betas` 是 NumPy float64 数组 (T,)；图像是 MindSpore float32 张量 (B, C, H, W)。不要做任何裁剪。
"""

from __future__ import annotations

from typing import Callable, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, dimensions: int = 4) -> Tensor:
    """Given: table[t] as float32 (B, 1, 1, 1), to be multiplied with images (B, C, H, W).

    已给出：取 table[t]，形状为 (B, 1, 1, 1) 的 float32 张量，可直接与 (B, C, H, W) 的图像相乘。
    """
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((-1,) + (1,) * (dimensions - 1))


def p_mean(x_t: Tensor, t: Tensor, eps: Tensor, betas: np.ndarray) -> Tensor:
    """The mean of p(x_{t-1} | x_t), where `eps` is the predicted noise; eq. 11.

        (x_t - beta_t / sqrt(1 - alpha-bar_t) * eps) / sqrt(alpha_t)

    x_t, eps and the result are (B, C, H, W), t is int32 (B,), one for each image.
    Hint: compute the tables with NumPy first; alpha_t stands outside, alpha-bar_t inside.

    p(x_{t-1} | x_t) 的均值，`eps` 是预测的噪声；公式 11，见上。
    x_t、eps 和返回值的形状都是 (B, C, H, W)；t 是 int32 张量 (B,)，每张图像各有一个。
    提示：先用 NumPy 算好各个表；括号外是 alpha_t，括号里是 alpha-bar_t。
    """
    raise NotImplementedError("Exercise 10.1 / 练习 10.1: the mean of a reverse step / 反向一步的均值")


def p_sample(
    model: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray,
    variance: str = "fixed_small",
) -> Tensor:
    """x_{t-1} = mean + sigma_t noise; at t = 0 the mean alone, without noise.

        sigma_t^2 = beta_t (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)   "fixed_small"
        sigma_t^2 = beta_t                                             "fixed_large"

    `model(x_t, t)` predicts the noise. x_t, noise and the result are (B, C, H, W), t is int32 (B,), and an image with
    t = 0 may stand beside one with t = 7.
    Hint: noise is multiplied with a standard deviation. A mask of 0 and 1, (B, 1, 1, 1), serves for t = 0.

    x_{t-1} = 均值 + sigma_t * noise；在 t = 0 时只取均值，不加噪声。sigma_t^2 的两种取法见上。
    `model(x_t, t)` 预测噪声。x_t、noise 和返回值的形状都是 (B, C, H, W)；t 是 int32 张量 (B,)，同一批里可以既有 t = 0
    的图像，也有 t = 7 的图像。
    提示：噪声要乘以标准差。t = 0 可以用形状为 (B, 1, 1, 1)、取值 0 或 1 的掩码来处理。
    """
    raise NotImplementedError("Exercise 10.2 / 练习 10.2: one reverse step / 反向一步")


def p_sample_loop(
    model: Callable[[Tensor, Tensor], Tensor], noise: Tensor, betas: np.ndarray, variance: str = "fixed_small"
) -> Tensor:
    """x_0, (B, C, H, W), by T steps from x_T: t = T-1, T-2, ..., 0.

    noise is (T + 1, B, C, H, W): noise[0] is x_T, noise[1] is for the first step (t = T-1), noise[2] for the next.
    Hint: the last step is t = 0, and `p_sample` adds no noise there.

    从 x_T 出发，走 T 步(t = T-1, T-2, ..., 0)得到 x_0，形状为 (B, C, H, W)。
    noise 的形状是 (T + 1, B, C, H, W)：noise[0] 就是 x_T，noise[1] 用于第一步(t = T-1)，noise[2] 用于下一步，依此类推。
    提示：最后一步是 t = 0，`p_sample` 在那里不加噪声。
    """
    raise NotImplementedError("Exercise 10.3 / 练习 10.3: all reverse steps, noise given / 完整的反向过程，噪声已给定")


def sample(
    model: Callable[[Tensor, Tensor], Tensor], shape: Tuple[int, int, int, int], betas: np.ndarray,
    variance: str = "fixed_small",
) -> Tensor:
    """x_0 of this shape (B, C, H, W), with noise that you draw: standard normal, new for x_T and for each step.

    Hint: `ops.standard_normal(shape)`, or NumPy's `np.random.default_rng().standard_normal(shape)` as float32.
    It is graded on the mean and the spread of its pixels, with a model for which both are known exactly.

    生成形状为 (B, C, H, W) 的 x_0，噪声由你自己抽取：标准正态分布，x_T 和每一步都要重新抽。
    提示：`ops.standard_normal(shape)`，或者 NumPy 的 `np.random.default_rng().standard_normal(shape)`（转成 float32）。
    评分看的是像素的均值和离散程度：所用的模型，这两者的精确值都是已知的。
    """
    raise NotImplementedError("Exercise 10.4 / 练习 10.4: sampling with noise of your own / 自己抽取噪声来采样")
