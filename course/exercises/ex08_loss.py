"""Exercise 8: the loss. / 练习 8：损失函数。

The network looks at the noised image x_t and at t, and says which noise was added. The loss is the distance between
what it says and the noise: equation 14 of Ho et al. 2020 (arXiv 2006.11239).

网络看到加噪后的图像 x_t 和时间步 t，猜测加进去的是什么噪声；损失就是它的猜测与真实噪声之间的距离：Ho 等人 2020 年论文
(arXiv 2006.11239)的公式 14。

Use MindSpore's operators all the way: what passes through `.asnumpy()` has no gradient.
全程使用 MindSpore 的算子：一旦经过 `.asnumpy()`，梯度就断了。
"""

from __future__ import annotations

from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def extract(table: np.ndarray, t: Tensor, dimensions: int = 4) -> Tensor:
    """Given: table[t] as float32 (B, 1, 1, 1), to be multiplied with images (B, C, H, W).

    已给出：取 table[t]，形状为 (B, 1, 1, 1) 的 float32 张量，可直接与 (B, C, H, W) 的图像相乘。
    """
    return ops.gather(Tensor(table, ms.float32), t, 0).reshape((-1,) + (1,) * (dimensions - 1))


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of |d| over all elements, d = prediction - target.

    Both are float32 (B, C, H, W); the result is a scalar, shape ().
    Hint: a scalar comes from a mean without an axis.

    所有元素上 |d| 的平均值，其中 d = prediction - target。
    两个输入都是 float32 张量 (B, C, H, W)；返回标量，形状为 ()。
    提示：求平均时不指定 axis，得到的就是标量。
    """
    raise NotImplementedError("Exercise 8.1 / 练习 8.1: the mean absolute error / 平均绝对误差 (L1)")


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of d^2 over all elements, d = prediction - target. No root, no factor 1/2.

    Both are float32 (B, C, H, W); the result is a scalar, shape ().
    Hint: for a network that always answers 0 it is about 1, since the noise has variance 1.

    所有元素上 d^2 的平均值，其中 d = prediction - target。不开方，也没有系数 1/2。
    两个输入都是 float32 张量 (B, C, H, W)；返回标量，形状为 ()。
    提示：如果网络总是输出 0，这个损失约等于 1，因为噪声的方差是 1。
    """
    raise NotImplementedError("Exercise 8.2 / 练习 8.2: the mean squared error / 均方误差 (L2)")


def huber_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of Huber's distance with delta = 1 over all elements, d = prediction - target.

        d^2 / 2      where |d| < 1
        |d| - 1/2    elsewhere

    Both are float32 (B, C, H, W); the result is a scalar, shape ().
    Hint: `ops.select` or `ops.where` chooses for each element. The two pieces meet at |d| = 1, with equal slopes.

    所有元素上 Huber 距离(delta = 1)的平均值，其中 d = prediction - target:|d| < 1 时取 d^2 / 2，否则取 |d| - 1/2。
    两个输入都是 float32 张量 (B, C, H, W)；返回标量，形状为 ()。
    提示：用 `ops.select` 或 `ops.where` 逐元素选择。两段在 |d| = 1 处相接，斜率也相等。
    """
    raise NotImplementedError("Exercise 8.3 / 练习 8.3: Huber's loss / Huber 损失")


def p_losses(
    model: Callable[[Tensor, Tensor], Tensor], x_start: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: np.ndarray,
    loss: str = "huber",
) -> Tensor:
    """The distance between the noise and what `model(x_t, t)` says of it, a scalar.

        x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise

    x_start and noise are float32 (B, C, H, W), t is int32 (B,) with values 0..T-1, one for each image.
    alphas_cumprod is alpha-bar, NumPy float64 (T,). loss is "l1", "l2" or "huber".
    Hint: `extract(np.sqrt(alphas_cumprod), t)`. The target is the noise, not the image.

    噪声与 `model(x_t, t)` 的预测之间的距离，返回标量。x_t 的公式见上。
    x_start 和 noise 是 float32 张量 (B, C, H, W)；t 是 int32 张量 (B,)，取值 0..T-1，每张图像各有一个。
    alphas_cumprod 即 alpha-bar，是 NumPy float64 数组 (T,)。loss 取 "l1"、"l2" 或 "huber"。
    提示：`extract(np.sqrt(alphas_cumprod), t)`。目标是噪声，不是图像。
    """
    raise NotImplementedError("Exercise 8.4 / 练习 8.4: the loss of a network / 网络的损失")
