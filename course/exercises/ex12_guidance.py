"""Exercise 12: classifier-free guidance, Ho and Salimans 2022. / 练习 12：无分类器引导，Ho 与 Salimans 2022 年。

One network learns to predict the noise with the label and without it: in training the label is now and then replaced
by a label that means "none". In sampling the two predictions are compared, and their difference is made larger.

同一个网络既学会有标签时的预测，也学会没有标签时的预测：训练时偶尔把标签换成表示“无标签”的空标签。采样时比较两种预测，并把
它们的差放大。

The weight w here: 0 is without label, 1 with label, above 1 stronger. (The paper writes 1 + w for our w.)
这里的权重 w:0 表示不用标签，1 表示使用标签，大于 1 表示更强的引导。（论文中的 1 + w 就是这里的 w。）
"""

from __future__ import annotations

from typing import Callable

import mindspore as ms
from mindspore import Tensor, ops


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """u + w (c - u): c is predicted with the label, u without it. All are float32 (B, C, H, W).

    Hint: check w = 0 and w = 1 in your head.

    u + w (c - u)：c 是有标签的预测，u 是没有标签的预测。形状都是 float32 (B, C, H, W)。
    提示：先心算一下 w = 0 和 w = 1 的结果。
    """
    raise NotImplementedError("Exercise 12.1 / 练习 12.1: the guided prediction / 引导后的预测")


def guided_eps(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], x_t: Tensor, t: Tensor, labels: Tensor, weight: float,
    null: int,
) -> Tensor:
    """The guided prediction of the noise, (B, C, H, W), from ONE call of `model(x_t, t, labels)`.

    x_t is float32 (B, C, H, W), t and labels are int32 (B,); `null` is the label that means "none". Two calls would be
    right but slower: call the model once with a batch of 2 B, in which each image stands twice, once with its label
    and once with `null`, and take the result apart.
    Hint: `ops.concat` and `ops.chunk` (or slices); keep the two halves in the same order on both ways.

    只调用一次 `model(x_t, t, labels)`，得到引导后的噪声预测，形状为 (B, C, H, W)。
    x_t 是 float32 张量 (B, C, H, W)；t 和 labels 是 int32 张量 (B,)；`null` 是表示“无标签”的标签。调用两次也能得到正确
    结果，但更慢：请用大小为 2B 的一批只调用一次，其中每张图像出现两次，一次带自己的标签，一次带 `null`，再把结果拆开。
    提示：用 `ops.concat` 和 `ops.chunk`（或切片）；拼接和拆分时两半的顺序要一致。
    """
    raise NotImplementedError("Exercise 12.2 / 练习 12.2: both predictions in one call / 一次调用得到两种预测")


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, null: int) -> Tensor:
    """The labels for a training step: `null` in place of each whose number in `uniform` is below `probability`.

    labels and the result are int32 (B,); uniform is float32 (B,), evenly drawn from [0, 1), one for each image.
    Hint: `ops.where` or `ops.select`; each image is decided by itself.

    训练时使用的标签：若 `uniform` 中对应的数小于 `probability`，该标签就换成 `null`。
    labels 和返回值都是 int32 张量 (B,)；uniform 是 float32 张量 (B,)，在 [0, 1) 上均匀抽取，每张图像各有一个。
    提示：用 `ops.where` 或 `ops.select`；每张图像单独决定。
    """
    raise NotImplementedError("Exercise 12.3 / 练习 12.3: dropping labels in training / 训练时丢弃标签")
