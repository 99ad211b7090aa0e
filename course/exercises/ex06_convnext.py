"""Exercise 6: the ConvNeXt block / 练习 6: ConvNeXt 块

The block that the U-Net is made of (after Liu et al. 2022): a 7x7 depthwise convolution, the time embedding added to
it, two 3x3 convolutions with a norm before each, and a residual connection around everything.
U-Net 的基本块（参考 Liu et al. 2022）：一个 7x7 逐通道卷积，加上时间编码，再经过两个 3x3 卷积（各自之前有归一化），
最外面是残差连接。

    h      = ds_conv(x)
    h      = h + mlp(time_emb) as / 形状变为 (B, dim, 1, 1)
    output = net(h) + res_conv(x)

Everything is float32. MindSpore's defaults are not always those you want: state has_bias, pad_mode, approximate.
全部为 float32。MindSpore 的默认值不一定是你想要的：请写明 has_bias、pad_mode、approximate。

Grade it / 评分： python scripts/grade.py my_work --exercise 6
"""

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


def group_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Group normalisation with one group, by hand (Wu and He 2018).

    手写只有一组的组归一化 (Wu and He 2018).

        output = (x - mean) / sqrt(variance + eps) * gamma + beta

    Mean and variance are those of ONE image over all its channels and pixels; the variance is the biased one, the mean
    of the squared distances from the mean. gamma and beta are one number for each channel.
    均值和方差对每一幅图像单独计算，取遍所有通道和像素；方差为有偏方差，即与均值之差的平方的平均。
    gamma 和 beta 每个通道各一个数。

    x: float32 (B, C, H, W)    gamma, beta: float32 (C,)      Returns / 返回：Tensor float32 (B, C, H, W)
    Hint / 提示：x.mean(axis=(1, 2, 3), keep_dims=True)
    """
    raise NotImplementedError("Exercise 6.1 / 练习 6.1: group_norm")


class ConvNextBlock(nn.Cell):
    """The block above. Its layers, by these names: the grader sets their weights.

    上述的块。请使用以下层名：评分程序会按名字设置权重。

        mlp        nn.SequentialCell: GELU, Dense(time_emb_dim -> dim)         only if time_emb_dim is given, else None
                                                                               仅当给出 time_emb_dim 时才有，否则为 None
        ds_conv    7x7 depthwise / 逐通道 (group=dim), dim -> dim
        net        nn.SequentialCell: nn.GroupNorm(1, dim),
                                      3x3 Conv dim -> dim_out * mult, GELU,
                                      nn.GroupNorm(1, dim_out * mult),
                                      3x3 Conv dim_out * mult -> dim_out
        res_conv   1x1 Conv dim -> dim_out if they differ / 若两者不同，else / 否则 nn.Identity()

    Every convolution has a bias and keeps height and width. GELU is the exact one, not the tanh approximation.
    每个卷积都有偏置，并保持高和宽不变。GELU 用精确形式，不用 tanh 近似。
    """

    def __init__(self, dim: int, dim_out: int, time_emb_dim: Optional[int] = None, mult: int = 2) -> None:
        super().__init__()
        raise NotImplementedError("Exercise 6.2 / 练习 6.2: ConvNextBlock.__init__")

    def construct(self, x: Tensor, time_emb: Optional[Tensor] = None) -> Tensor:
        """One pass through the block; without time_emb nothing is added.

        块的一次前向计算；没有 time_emb 时不加任何东西。

        x: float32 (B, dim, H, W)    time_emb: float32 (B, time_emb_dim) or / 或 None
        Returns / 返回：Tensor float32 (B, dim_out, H, W)
        """
        raise NotImplementedError("Exercise 6.3 / 练习 6.3: ConvNextBlock.construct")
