"""Exercise 9: a training step with a dynamic loss scale / 练习 9：带动态损失缩放的训练步

In float16 small gradients become 0. So the loss is multiplied by a large scale before the backward pass, and the
gradients are divided by it afterwards. Where the scale is too large, gradients overflow to infinity or NaN: then the
step is skipped, and the scale made smaller. After a number of good steps it is made larger again.
在 float16 中，很小的梯度会变成 0。因此反向传播之前先把损失乘以一个很大的缩放系数，得到梯度之后再除以它。如果系数太大，
梯度会溢出成无穷大或 NaN：这时要跳过这一步，并把系数调小。连续若干步都正常之后，再把系数调大。

`mindspore.amp.DynamicLossScaler(scale, factor, window)` keeps the scale. Its methods:
系数由 `mindspore.amp.DynamicLossScaler(scale, factor, window)` 管理，它的方法有：

    scale(loss)          loss * scale
    unscale(gradients)   each gradient / scale                    每个梯度除以 scale
    adjust(finite)       False: scale / factor                    False：scale 除以 factor
                         True `window` times in a row:            连续 `window` 次 True：
                         scale * factor                           scale 乘以 factor

Grade it / 评分： python scripts/grade.py my_work --exercise 9
"""

from typing import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.amp import DynamicLossScaler


def loss_and_gradients(
    model: nn.Cell, loss_fn: Callable, loss_scaler: DynamicLossScaler, x: Tensor, target: Tensor
) -> tuple:
    """The loss, and its gradient for each of `model.trainable_params()`, by way of the scaled loss.

    求损失，以及它对 `model.trainable_params()` 中每个参数的梯度；反向传播用的是缩放后的损失。

        loss = loss_fn(model(x), target)

    Returns / 返回：(loss, gradients), both NOT scaled / 两者都是未缩放的
                   loss: Tensor float32 ()    gradients: tuple, shaped like the parameters / 元组，形状与参数一致
    Hint / 提示：ms.value_and_grad(forward, None, weights, has_aux=True) differentiates the first value that `forward`
                returns and hands on the others: return the scaled loss, then the loss.
                ms.value_and_grad(forward, None, weights, has_aux=True) 只对 `forward` 的第一个返回值求导，
                其余的原样带出：先返回缩放后的损失，再返回原来的损失。
    """
    raise NotImplementedError("Exercise 9.1 / 练习 9.1: loss_and_gradients")


def all_finite(gradients: tuple) -> Tensor:
    """Is every number of every gradient finite: neither infinite nor NaN?

    所有梯度中的每个数是否都是有限的，即既不是无穷大，也不是 NaN？

    gradients: tuple of / 元组 Tensor float32
    Returns / 返回：Tensor bool ()
    Hint / 提示：ops.isfinite. Do not look at the gradients' sum alone: it may overflow where they do not.
                不要只检查梯度之和：梯度没有溢出时，和也可能溢出。
    """
    raise NotImplementedError("Exercise 9.2 / 练习 9.2: all_finite")


def make_train_step(
    model: nn.Cell, loss_fn: Callable, optimizer: nn.Optimizer, loss_scaler: DynamicLossScaler
) -> Callable:
    """A function step(x, target) that trains the model by one step. Graded as 9.3, 9.4 and 9.5.

    返回函数 step(x, target)，每调用一次就把模型训练一步。分 9.3、9.4、9.5 三项评分。

    9.3  A good step: optimizer(gradients), with the gradients not scaled.
         正常的一步：optimizer(gradients)，梯度是未缩放的。
    9.4  Gradients overflow: nothing changes but the scale, neither the weights nor the optimizer's state (Adam's two
         moments and its count of steps).
         梯度溢出：除缩放系数外什么都不变，权重不变，优化器的状态（Adam 的两个动量和步数）也不变。
    9.5  The scale: loss_scaler.adjust(finite), once in every step, good or bad.
         缩放系数：每一步无论好坏，都调用一次 loss_scaler.adjust(finite)。

    step returns / step 返回：(loss, finite), the loss not scaled / 损失是未缩放的；Tensor float32 (), Tensor bool ()
    Hint / 提示：Zeros in the place of the gradients are no skipped step: Adam moves on by its old moments.
                把梯度换成 0 并不等于跳过这一步：Adam 会凭着旧的动量继续走。
    """
    raise NotImplementedError("Exercise 9.3 / 练习 9.3: make_train_step")
