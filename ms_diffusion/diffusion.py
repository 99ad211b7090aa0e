"""Denoising diffusion probabilistic models, in the order of Ho et al. 2020 (arXiv 2006.11239).

Conventions of the whole library:
- Images are float32 (B, C, H, W) in [-1, 1]. `t` is int32 (B,): code t = 0..T-1 is the paper's t = 1..T.
- `model` is any callable `model(x_t, t)` that returns its prediction of the noise, shaped like x_t; or of the image or
  of v, as config.objective says. With config.variance=learned it returns twice the channels: after the prediction
  stands where the log-variance lies, from -1 (beta-tilde_t) to 1 (beta_t).
- Where there are labels, int32 (B,), the model is `model(x_t, t, y)`.
- Nothing here is random: every noise is an argument.
- Tables are computed in float64 and cast once. alpha-bar_{t-1} is 1 at t = 0.
- The branch at t = 0 is a mask, not a Python `if`, so one compiled graph serves every step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable, Iterator, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from ms_diffusion import conversions, graphs, native
from ms_diffusion.config import DiffusionConfig
from ms_diffusion.errors import UserError
from ms_diffusion.samplers import Denoiser
from ms_diffusion.schedules import NoiseSchedule, make_schedule

Model = Callable[..., Tensor]
"""(x_t, t) or (x_t, t, y) -> what the network predicts: the noise, unless `DiffusionConfig` says something else."""
ReverseStep = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, noise) -> x_{t-1}."""


LEVELS = 256
"""Values of a pixel in the discretised Gaussian of L_0."""
BOUND_WEIGHT = 1e-3
"""Of the bound beside L_simple where the variance is learned; Nichol and Dhariwal 2021, eq. 16."""
_SMALLEST = 1e-30
"""The least probability of a pixel that counts: its reciprocal times the largest loss scale is still a float32."""


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
        self.objective = config.objective
        self.learns_variance = config.variance == "learned"
        self.loss = config.loss
        self.learns_bound = self.learns_variance and config.loss_weight == "vlb"
        self.clip_x_start = config.clip_x_start

        self.sqrt_alphas_cumprod = _table(schedule.sqrt_alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = _table(schedule.sqrt_one_minus_alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = _table(schedule.sqrt_recip_alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = _table(schedule.sqrt_recipm1_alphas_cumprod)
        self.posterior_mean_coef1 = _table(schedule.posterior_mean_coef1)
        self.posterior_mean_coef2 = _table(schedule.posterior_mean_coef2)
        self.posterior_variance = _table(schedule.posterior_variance)
        variance = _fixed_variance(config, schedule)
        self.model_variance = _table(variance)
        self.model_std = _table(np.sqrt(variance))
        self.posterior_log_variance = _table(_log_variance(schedule.posterior_variance))
        self.model_log_variance = _table(_log_variance(variance))
        self.loss_weight = _table(_loss_weight(config, schedule))

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

    def split(self, output: Tensor, x_t: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """The network's prediction and, where it learns the variance, what it says of it, each shaped like x_t.

        Raises ValueError where the network has not twice the channels for that.
        """
        if not self.learns_variance:
            return output, None
        if output.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"a network that learns the variance returns {2 * x_t.shape[1]} channels, and this one "
                f"{output.shape[1]}: give it out_dim={2 * x_t.shape[1]}"
            )
        return ops.chunk(output, 2, axis=1)

    def to_x_start(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 of a network's prediction, as it stands: not clipped."""
        if self.objective == "eps":
            return self.predict_x_start(x_t, t, prediction)
        return conversions.to_x_start(prediction, self.objective, x_t, *self.signal_and_sigma(t, x_t.shape))

    def signal_and_sigma(self, t: Tensor, x_shape: Tuple[int, ...]) -> Tuple[Tensor, Tensor]:
        """sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t), each (B, 1, 1, ...)."""
        return (
            extract(self.sqrt_alphas_cumprod, t, x_shape), extract(self.sqrt_one_minus_alphas_cumprod, t, x_shape)
        )

    def predictions(
        self, model: Model, x_t: Tensor, t: Tensor, signal: Tensor, sigma: Tensor
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """x_0 and eps as the network sees them, whatever it predicts, before clipping; t may lie between two steps.

        And what it says of the variance, where it learns that. `signal` and `sigma` are sqrt(alpha-bar_t) and
        sqrt(1 - alpha-bar_t), which multiply images.
        """
        prediction, said = self.split(model(x_t, t), x_t)
        return (
            conversions.to_x_start(prediction, self.objective, x_t, signal, sigma),
            conversions.to_eps(prediction, self.objective, x_t, signal, sigma), said,
        )

    def clip(self, x_start: Tensor) -> Tensor:
        """`x_start` in [-1, 1] where `clip_x_start`, else as it is."""
        return ops.clamp(x_start, -1.0, 1.0) if self.clip_x_start else x_start

    def log_variance(self, said: Optional[Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        """log sigma_t^2: (B, 1, 1, 1) if fixed, else shaped like x_t, from what the network said of it.

        Learned, it lies between log beta-tilde_t where the network says -1 and log beta_t where it says 1: eq. 15 of
        Nichol and Dhariwal 2021 with v = (1 + said) / 2, as in their code. beta-tilde_1 counts as beta-tilde_2.
        """
        largest = extract(self.model_log_variance, t, x_t.shape)
        if said is None:
            return largest
        smallest = extract(self.posterior_log_variance, t, x_t.shape)
        return smallest + 0.5 * (1.0 + said) * (largest - smallest)

    def p_mean_variance(self, model: Model, x_t: Tensor, t: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of p_theta(x_{t-1} | x_t), and the x_0 they follow from; eq. 11 by way of eqs. 15 and 7.

        Without clipping the mean is eq. 11, (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t).
        The variance is (B, 1, 1, 1), beta-tilde_t (fixed_small) or beta_t (fixed_large), or shaped like x_t (learned).
        """
        prediction, said = self.split(model(x_t, t), x_t)
        x_start = self.clip(self.to_x_start(prediction, x_t, t))
        mean, _ = self.q_posterior(x_start, x_t, t)
        if said is not None:
            return mean, ops.exp(self.log_variance(said, x_t, t)), x_start
        return mean, extract(self.model_variance, t, x_t.shape), x_start

    # ---- The variational bound, section 3, eq. 5 ----

    def vlb_terms(
        self, model: Model, x_start: Tensor, t: Tensor, noise: Tensor, levels: Optional[int] = LEVELS
    ) -> Tensor:
        """The bound's term at each t, (B,), in nats per dimension, at the x_t that the noise leads to.

        At t = 0 it is L_0 = -log p_theta(x_0 | x_1), else L_{t-1}, the divergence of p_theta(x_{t-1} | x_t) from
        q(x_{t-1} | x_t, x_0). `levels` is the number of values of a pixel in [-1, 1]; None takes x_0 as continuous, and
        p_theta(x_0 | x_1) as a density. L_T is no matter of the network: `likelihood.prior_term`.
        """
        x_t = self.q_sample(x_start, t, noise)
        prediction, said = self.split(model(x_t, t), x_t)
        predicted = self.clip(self.to_x_start(prediction, x_t, t))
        return self.vlb_terms_of(predicted, self.log_variance(said, x_t, t), x_start, x_t, t, levels)

    def vlb_terms_of(
        self, predicted: Tensor, log_variance: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor, levels: Optional[int]
    ) -> Tensor:
        """`vlb_terms` of a reverse step that follows from the x_0 `predicted` and has this log-variance."""
        coefficient = extract(self.posterior_mean_coef1, t, x_t.shape)
        distance = ops.square(coefficient * (x_start - predicted)) * ops.exp(-log_variance)
        ratio = extract(self.posterior_log_variance, t, x_t.shape) - log_variance
        divergence = 0.5 * (ops.expm1(ratio) - ratio + distance)
        mean, _ = self.q_posterior(predicted, x_t, t)
        if levels is None:
            reconstruction = 0.5 * (math.log(2 * math.pi) + log_variance + distance)
        else:
            reconstruction = -discretised_log_likelihood(x_start, mean, log_variance, levels)
        first = (t == 0).reshape((-1,) + (1,) * (len(x_t.shape) - 1))
        terms = ops.where(first, reconstruction, divergence)
        return ops.mean(terms.reshape((x_t.shape[0], -1)), 1)

    # ---- Training, section 3.4 ----

    def p_losses(self, model: Model, x_start: Tensor, t: Tensor, noise: Tensor, *condition: Tensor) -> Tensor:
        """L_simple, the scalar mean distance between the network's target and its prediction; eq. 14, Algorithm 1.

        The target is the noise, or as config.objective says. The distance is |d| (l1), d^2 (l2) or Huber's with delta 1
        (huber), weighted by each image's t: `_loss_weight`. Where the variance is learned, `BOUND_WEIGHT` times the
        bound is added, through which the variance alone learns: L_hybrid, Nichol and Dhariwal 2021, eq. 16. There
        config.loss_weight=vlb is the bound itself: L_vlb. `condition` is what the model takes after t: the labels, or
        nothing.
        """
        x_t = self.q_sample(x_start, t, noise)
        prediction, said = self.split(model(x_t, t, *condition), x_t)
        if self.learns_bound:
            return self.bound(prediction, said, x_start, x_t, t)
        difference = prediction - self.target(x_start, t, noise)
        if self.loss == "l1":
            distance = ops.abs(difference)
        elif self.loss == "l2":
            distance = ops.square(difference)
        else:
            size = ops.abs(difference)
            distance = ops.select(size < 1.0, 0.5 * ops.square(difference), size - 0.5)
        loss = ops.mean(distance * extract(self.loss_weight, t, x_start.shape))
        if self.learns_variance:
            loss = loss + BOUND_WEIGHT * self.bound(ops.stop_gradient(prediction), said, x_start, x_t, t)
        return loss

    def target(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should have predicted."""
        if self.objective == "eps":
            return noise
        if self.objective == "x_start":
            return x_start
        signal, sigma = self.signal_and_sigma(t, x_start.shape)
        return signal * noise - sigma * x_start

    def bound(self, prediction: Tensor, said: Optional[Tensor], x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """T times the mean of `vlb_terms`, a scalar: over t drawn evenly its mean is the bound, but for L_T."""
        predicted = self.to_x_start(prediction, x_t, t)
        terms = self.vlb_terms_of(predicted, self.log_variance(said, x_t, t), x_start, x_t, t, LEVELS)
        return self.timesteps * ops.mean(terms)

    # ---- Sampling, Algorithm 2 ----

    def p_sample(self, model: Model, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_{t-1} ~ p_theta(x_{t-1} | x_t), one line of Algorithm 2; at t = 0 the mean, without noise."""
        mean, variance, _ = self.p_mean_variance(model, x_t, t)
        nonzero = ops.cast(t > 0, mstype.float32).reshape((-1, 1, 1, 1))
        std = ops.sqrt(variance) if self.learns_variance else extract(self.model_std, t, x_t.shape)
        return mean + nonzero * std * noise

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

    def denoiser(
        self, model: Model, jit: bool = True, rederive_eps: bool = True, tell_variance: bool = False
    ) -> Denoiser:
        """`predictions` with `model` built in, from NumPy to NumPy: what every sampler of `samplers` asks.

        Compiled once for all whole t, and once for all fractions, if `jit`; keep it to sample again. x_0 is clipped as
        `clip_x_start` says; with `rederive_eps` eps follows from the clipped x_0, so that x_t stays made of the two.
        With `tell_variance` what the network says of the variance comes third, for `samplers.ancestral`; raises
        `UserError` where it does not learn that.
        """
        if tell_variance and not self.learns_variance:
            raise UserError(
                f"variance is learned, but the network learned none (diffusion.variance is {self.config.variance}): "
                "choose fixed_small or fixed_large"
            )
        end = native.operator("end") if jit else None

        def step(x_t: Tensor, t: Tensor, signal: Tensor, noise: Tensor) -> Tuple[Tensor, ...]:
            x_start, eps, said = self.predictions(model, x_t, t, signal, noise)
            if self.clip_x_start:
                x_start = ops.clamp(x_start, -1.0, 1.0)
                if rederive_eps:
                    eps = (x_t - signal * x_start) / noise
            if end is not None:
                x_start = ops.depend(x_start, end(ops.zeros((1,), mstype.float32), x_start))
            return (x_start, eps, said) if tell_variance else (x_start, eps)

        run = step
        if jit:
            parameters = model.get_parameters() if isinstance(model, nn.Cell) else ()
            run = graphs.compiled(step, f"denoiser {rederive_eps} {tell_variance}", parameters)
            run = run if end is None else native.asleep(run)

        def denoise(x_t: np.ndarray, t: float) -> Tuple[np.ndarray, ...]:
            whole = isinstance(t, int)
            signal, noise = (Tensor(np.full((1, 1, 1, 1), value, np.float32)) for value in self.schedule.amplitudes(t))
            time = Tensor(np.full(len(x_t), t, np.int32 if whole else np.float32))
            return tuple(out.asnumpy() for out in run(Tensor(x_t, mstype.float32), time, signal, noise))

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


def _fixed_variance(config: DiffusionConfig, schedule: NoiseSchedule) -> np.ndarray:
    """sigma_t^2 of section 3.2: beta-tilde_t is right for data at one point, beta_t for data that are noise.

    Where it is learned, the larger of them.
    """
    return schedule.posterior_variance if config.variance == "fixed_small" else schedule.betas


def _log_variance(variance: np.ndarray) -> np.ndarray:
    """log `variance`; beta-tilde_1 is 0, and counts as beta-tilde_2: Nichol and Dhariwal 2021, as in their code."""
    return np.log(np.where(variance > 0, variance, variance[1]))


def _loss_weight(config: DiffusionConfig, schedule: NoiseSchedule) -> np.ndarray:
    """The weight (T,) of the distance between the network's target and its prediction.

    - constant: 1, L_simple.
    - p2: (k + SNR)^-gamma; Choi et al. 2022, eq. 8.
    - min_snr: min(SNR, gamma) of the squared error of x_0; Hang et al. 2023, eq. 8.
    - vlb: T times eq. 12, so that over t drawn evenly the mean is the bound, but for what no network changes.

    An error d of x_0 is one of -d sqrt(SNR) of eps and of -d sqrt(SNR + 1) of v: by the squares of these are divided
    what are weights of the squared error of x_0.
    """
    if config.loss_weight == "constant":
        return np.ones(len(schedule))
    if config.loss_weight == "p2":
        return (config.p2_k + schedule.snr) ** -config.p2_gamma
    if config.loss_weight == "min_snr":
        weight = np.minimum(schedule.snr, config.min_snr_gamma)
    else:
        log_variance = _log_variance(_fixed_variance(config, schedule))
        weight = len(schedule) * schedule.posterior_mean_coef1**2 / (2 * np.exp(log_variance))
    return weight / {"x_start": 1.0, "eps": schedule.snr, "v": schedule.snr + 1}[config.objective]


def discretised_log_likelihood(x_start: Tensor, mean: Tensor, log_variance: Tensor, levels: int) -> Tensor:
    """log p(x_0), shaped like x_0, of a pixel whose `levels` values lie evenly in [-1, 1]; eq. 13.

    The probability of a value is that of the Gaussian between the middles to its neighbours; the two ends reach to
    infinity. It is the difference of two tails on the far side of the mean, where float32 keeps its digits.
    """
    half = 1.0 / (levels - 1)
    scale = ops.exp(-0.5 * log_variance) * math.sqrt(0.5)
    difference = x_start - mean
    is_lowest, is_highest = x_start < half - 1.0, x_start > 1.0 - half
    distance = ops.where(is_highest, difference, ops.where(is_lowest, -difference, ops.abs(difference)))
    beyond = ops.erfc((distance + half) * scale)
    beyond = ops.where(ops.logical_or(is_lowest, is_highest), ops.zeros_like(beyond), beyond)
    return ops.log(ops.clamp(0.5 * (ops.erfc((distance - half) * scale) - beyond), _SMALLEST, None))


def build_diffusion(config: DiffusionConfig) -> GaussianDiffusion:
    """The process that `config` describes."""
    return GaussianDiffusion(**dataclasses.asdict(config))
