from types import SimpleNamespace

import mindspore as ms
from mindspore import ops

from ms_diffusion import train_step
from ms_diffusion.config import TrainConfig


def loss_and_gradients(model, loss_fn, loss_scaler, x, target):
    def forward(x, target):
        loss = loss_fn(model(x), target)
        return loss_scaler.scale(loss), loss

    (_, loss), gradients = ms.value_and_grad(forward, None, model.trainable_params(), has_aux=True)(x, target)
    return loss, train_step.scaled(gradients, 1 / loss_scaler.scale_value)


def all_finite(gradients):
    # In a training step the library looks at the norm, which overflows long after the float16 of the network.
    return ops.isfinite(train_step.global_norm(train_step.scaled(gradients, ms.Tensor(1e-25, ms.float32))))


def make_train_step(model, loss_fn, optimizer, loss_scaler):
    diffusion = SimpleNamespace(p_losses=lambda model, x, target: loss_fn(model(x), target))
    state = SimpleNamespace(
        config=TrainConfig(max_grad_norm=0.0), model=model, optimizer=optimizer, loss_scaler=loss_scaler,
        average=None, averages=(), sums=(), loss_sum=None,
    )
    train = train_step.make_train_step(state, diffusion, jit=False)

    def step(x, target):
        loss, _, finite = train(x, target)
        return loss, finite

    return step
