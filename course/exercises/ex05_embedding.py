"""Exercise 5: the sinusoidal embedding of t / 练习 5：时间步 t 的正弦编码

The network must know how noisy its input is. One number is a poor input: instead it gets sines and cosines of t at many
frequencies (Vaswani et al. 2017, section 3.5), as a clock has hands for hours, minutes and seconds.
网络必须知道输入中有多少噪声。只给一个数不够好：这里给它 t 在多个频率上的正弦和余弦（Vaswani et al. 2017，第 3.5 节），
就像钟表有时针、分针和秒针。

    frequency_i = 10000 ** (-i / (dim / 2 - 1))                   i = 0, ..., dim / 2 - 1
    embedding   = sin(t * frequency_0), sin(t * frequency_1), ..., cos(t * frequency_0), cos(t * frequency_1), ...

Grade it / 评分： python scripts/grade.py my_work --exercise 5
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def frequencies(dim: int) -> np.ndarray:
    """dim / 2 frequencies in equal ratios, the first 1, the last 1/10000.

    dim / 2 个等比的频率，第一个是 1，最后一个是 1/10000。

    dim: even, at least 4 / 偶数，至少为 4      Returns / 返回：NumPy float64 (dim / 2,)
    Hint / 提示：a ** b = np.exp(np.log(a) * b)
    """
    raise NotImplementedError("Exercise 5.1 / 练习 5.1: frequencies")


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """One row for each t: all sines, then all cosines.

    每个 t 一行：先是全部正弦，然后是全部余弦。

    t: int32 (B,)      Returns / 返回：Tensor float32 (B, dim)
    Hint / 提示：ops.cast(t, ms.float32), reshape to (B, 1), ops.concat(..., axis=-1)
    """
    raise NotImplementedError("Exercise 5.2 / 练习 5.2: sinusoidal_embedding")
