"""Exercise 9: a network whose gradients are a closed form, and what training steps change."""

from __future__ import annotations

from types import ModuleType
from typing import Callable, List, Tuple

import mindspore as ms
import numpy as np
from for_harnesses import loss_scaler
from mindspore import Parameter, Tensor, nn, ops

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class _Line(nn.Cell):
    """x (N, D) -> bias + sum of weight x, (N,); the products in this type."""

    def __init__(self, bias: np.ndarray, weight: np.ndarray, dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.bias = Parameter(Tensor(bias, ms.float32), name="bias")
        self.weight = Parameter(Tensor(weight, ms.float32), name="weight")
        self.dtype = dtype

    def construct(self, x: Tensor) -> Tensor:
        products = x.astype(self.dtype) * self.weight.astype(self.dtype)
        return ops.reduce_sum(products.astype(ms.float32), 1) + self.bias


def _mean_squared(factor: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda prediction, target: factor * ops.mean(ops.square(prediction - target))


def gradients(
    module: ModuleType, bias: np.ndarray, weight: np.ndarray, scale: float, x: Tensor, target: Tensor
) -> List[Tensor]:
    """Loss, gradient of the bias, gradient of the weight."""
    scaler, model = loss_scaler(scale, 1000), _Line(bias, weight)
    loss, found = module.loss_and_gradients(model, _mean_squared(), scaler, x, target)
    return [loss, *found]


def small_gradients(
    module: ModuleType, bias: np.ndarray, weight: np.ndarray, scale: float, x: Tensor, target: Tensor, factor: float
) -> Tensor:
    """The gradient of the weight, of a small loss by way of float16."""
    scaler, model = loss_scaler(scale, 1000), _Line(bias, weight, ms.float16)
    return module.loss_and_gradients(model, _mean_squared(factor), scaler, x, target)[1][1]


def finites(module: ModuleType, cases: Tuple[Tuple[np.ndarray, ...], ...]) -> np.ndarray:
    """`all_finite` of each tuple of gradients."""
    found = [module.all_finite(tuple(map(Tensor, case))) for case in cases]
    for one in found:
        if not isinstance(one, Tensor):
            raise TypeError(f"all_finite returns a {type(one).__name__}: adjust needs a bool Tensor")
    return np.array([float(one) for one in found])


def train(
    module: ModuleType, bias: np.ndarray, weight: np.ndarray, scale: float, window: int, rate: float, x: np.ndarray,
    target: np.ndarray,
) -> Tuple[np.ndarray, ...]:
    """Steps on x (S, N, D) and target (S, N), one after the other.

    Returns the losses, were the gradients finite, and the scale after each step, (S,) each; then, as they are in the
    end, the weights, Adam's first and second moments, each the bias and the weight in one row, and its count of steps.
    """
    model, scaler = _Line(bias, weight), loss_scaler(scale, window)
    optimizer = nn.Adam(model.trainable_params(), learning_rate=rate, beta1=BETA1, beta2=BETA2, eps=EPS)
    step = module.make_train_step(model, _mean_squared(), optimizer, scaler)
    losses, finite, scales = [], [], []
    for one_x, one_target in zip(x, target):
        found = step(Tensor(one_x), Tensor(one_target))
        losses.append(float(found[0]))
        finite.append(float(found[1]))
        scales.append(float(scaler.scale_value))
    rows = [
        np.concatenate([parameter.asnumpy() for parameter in kind])
        for kind in (model.trainable_params(), optimizer.moment1, optimizer.moment2)
    ]
    return (*(np.array(values) for values in (losses, finite, scales)), *rows, optimizer.global_step.asnumpy())


def overflow(module: ModuleType, *arguments: object) -> Tuple[np.ndarray, ...]:
    """`train` without the losses, which may be anything where they overflow."""
    return train(module, *arguments)[1:]


def scales(module: ModuleType, *arguments: object) -> np.ndarray:
    """The scales of `train`."""
    return train(module, *arguments)[2]
