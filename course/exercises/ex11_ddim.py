"""Exercise 11: DDIM / 练习 11：DDIM

DDIM goes from any t to any earlier t_prev: ten steps may do in the place of a thousand (Song et al. 2020, arXiv
2010.02502). t_prev = -1 is the image itself, where alpha-bar is 1. Mind that in Python alphas_cumprod[-1] is the LAST
entry.
DDIM 可以从任意 t 直接走到更早的任意 t_prev：十步就可以代替一千步（Song et al. 2020，arXiv 2010.02502）。t_prev = -1
表示图像本身，那里的 alpha-bar 等于 1。注意：在 Python 中 alphas_cumprod[-1] 取到的是最后一个元素。

    ab = alpha-bar_t    ab_prev = alpha-bar_{t_prev}

Images are MindSpore Tensors, float32 (B, C, H, W); `alphas_cumprod` is NumPy float64 (T,); t and t_prev are Python
integers, the same for the whole batch.
图像是 MindSpore 的 Tensor，float32 (B, C, H, W)；`alphas_cumprod` 是 NumPy float64 数组 (T,)；t 和 t_prev 是 Python
整数，整批图像共用。

Grade it / 评分： python scripts/grade.py my_work --exercise 11
"""

from typing import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def ddim_sigma(alphas_cumprod: np.ndarray, t: int, t_prev: int, eta: float) -> float:
    """The standard deviation of the noise in a step from t to t_prev (Song et al. 2020, eq. 16).

    从 t 走到 t_prev 这一步所加噪声的标准差（Song et al. 2020，式 16）。

        sigma = eta * sqrt((1 - ab_prev) / (1 - ab)) * sqrt(1 - ab / ab_prev)

    alphas_cumprod: NumPy float64 (T,)    t: 0..T-1    t_prev: -1..t-1    eta: 0..1
    Returns / 返回：float
    Hint / 提示：eta multiplies the standard deviation, not the variance. At t_prev = -1 the result is 0.
                eta 乘在标准差上，不是乘在方差上。t_prev = -1 时结果为 0。
    """
    raise NotImplementedError("Exercise 11.1 / 练习 11.1: ddim_sigma")


def ddim_step(
    x_t: Tensor, eps: Tensor, t: int, t_prev: int, noise: Tensor, alphas_cumprod: np.ndarray, eta: float = 0.0,
    clip: bool = False,
) -> Tensor:
    """x at t_prev from x_t and the predicted noise eps (Song et al. 2020, eq. 12).

    由 x_t 和预测的噪声 eps 求 t_prev 处的 x（Song et al. 2020，式 12）。

        x_0 = (x_t - sqrt(1 - ab) * eps) / sqrt(ab)
        x   = sqrt(ab_prev) * x_0 + sqrt(1 - ab_prev - sigma^2) * eps + sigma * noise

    x_t, eps, noise: float32 (B, C, H, W)    alphas_cumprod: NumPy float64 (T,)
    clip: True clips x_0 to [-1, 1] before it is used, and leaves eps as it is; False clips nothing.
          True：先把 x_0 裁剪到 [-1, 1] 再使用，eps 保持不变；False：什么都不裁剪。
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：With sigma = 0 there is no randomness in the step.
                sigma = 0 时，这一步没有任何随机性。
    """
    raise NotImplementedError("Exercise 11.2 / 练习 11.2: ddim_step")


def ddim_loop(
    model: Callable, noise: Tensor, times: Sequence[int], alphas_cumprod: np.ndarray, eta: float = 0.0,
    clip: bool = False,
) -> Tensor:
    """x_0 by a step from each of the times to the next, and from the last one to -1.

    从每个时刻走一步到下一个时刻，最后一个时刻走到 -1，得到 x_0。

        times = [9, 6, 2]:  9 -> 6,  6 -> 2,  2 -> -1

    model: model(x_t, t) -> the predicted noise / 预测的噪声, with t int32 (B,)
    noise: float32 (S + 1, B, C, H, W) for S times; noise[0] is x_T, noise[1] is for the first step.
           times 有 S 个时刻；noise[0] 就是 x_T，noise[1] 用于第一步，依此类推。
    Returns / 返回：x_0, Tensor float32 (B, C, H, W)
    Hint / 提示：zip(times, [*times[1:], -1])
    """
    raise NotImplementedError("Exercise 11.3 / 练习 11.3: ddim_loop")
