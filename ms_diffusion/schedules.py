"""Noise schedules beta_t and every table that follows from them, in NumPy float64."""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

from ms_diffusion.config import DiffusionConfig
from ms_diffusion.errors import UserError


def linear_beta_schedule(
    timesteps: int, beta_start: float = DiffusionConfig.beta_start, beta_end: float = DiffusionConfig.beta_end
) -> np.ndarray:
    """beta_t in equal steps, (T,); Ho et al. 2020, section 4."""
    return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)


def quadratic_beta_schedule(
    timesteps: int, beta_start: float = DiffusionConfig.beta_start, beta_end: float = DiffusionConfig.beta_end
) -> np.ndarray:
    """sqrt(beta_t) in equal steps, (T,); the "quad" schedule of the code of Song et al. 2020 (DDIM)."""
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=np.float64) ** 2


def sigmoid_beta_schedule(
    timesteps: int, beta_start: float = DiffusionConfig.beta_start, beta_end: float = DiffusionConfig.beta_end
) -> np.ndarray:
    """A logistic curve over [-6, 6] between the two betas, (T,); Xu et al. 2022 (GeoDiff), Rogge and Rasul 2022."""
    curve = 1 / (1 + np.exp(-np.linspace(-6, 6, timesteps, dtype=np.float64)))
    return curve * (beta_end - beta_start) + beta_start


def cosine_beta_schedule(timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """alpha-bar_t follows a squared cosine, (T,); Nichol and Dhariwal 2021, eq. 17 with beta clipped at 0.999."""
    t = np.linspace(0, 1, timesteps + 1, dtype=np.float64)
    alphas_cumprod = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """`betas` changed so that alpha-bar_T is 0 and alpha-bar_1 what it was; Lin et al. 2023, Algorithm 1.

    sqrt(alpha-bar) is moved and stretched. The last beta is 1.
    """
    signal = np.sqrt(np.cumprod(1 - betas))
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    return np.append(betas[0], 1 - (signal[1:] / signal[:-1]) ** 2)


class NoiseSchedule:
    """The tables of a schedule, each float64 (T,), computed once from `betas`.

    Code index t = 0..T-1 is the paper's t = 1..T. Raises `UserError` unless every beta is in (0, 1); the last may be 1,
    and then x_T is noise alone, the last SNR 0, and its reciprocals infinite.
    """

    def __init__(self, betas: np.ndarray) -> None:
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not (np.all((betas > 0) & (betas <= 1)) and np.all(betas[:-1] < 1)):
            raise UserError("betas must be one row of numbers between 0 and 1, both excluded; the last may be 1")
        self.betas = betas
        self.alphas = 1 - betas
        self.alphas_cumprod = np.cumprod(self.alphas)  # alpha-bar_t
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])  # alpha-bar_{t-1}
        # q(x_t | x_0), eq. 4
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1 - self.alphas_cumprod)
        # x_0 from x_t and the noise, eq. 4 solved
        with np.errstate(divide="ignore"):
            self.sqrt_recip_alphas_cumprod = np.sqrt(1 / self.alphas_cumprod)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / self.alphas_cumprod - 1)
        # q(x_{t-1} | x_t, x_0), eqs. 6 and 7
        self.posterior_variance = betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)  # beta-tilde_t
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)  # of x_0
        self.posterior_mean_coef2 = (
            (1 - self.alphas_cumprod_prev) * np.sqrt(self.alphas) / (1 - self.alphas_cumprod)
        )  # of x_t
        self.snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        with np.errstate(divide="ignore"):  # -inf where x_T holds no signal
            self.log_snr = np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)

    def amplitudes(self, t: float) -> Tuple[float, float]:
        """sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t) at any t from 0 to T-1; 1 and 0 at t = -1, the image.

        Python floats. Between whole t the log-SNR is linear in t. Where the last SNR is 0, its logarithm would be -inf
        all along the last interval: there the angle whose cosine is sqrt(alpha-bar) is linear in t. It is finite at
        both ends, and the network's v is the speed of x_t in it.
        """
        if t == -1:
            return 1.0, 0.0
        if t == int(t):
            return float(self.sqrt_alphas_cumprod[int(t)]), float(self.sqrt_one_minus_alphas_cumprod[int(t)])
        if t > len(self) - 2 and self._last_turn:
            rest = (len(self) - 1 - t) * self._last_turn
            return math.sin(rest), math.cos(rest)
        log_snr = float(np.interp(t, np.arange(len(self)), self.log_snr))
        return (1 + math.exp(-log_snr)) ** -0.5, (1 + math.exp(log_snr)) ** -0.5

    def time_at(self, log_snr: float) -> float:
        """The t at which log(alpha-bar_t / (1 - alpha-bar_t)) is `log_snr`; 0 or T-1 where the schedule ends before."""
        if self._last_turn and log_snr < 2 * math.log(math.tan(self._last_turn)):
            return len(self) - 1 - math.atan(math.exp(log_snr / 2)) / self._last_turn
        return float(np.interp(-log_snr, -self.log_snr, np.arange(len(self))))

    @property
    def _last_turn(self) -> float:
        """The angle from x_{T-1} to an x_T that holds no signal, the paper's T; 0 where it holds some."""
        if self.alphas_cumprod[-1] > 0:
            return 0.0
        return math.asin(math.sqrt(self.alphas_cumprod_prev[-1]))

    def __len__(self) -> int:
        return len(self.betas)


def make_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The schedule that `config` describes."""
    if config.schedule == "cosine":
        betas = cosine_beta_schedule(config.timesteps)
    else:
        function = {
            "linear": linear_beta_schedule, "quadratic": quadratic_beta_schedule, "sigmoid": sigmoid_beta_schedule,
        }[config.schedule]
        scale = 1000 / config.timesteps if config.scale_betas else 1.0
        betas = scale * function(config.timesteps, config.beta_start, config.beta_end)
    return NoiseSchedule(zero_terminal_snr(betas) if config.zero_terminal_snr else betas)
