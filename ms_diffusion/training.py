"""One training step and the loop around it: Algorithm 1 of Ho et al. 2020."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.amp import DynamicLossScaler
from tqdm import tqdm

from ms_diffusion import checkpoint, graphs, native, randomness, runtime, visualize
from ms_diffusion.config import Config, TrainConfig
from ms_diffusion.data import ImageDataset, to_uint8
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.samplers import sample
from ms_diffusion.unet import build_unet, init_weights

# Unrolled Python loops over the gradients took the compiler two seconds longer.
_EACH = ops.HyperMap()

TrainStep = Callable[[Tensor, Tensor, Tensor], Tuple[Tensor, Tensor, Tensor]]
"""(x_start, t, noise) -> loss, global norm of the gradients, are the gradients finite."""


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


def make_train_step(
    model: nn.Cell, diffusion: GaussianDiffusion, optimizer: nn.Adam, loss_scaler: DynamicLossScaler,
    max_grad_norm: float, jit: bool,
) -> TrainStep:
    """One step of Algorithm 1 on (x_start, t, noise), compiled if `jit`.

    In order: forward, gradients of the scaled loss, their norm unscaled, finite?, clip to the global norm, Adam,
    adjust the scale. A step whose gradients overflow changes nothing but the scale. The loss returned is the unscaled
    one.
    """

    def forward(x_start: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        loss = diffusion.p_losses(model, x_start, t, noise)
        return loss_scaler.scale(loss), loss

    gradients_of = ms.value_and_grad(forward, grad_position=None, weights=optimizer.parameters, has_aux=True)
    native_norm, native_adam, end = (native.operator(name) for name in ("global_norm", "adam", "end"))
    parameters, moment1, moment2 = optimizer.parameters, optimizer.moment1, optimizer.moment2
    beta1_power, beta2_power, global_step = optimizer.beta1_power, optimizer.beta2_power, optimizer.global_step
    constants = (optimizer.beta1, optimizer.beta2, optimizer.eps)

    def step(x_start: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (_, loss), gradients = gradients_of(x_start, t, noise)
        unscale = 1 / loss_scaler.scale_value
        norm = (global_norm(gradients) if native_norm is None else native_norm(*gradients).reshape(())) * unscale
        finite = ops.isfinite(norm)  # of one number, as good as of all: any infinity or NaN makes the norm one
        factor = unscale * clip_factor(norm, max_grad_norm)
        if native_adam is not None:
            factor = ops.select(finite, factor, norm)
            state = (beta1_power, beta2_power, global_step)
            made = native_adam(
                *parameters, *moment1, *moment2, *gradients, factor, optimizer.get_lr(), *constants, *state
            )
            loss = ops.depend(loss, end(ops.zeros((1,), mstype.float32), made))
        elif finite:
            optimizer(scaled(gradients, factor))
        loss_scaler.adjust(finite)
        return loss, norm, finite

    if not jit:
        return step
    state = [*model.get_parameters(), *optimizer.get_parameters(), loss_scaler.scale_value, loss_scaler.counter]
    compiled = graphs.compiled(step, "training step", state)
    return compiled if end is None else native.asleep(compiled)


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


def _square_sum(values: Tensor) -> Tensor:
    return ops.reduce_sum(ops.square(values))


def _times(factor: Tensor, values: Tensor) -> Tensor:
    return values * factor


def draw_batch(
    dataset: ImageDataset, config: Config, step: int, rank: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (B, C, H, W), time steps (B,) and noise (B, C, H, W) of training step `step`: a function of the seed."""
    size = config.train.batch_size
    indices = randomness.batch_indices(config.train.seed, step, size, len(dataset))
    generator = randomness.step_generator(config.train.seed, step, rank)
    t = generator.integers(0, config.diffusion.timesteps, size, dtype=np.int32)
    flip = generator.random(size) < 0.5 if config.data.horizontal_flip else None
    x_start = dataset.batch(indices, flip)
    return x_start, t, generator.standard_normal(x_start.shape, dtype=np.float32)


def train(config: Config, dataset: ImageDataset, folder: Path, resume: bool = False) -> None:
    """Train to step `config.train.steps` in the run folder `folder`, made by `checkpoint.create_run`.

    `resume` goes on from the latest checkpoint, and repeats what the uninterrupted run would have done, exactly.
    Raises `UserError` where the gradients stay infinite, the disk refuses, or nothing is left to do.
    """
    options = config.train
    jit = config.runtime.mode == "graph"
    model = build_unet(config.model)
    init_weights(model, randomness.weights_generator(options.seed))
    diffusion = build_diffusion(config.diffusion)
    optimizer = make_optimizer(model, options)
    loss_scaler = DynamicLossScaler(options.loss_scale, options.loss_scale_factor, options.loss_scale_window)
    start = _restore(folder, model, optimizer, loss_scaler) if resume else 0
    if start >= options.steps:
        raise UserError(f"{folder} has made its {options.steps} steps: give more --train.steps to go on")

    train_step = make_train_step(model, diffusion, optimizer, loss_scaler, options.max_grad_norm, jit)
    reverse_step = diffusion.reverse_step(model, jit)
    rates = learning_rates(options)
    if options.sample_every:
        # Once now: what cannot be compiled, or does not fit into memory, is found in the evening.
        zeros = Tensor(np.zeros((options.sample_num, *config.image_shape), np.float32))
        runtime.finish((reverse_step(zeros, Tensor(np.zeros(options.sample_num, np.int32)), zeros),))
    if jit:
        print("the first step compiles the network and takes longer than the others", file=sys.stderr)
    window = []  # what the steps since the last line of metrics returned, still on the device
    seconds = 0.0  # spent in them, pictures and checkpoints aside
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds between looks of the bar: a log needs fewer
    progress = tqdm(total=options.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=interval)
    with progress, open(folder / "metrics.jsonl", "a") as metrics:
        for done in range(start + 1, options.steps + 1):
            last = done == options.steps
            began = time.perf_counter()
            outputs = train_step(*map(Tensor, draw_batch(dataset, config, done - 1)))
            runtime.finish(outputs)
            window.append(outputs)
            if done % options.log_every == 0 or last:
                line = _summary(window, done, loss_scaler)  # waits for the device
                line["lr"] = float(rates[max(int(optimizer.global_step.asnumpy()[0]) - 1, 0)])
                line["seconds_per_step"] = (seconds + time.perf_counter() - began) / len(window)
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
                progress.set_postfix(loss=line["loss"], lr=f"{line['lr']:.1e}", refresh=False)
                window, seconds = [], 0.0
            else:
                seconds += time.perf_counter() - began
            progress.update()
            if done % options.checkpoint_every == 0 or last:
                checkpoint.save_checkpoint(folder, done, _state(model, optimizer, loss_scaler), config)
            if options.sample_every and (done % options.sample_every == 0 or last):
                images, _ = sample(diffusion, reverse_step, config.image_shape, options.sample_num, options.seed)
                grid = visualize.make_grid(to_uint8(images))
                visualize.save_picture(grid, folder / "samples" / f"step_{done:08d}.png")
    visualize.plot_loss(folder / "metrics.jsonl", folder / "loss.png")


def _summary(window: list[tuple[Tensor, Tensor, Tensor]], step: int, loss_scaler: DynamicLossScaler) -> dict[str, Any]:
    """One line of metrics: means over the steps of `window` that were not skipped; null where all were."""
    losses, norms, finite = (np.array([float(value.asnumpy()) for value in column]) for column in zip(*window))
    kept = finite > 0
    scale = float(loss_scaler.scale_value.asnumpy())
    if not kept.any() and scale == 1:
        raise UserError(
            f"step {step}: the gradients are not finite even at loss scale 1, for {len(window)} steps in a row; "
            "the checkpoints before it are whole: resume with a smaller train.lr in a new run"
        )
    return {
        "step": step,
        "loss": round(float(losses[kept].mean()), 6) if kept.any() else None,
        "grad_norm": round(float(norms[kept].mean()), 6) if kept.any() else None,
        "loss_scale": scale,
        "skipped": int((~kept).sum()),
    }


def _state(model: nn.Cell, optimizer: nn.Adam, loss_scaler: DynamicLossScaler) -> dict[str, np.ndarray]:
    """Everything that the next step depends on, by name."""
    training = _training_parameters(optimizer, loss_scaler)
    return {**checkpoint.model_tensors(model), **{name: value.asnumpy() for name, value in training.items()}}


def _restore(folder: Path, model: nn.Cell, optimizer: nn.Adam, loss_scaler: DynamicLossScaler) -> int:
    """Load the latest checkpoint of `folder`, drop the lines of metrics after it, and return its step."""
    path = checkpoint.latest_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} has no checkpoint to resume from: start it anew with --out {folder} --overwrite")
    step, tensors = checkpoint.read_checkpoint(path)
    checkpoint.load_weights(model, tensors, path)
    for name, parameter in _training_parameters(optimizer, loss_scaler).items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise UserError(f"{path} cannot be resumed from: {name} is missing or misshapen")
        parameter.set_data(Tensor(tensors[name]))
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
        metrics.write_text("".join(f"{line}\n" for line in lines))
    return step


def _training_parameters(optimizer: nn.Adam, loss_scaler: DynamicLossScaler) -> dict[str, Parameter]:
    # The learning rates are left out: they follow from the configuration and the count of steps.
    parameters = [
        *optimizer.moment1, *optimizer.moment2, optimizer.beta1_power, optimizer.beta2_power, optimizer.global_step,
    ]
    named = {f"optimizer.{parameter.name}": parameter for parameter in parameters}
    named["loss_scaler.scale_value"] = loss_scaler.scale_value
    named["loss_scaler.counter"] = loss_scaler.counter
    return named
