"""Exercise 11: DDIM."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Oracle, Part
from course.grader.checks.ex10 import best_model

FILE = "ex11_ddim.py"
TITLE = Both("DDIM", "DDIM")

_LAST = (
    "at t_prev = -1 alpha-bar is 1: alphas_cumprod[-1] is the last entry of the table",
    "t_prev = -1 时 alpha-bar 等于 1：alphas_cumprod[-1] 取到的是表的最后一个元素",
)
_NEIGHBOUR = (
    "alpha-bar at t_prev belongs here, not at t - 1: DDIM leaps over steps",
    "这里应是 t_prev 处的 alpha-bar，不是 t - 1 处的：DDIM 是跳步的",
)


def parts(rng: np.random.Generator) -> list[Part]:
    """Leaps over several steps, x_0 in part beyond [-1, 1]."""
    betas = np.linspace(rng.uniform(0.02, 0.04), rng.uniform(0.1, 0.15), int(rng.integers(20, 30)))
    alphas_cumprod = np.cumprod(1 - betas)
    return [
        Part("11.1", "ddim_sigma", 1, _sigma(rng, alphas_cumprod)),
        Part("11.2", "ddim_step", 3, _step(rng, alphas_cumprod)),
        Part("11.3", "ddim_loop", 2, _loop(rng, alphas_cumprod)),
    ]


def not_finite(shape: tuple[int, ...]) -> Callable[[object], bool]:
    """Is an answer of this shape, and NaN or infinity in it?"""
    return lambda found: isinstance(found, np.ndarray) and found.shape == shape and not np.all(np.isfinite(found))


def deviation(ab: float, ab_prev: float, eta: float) -> float:
    """sigma of eq. 16."""
    return eta * np.sqrt((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev))


def step(
    x: np.ndarray, eps: np.ndarray, noise: np.ndarray, ab: float, ab_prev: float, sigma: float, *, clip: bool = False,
    derive_again: bool = False,
) -> np.ndarray:
    """Eq. 12; with `derive_again` eps follows from the clipped x_0."""
    x_start = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
    if clip:
        x_start = np.clip(x_start, -1, 1)
    if derive_again:
        eps = (x - np.sqrt(ab) * x_start) / np.sqrt(1 - ab)
    return np.sqrt(ab_prev) * x_start + np.sqrt(1 - ab_prev - sigma**2) * eps + sigma * noise


def loop(
    model: Callable[[np.ndarray, int], np.ndarray], noise: np.ndarray, levels: Sequence[tuple[int, int]],
    alphas_cumprod: np.ndarray, eta: float, clip: bool = False, first_noise: int = 1,
) -> np.ndarray:
    """From noise[0] by the steps t to t_prev of `levels`."""
    x = np.float64(noise[0])
    for k, (t, t_prev) in enumerate(levels):
        ab, ab_prev = alphas_cumprod[t], alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
        x = step(x, model(x, t), noise[first_noise + k], ab, ab_prev, deviation(ab, ab_prev, eta), clip=clip)
    return x


def _sigma(rng: np.random.Generator, alphas_cumprod: np.ndarray) -> list[Check]:
    eta = float(rng.uniform(0.3, 0.8))
    t = rng.integers(10, len(alphas_cumprod), size=4)
    t_prev = t - rng.integers(3, 9, size=4)
    ab, ab_prev, neighbour = alphas_cumprod[t], alphas_cumprod[t_prev], alphas_cumprod[t - 1]
    right = deviation(ab, ab_prev, eta)

    def call(pairs: Sequence[tuple[int, int]]) -> Call:
        return Call("sigmas", alphas_cumprod, tuple((int(a), int(b)) for a, b in pairs), eta, harness=True)

    return [
        Check(
            call(list(zip(t, t_prev))), right, returns="any", tolerance=1e-5,
            mistakes=[
                Mistake(
                    right**2, "this is the variance: the standard deviation is its root",
                    "这是方差：标准差是它的平方根",
                ),
                Mistake(
                    np.sqrt(eta) * deviation(ab, ab_prev, 1),
                    "eta multiplies the variance here: it belongs outside the root",
                    "这里 eta 乘在了方差上：它应在根号之外",
                ),
                Mistake(
                    eta * deviation(ab, ab_prev, 1) ** 2, "both square roots are missing", "两个平方根都漏了",
                ),
                Mistake(deviation(ab, ab_prev, 1), "eta is missing", "漏了 eta"),
                Mistake(deviation(ab, neighbour, eta), *_NEIGHBOUR),
                Mistake(
                    eta * np.sqrt((1 - ab) / (1 - ab_prev) * (1 - ab / ab_prev)),
                    "the first fraction is upside down: (1 - ab_prev) / (1 - ab)",
                    "第一个分式上下颠倒了：应为 (1 - ab_prev) / (1 - ab)",
                ),
                Mistake(
                    eta * np.sqrt((1 - ab_prev) / (1 - ab)), "the factor sqrt(1 - ab / ab_prev) is missing",
                    "漏了因子 sqrt(1 - ab / ab_prev)",
                ),
                Mistake(
                    eta * np.sqrt(1 - ab / ab_prev), "the factor sqrt((1 - ab_prev) / (1 - ab)) is missing",
                    "漏了因子 sqrt((1 - ab_prev) / (1 - ab))",
                ),
            ],
        ),
        Check(
            call([(int(t[0]) - 3, -1), (0, -1)]), np.zeros(2), returns="any", tolerance=1e-7,
            mistakes=[Mistake(not_finite((2,)), *_LAST)],
        ),
    ]


def _step(rng: np.random.Generator, alphas_cumprod: np.ndarray) -> list[Check]:
    x, eps, noise = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(3))
    t = int(rng.integers(10, len(alphas_cumprod) - 1))
    t_prev, eta = t - int(rng.integers(3, 9)), float(rng.uniform(0.4, 0.8))
    ab, ab_prev = alphas_cumprod[t], alphas_cumprod[t_prev]
    sigma = deviation(ab, ab_prev, eta)
    x_start = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)

    def call(t_prev: int, *options: object) -> Call:
        return Call("ddim_step", AsTensor(x), AsTensor(eps), t, t_prev, AsTensor(noise), alphas_cumprod, *options)

    def answer(sigma: float = 0.0, ab_prev: float = ab_prev, **options: bool) -> np.ndarray:
        return step(x, eps, noise, ab, ab_prev, sigma, **options)

    def parts_of(x_start: np.ndarray, direction: float, deviation: float) -> np.ndarray:
        return np.sqrt(ab_prev) * x_start + direction * eps + deviation * noise

    straight = np.sqrt(1 - ab_prev)
    return [
        Check(
            call(t_prev), answer(),
            mistakes=[
                Mistake(
                    answer(clip=True), "x_0 is clipped where that is not asked for: clip is False",
                    "没有要求裁剪却裁剪了 x_0：clip 为 False",
                ),
                Mistake(
                    parts_of(x_start * np.sqrt(ab), straight, 0), "in x_0 the division by sqrt(ab) is missing",
                    "x_0 中漏了除以 sqrt(ab)",
                ),
                Mistake(
                    parts_of((x - (1 - ab) * eps) / ab, straight, 0), "in x_0 the square roots are missing",
                    "x_0 中漏了平方根",
                ),
                Mistake(
                    parts_of(x_start, 0, 0), "the term that points to x_t, sqrt(1 - ab_prev - sigma^2) eps, is missing",
                    "漏了指向 x_t 的一项 sqrt(1 - ab_prev - sigma^2) eps",
                ),
                Mistake(
                    parts_of(x_start, 1 - ab_prev, 0), "the root of 1 - ab_prev - sigma^2 is missing",
                    "1 - ab_prev - sigma^2 漏了平方根",
                ),
                Mistake(
                    parts_of(x_start, np.sqrt(1 - ab), 0),
                    "the direction is sqrt(1 - ab_prev - sigma^2) eps: ab_prev, not ab",
                    "方向项是 sqrt(1 - ab_prev - sigma^2) eps：用 ab_prev，不是 ab",
                ),
                Mistake(
                    answer(deviation(ab, ab_prev, 1)), "noise is added though eta is 0", "eta 为 0，却加了噪声",
                ),
                Mistake(answer(ab_prev=alphas_cumprod[t - 1]), *_NEIGHBOUR),
                Mistake(x_start, "this is x_0, not x at t_prev", "这是 x_0，不是 t_prev 处的 x"),
            ],
        ),
        Check(
            call(t_prev, eta), answer(sigma),
            mistakes=[
                Mistake(
                    parts_of(x_start, straight, sigma),
                    "the direction must give way to the noise: sqrt(1 - ab_prev - sigma^2), not sqrt(1 - ab_prev)",
                    "方向项要给噪声让位：应为 sqrt(1 - ab_prev - sigma^2)，不是 sqrt(1 - ab_prev)",
                ),
                Mistake(
                    parts_of(x_start, np.sqrt(max(1 - ab_prev - sigma, 0)), sigma),
                    "sigma is a standard deviation: subtract sigma^2 under the root",
                    "sigma 是标准差：根号里应减去 sigma^2",
                ),
                Mistake(
                    parts_of(x_start, np.sqrt(1 - ab_prev - sigma**2), sigma**2),
                    "the noise is multiplied by the variance sigma^2: by sigma, the standard deviation",
                    "噪声乘的是方差 sigma^2：应乘标准差 sigma",
                ),
                Mistake(
                    parts_of(x_start, np.sqrt(1 - ab_prev - sigma**2), 0), "sigma noise is missing",
                    "漏了 sigma * noise",
                ),
                Mistake(answer(0), "the argument eta is ignored", "参数 eta 被忽略了"),
                Mistake(
                    answer(np.sqrt(eta) * deviation(ab, ab_prev, 1)),
                    "eta multiplies the variance here: it belongs outside the root",
                    "这里 eta 乘在了方差上：它应在根号之外",
                ),
                Mistake(answer(deviation(ab, ab_prev, 1)), "eta is missing in sigma", "sigma 中漏了 eta"),
            ],
        ),
        Check(
            call(-1, eta), x_start,
            mistakes=[
                Mistake(answer(ab_prev=alphas_cumprod[-1]), *_LAST),
                Mistake(not_finite(x.shape), *_LAST),
            ],
        ),
        Check(
            call(t_prev, eta, True), answer(sigma, clip=True),
            mistakes=[
                Mistake(answer(sigma), "x_0 is not clipped: clip is True", "没有裁剪 x_0：clip 为 True"),
                Mistake(
                    answer(sigma, clip=True, derive_again=True),
                    "eps is derived again from the clipped x_0: it must stay as it is",
                    "由裁剪后的 x_0 重新推出了 eps：eps 应保持不变",
                ),
                Mistake(
                    np.clip(answer(sigma), -1, 1), "the result is clipped: clip x_0, before it is used",
                    "裁剪的是结果：应在使用之前裁剪 x_0",
                ),
            ],
        ),
    ]


def _loop(rng: np.random.Generator, alphas_cumprod: np.ndarray) -> list[Check]:
    timesteps = len(alphas_cumprod)
    times = sorted((int(t) for t in 1 + rng.choice(timesteps - 3, size=4, replace=False)), reverse=True)
    times[0] = timesteps - 1
    levels = list(zip(times, [*times[1:], -1]))
    noise = rng.normal(size=(len(times) + 1, 3, 1, 4, 5)).astype(np.float32)
    betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    slopes, offsets = best_model(betas, rng.uniform(-0.4, 0.4), rng.uniform(1, 1.4))
    eta = float(rng.uniform(0.4, 0.8))

    def model(x: np.ndarray, t: int) -> np.ndarray:
        return slopes[t] * x + offsets[t]

    def check(eta: float, clip: bool) -> Check:
        def answer(levels: Sequence[tuple[int, int]] = levels, eta: float = eta, **options: object) -> np.ndarray:
            return loop(model, noise, levels, alphas_cumprod, eta, **{"clip": clip, **options})

        mistakes = [
            Mistake(
                answer(levels[:-1]), "the last step is missing, from the last of the times to -1: this is no image yet",
                "漏了最后一步，即从最后一个时刻走到 -1：这还不是图像",
            ),
            Mistake(
                answer([(t, t - 1) for t in times]), "each step goes to the next of the times, not to t - 1",
                "每一步走到 times 中的下一个时刻，而不是 t - 1",
            ),
        ]
        if eta > 0:
            mistakes += [
                Mistake(answer(eta=0), "the argument eta is not passed on", "参数 eta 没有传下去"),
                Mistake(
                    answer(first_noise=0), "noise[0] is x_T and must not serve again: the first step takes noise[1]",
                    "noise[0] 是 x_T，不能再用一次：第一步用 noise[1]",
                ),
            ]
        if clip:
            mistakes.append(Mistake(answer(clip=False), "the argument clip is not passed on", "参数 clip 没有传下去"))
        return Check(
            Call(
                "ddim_loop", Oracle("affine", slopes, offsets), AsTensor(noise), tuple(times), alphas_cumprod, eta, clip
            ),
            answer(), mistakes=mistakes,
        )

    return [check(0.0, False), check(eta, False), check(1.0, True)]
