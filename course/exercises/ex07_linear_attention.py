"""Exercise 7: linear attention / 练习 7：线性注意力

Attention between N pixels costs N * N. Linear attention (Shen et al. 2018) sums keys and values up first, in a small
d x d matrix for each head, and asks that matrix: the cost grows with N alone.
N 个像素之间的普通注意力代价为 N * N。线性注意力（Shen et al. 2018）先把键和值汇总成每个头一个 d x d 的小矩阵，
再用查询去取：代价只随 N 线性增长。

    q       = softmax of q over d / q 沿 d 轴 softmax, then / 再乘 d ** -0.5
    k       = softmax of k over the N pixels / k 沿 N 个像素 softmax
    context = k v^T          context[d, e] = sum over n of  k[d, n] * v[e, n]
    output  = context^T q    output[e, n]  = sum over d of  context[d, e] * q[d, n]

Grade it / 评分： python scripts/grade.py my_work --exercise 7
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


def split_heads(qkv: Tensor, heads: int) -> tuple:
    """Cut the channels into q, k and v, and each of these into heads; the pixels become one axis.

    把通道切成 q、k、v，再各自切成多个头；所有像素合成一个轴。

    The channels stand in this order: q of head 0, q of head 1, ..., k of head 0, ..., v of the last head.
    通道的排列顺序：第 0 头的 q，第 1 头的 q, ...，第 0 头的 k, ...，最后一头的 v。

    qkv: float32 (B, 3 * heads * d, H, W)    Returns / 返回：(q, k, v), float32 (B, heads, d, H * W) each / 各
    Hint / 提示：ops.chunk(..., 3, axis=1), reshape
    """
    raise NotImplementedError("Exercise 7.1 / 练习 7.1: split_heads")


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The four lines above.

    上面的四行公式。

    q, k, v: float32 (B, heads, d, N)    Returns / 返回：Tensor float32 (B, heads, d, N)
    Hint / 提示：ops.softmax(x, axis), ops.BatchMatMul(transpose_a=..., transpose_b=...)
    """
    raise NotImplementedError("Exercise 7.2 / 练习 7.2: linear_attention")


class LinearAttention(nn.Cell):
    """Linear attention on images. Its layers, by these names: the grader sets their weights.

    图像上的线性注意力。请使用以下层名：评分程序会按名字设置权重。

        to_qkv    1x1 Conv dim -> 3 * heads * dim_head, without a bias / 没有偏置
        to_out    nn.SequentialCell: 1x1 Conv heads * dim_head -> dim with a bias / 有偏置，nn.GroupNorm(1, dim)
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        raise NotImplementedError("Exercise 7.3 / 练习 7.3: LinearAttention.__init__")

    def construct(self, x: Tensor) -> Tensor:
        """to_qkv, split_heads, linear_attention, the heads one after the other as channels, to_out; no residual.

        依次为 to_qkv, split_heads, linear_attention，各头依次拼回通道，to_out；没有残差。

        x: float32 (B, dim, H, W)    Returns / 返回：Tensor float32 (B, dim, H, W)
        """
        raise NotImplementedError("Exercise 7.3 / 练习 7.3: LinearAttention.construct")
