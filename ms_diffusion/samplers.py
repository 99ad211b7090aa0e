"""From noise to images in few network calls: one generator function a paper, all of one signature, in plain NumPy.

    sampler(denoise, schedule, noise, steps, *, options) -> Iterator[array]

- `denoise(x_t, t) -> (x_0, eps)` is what the network sees in x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps,
  with one number t for the whole batch. `GaussianDiffusion.denoiser` makes it.
- `noise` yields standard normal arrays: first x_T, then one whenever a step needs it, as `randomness.image_noise` does.
- `steps` is how many, 1 to T, at times that `spacing` chooses; or the times themselves, falling from T-1 towards 0.
- It yields x after each step, as many as there are steps: x_t at the later times, then x_0.

Code time t = 0..T-1 is the paper's 1..T, fractions are allowed where `spacing` makes them, and -1 is the image itself.
Every coefficient is a Python float, so the arrays keep their type. Raises `UserError`, at the first step, for options
that cannot be.
"""

from __future__ import annotations

import inspect
import math
from functools import partial
from itertools import repeat
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
from scipy.integrate import RK45

from ms_diffusion.errors import UserError
from ms_diffusion.schedules import NoiseSchedule

Denoiser = Callable[[np.ndarray, float], Tuple[np.ndarray, ...]]
"""(x_t, t) -> (x_0, eps); made for a learned variance, also what the network says of it, from -1 to 1."""
Steps = Union[int, Sequence[float]]
"""How many, or the times themselves."""
EVEN = ("trailing", "leading", "linspace")
SPACINGS = (*EVEN, "quadratic", "log_snr", "karras")


class _Level(NamedTuple):
    """One noise level: x_t = signal x_0 + noise eps."""

    t: float
    signal: float
    noise: float

    @property
    def half_log_snr(self) -> float:
        """lambda_t of Lu et al. 2022."""
        if self.signal == 0 or self.noise == 0:
            return -math.inf if self.signal == 0 else math.inf
        return math.log(self.signal / self.noise)


def times(schedule: NoiseSchedule, steps: Steps, spacing: str, spacings: Sequence[str] = SPACINGS) -> List[float]:
    """The times at which the network is asked, falling; the image, t = -1, follows after the last.

    trailing and leading are each T / steps apart, from T-1 and down to 0 (Lin et al. 2023, table 2); linspace has both
    ends; quadratic is dense near 0 (Song et al. 2020, DDIM, appendix D.2). These are whole numbers. log_snr is even in
    the logarithm of the SNR (Lu et al. 2022), karras in sigma^(1/7) up to sigma = 80 (Karras et al. 2022, eq. 5 and
    table 1): fractions.
    """
    length = len(schedule)
    if np.ndim(steps):
        chosen = list(steps)
        if not chosen or chosen[0] > length - 1 or chosen[-1] < 0 or any(np.diff(chosen) >= 0):
            raise UserError(f"the times of the steps must fall, from {length - 1} at most to 0 at least")
        return chosen
    if spacing not in spacings:
        raise UserError(f"spacing is {spacing!r}: choose from {', '.join(spacings)}")
    if not 1 <= steps <= length:
        raise UserError(f"steps is {steps}: there are {length} noise levels, so choose from 1 to {length}")
    i = np.arange(steps)
    if spacing == "trailing":
        return [int(t) - 1 for t in np.round(length - i * length / steps)]
    if spacing == "leading":
        return [int(t) for t in i[::-1] * (length // steps)]
    down = 1 - i / max(steps - 1, 1)  # from 1 to 0
    if spacing == "linspace":
        return [int(t) for t in np.round(down * (length - 1))]
    if spacing == "quadratic":
        return [int(t) for t in np.maximum(np.floor(down**2 * (length - 1) + 1e-9), steps - 1 - i)]
    first, last = schedule.log_snr[-1], schedule.log_snr[0]
    if not np.isfinite(first):
        whole = ", ".join((*EVEN, "quadratic"))
        raise UserError(f"spacing is {spacing!r}, but x_T holds no signal, so its SNR is 0: choose from {whole}")
    if spacing == "log_snr":
        wanted = last + down * (first - last)
    else:
        first = max(first, -2 * math.log(80))
        wanted = -14 * np.log(np.exp(-last / 14) + down * (np.exp(-first / 14) - np.exp(-last / 14)))
    return [schedule.time_at(log_snr) for log_snr in wanted]


def ancestral(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "trailing", variance: str = "fixed_small",
) -> Iterator[np.ndarray]:
    """DDPM, Ho et al. 2020, Algorithm 2, on any subset of the steps: Nichol and Dhariwal 2021, section 4.

    `variance` is beta-tilde (fixed_small) or beta (fixed_large) of the steps that are taken, or lies between these two
    where the network says (learned; `denoise` tells it). The last adds no noise.
    """
    if variance not in ("fixed_small", "fixed_large", "learned"):
        raise UserError(f"variance is {variance!r}: choose from fixed_small, fixed_large, learned")
    x = next(noise)
    for now, then in _steps(schedule, steps, spacing):
        x_start, _, *said = denoise(x, now.t)
        alpha = (now.signal / then.signal) ** 2
        share = (then.noise / now.noise) ** 2  # beta-tilde / beta
        x = (then.signal * (1 - alpha) / now.noise**2) * x_start + (math.sqrt(alpha) * share) * x
        if then.noise > 0:
            deviation = math.sqrt((1 - alpha) * (share if variance == "fixed_small" else 1))
            if variance == "learned":
                deviation = deviation * share ** (0.25 * (1 - said[0]))
            x = x + deviation * next(noise)
        yield x


def ddim(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "trailing", eta: float = 0.0,
) -> Iterator[np.ndarray]:
    """DDIM, Song et al. 2020 (arXiv 2010.02502), eqs. 12 and 16.

    `eta` from 0, where only x_T is random, to 1, where the noise of each step is DDPM's with beta-tilde.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}: it must be from 0 to 1")
    x = next(noise)
    for now, then in _steps(schedule, steps, spacing):
        x_start, eps = denoise(x, now.t)
        sigma = eta * then.noise / now.noise * math.sqrt(1 - (now.signal / then.signal) ** 2)
        x = then.signal * x_start + math.sqrt(max(then.noise**2 - sigma**2, 0)) * eps
        if sigma > 0:
            x = x + sigma * next(noise)
        yield x


def ddim_inversion(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "trailing", iterations: int = 1,
) -> Iterator[np.ndarray]:
    """DDIM backwards, from an image to the x_T that `ddim` makes it of: Song et al. 2020, section 4.3, eq. 13.

    `noise` yields the images, nothing else. Each step asks for the noise at its end, of which it knows only the
    beginning; more `iterations` solve for it (Pan et al. 2023), until `ddim` gives the image back exactly.
    """
    if iterations < 1:
        raise UserError(f"iterations is {iterations}: it must be at least 1")
    x = next(noise)
    for then, now in reversed(_steps(schedule, steps, spacing, signal=True)):
        end = x
        for _ in range(iterations):
            _, eps = denoise(end, then.t)
            end = _transfer(x, eps, now, then)
        x = end
        yield x


def plms(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *, spacing: str = "leading",
) -> Iterator[np.ndarray]:
    """Pseudo linear multistep, Liu et al. 2022 (arXiv 2202.09778), eqs. 11 and 12, begun by orders 2 and 3.

    One network call a step, and one more for the first, which is an improved Euler step. The spacing is even.
    """
    x, history = next(noise), []
    for now, then in _steps(schedule, steps, spacing, EVEN, signal=True):
        _, eps = denoise(x, now.t)
        history = [eps, *history[:3]]
        if len(history) == 1 and then.noise > 0:
            _, ahead = denoise(_transfer(x, eps, now, then), then.t)
            x = _transfer(x, (eps + ahead) / 2, now, then)
        else:
            x = _transfer(x, _adams_bashforth(history), now, then)
        yield x


def pndm(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *, spacing: str = "leading",
) -> Iterator[np.ndarray]:
    """F-PNDM, Liu et al. 2022 (arXiv 2202.09778), Algorithm 2: `plms` begun by three pseudo Runge-Kutta steps, eq. 13.

    Those take four network calls each. The spacing is even.
    """
    x, history = next(noise), []
    for now, then in _steps(schedule, steps, spacing, EVEN, signal=True):
        _, eps = denoise(x, now.t)
        history = [eps, *history[:3]]
        if len(history) < 4 and then.noise > 0:
            t = (now.t + then.t) / 2
            middle = _level(schedule, int(t) if isinstance(now.t, int) else t)
            _, second = denoise(_transfer(x, eps, now, middle), middle.t)
            _, third = denoise(_transfer(x, second, now, middle), middle.t)
            _, fourth = denoise(_transfer(x, third, now, then), then.t)
            x = _transfer(x, (eps + 2 * second + 2 * third + fourth) / 6, now, then)
        else:
            x = _transfer(x, _adams_bashforth(history), now, then)
        yield x


def dpmpp_2m(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *, spacing: str = "trailing",
) -> Iterator[np.ndarray]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), Algorithm 2; its first and last steps are of order 1."""
    x, before = next(noise), None
    for now, then in _steps(schedule, steps, spacing):
        x_start, _ = denoise(x, now.t)
        kept = 1 - _decay(now, then)
        x = (then.noise / now.noise) * x + (then.signal * kept) * _extrapolated(x_start, before, now, then)
        before = (now, x_start)
        yield x


def dpmpp_2m_sde(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *, spacing: str = "trailing",
) -> Iterator[np.ndarray]:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), section 5 and appendix: 2M on the reverse SDE."""
    x, before = next(noise), None
    for now, then in _steps(schedule, steps, spacing):
        x_start, _ = denoise(x, now.t)
        decay = _decay(now, then)
        kept = 1 - decay**2
        x = (then.noise / now.noise * decay) * x + (then.signal * kept) * _extrapolated(x_start, before, now, then)
        if then.noise > 0:
            x = x + (then.noise * math.sqrt(kept)) * next(noise)
        before = (now, x_start)
        yield x


def dpmpp_3m(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *, spacing: str = "trailing",
) -> Iterator[np.ndarray]:
    """DPM-Solver++(3M): Lu et al. 2022 (arXiv 2211.01095), eq. 12 with n = 3, begun and ended by lower orders.

    Between two levels x_0 is the parabola in lambda through the last three predictions, integrated exactly: order 3.
    The authors' code and diffusers take half of its bend, which leaves order 2.
    """
    x, history = next(noise), []
    for now, then in _steps(schedule, steps, spacing):
        x_start, _ = denoise(x, now.t)
        history = [(now.half_log_snr, x_start), *history[:2]]
        change = (1 - _decay(now, then)) * x_start
        if len(history) > 1 and then.noise > 0:
            slopes = [(a - b) / (p - q) for (p, a), (q, b) in zip(history, history[1:])]
            _, once, twice = _integrals(then.half_log_snr - history[0][0], 3)
            change = change + once * slopes[0]
            if len(slopes) == 2:
                bend = (slopes[0] - slopes[1]) / (history[0][0] - history[2][0])
                change = change + (once * (history[0][0] - history[1][0]) + 2 * twice) * bend
        x = (then.noise / now.noise) * x + then.signal * change
        yield x


def unipc(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "trailing", order: int = 2,
) -> Iterator[np.ndarray]:
    """UniPC, Zhao et al. 2023 (arXiv 2302.04867), Algorithms 1 and 2 for x_0, with B(h) = e^h - 1; `order` is 1 to 4.

    The network is asked once a step: what it says of the predicted x also corrects it. Yields what is predicted.
    """
    if order not in (1, 2, 3, 4):
        raise UserError(f"order is {order}: it must be from 1 to 4")
    x, last, history = next(noise), None, []
    pairs = list(_steps(schedule, steps, spacing))
    for i, (now, then) in enumerate(pairs):
        x_start, _ = denoise(x, now.t)
        if last is not None:
            x = _unified(last, [(now, x_start), *history], now)
        degree = min(order, i + 1, len(pairs) - i)
        history, last = [(now, x_start), *history][:degree], x
        x = _unified(last, history, then)
        yield x


def euler(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "karras", churn: float = 0.0, churn_from: float = 0.0, churn_to: float = math.inf,
    churn_noise: float = 1.0,
) -> Iterator[np.ndarray]:
    """EDM without its correction, Karras et al. 2022 (arXiv 2206.00364), Algorithm 2 without lines 6 to 8.

    The options are `heun`'s. Without churn this is DDIM with eta = 0.
    """
    churning = (churn, churn_from, churn_to, churn_noise)
    yield from _edm(denoise, schedule, noise, _steps(schedule, steps, spacing, signal=True), churning, corrected=False)


def heun(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "karras", churn: float = 0.0, churn_from: float = 0.0, churn_to: float = math.inf,
    churn_noise: float = 1.0,
) -> Iterator[np.ndarray]:
    """EDM's stochastic sampler, Karras et al. 2022 (arXiv 2206.00364), Algorithm 2, in sigma = noise / signal.

    `churn`, `churn_from`, `churn_to`, `churn_noise` are its S_churn, S_tmin, S_tmax, S_noise; without churn it is
    Algorithm 1. Noise is never raised above the schedule's last level. Two network calls a step, one for the last.
    """
    churning = (churn, churn_from, churn_to, churn_noise)
    yield from _edm(denoise, schedule, noise, _steps(schedule, steps, spacing, signal=True), churning, corrected=True)


def euler_maruyama(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *, spacing: str = "trailing",
) -> Iterator[np.ndarray]:
    """Euler-Maruyama on the reverse SDE, Song et al. 2021 (arXiv 2011.13456), eqs. 6 and 11; for many steps.

    Each step takes the whole of beta(t) dt between its ends, log(alpha-bar_s / alpha-bar_t). The last adds no noise.
    """
    x = next(noise)
    for now, then in _steps(schedule, steps, spacing, signal=True):
        _, eps = denoise(x, now.t)
        beta = 2 * math.log(then.signal / now.signal)
        x = (1 + beta / 2) * x - (beta / now.noise) * eps
        if then.noise > 0:
            x = x + math.sqrt(beta) * next(noise)
        yield x


def predictor_corrector(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "trailing", snr: float = 0.16, corrections: int = 1,
) -> Iterator[np.ndarray]:
    """Song et al. 2021 (arXiv 2011.13456), Algorithm 3: reverse diffusion, then `corrections` Langevin steps a level.

    Algorithm 5's step size 2 alpha (snr |z| / |score|)^2 is taken with the expected |z| / |score|, sqrt(1 - alpha-bar),
    so an image does not depend on the others of its batch. For many steps.
    """
    if not snr > 0 or corrections < 0:
        raise UserError(f"snr is {snr}, corrections {corrections}: they must be positive, and at least 0")
    x = next(noise)
    for now, then in _steps(schedule, steps, spacing, signal=True):
        _, eps = denoise(x, now.t)
        alpha = (now.signal / then.signal) ** 2
        x = (2 - math.sqrt(alpha)) * x - ((1 - alpha) / now.noise) * eps
        if then.noise > 0:
            x = x + math.sqrt(1 - alpha) * next(noise)
            size = 2 * alpha * (snr * then.noise) ** 2
            for _ in range(corrections):
                _, eps = denoise(x, then.t)
                x = x - (size / then.noise) * eps + math.sqrt(2 * size) * next(noise)
        yield x


def ode(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: Steps, *,
    spacing: str = "log_snr", tolerance: float = 1e-5,
) -> Iterator[np.ndarray]:
    """The probability-flow ODE, Song et al. 2021, eq. 13, by Dormand and Prince's adaptive orders 5(4) (SciPy's RK45).

    In the angle with tan(angle) = noise / signal it reads dx / d angle = signal eps - noise x_0. The solver chooses its
    own steps by `tolerance`, absolute and relative; `steps` are the times at which x is shown. Ends with x_0 of t = 0.
    """
    if not 1e-12 < tolerance < 1:
        raise UserError(f"tolerance is {tolerance}: it must be between 1e-12 and 1")
    x = next(noise)
    pairs = _steps(schedule, steps, spacing)
    shown = [math.atan2(then.noise, then.signal) for _, then in pairs]
    angles = [math.atan2(level.noise, level.signal) for level in (pairs[0][0], _level(schedule, 0))]

    def derivative(angle: float, flat: np.ndarray) -> np.ndarray:
        t = schedule.time_at(-2 * math.log(math.tan(angle)))
        x_start, eps = denoise(flat.reshape(x.shape).astype(x.dtype), t)
        return (math.cos(angle) * eps - math.sin(angle) * x_start).ravel()

    solver = RK45(derivative, angles[0], x.astype(np.float64).ravel(), angles[1], rtol=tolerance, atol=tolerance)
    for angle in shown[:-1]:
        while solver.t > angle and solver.status == "running":
            solver.step()
        if solver.status == "failed":
            raise UserError(f"tolerance is {tolerance}: the solver's steps became too small; give a larger one")
        value = solver.y if solver.t_old is None else solver.dense_output()(angle)
        yield value.reshape(x.shape).astype(x.dtype)
    while solver.status == "running":
        solver.step()
    yield denoise(solver.y.reshape(x.shape).astype(x.dtype), 0.0)[0]


SAMPLERS = {
    sampler.__name__: sampler
    for sampler in (
        ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc, heun, euler, pndm, plms, ode, euler_maruyama,
        predictor_corrector,
    )
}
"""What starts from noise, by its name."""


def find(name: str, **options: Any) -> partial:
    """The sampler `name` of `SAMPLERS` with its `options` filled in; raises `UserError` for one it does not have."""
    if name not in SAMPLERS:
        raise UserError(f"there is no sampler {name}: choose from {', '.join(SAMPLERS)}")
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UserError(f"{option} is no option of the sampler {name}, which has: {', '.join(known)}")
    return partial(SAMPLERS[name], **options)


def check(sampler: partial, schedule: NoiseSchedule, steps: Steps) -> None:
    """Raise the `UserError` that `sampler`, which `find` found, would raise at its first step."""
    answers = 3 if sampler.keywords.get("variance") == "learned" else 2
    next(sampler(lambda x, t: (x,) * answers, schedule, repeat(np.zeros((1, 1, 1, 1))), steps))


# ---- What the samplers share ----


def _level(schedule: NoiseSchedule, t: float) -> _Level:
    return _Level(t, *schedule.amplitudes(t))


def _steps(
    schedule: NoiseSchedule, steps: Steps, spacing: str, spacings: Sequence[str] = SPACINGS, signal: bool = False
) -> List[Tuple[_Level, _Level]]:
    """From where to where each step goes; the last ends at the image. `signal`: x_T must hold some."""
    levels = [_level(schedule, t) for t in (*times(schedule, steps, spacing, spacings), -1)]
    if signal and levels[0].signal == 0:
        raise UserError(
            "x_T holds no signal, and this sampler divides by it: choose ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, "
            "dpmpp_3m, unipc or ode"
        )
    return list(zip(levels, levels[1:]))


def _transfer(x: np.ndarray, eps: np.ndarray, now: _Level, then: _Level) -> np.ndarray:
    """x at another level, were `eps` its noise: Liu et al. 2022, eq. 11, and DDIM's step."""
    scale = then.signal / now.signal
    return scale * x + (then.noise - scale * now.noise) * eps


def _adams_bashforth(history: List[np.ndarray]) -> np.ndarray:
    """The mean of the last values, newest first, that is exact for a polynomial through them over one more step."""
    weights = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    first, *others = (weight * value for weight, value in zip(weights[len(history) - 1], history))
    return sum(others, first)


def _decay(now: _Level, then: _Level) -> float:
    """e^-h of the step h in lambda."""
    return (then.noise * now.signal) / (then.signal * now.noise)


def _extrapolated(
    x_start: np.ndarray, before: Union[Tuple[_Level, np.ndarray], None], now: _Level, then: _Level
) -> np.ndarray:
    """x_0 in the middle of the step, on the line in lambda through two predictions; the newest at start and end."""
    if before is None or then.noise == 0:
        return x_start
    level, value = before
    share = (then.half_log_snr - now.half_log_snr) / (2 * (now.half_log_snr - level.half_log_snr))
    return (1 + share) * x_start - share * value


def _integrals(h: float, count: int) -> List[float]:
    """The integrals of e^(u - h) u^k / k! over u from 0 to h, k = 0..count-1."""
    values = [-math.expm1(-h)]
    for k in range(1, count):
        values.append(h**k / math.factorial(k) - values[-1])
    return values


def _unified(x: np.ndarray, history: List[Tuple[_Level, np.ndarray]], then: _Level) -> np.ndarray:
    """UniP, and UniC where `history` begins with what was found at `then` itself; Zhao et al. 2023, eqs. 3 and 9.

    `history` is newest first; x lies at the newest level but `then`.
    """
    points = [(level, value) for level, value in history if level != then]
    corrects = len(points) < len(history)
    now, x_start = points[0]
    h = then.half_log_snr - now.half_log_snr
    change = (1 - _decay(now, then)) * x_start
    others = [point for point in points[1:] + [history[0]] * corrects if math.isfinite(h + point[0].half_log_snr)]
    if others:
        ratios = [(level.half_log_snr - now.half_log_snr) / h for level, _ in others]
        integrals = _integrals(h, len(others) + 1)
        powers = np.vander(ratios, increasing=True).T
        wanted = [math.factorial(k) * integrals[k] / h**k for k in range(1, len(integrals))]
        # Of one point the paper takes 1/2 of B(h) for every h, section 3.3.
        weights = [integrals[0] / 2] if len(others) == 1 else np.linalg.solve(powers, wanted)
        for weight, ratio, (_, value) in zip(weights, ratios, others):
            change = change + float(weight / ratio) * (value - x_start)
    return (then.noise / now.noise) * x + then.signal * change


def _edm(
    denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], pairs: List[Tuple[_Level, _Level]],
    churning: Tuple[float, float, float, float], corrected: bool,
) -> Iterator[np.ndarray]:
    churn, churn_from, churn_to, churn_noise = churning
    if churn < 0 or churn_noise < 0:
        raise UserError(f"churn is {churn}, churn_noise {churn_noise}: they must not be negative")
    if churn == 0 and (churn_from, churn_to, churn_noise) != (0.0, math.inf, 1.0):
        raise UserError("churn is 0, and churn_from, churn_to and churn_noise are parts of it: give churn too")
    if not churn_from <= churn_to:
        raise UserError(f"churn_from is {churn_from}, churn_to {churn_to}: the first must not be above the second")
    largest = pairs[0][0].noise / pairs[0][0].signal
    x = next(noise) / pairs[0][0].signal  # x_0 + sigma eps from here on
    for now, then in pairs:
        sigma, target = now.noise / now.signal, then.noise / then.signal
        t, raised = now.t, sigma
        if churn > 0 and churn_from <= sigma <= churn_to:
            raised = min(sigma * (1 + min(churn / len(pairs), math.sqrt(2) - 1)), largest)
            x = x + (churn_noise * math.sqrt(raised**2 - sigma**2)) * next(noise)
            t = schedule.time_at(-2 * math.log(raised))
        slope = (x - denoise(x / math.hypot(1, raised), t)[0]) / raised
        ahead = x + (target - raised) * slope
        if corrected and target > 0:
            second = (ahead - denoise(ahead * then.signal, then.t)[0]) / target
            ahead = x + (target - raised) * (slope + second) / 2
        x = ahead
        yield x * then.signal
