"""One training step, Algorithm 1 of Ho et al. 2020, and all that it changes."""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.amp import DynamicLossScaler

from ms_diffusion import graphs, native
from ms_diffusion.config import TrainConfig
from ms_diffusion.diffusion import GaussianDiffusion

# Unrolled Python loops over the gradients took the compiler two seconds longer.
_EACH = ops.HyperMap()

TrainStep = Callable[..., Tuple[Tensor, Tensor, Tensor]]
"""(x_start, t, noise), and with labels y -> loss, global norm of the gradients, are the gradients finite."""
Average = Callable[[Tuple[Tensor, ...]], Tuple[Tensor, ...]]
"""The mean over all ranks of each tensor."""


def learning_rates(config: TrainConfig) -> np.ndarray:
    """The learning rate of each optimiser step, float64 (steps,).

    Linear growth over lr_warmup_steps, then half a cosine from lr to lr_min until lr_decay_steps, then lr_min;
    Loshchilov and Hutter 2016, eq. 5, without restarts.
    """
    step = np.arange(config.steps, dtype=np.float64)
    warmup = config.lr_warmup_steps
    decay_steps = config.lr_decay_steps or config.steps
    progress = np.clip((step - warmup) / max(decay_steps - warmup, 1), 0, 1)
    cosine = config.lr_min + (config.lr - config.lr_min) * (1 + np.cos(np.pi * progress)) / 2
    return np.where(step < warmup, config.lr * (step + 1) / max(warmup, 1), cosine)


def make_optimizer(model: nn.Cell, config: TrainConfig) -> nn.Adam:
    """Adam whose learning rate follows `learning_rates` by its own count of steps; Kingma and Ba 2014."""
    # One rate more than steps: a list of a single rate would be refused.
    rates = [*learning_rates(config).tolist(), config.lr_min]
    return nn.Adam(
        params=model.trainable_params(), learning_rate=rates, beta1=config.adam_beta1, beta2=config.adam_beta2,
        eps=config.adam_eps, use_locking=False, use_nesterov=False, weight_decay=0.0, loss_scale=1.0,
        use_amsgrad=False, use_lazy=False, use_offload=False,
    )


class TrainState:
    """All that training steps change: weights, their moving average, Adam's moments and counts, the loss scale.

    `average` is a second network like `model`, which from now on holds the moving average, beginning with the weights
    that `model` has now; None keeps no average.
    """

    def __init__(self, model: nn.Cell, config: TrainConfig, average: Optional[nn.Cell] = None) -> None:
        self.config = config
        self.model = model
        self.optimizer = make_optimizer(model, config)
        self.loss_scaler = DynamicLossScaler(config.loss_scale, config.loss_scale_factor, config.loss_scale_window)
        self.average = average
        self.averages = () if average is None else tuple(average.trainable_params())
        for kept, weight in zip(self.averages, self.optimizer.parameters):
            kept.name, kept.requires_grad = f"ema.{weight.name}", False
            kept.set_data(Tensor(weight.asnumpy()))
        # Between the micro-batches of one step. A checkpoint never falls there, so it holds none of them.
        self.sums = () if config.accumulate == 1 else tuple(
            Parameter(Tensor(np.zeros(weight.shape, np.float32)), name=f"sum.{weight.name}", requires_grad=False)
            for weight in self.optimizer.parameters
        )
        self.loss_sum = Parameter(Tensor(0, mstype.float32), name="sum.loss", requires_grad=False)

    @property
    def sampled(self) -> nn.Cell:
        """The network that pictures come from: the moving average, if there is one."""
        return self.model if self.average is None else self.average

    def parameters(self) -> dict[str, Parameter]:
        """What a checkpoint holds, by its name there: all that the next step depends on."""
        optimizer, scaler = self.optimizer, self.loss_scaler
        named = {f"model.{name}": weight for name, weight in self.model.parameters_and_names()}
        if self.average is not None:
            named.update((f"ema.{name}", average) for name, average in self.average.parameters_and_names())
        # The learning rates are left out: they follow from the configuration and the count of steps.
        counts = (optimizer.beta1_power, optimizer.beta2_power, optimizer.global_step)
        for parameter in (*optimizer.moment1, *optimizer.moment2, *counts):
            named[f"optimizer.{parameter.name}"] = parameter
        return {**named, "loss_scaler.scale_value": scaler.scale_value, "loss_scaler.counter": scaler.counter}


def make_train_step(
    state: TrainState, diffusion: GaussianDiffusion, jit: bool = True, average: Optional[Average] = None
) -> TrainStep:
    """One step of Algorithm 1 on (x_start, t, noise) or (x_start, t, noise, y), compiled if `jit`.

    In order: forward, gradients of the scaled loss, their mean over the ranks by `average`, their norm unscaled,
    finite?, clip to the global norm, Adam, the moving average, adjust the scale. A step whose gradients overflow
    changes nothing but the scale. The loss returned is the unscaled one.
    With config.accumulate = K the step takes K micro-batches one after the other: the equal parts of its inputs.
    """
    options, model, optimizer, loss_scaler = state.config, state.model, state.optimizer, state.loss_scaler

    def forward(*batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = diffusion.p_losses(model, *batch)
        return loss_scaler.scale(loss), loss

    gradients_of = ms.value_and_grad(forward, grad_position=None, weights=optimizer.parameters, has_aux=True)
    native_norm, native_adam, native_ema, end = map(native.operator, ("global_norm", "adam", "ema", "end"))
    parameters, moment1, moment2 = optimizer.parameters, optimizer.moment1, optimizer.moment2
    beta1_power, beta2_power, global_step = optimizer.beta1_power, optimizer.beta2_power, optimizer.global_step
    constants = (optimizer.beta1, optimizer.beta2, optimizer.eps)
    averages, sums, loss_sum = state.averages, state.sums, state.loss_sum
    has_average = bool(averages)

    def update(loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if average is not None:
            loss, *gradients = average((loss, *gradients))
            gradients = tuple(gradients)
        unscale = 1 / (loss_scaler.scale_value * options.accumulate)
        norm = (global_norm(gradients) if native_norm is None else native_norm(*gradients).reshape(())) * unscale
        finite = ops.isfinite(norm)  # of one number, as good as of all: any infinity or NaN makes the norm one
        factor = unscale * clip_factor(norm, options.max_grad_norm)
        if native_adam is not None:
            factor = ops.select(finite, factor, norm)
            counts = (beta1_power, beta2_power, global_step)
            done = native_adam(
                *parameters, *moment1, *moment2, *gradients, factor, optimizer.get_lr(), *constants, *counts
            )
            if has_average:
                decay = ops.select(finite, ema_decay(options, done), ops.ones((1,), mstype.float32))
                done = native_ema(*averages, *parameters, decay, done)
            loss = ops.depend(loss, end(ops.zeros((1,), mstype.float32), done))
        elif finite:
            optimizer(scaled(gradients, factor))
            if has_average:
                decay = ema_decay(options, global_step).reshape(())
                loss = ops.depend(loss, _EACH(ops.partial(_mix, decay), averages, parameters))
        loss_scaler.adjust(finite)
        ops.assign(loss_scaler.scale_value, ops.clamp(loss_scaler.scale_value, None, options.loss_scale_max))
        return loss / options.accumulate, norm, finite

    def step(*batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (_, loss), gradients = gradients_of(*batch)
        return update(loss, gradients)

    def add_micro_batch(first: Tensor, *batch: Tensor) -> Tensor:
        (_, loss), gradients = gradients_of(*batch)
        # Under ms.jit an assignment inside HyperMap is made only if its value is needed.
        added = _EACH(ops.partial(_add, first), (loss_sum, *sums), (loss, *gradients))
        token = ops.depend(ops.zeros((1,), mstype.float32), added)
        return token if end is None else end(token, loss)

    def update_by_sums() -> tuple[Tensor, Tensor, Tensor]:
        return update(loss_sum.value(), sums)

    weights, scale = list(model.get_parameters()), [loss_scaler.scale_value, loss_scaler.counter]
    changed = [*weights, *optimizer.get_parameters(), *scale, *averages]
    if options.accumulate == 1:
        return _compiled(step, "training step", changed, jit)
    add_micro_batch = _compiled(add_micro_batch, "micro-batch", [*weights, *scale, loss_sum, *sums], jit)
    update_by_sums = _compiled(update_by_sums, "training step", [*changed, loss_sum, *sums], jit)

    def accumulated_step(*batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = (ops.chunk(whole, options.accumulate) for whole in batch)
        for index, part in enumerate(zip(*parts)):
            add_micro_batch(Tensor(index == 0), *part)
        return update_by_sums()

    return accumulated_step


def _compiled(step: Callable, name: str, parameters: list[Parameter], jit: bool) -> Callable:
    if not jit:
        return step
    compiled = graphs.compiled(step, name, parameters)
    return native.asleep(compiled) if native.enabled() else compiled


def global_norm(gradients: tuple[Tensor, ...]) -> Tensor:
    """The Euclidean norm of all `gradients` as one vector, a scalar."""
    return ops.sqrt(ops.addn(_EACH(_square_sum, gradients)))


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / norm), by which gradients of that norm are clipped; 1 where `max_norm` is 0.

    Pascanu et al. 2012, Algorithm 1.
    """
    if max_norm == 0:
        return ops.ones_like(norm)
    return max_norm / ops.clamp(norm, max_norm, None)


def scaled(gradients: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
    """Each of `gradients` times `factor`."""
    return _EACH(ops.partial(_times, factor), gradients)


def ema_decay(config: TrainConfig, step: Tensor) -> Tensor:
    """The decay d of average <- d average + (1 - d) weights after the optimiser's step number `step` = 1, 2, ...

    0 up to ema_start; then, once in ema_every steps, the smaller of ema_decay and (1 + n) / (ema_ramp + n) at the
    n-th update, and 1 between. Polyak and Juditsky 1992, with a decay; float32, shaped like `step`.
    """
    since = ops.cast(step, mstype.float32) - config.ema_start
    n = ops.floor(since / config.ema_every)
    decay = ops.clamp((1 + n) / (config.ema_ramp + n), None, config.ema_decay)
    decay = ops.select(n * config.ema_every == since, decay, ops.ones_like(decay))
    return ops.select(since > 0, decay, ops.zeros_like(decay))


def _square_sum(values: Tensor) -> Tensor:
    return ops.reduce_sum(ops.square(values))


def _times(factor: Tensor, values: Tensor) -> Tensor:
    return values * factor


def _mix(decay: Tensor, average: Parameter, weight: Parameter) -> Tensor:
    return ops.assign(average, decay * average + (1 - decay) * weight)


def _add(first: Tensor, total: Parameter, value: Tensor) -> Tensor:
    # Not 0 * total: a sum that overflowed in the step before is infinite, and 0 times infinity is NaN.
    return ops.assign(total, ops.where(first, value, total + value))
