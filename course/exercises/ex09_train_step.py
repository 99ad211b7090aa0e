"""Exercise 9: a training step with a dynamic loss scale. / 练习 9：带动态损失缩放的训练步。

In float16 small gradients become 0. So the loss is multiplied by a large scale before the backward pass, and the
gradients are divided by it afterwards. Where the scale is too large the gradients overflow to infinity or NaN: then
the step is skipped, and the scale made smaller. After a number of good steps it is made larger again.

在 float16 中，很小的梯度会变成 0。因此反向传播之前先把损失乘以一个很大的缩放系数，得到梯度之后再除以它。如果系数太大，
梯度会溢出成无穷大或 NaN：这时要跳过这一步，并把系数调小。连续若干步都正常之后，再把系数调大。

`mindspore.amp.DynamicLossScaler(scale, factor, window)` keeps the scale:
`mindspore.amp.DynamicLossScaler(scale, factor, window)` 负责管理这个系数：

    scale(loss)          loss * scale
    unscale(gradients)   each gradient / scale / 每个梯度除以 scale
    adjust(finite)       False: scale / factor. `window` times True in a row: scale * factor.
                         False 时系数除以 factor；连续 `window` 次 True 后系数乘以 factor。
                         `finite` is a scalar bool Tensor / `finite` 是 bool 标量张量。
"""

from __future__ import annotations

from typing import Callable, Tuple

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.amp import DynamicLossScaler


def loss_and_gradients(
    model: nn.Cell, loss_fn: Callable[[Tensor, Tensor], Tensor], loss_scaler: DynamicLossScaler, x: Tensor,
    target: Tensor,
) -> Tuple[Tensor, Tuple[Tensor, ...]]:
    """The loss `loss_fn(model(x), target)` and its gradients, one for each of `model.trainable_params()`.

    The backward pass is that of the SCALED loss; what is returned, the loss and the gradients, is NOT scaled.
    The loss is a scalar; the gradients are a tuple, in the order and with the shapes of the parameters.
    Hint: `ms.value_and_grad(forward, None, weights, has_aux=True)` differentiates the first value that `forward`
    returns, and hands the others on: let it return the scaled loss, then the loss.

    返回损失 `loss_fn(model(x), target)` 以及它对 `model.trainable_params()` 中每个参数的梯度。
    反向传播时用的是缩放后的损失；返回的损失和梯度都必须是未缩放的。
    损失是标量；梯度是一个元组，顺序和形状与参数一致。
    提示：`ms.value_and_grad(forward, None, weights, has_aux=True)` 只对 `forward` 的第一个返回值求导，其余的原样带出：
    让它先返回缩放后的损失，再返回原来的损失。
    """
    raise NotImplementedError("Exercise 9.1 / 练习 9.1: loss and gradients / 损失与梯度")


def all_finite(gradients: Tuple[Tensor, ...]) -> Tensor:
    """Is every number of every gradient finite, neither infinite nor NaN? A scalar bool Tensor, shape ().

    Hint: `ops.isfinite` and `ops.all`; look at all the gradients, and at both infinities. Do not add the gradients up
    to look at the sum: it may overflow where they do not.

    所有梯度中的每个数是否都是有限的（既不是无穷大，也不是 NaN）？返回 bool 标量张量，形状为 ()。
    提示：用 `ops.isfinite` 和 `ops.all`；要检查所有梯度，正负无穷都要考虑。不要把梯度加起来再检查总和：梯度没有
    溢出，总和也可能溢出。
    """
    raise NotImplementedError("Exercise 9.2 / 练习 9.2: are the gradients finite? / 梯度是否有限？")


def make_train_step(
    model: nn.Cell, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: nn.Optimizer,
    loss_scaler: DynamicLossScaler,
) -> Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]]:
    """A function step(x, target) -> (loss, finite) that trains `model` by one step.

    In this order: loss and gradients; are they finite?; if so, `optimizer(gradients)`; in any case
    `loss_scaler.adjust(finite)`, once. The loss is the unscaled one, a scalar; finite is a scalar bool Tensor.
    Where the gradients overflow, nothing changes but the scale: neither the weights nor the optimizer's state, which
    are Adam's two moments and its count of steps.
    Hint: zeros in place of the gradients are no skipped step: Adam moves on with its old moments.

    返回一个函数 step(x, target) -> (loss, finite)，每调用一次就把 `model` 训练一步。
    顺序：求损失和梯度；检查梯度是否有限；若有限则调用 `optimizer(gradients)`；
    无论如何都调用一次 `loss_scaler.adjust(finite)`。
    返回的损失是未缩放的标量；finite 是 bool 标量张量。
    梯度溢出时，除缩放系数外什么都不能变：权重不变，优化器的状态（Adam 的两个动量和步数）也不变。
    提示：把梯度换成 0 并不等于跳过这一步：Adam 会凭着旧的动量继续走。
    """
    raise NotImplementedError("Exercise 9.3 / 练习 9.3: the training step / 训练步")
