"""Exercise 3: x_0 from the noise, and back / 练习 3：由噪声求 x_0，以及反过来

x_t, x_0 and the noise are tied by one equation (Ho et al. 2020, eq. 4), so two of them give the third:
x_t、x_0 与噪声由一个等式联系（Ho et al. 2020，式 4），知道其中两个就能求出第三个：

    x_t = sqrt(alpha-bar_t) * x_0 + sqrt(1 - alpha-bar_t) * noise
    alpha-bar_t = (1 - beta_0) * ... * (1 - beta_t)

Images are MindSpore Tensors, float32 (B, C, H, W); t is an int32 Tensor (B,); betas is NumPy float64 (T,).
图像是 MindSpore 的 Tensor, float32 (B, C, H, W)；t 是 int32 Tensor (B,)；betas 是 NumPy float64 (T,)。

Grade it / 评分： python scripts/grade.py my_work --exercise 3
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, x_shape: tuple) -> Tensor:
    """table[t] as (B, 1, 1, 1); given, nothing to do / 已给出，无需修改。"""
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0], 1, 1, 1))


def predict_x_start(x_t: Tensor, t: Tensor, noise: Tensor, betas: np.ndarray) -> Tensor:
    """x_0 from x_t and the noise in it: the equation above solved for x_0 (Ho et al. 2020, eq. 15).

    已知 x_t 和其中的噪声，求 x_0：从上面的等式解出 x_0（Ho et al. 2020，式 15）。

    x_t, noise: float32 (B, C, H, W)    t: int32 (B,)    betas: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：Take the noise away first, then undo the shrinking of the image.
                先减去噪声，再还原图像的缩小。
    """
    raise NotImplementedError("Exercise 3.1 / 练习 3.1: predict_x_start")


def predict_noise(x_t: Tensor, t: Tensor, x_start: Tensor, betas: np.ndarray) -> Tensor:
    """The noise from x_t and x_0: the same equation solved for the noise.

    已知 x_t 和 x_0，求噪声：从同一个等式解出噪声。

    x_t, x_start: float32 (B, C, H, W)    t: int32 (B,)    betas: NumPy float64 (T,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：The noise that comes out has variance 1: by what must be divided?
                求出的噪声方差为 1：应除以什么？
    """
    raise NotImplementedError("Exercise 3.2 / 练习 3.2: predict_noise")
