"""How likely images are to a model: the variational bound with each of its terms, and the density that the ODE gives.

Everything is in nats per dimension, a dimension being one channel of one pixel; `bits` makes bits of them.
Nothing here is random: noise and probes are arguments.
"""

from __future__ import annotations

import math
import sys
from dataclasses import astuple, dataclass
from typing import Callable, Iterator, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from scipy.integrate import solve_ivp
from scipy.stats import norm
from tqdm import tqdm

from ms_diffusion import conversions, graphs
from ms_diffusion.diffusion import LEVELS, GaussianDiffusion, Model
from ms_diffusion.randomness import image_noise
from ms_diffusion.schedules import NoiseSchedule

BoundStep = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_start, t, noise) -> the bound's term at each t, (B,)."""
OdeStep = Callable[[Tensor, Tensor, Tensor], Tuple[Tensor, Tensor]]
"""(x_t, t, probe) -> what the network predicts, and probe . Jacobian . probe, (B,)."""


def bits(nats: np.ndarray) -> np.ndarray:
    """Nats as bits."""
    return nats / math.log(2)


# ---- The variational bound, eq. 5 of Ho et al. 2020 ----


@dataclass(frozen=True)
class Bound:
    """An upper bound of -log p(x_0) of N images."""

    terms: np.ndarray
    """(N, T): L_0 at t = 0, and L_{t-1} of the paper at each t after it, from one x_t each."""
    prior: np.ndarray
    """(N,): L_T."""

    @property
    def total(self) -> np.ndarray:
        """(N,): the bound itself."""
        return self.terms.sum(axis=1) + self.prior


def bound_step(
    diffusion: GaussianDiffusion, model: Model, jit: bool = True, levels: Optional[int] = LEVELS
) -> BoundStep:
    """`diffusion.vlb_terms` with `model` built in, compiled once for all t if `jit`."""

    def step(x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return diffusion.vlb_terms(model, x_start, t, noise, levels)

    return graphs.compiled(step, "bound", _parameters(model)) if jit else step


def prior_term(schedule: NoiseSchedule, x_start: np.ndarray) -> np.ndarray:
    """L_T (N,), the divergence of N(0, I) from q(x_T | x_0)."""
    ab = schedule.alphas_cumprod[-1]
    squares = np.square(x_start, dtype=np.float64).reshape(len(x_start), -1).mean(axis=1)
    return 0.5 * (ab * squares - ab - np.log1p(-ab))


def variational_bound(
    step: BoundStep, schedule: NoiseSchedule, x_start: np.ndarray, noise: Iterator[np.ndarray]
) -> Bound:
    """The bound of the images `x_start`, float32 (N, C, H, W), all at once.

    `step` comes from `bound_step`. `noise` yields float32 arrays of the images' shape, one for each t = T-1, ..., 0.
    """
    images, terms = Tensor(x_start), np.empty((len(x_start), len(schedule)))
    for t in reversed(range(len(schedule))):
        terms[:, t] = step(images, Tensor(np.full(len(x_start), t, np.int32)), Tensor(next(noise))).asnumpy()
    return Bound(terms, prior_term(schedule, x_start))


def bound_of_images(
    step: BoundStep, schedule: NoiseSchedule, x_start: np.ndarray, seed: int, *, batch_size: int,
    progress: bool = False, before: Optional[Callable[[np.ndarray], None]] = None,
) -> Bound:
    """`variational_bound` of any number of images, with the noise of `seed`; `batch_size` changes nothing.

    The last batch is filled up and cut, so that a compiled `step` meets one shape only. `before` is called with the
    numbers of a batch's images before its first call: for the labels of a `guidance.Guided` model.
    """
    parts = []
    for places in _batches(len(x_start), min(len(x_start), batch_size), progress):
        noise, images = image_noise(seed, places, x_start.shape[1:]), places % len(x_start)
        if before is not None:
            before(images)
        parts.append(variational_bound(step, schedule, x_start[images], noise))
    terms, prior = (np.concatenate(column)[: len(x_start)] for column in zip(*map(astuple, parts)))
    return Bound(terms, prior)


# ---- The probability-flow ODE, Song et al. 2021 ----


def ode_step(diffusion: GaussianDiffusion, model: Model, jit: bool = True) -> OdeStep:
    """The network, and its Jacobian between a probe and itself by one vector-Jacobian product; compiled if `jit`.

    t is float32 (B,), and may lie between two steps.
    """

    def along(x_t: Tensor, t: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        prediction, _ = diffusion.split(model(x_t, t), x_t)
        return ops.reduce_sum(prediction * probe), prediction

    product_of = ms.value_and_grad(along, grad_position=0, weights=None, has_aux=True)

    def step(x_t: Tensor, t: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        (_, prediction), product = product_of(x_t, t, probe)
        return prediction, ops.reduce_sum((product * probe).reshape((x_t.shape[0], -1)), 1)

    return graphs.compiled(step, "probability flow", _parameters(model)) if jit else step


def ode_log_likelihood(
    step: OdeStep, diffusion: GaussianDiffusion, x_start: np.ndarray, probes: np.ndarray, *,
    rtol: float = 1e-5, atol: float = 1e-5,
) -> Tuple[np.ndarray, int]:
    """log p(x_0) of each image, float64 (N,), in nats per dimension of [-1, 1], and the calls of the network.

    The probability-flow ODE carries x_0, taken as x_t at the first noise level, to x_T, and the density with it; Song
    et al. 2021, eqs. 13 and 39. Its time is the angle whose cosine is sqrt(alpha-bar): dx / d angle = v, so it ends,
    at a right angle, even where the last SNR is 0. Between two steps t is `schedule.time_at`. Nothing is clipped.

    The divergence is Hutchinson's estimate: `probes`, of the images' shape, hold 1 and -1 evenly drawn (Rademacher), so
    its mean is exact. `step` comes from `ode_step`; `rtol` and `atol` are those of SciPy's RK45.
    """
    schedule, shape, dimensions = diffusion.schedule, x_start.shape, x_start[0].size
    angles = np.arctan2(schedule.sqrt_one_minus_alphas_cumprod, schedule.sqrt_alphas_cumprod)
    probe = Tensor(probes.astype(np.float32))

    def rate(angle: float, state: np.ndarray) -> np.ndarray:
        t = schedule.time_at(-2 * math.log(math.tan(angle)))
        x_t, kind, coefficients = state[: x_start.size], diffusion.objective, (math.cos(angle), math.sin(angle))
        inputs = x_t.reshape(shape).astype(np.float32), np.full(len(x_start), t, np.float32)
        prediction, product = (out.asnumpy().astype(np.float64) for out in step(*map(Tensor, inputs), probe))
        velocity = conversions.to_v(prediction.ravel(), kind, x_t, *coefficients)
        # A conversion is linear in the prediction and x_t, and the identity's part of the divergence is the dimensions.
        return np.concatenate([velocity, conversions.to_v(product, kind, dimensions, *coefficients) / dimensions])

    start = np.concatenate([x_start.ravel().astype(np.float64), np.zeros(len(x_start))])
    solution = solve_ivp(rate, (angles[0], angles[-1]), start, method="RK45", rtol=rtol, atol=atol)
    if not solution.success:
        raise FloatingPointError(f"the probability-flow ODE cannot be solved: {solution.message}")
    x_end, gained = np.split(solution.y[:, -1], [x_start.size])
    return norm.logpdf(x_end).reshape(len(x_start), -1).mean(axis=1) + gained, solution.nfev


def ode_bound_of_images(
    step: OdeStep, diffusion: GaussianDiffusion, x_start: np.ndarray, seed: int, *, probes: int, batch_size: int,
    levels: int = LEVELS, progress: bool = False, before: Optional[Callable[[np.ndarray], None]] = None,
) -> np.ndarray:
    """-log p of images whose pixels have `levels` values, (N, probes), each with a Rademacher probe of its own.

    Each image is spread evenly over the width of its values, the same for all its probes: then the density bounds the
    probability of the value (Theis et al. 2016, section 3.1). `batch_size` changes no more than the solver's tolerance.
    `before` is as in `bound_of_images`; a number stands in a batch as often as it has probes there.
    """
    count, shape, half = len(x_start), x_start.shape[1:], 1 / (levels - 1)
    stream = image_noise(seed, range(count), shape)
    spread = (2 * norm.cdf(next(stream)) - 1) * half  # even in -half to half
    images = np.repeat(x_start + spread.astype(np.float32), probes, axis=0)
    signs = np.stack([np.where(next(stream) < 0, -1, 1) for _ in range(probes)], axis=1).reshape(images.shape)
    found = []
    for places in _batches(len(images), min(len(images), batch_size), progress):
        places = places % len(images)
        if before is not None:
            before(places // probes)
        found.append(ode_log_likelihood(step, diffusion, images[places], signs[places])[0])
    return -(np.concatenate(found)[: len(images)].reshape(count, probes) + math.log(2 * half))


def hutchinson_error(estimates: np.ndarray) -> float:
    """The standard error of the mean of `estimates` (N, probes) that comes from the probes; NaN from a single one."""
    count, probes = estimates.shape
    return float(np.sqrt(estimates.var(axis=1, ddof=1).sum() / probes) / count) if probes > 1 else math.nan


def _batches(count: int, batch_size: int, progress: bool) -> Iterator[np.ndarray]:
    """0, ..., count - 1 in batches of one size, the last filled up with the numbers after them."""
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=count, dynamic_ncols=True, disable=not progress, mininterval=interval) as bar:
        for start in range(0, count, batch_size):
            yield np.arange(start, start + batch_size)
            bar.update(min(batch_size, count - start))


def _parameters(model: Model) -> list[Parameter]:
    return list(model.get_parameters()) if isinstance(model, nn.Cell) else []
