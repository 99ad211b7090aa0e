"""Exercise 1: noise schedules and their tables / 练习 1：噪声调度与系数表

Everything here is NumPy in float64. A schedule is one array of T values beta_0, ..., beta_{T-1}: how much noise each
step adds. All other tables follow from it. Code index t = 0 is the paper's t = 1.
这里全部使用 NumPy，类型 float64。一个调度就是 T 个值 beta_0, ..., beta_{T-1} 组成的数组，表示每一步加入多少噪声；
其余系数表都由它算出。代码中的下标 t = 0 对应论文中的 t = 1。

Grade it / 评分： python scripts/grade.py my_work --exercise 1
"""

import numpy as np


def linear_beta_schedule(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """T betas in equal steps, the first beta_start, the last beta_end (Ho et al. 2020, section 4).

    T 个等步长的 beta，第一个是 beta_start，最后一个是 beta_end（Ho et al. 2020，第 4 节）。

    Returns / 返回：float64 (T,)
    Hint / 提示：np.linspace
    """
    raise NotImplementedError("Exercise 1.1 / 练习 1.1: linear_beta_schedule")


def cosine_beta_schedule(timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """T betas for which alpha-bar follows a squared cosine (Nichol and Dhariwal 2021, eq. 17).

    使 alpha-bar 沿余弦平方曲线下降的 T 个 beta（Nichol and Dhariwal 2021，式 17）。

        f(i) = cos((i / T + s) / (1 + s) * pi / 2)^2        i = 0, 1, ..., T
        beta = min(1 - f(i) / f(i - 1), max_beta)           i = 1, ..., T

    Returns / 返回：float64 (T,)
    Hint / 提示：f has T + 1 points; f[1:] / f[:-1] are T ratios.
                f 有 T + 1 个点；f[1:] / f[:-1] 是 T 个比值。
    """
    raise NotImplementedError("Exercise 1.2 / 练习 1.2: cosine_beta_schedule")


def alphas_cumprod(betas: np.ndarray) -> np.ndarray:
    """alpha-bar_t, how much of the image's variance is left after steps 0 to t.

    alpha-bar_t：走完第 0 到第 t 步之后，图像的方差还剩多少。

        alpha_t     = 1 - beta_t
        alpha-bar_t = alpha_0 * alpha_1 * ... * alpha_t

    betas: float64 (T,)      Returns / 返回：float64 (T,)
    Hint / 提示：np.cumprod
    """
    raise NotImplementedError("Exercise 1.3 / 练习 1.3: alphas_cumprod")


def alphas_cumprod_prev(betas: np.ndarray) -> np.ndarray:
    """alpha-bar_{t-1}: the same table one step earlier; before the first step there is no noise at all.

    alpha-bar_{t-1}：同一张表，早一步；第一步之前完全没有噪声。

    betas: float64 (T,)      Returns / 返回：float64 (T,)
    Hint / 提示：What is alpha-bar where nothing was multiplied yet?
                还没有乘任何数的时候，alpha-bar 是多少？
    """
    raise NotImplementedError("Exercise 1.4 / 练习 1.4: alphas_cumprod_prev")
