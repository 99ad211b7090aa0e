"""Exercise 2: noise on an image / 练习 2：给图像加噪声

Images are MindSpore Tensors, float32 (B, C, H, W); t is an int32 Tensor (B,): each image has its own step. `betas` is
the schedule as NumPy float64 (T,). Noise is an argument, drawn from N(0, 1): nothing here is random.
图像是 MindSpore 的 Tensor，类型 float32，形状 (B, C, H, W)；t 是 int32 Tensor (B,)：每幅图像有自己的步数。
`betas` 是 NumPy float64 数组 (T,)。噪声由参数给出，服从 N(0, 1)：这里没有任何随机性。

Grade it / 评分： python scripts/grade.py my_work --exercise 2
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, x_shape: tuple) -> Tensor:
    """table[t] for each image, in a shape that multiplies images of x_shape.

    取出每幅图像的 table[t]，并整理成能与形状为 x_shape 的图像相乘的形状。

    table: NumPy float64 (T,)    t: int32 (B,)    x_shape: (B, C, H, W)
    Returns / 返回：Tensor float32 (B, 1, 1, 1)
    Hint / 提示：Tensor(table, ms.float32), ops.gather(..., t, 0), reshape
    """
    raise NotImplementedError("Exercise 2.1 / 练习 2.1: extract")


def q_step(x_prev: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray) -> Tensor:
    """One step of the forward process, x_t from x_{t-1} (Ho et al. 2020, eq. 2).

    前向过程走一步：由 x_{t-1} 得到 x_t（Ho et al. 2020，式 2）。

        x_t = sqrt(1 - beta_t) * x_{t-1} + sqrt(beta_t) * noise

    x_prev, noise: float32 (B, C, H, W)    t: int32 (B,)    betas: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：Take the square root of the table in NumPy, then extract.
                先在 NumPy 里对整张表开平方，再用 extract。
    """
    raise NotImplementedError("Exercise 2.2 / 练习 2.2: q_step")


def q_sample(x_start: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray) -> Tensor:
    """All steps up to t at once, x_t from x_0 (Ho et al. 2020, eq. 4).

    一次走完到 t 为止的所有步：由 x_0 直接得到 x_t（Ho et al. 2020，式 4）。

        alpha-bar_t = (1 - beta_0) * ... * (1 - beta_t)
        x_t         = sqrt(alpha-bar_t) * x_0 + sqrt(1 - alpha-bar_t) * noise

    x_start, noise: float32 (B, C, H, W)    t: int32 (B,)    betas: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：One noise is enough: a sum of independent Gaussians is a Gaussian.
                一份噪声就够：独立高斯变量之和仍是高斯变量。
    """
    raise NotImplementedError("Exercise 2.3 / 练习 2.3: q_sample")
