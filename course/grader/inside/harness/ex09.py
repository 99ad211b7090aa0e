"""Exercise 9: a network whose gradients are a closed form, and what training steps change."""

from __future__ import annotations

from types import ModuleType
from typing import List, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.amp import DynamicLossScaler

FACTOR = 2
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class _Line(nn.Cell):
    """x (N, D) -> sum of weight x, + bias, (N,)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.bias = Parameter(Tensor(bias, ms.float32), name="bias")
        self.weight = Parameter(Tensor(weight, ms.float32), name="weight")

    def construct(self, x: Tensor) -> Tensor:
        return ops.reduce_sum(x * self.weight, 1) + self.bias


def _mean_squared(prediction: Tensor, target: Tensor) -> Tensor:
    return ops.mean(ops.square(prediction - target))


def gradients(
    module: ModuleType, weight: np.ndarray, bias: np.ndarray, scale: float, x: Tensor, target: Tensor
) -> List[Tensor]:
    """Loss, gradient of the bias, gradient of the weight."""
    scaler = DynamicLossScaler(scale, FACTOR, 1000)
    loss, found = module.loss_and_gradients(_Line(weight, bias), _mean_squared, scaler, x, target)
    return [loss, *found]


def train(
    module: ModuleType, weight: np.ndarray, bias: np.ndarray, scale: float, window: int, rate: float, x: np.ndarray,
    target: np.ndarray,
) -> Tuple[np.ndarray, ...]:
    """Steps on x (S, N, D) and target (S, N), one after the other.

    Returns the losses, were the gradients finite, and the scale after each step, (S,) each; then, as they are in the
    end, the weights, Adam's first and second moments, each the bias and the weight in one row, and its count of steps.
    """
    model, scaler = _Line(weight, bias), DynamicLossScaler(scale, FACTOR, window)
    optimizer = nn.Adam(model.trainable_params(), learning_rate=rate, beta1=BETA1, beta2=BETA2, eps=EPS)
    step = module.make_train_step(model, _mean_squared, optimizer, scaler)
    losses, finites, scales = [], [], []
    for one_x, one_target in zip(x, target):
        loss, finite = step(Tensor(one_x), Tensor(one_target))
        losses.append(float(loss))
        finites.append(float(finite))
        scales.append(float(scaler.scale_value))
    rows = [
        np.concatenate([parameter.asnumpy() for parameter in kind])
        for kind in (model.trainable_params(), optimizer.moment1, optimizer.moment2)
    ]
    counted = optimizer.global_step.asnumpy()
    return (*(np.array(values) for values in (losses, finites, scales)), *rows, counted)
