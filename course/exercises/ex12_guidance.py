"""Exercise 12: classifier-free guidance / 练习 12：无分类器引导

One network learns to predict the noise with the label and without it: in training the label is now and then replaced
by one that means "none". In sampling the difference of the two predictions is made larger (Ho and Salimans 2022).
同一个网络既学会有标签时的预测，也学会没有标签时的预测：训练时偶尔把标签换成表示“无标签”的空标签。采样时再把两种预测的差
放大（Ho and Salimans 2022）。

The weight w here: 0 is without the label, 1 with it, above 1 stronger. The paper writes 1 + w for it.
这里的权重 w：0 表示不用标签，1 表示使用标签，大于 1 表示更强的引导。论文中把它写作 1 + w。

Images are MindSpore Tensors, float32 (B, C, H, W); t and labels are int32 Tensors (B,).
图像是 MindSpore 的 Tensor，float32 (B, C, H, W)；t 和标签是 int32 Tensor (B,)。

Grade it / 评分： python scripts/grade.py my_work --exercise 12
"""

from typing import Callable

import mindspore as ms
from mindspore import Tensor, ops


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """The guided prediction from the one with the label, c, and the one without, u.

    由有标签的预测 c 和没有标签的预测 u 得到引导后的预测。

        u + w * (c - u)

    conditional, unconditional: float32 (B, C, H, W)    weight: w
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：Check w = 0 and w = 1 in your head. / 先心算一下 w = 0 和 w = 1 的结果。
    """
    raise NotImplementedError("Exercise 12.1 / 练习 12.1: guide")


def guided_eps(model: Callable, x_t: Tensor, t: Tensor, labels: Tensor, weight: float, null: int) -> Tensor:
    """The guided prediction at x_t, from ONE call of the model with a batch of 2 B.

    x_t 处引导后的预测：用大小为 2B 的一批，只调用一次模型。

    Each image stands in the batch twice, once with its label and once with `null`, which means "none".
    每幅图像在这一批里出现两次：一次带自己的标签，一次带表示“无标签”的 `null`。

    model: model(x_t, t, labels) -> float32 (B, C, H, W)    x_t: float32 (B, C, H, W)    t, labels: int32 (B,)
    Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：ops.concat and ops.chunk; keep the order of the two halves.
                ops.concat 与 ops.chunk；注意两半的顺序要一致。
    """
    raise NotImplementedError("Exercise 12.2 / 练习 12.2: guided_eps")


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, null: int) -> Tensor:
    """The labels for a training step: `null` where the image's number in `uniform` is below `probability`.

    训练时使用的标签：若 `uniform` 中该图像对应的数小于 `probability`，标签就换成 `null`。

    labels: int32 (B,)    uniform: float32 (B,), evenly drawn from / 均匀抽取自 [0, 1)
    Returns / 返回：Tensor int32 (B,)
    Hint / 提示：ops.select; each image is decided by itself. / ops.select；每幅图像单独决定。
    """
    raise NotImplementedError("Exercise 12.3 / 练习 12.3: drop_labels")
