import mindspore as ms
from mindspore import ops


def loss_and_gradients(model, loss_fn, loss_scaler, x, target):
    def forward(x, target):
        loss = loss_fn(model(x), target)
        return loss_scaler.scale(loss), loss

    gradients_of = ms.value_and_grad(forward, None, model.trainable_params(), has_aux=True)
    (_, loss), gradients = gradients_of(x, target)
    return loss, loss_scaler.unscale(gradients)


def all_finite(gradients):
    return ops.stack([ops.isfinite(gradient).all() for gradient in gradients]).all()


def make_train_step(model, loss_fn, optimizer, loss_scaler):
    def step(x, target):
        loss, gradients = loss_and_gradients(model, loss_fn, loss_scaler, x, target)
        finite = all_finite(gradients)
        if finite:
            optimizer(gradients)
        loss_scaler.adjust(finite)
        return loss, finite

    return step
