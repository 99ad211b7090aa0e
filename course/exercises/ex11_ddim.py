"""Exercise 11: DDIM, Song et al. 2020 (arXiv 2010.02502). / 练习 11:DDIM,Song 等人 2020 年(arXiv 2010.02502)。

DDIM goes from any t to any earlier t_prev: ten steps may do in the place of a thousand. t_prev = -1 is the image
itself, where alpha-bar is 1. In Python `alphas_cumprod[-1]` is the LAST entry: mind it.

DDIM 可以从任意 t 直接跳到更早的任意 t_prev：十步就可以代替一千步。t_prev = -1 表示图像本身，那里的 alpha-bar 等于 1。
注意：在 Python 中 `alphas_cumprod[-1]` 取到的是最后一个元素！

Write ab = alpha-bar_t and ab_prev = alpha-bar_{t_prev}. `alphas_cumprod` is NumPy float64 (T,).
下面记 ab = alpha-bar_t，ab_prev = alpha-bar_{t_prev}。`alphas_cumprod` 是 NumPy float64 数组 (T,)。
"""

from __future__ import annotations

from typing import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def ddim_sigma(alphas_cumprod: np.ndarray, t: int, t_prev: int, eta: float) -> float:
    """The standard deviation of the noise of a step from t to t_prev; eq. 16.

        sigma = eta sqrt((1 - ab_prev) / (1 - ab)) sqrt(1 - ab / ab_prev)

    t is 0..T-1, t_prev is -1..t-1, eta is 0..1; a Python float. At t_prev = -1 it is 0.
    Hint: eta multiplies the standard deviation, not the variance.

    从 t 到 t_prev 这一步所加噪声的标准差；公式 16，见上。
    t 取 0..T-1，t_prev 取 -1..t-1，eta 取 0..1；返回 Python 浮点数。t_prev = -1 时结果为 0。
    提示：eta 乘在标准差上，不是乘在方差上。
    """
    raise NotImplementedError("Exercise 11.1 / 练习 11.1: the noise of a DDIM step / DDIM 一步的噪声大小")


def ddim_step(
    x_t: Tensor, eps: Tensor, t: int, t_prev: int, noise: Tensor, alphas_cumprod: np.ndarray, eta: float = 0.0,
    clip: bool = False,
) -> Tensor:
    """x at t_prev from x_t and the predicted noise `eps`; eq. 12.

        x_0  = (x_t - sqrt(1 - ab) eps) / sqrt(ab)
        x    = sqrt(ab_prev) x_0 + sqrt(1 - ab_prev - sigma^2) eps + sigma noise

    All images are float32 (B, C, H, W); t, t_prev and eta as above, the same for the whole batch.
    With clip=True x_0 is clipped to [-1, 1] before it is used, and eps stays as it was; with clip=False nothing is.
    Hint: the middle term points back to x_t; with sigma = 0 the step has no randomness at all.

    由 x_t 和预测的噪声 `eps` 求 t_prev 时刻的 x；公式 12，见上。
    所有图像都是 float32 张量 (B, C, H, W)；t、t_prev 和 eta 同上，整批图像共用。
    clip=True 时，先把 x_0 裁剪到 [-1, 1] 再使用，eps 保持不变；clip=False 时什么都不裁剪。
    提示：中间一项是“指向 x_t 的方向”;sigma = 0 时这一步没有任何随机性。
    """
    raise NotImplementedError("Exercise 11.2 / 练习 11.2: one DDIM step / DDIM 的一步")


def ddim_loop(
    model: Callable[[Tensor, Tensor], Tensor], noise: Tensor, times: Sequence[int], alphas_cumprod: np.ndarray,
    eta: float = 0.0, clip: bool = False,
) -> Tensor:
    """x_0, (B, C, H, W), by one step from each of `times` to the next, and from the last to -1, the image.

    times falls, such as [9, 6, 2]: then the steps are 9 to 6, 6 to 2, 2 to -1. `model(x_t, t)` predicts the noise and
    takes t as int32 (B,). noise is (S + 1, B, C, H, W) for S times: noise[0] is x_T, noise[1] is for the first step.
    Hint: `zip(times, [*times[1:], -1])`.

    从 `times` 的每个时刻走一步到下一个时刻，最后一个时刻走到 -1（即图像），得到 x_0，形状为 (B, C, H, W)。
    times 是递减的，例如 [9, 6, 2]：三步分别是 9 到 6、6 到 2、2 到 -1。
    `model(x_t, t)` 预测噪声，其中 t 是 int32 张量 (B,)。S 个时刻对应的 noise 形状为 (S + 1, B, C, H, W)：noise[0] 是
    x_T，noise[1] 用于第一步。
    提示：`zip(times, [*times[1:], -1])`。
    """
    raise NotImplementedError("Exercise 11.3 / 练习 11.3: all DDIM steps / 完整的 DDIM 采样")
