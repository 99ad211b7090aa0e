"""Exercise 8: the loss / 练习 8：损失函数

The network looks at the noised image x_t and at t, and says which noise was added. The loss is the distance between
what it says and the noise (Ho et al. 2020, eq. 14).
网络看到加噪后的图像 x_t 和时间步 t，猜测加进去的是什么噪声；损失就是它的猜测与真实噪声之间的距离
（Ho et al. 2020，式 14）。

Images are MindSpore Tensors, float32 (B, C, H, W). Use MindSpore's operators all the way: what passes through
`.asnumpy()` has no gradient.
图像是 MindSpore 的 Tensor，float32 (B, C, H, W)。请全程使用 MindSpore 的算子：一旦经过 `.asnumpy()`，梯度就断了。

Grade it / 评分： python scripts/grade.py my_work --exercise 8
"""

from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, x_shape: tuple) -> Tensor:
    """table[t] for each image, (B, 1, 1, 1). Given, see exercise 2. / 每幅图像的 table[t]，已给出，见练习 2。"""
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean absolute error. / 平均绝对误差。

        mean of |d|,  d = prediction - target

    prediction, target: float32 (B, C, H, W)
    Returns / 返回：Tensor float32 ()
    Hint / 提示：A mean without an axis is a scalar.
                求平均时不指定 axis，得到的就是标量。
    """
    raise NotImplementedError("Exercise 8.1 / 练习 8.1: l1_loss")


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error: no root, no factor 1/2. / 均方误差：不开方，也没有系数 1/2。

        mean of d^2,  d = prediction - target

    prediction, target: float32 (B, C, H, W)
    Returns / 返回：Tensor float32 ()
    Hint / 提示：Of a network that always answers 0 it is about 1, since the noise has variance 1.
                如果网络总是输出 0，它约等于 1，因为噪声的方差是 1。
    """
    raise NotImplementedError("Exercise 8.2 / 练习 8.2: l2_loss")


def huber_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of Huber's distance with delta = 1: a parabola near 0, straight lines outside.

    Huber 距离（delta = 1）的平均值：在 0 附近是抛物线，外面是直线。

        d^2 / 2      where / 当 |d| < 1,  d = prediction - target
        |d| - 1/2    elsewhere / 其他

    prediction, target: float32 (B, C, H, W)
    Returns / 返回：Tensor float32 ()
    Hint / 提示：`ops.select` chooses for each element. The two pieces meet at |d| = 1, with equal slopes.
                用 `ops.select` 逐元素选择。两段在 |d| = 1 处相接，斜率也相等。
    """
    raise NotImplementedError("Exercise 8.3 / 练习 8.3: huber_loss")


def p_losses(
    model: Callable, x_start: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: np.ndarray, loss: str = "huber"
) -> Tensor:
    """The distance between the noise and what the model says of it.

    噪声与模型预测之间的距离。

        x_t = sqrt(alpha-bar_t) * x_0 + sqrt(1 - alpha-bar_t) * noise

    model: model(x_t, t) -> float32 (B, C, H, W)    x_start, noise: float32 (B, C, H, W)    t: int32 (B,), 0..T-1
    alphas_cumprod: alpha-bar, NumPy float64 (T,)    loss: "l1", "l2" or / 或 "huber"
    Returns / 返回：Tensor float32 ()
    Hint / 提示：extract(np.sqrt(alphas_cumprod), t, x_start.shape). The target is the noise, not the image.
                目标是噪声，不是图像。
    """
    raise NotImplementedError("Exercise 8.4 / 练习 8.4: p_losses")
