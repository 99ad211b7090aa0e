from typing import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.amp import DynamicLossScaler


def loss_and_gradients(
    model: nn.Cell, loss_fn: Callable, loss_scaler: DynamicLossScaler, x: Tensor, target: Tensor
) -> tuple:
    def forward(x, target):
        loss = loss_fn(model(x), target)
        return loss_scaler.scale(loss), loss

    gradients_of = ms.value_and_grad(forward, None, model.trainable_params(), has_aux=True)
    (_, loss), gradients = gradients_of(x, target)
    return loss, loss_scaler.unscale(gradients)


def all_finite(gradients: tuple) -> Tensor:
    return ops.stack([ops.isfinite(gradient).all() for gradient in gradients]).all()


def make_train_step(
    model: nn.Cell, loss_fn: Callable, optimizer: nn.Optimizer, loss_scaler: DynamicLossScaler
) -> Callable:
    def step(x, target):
        loss, gradients = loss_and_gradients(model, loss_fn, loss_scaler, x, target)
        finite = all_finite(gradients)
        if finite:
            optimizer(gradients)
        loss_scaler.adjust(finite)
        return loss, finite

    return step
