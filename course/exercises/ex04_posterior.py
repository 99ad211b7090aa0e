"""Exercise 4: the posterior q(x_{t-1} | x_t, x_0) / 练习 4：后验 q(x_{t-1} | x_t, x_0)

Who knows the image x_0 knows where x_t came from: x_{t-1} given both is a Gaussian (Ho et al. 2020, eqs. 6 and 7). The
network is trained to imitate it without knowing x_0.
若已知图像 x_0，就知道 x_t 从何而来：给定两者时 x_{t-1} 服从高斯分布（Ho et al. 2020，式 6 和式 7）。
网络学的就是在不知道 x_0 的情况下模仿它。

    mean     = coef1 * x_0 + coef2 * x_t
    coef1    = beta_t * sqrt(alpha-bar_{t-1}) / (1 - alpha-bar_t)
    coef2    = (1 - alpha-bar_{t-1}) * sqrt(alpha_t) / (1 - alpha-bar_t)
    variance = beta_t * (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)            beta-tilde_t

with / 其中  alpha_t = 1 - beta_t,  alpha-bar_t = alpha_0 * ... * alpha_t,  alpha-bar_{-1} = 1

Grade it / 评分： python scripts/grade.py my_work --exercise 4
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, x_shape: tuple) -> Tensor:
    """table[t] as (B, 1, 1, 1); given, nothing to do / 已给出，无需修改。"""
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0], 1, 1, 1))


def posterior_variance(betas: np.ndarray) -> np.ndarray:
    """beta-tilde_t of every t, in NumPy.

    用 NumPy 算出每个 t 的 beta-tilde_t。

    betas: float64 (T,)      Returns / 返回：float64 (T,)
    Hint / 提示：At t = 0 there is no doubt about x_0 left: what must the variance be?
                t = 0 处 x_0 已完全确定：方差应是多少？
    """
    raise NotImplementedError("Exercise 4.1 / 练习 4.1: posterior_variance")


def posterior_mean_coefficients(betas: np.ndarray) -> tuple:
    """coef1 and coef2 of every t, in NumPy.

    用 NumPy 算出每个 t 的 coef1 和 coef2。

    betas: float64 (T,)      Returns / 返回：(coef1, coef2), float64 (T,) each / 各为 float64 (T,)
    Hint / 提示：At t = 0 they are 1 and 0.
                t = 0 处它们分别是 1 和 0。
    """
    raise NotImplementedError("Exercise 4.2 / 练习 4.2: posterior_mean_coefficients")


def q_posterior(x_start: Tensor, x_t: Tensor, t: Tensor, betas: np.ndarray) -> tuple:
    """Mean and variance of q(x_{t-1} | x_t, x_0) for each image at its own t.

    每幅图像在各自的 t 处，q(x_{t-1} | x_t, x_0) 的均值和方差。

    x_start, x_t: float32 (B, C, H, W)    t: int32 (B,)    betas: NumPy float64 (T,)
    Returns / 返回：(mean, variance), Tensors float32 (B, C, H, W) and / 和 (B, 1, 1, 1)
    Hint / 提示：extract the tables of 4.1 and 4.2.
                对 4.1 和 4.2 的表使用 extract。
    """
    raise NotImplementedError("Exercise 4.3 / 练习 4.3: q_posterior")
