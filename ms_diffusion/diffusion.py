"""Denoising diffusion probabilistic models, in the order of Ho et al. 2020 (arXiv 2006.11239).

Conventions of the whole library:
- Images are float32 (B, C, H, W) in [-1, 1]. `t` is int32 (B,): code t = 0..T-1 is the paper's t = 1..T.
- `model` is any callable `model(x_t, t)` that returns its prediction of the noise, shaped like x_t.
- Nothing here is random: every noise is an argument.
- Tables are computed in float64 and cast once. alpha-bar_{t-1} is 1 at t = 0.
- The branch at t = 0 is a mask, not a Python `if`, so one compiled graph serves every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Iterator, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from ms_diffusion import graphs, native
from ms_diffusion.config import DiffusionConfig
from ms_diffusion.samplers import Denoiser
from ms_diffusion.schedules import NoiseSchedule, make_schedule

Model = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> predicted noise."""
ReverseStep = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, noise) -> x_{t-1}."""


def extract(table: Tensor, t: Tensor, x_shape: Tuple[int, ...]) -> Tensor:
    """table[t] as (B, 1, 1, ...), ready to multiply an array of `x_shape`."""
    return ops.gather(table, t, 0).reshape((x_shape[0],) + (1,) * (len(x_shape) - 1))


@ms.jit_class
class GaussianDiffusion:
    """The process: what noise does to an image, what training asks for, and how to sample.

    The options are the fields of `DiffusionConfig`, and so are their defaults. Raises `UserError` for a value
    that cannot be.
    """

    def __init__(self, **options: Any) -> None:
        config = DiffusionConfig(**options)
        schedule = make_schedule(config)
        self.config = config
        self.schedule = schedule
        self.timesteps = config.timesteps
        self.loss = config.loss
        self.clip_x_start = config.clip_x_start

        self.sqrt_alphas_cumprod = _table(schedule.sqrt_alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = _table(schedule.sqrt_one_minus_alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = _table(schedule.sqrt_recip_alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = _table(schedule.sqrt_recipm1_alphas_cumprod)
        self.posterior_mean_coef1 = _table(schedule.posterior_mean_coef1)
        self.posterior_mean_coef2 = _table(schedule.posterior_mean_coef2)
        self.posterior_variance = _table(schedule.posterior_variance)
        self.model_variance = _table(_model_variance(schedule, config.variance))
        self.model_std = _table(np.sqrt(_model_variance(schedule, config.variance)))
        self.p2_loss_weight = _table((config.p2_k + schedule.snr) ** -config.p2_gamma)

    # ---- The forward process, section 2 ----

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = N(sqrt(alpha-bar_t) x_0, (1 - alpha-bar_t) I); eq. 4."""
        return (
            extract(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + extract(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def predict_x_start(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 = x_t / sqrt(alpha-bar_t) - sqrt(1 / alpha-bar_t - 1) noise; eq. 4 solved for x_0, eq. 15."""
        return (
            extract(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * noise
        )

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tuple[Tensor, Tensor]:
        """Mean mu-tilde_t and variance beta-tilde_t of q(x_{t-1} | x_t, x_0); eqs. 6 and 7.

        The mean is shaped like x_t, the variance (B, 1, 1, 1).
        """
        mean = (
            extract(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        return mean, extract(self.posterior_variance, t, x_t.shape)

    # ---- The reverse process, sections 3.2 and 3.3 ----

    def p_mean_variance(self, model: Model, x_t: Tensor, t: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of p_theta(x_{t-1} | x_t), and the x_0 they follow from; eq. 11 by way of eqs. 15 and 7.

        Without clipping the mean is eq. 11, (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t).
        The variance is (B, 1, 1, 1): beta-tilde_t (fixed_small) or beta_t (fixed_large).
        """
        x_start = self.predict_x_start(x_t, t, model(x_t, t))
        if self.clip_x_start:
            x_start = ops.clamp(x_start, -1.0, 1.0)
        mean, _ = self.q_posterior(x_start, x_t, t)
        return mean, extract(self.model_variance, t, x_t.shape), x_start

    def predictions(
        self, model: Model, x_t: Tensor, t: Tensor, signal: Tensor, noise: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """x_0 and eps as the model sees them, before clipping, at any t: int32, or float32 between the whole ones.

        `signal` and `noise` are sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t), which multiply images.
        """
        eps = model(x_t, t)
        return (x_t - noise * eps) / signal, eps

    # ---- Training, section 3.4 ----

    def p_losses(self, model: Model, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """L_simple, the scalar mean distance between the noise and its prediction; eq. 14, Algorithm 1.

        The distance is |d| (l1), d^2 (l2) or Huber's with delta 1 (huber). Each image is weighted by
        (k + SNR_t)^-gamma: P2 weighting, Choi et al. 2022, eq. 8; gamma = 0 weights all alike.
        """
        difference = model(self.q_sample(x_start, t, noise), t) - noise
        if self.loss == "l1":
            distance = ops.abs(difference)
        elif self.loss == "l2":
            distance = ops.square(difference)
        else:
            size = ops.abs(difference)
            distance = ops.select(size < 1.0, 0.5 * ops.square(difference), size - 0.5)
        return ops.mean(distance * extract(self.p2_loss_weight, t, x_start.shape))

    # ---- Sampling, Algorithm 2 ----

    def p_sample(self, model: Model, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_{t-1} ~ p_theta(x_{t-1} | x_t), one line of Algorithm 2; at t = 0 the mean, without noise."""
        mean, _, _ = self.p_mean_variance(model, x_t, t)
        nonzero = ops.cast(t > 0, mstype.float32).reshape((-1, 1, 1, 1))
        return mean + nonzero * extract(self.model_std, t, x_t.shape) * noise

    def reverse_step(self, model: Model, jit: bool = True) -> ReverseStep:
        """`p_sample` with `model` built in, compiled once for all t if `jit`; keep it to sample again."""

        end = native.operator("end") if jit else None

        def step(x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            x = self.p_sample(model, x_t, t, noise)
            return x if end is None else ops.depend(x, end(ops.zeros((1,), mstype.float32), x))

        if not jit:
            return step
        parameters = model.get_parameters() if isinstance(model, nn.Cell) else ()
        compiled = graphs.compiled(step, "reverse step", parameters)
        return compiled if end is None else native.asleep(compiled)

    def denoiser(self, model: Model, jit: bool = True, rederive_eps: bool = True) -> Denoiser:
        """`predictions` with `model` built in, from NumPy to NumPy: what every sampler of `samplers` asks.

        Compiled once for all whole t, and once for all fractions, if `jit`; keep it to sample again. x_0 is clipped as
        `clip_x_start` says; with `rederive_eps` eps follows from the clipped x_0, so that x_t stays made of the two.
        """
        end = native.operator("end") if jit else None

        def step(x_t: Tensor, t: Tensor, signal: Tensor, noise: Tensor) -> Tuple[Tensor, Tensor]:
            x_start, eps = self.predictions(model, x_t, t, signal, noise)
            if self.clip_x_start:
                x_start = ops.clamp(x_start, -1.0, 1.0)
                if rederive_eps:
                    eps = (x_t - signal * x_start) / noise
            if end is not None:
                x_start = ops.depend(x_start, end(ops.zeros((1,), mstype.float32), x_start))
            return x_start, eps

        run = step
        if jit:
            parameters = model.get_parameters() if isinstance(model, nn.Cell) else ()
            run = graphs.compiled(step, f"denoiser {rederive_eps}", parameters)
            run = run if end is None else native.asleep(run)

        def denoise(x_t: np.ndarray, t: float) -> Tuple[np.ndarray, np.ndarray]:
            whole = isinstance(t, int)
            signal, noise = (Tensor(np.full((1, 1, 1, 1), value, np.float32)) for value in self.schedule.amplitudes(t))
            time = Tensor(np.full(len(x_t), t, np.int32 if whole else np.float32))
            x_start, eps = run(Tensor(x_t, mstype.float32), time, signal, noise)
            return x_start.asnumpy(), eps.asnumpy()

        return denoise

    def p_sample_loop(self, step: ReverseStep, noise: Iterator[np.ndarray]) -> Iterator[Tensor]:
        """Algorithm 2: yields x_{T-1}, ..., x_1, x_0, each (B, C, H, W).

        `step` comes from `reverse_step`. `noise` yields float32 arrays of that shape: first x_T, then one for each
        step; `randomness.image_noise` makes such a stream from a seed.
        """
        x = Tensor(next(noise))
        for t in reversed(range(self.timesteps)):
            x = step(x, Tensor(np.full(x.shape[0], t, np.int32)), Tensor(next(noise)))
            yield x

    def sample(self, model: Model, noise: Iterator[np.ndarray], jit: bool = True) -> Tensor:
        """x_0 by Algorithm 2, (B, C, H, W); the last image of `p_sample_loop`."""
        *_, x_start = self.p_sample_loop(self.reverse_step(model, jit), noise)
        return x_start


def _table(values: np.ndarray) -> Tensor:
    return Tensor(values, mstype.float32)


def _model_variance(schedule: NoiseSchedule, variance: str) -> np.ndarray:
    """sigma_t^2 of section 3.2: beta-tilde_t is right for data at one point, beta_t for data that are noise."""
    return schedule.posterior_variance if variance == "fixed_small" else schedule.betas


def build_diffusion(config: DiffusionConfig) -> GaussianDiffusion:
    """The process that `config` describes."""
    return GaussianDiffusion(**dataclasses.asdict(config))
