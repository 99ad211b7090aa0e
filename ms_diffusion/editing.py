"""Given images, changed by a network that only ever learned to denoise: generator functions in plain NumPy.

`denoise`, `schedule` and `noise` are those of `samplers`, and so is what is yielded: x after each step, the last x_0.
Images are float (B, C, H, W), or (1, C, H, W) for a whole batch, in [-1, 1]; the noise has the batch's shape.
A `sampler` is one of `samplers`, with its options filled in as `samplers.find` does.
"""

from __future__ import annotations

import inspect
import math
from itertools import chain
from typing import Callable, Iterator, List, Sequence

import numpy as np

from ms_diffusion import samplers
from ms_diffusion.errors import UserError
from ms_diffusion.samplers import Denoiser
from ms_diffusion.schedules import NoiseSchedule

Sampler = Callable[..., Iterator[np.ndarray]]
"""(denoise, schedule, noise, steps) -> x after each step."""


def until(schedule: NoiseSchedule, strength: float) -> NoiseSchedule:
    """The first of the T noise levels, a share `strength` of them, at least one: its last is t = strength T - 1.

    Raises `UserError` unless 0 < strength <= 1.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is {strength}: it must be above 0 and at most 1")
    return NoiseSchedule(schedule.betas[: max(round(strength * len(schedule)), 1)])


def encodable(schedule: NoiseSchedule, strength: float) -> NoiseSchedule:
    """`until`, but for a last level that holds no signal: there nothing tells one image from another."""
    reached = until(schedule, strength)
    return reached if reached.sqrt_alphas_cumprod[-1] > 0 else NoiseSchedule(reached.betas[:-1])


def variations(
    sampler: Sampler, denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: int, *,
    images: np.ndarray, strength: float,
) -> Iterator[np.ndarray]:
    """SDEdit, Meng et al. 2022 (arXiv 2108.01073), Algorithm 1: noise up to a level, and down again by any sampler.

    All `steps` are taken below that level, t = strength T - 1. Strength 0 gives the images back; at strength 1 the last
    level counts as noise alone, as it does in sampling, so this is sampling.
    """
    if strength == 0:
        yield np.broadcast_to(images, next(noise).shape)
        return
    reached = until(schedule, strength)
    if len(reached) < len(schedule):
        first, *_ = samplers.times(reached, steps, _spacing(sampler))
        noise = chain([_noised(schedule, first, images, next(noise))], noise)
    yield from sampler(denoise, reached, noise, steps)


def interpolation(
    denoise: Denoiser, schedule: NoiseSchedule, steps: int, *,
    first: np.ndarray, second: np.ndarray, shares: Sequence[float], strength: float = 1.0, iterations: int = 10,
) -> Iterator[np.ndarray]:
    """Between two images, Song et al. 2020 (arXiv 2010.02502), section 5.3: both are encoded, mixed, and decoded.

    `shares` (B,) are those of the second images, from 0 to 1: at the ends come the images again, as exactly as `encode`
    finds their codes. These are x at t = strength T - 1, as in section 4.3 of Ho et al. 2020, mixed by `slerp`.
    """
    reached = encodable(schedule, strength)
    codes = [encode(denoise, reached, images, steps, iterations) for images in (first, second)]
    yield from samplers.ddim(denoise, reached, iter([slerp(*codes, shares)]), steps, spacing="log_snr")


def encode(
    denoise: Denoiser, schedule: NoiseSchedule, images: np.ndarray, steps: int, iterations: int = 10
) -> np.ndarray:
    """x at the schedule's last level, of which `samplers.ddim` makes the images: its inversion, Pan et al. 2023.

    The steps are even in log-SNR. Where they are longer near the image, more `iterations` do not bring it back.
    """
    *_, code = samplers.ddim_inversion(
        denoise, schedule, iter([images]), steps, spacing="log_snr", iterations=iterations
    )
    return code


def slerp(first: np.ndarray, second: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Spherical interpolation, Shoemake 1985, between the images of two batches, each as one vector.

    `shares` (B,) are those of the second; the arrays are (B, ...). Noise stays as large as noise. Where both point the
    same way it is the straight line.
    """
    shape = (-1,) + (1,) * (first.ndim - 1)
    axes = tuple(range(1, first.ndim))
    lengths = np.sqrt((first**2).sum(axes) * (second**2).sum(axes))
    cosine = np.where(lengths > 0, (first * second).sum(axes) / np.where(lengths > 0, lengths, 1), 1)
    angle, share = np.arccos(np.clip(cosine, -1, 1)), np.asarray(shares, first.dtype)
    sine = np.sin(angle)
    straight = sine < 1e-6
    sine = np.where(straight, 1, sine)
    weights = (
        np.where(straight, 1 - share, np.sin((1 - share) * angle) / sine),
        np.where(straight, share, np.sin(share * angle) / sine),
    )
    return sum(weight.reshape(shape) * code for weight, code in zip(weights, (first, second)))


def inpainting(
    sampler: Sampler, denoise: Denoiser, schedule: NoiseSchedule, noise: Iterator[np.ndarray], steps: int, *,
    images: np.ndarray, known: np.ndarray, jump: int = 5, resamplings: int = 10,
) -> Iterator[np.ndarray]:
    """RePaint, Lugmayr et al. 2022 (arXiv 2201.09865), Algorithm 1: what is not `known` is made to fit what is.

    `known` is bool and broadcasts to the images, whose pixels there come back bit for bit. After each step the known
    pixels are those of the images at that level of noise; going up and down again, `walk` says when, lets the others
    adapt to them: more resamplings, and jumps of a smaller share of the steps, fit better. The paper jumps 10 of 250
    steps. `sampler` makes single steps: ancestral, the paper's, or ddim.
    """
    times = [*samplers.times(schedule, steps, _spacing(sampler)), -1]
    places = walk(steps, jump, resamplings)
    x = next(noise)
    for here, there in zip(places, places[1:]):
        now, then = times[steps - here], times[steps - there]
        if there > here:
            ratio = schedule.amplitudes(then)[0] / schedule.amplitudes(now)[0]
            x = ratio * x + math.sqrt(1 - ratio**2) * next(noise)  # q(x_then | x_now)
            continue
        x = next(sampler(denoise, schedule, chain([x], noise), [now, then] if then >= 0 else [now]))
        x = np.where(known, _noised(schedule, then, images, next(noise)) if then >= 0 else images, x)
        yield x


def walk(steps: int, jump: int, resamplings: int) -> List[int]:
    """How many steps are left after each move of RePaint: `steps`, then one fewer, or `jump` more, and at last 0.

    Each stretch of `jump` steps is walked down `resamplings` times, but for the uppermost: the schedule of the paper's
    appendix and code. Raises `UserError` for a jump that never happens.
    """
    if resamplings < 1 or jump < 1:
        raise UserError(f"jump is {jump}, resamplings {resamplings}: they must be at least 1")
    if resamplings > 1 and jump >= steps:
        raise UserError(f"jump is {jump}, and there are {steps} steps: jump fewer, or give resamplings=1 for none")
    returns = dict.fromkeys(range(1, steps - jump + 1, jump), resamplings - 1)
    places = [steps]
    while places[-1] > 0:
        places.append(places[-1] - 1)
        if returns.get(places[-1], 0) > 0:
            returns[places[-1]] -= 1
            places.append(places[-1] + jump)
    return places


def _noised(schedule: NoiseSchedule, t: float, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """x_t of the images; Ho et al. 2020, eq. 4."""
    signal, sigma = schedule.amplitudes(t)
    return signal * images + sigma * noise


def _spacing(sampler: Sampler) -> str:
    """Where `sampler` has its steps: the option given to it, or its own default."""
    return inspect.signature(sampler).parameters["spacing"].default
