"""Exercise 10: sampling."""

from __future__ import annotations

from typing import Callable

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Oracle, Part

FILE = "ex10_sampling.py"
TITLE = Both("Sampling", "采样")

_VARIANCE = (
    "sigma_t^2 is the variance: noise is multiplied by the standard deviation, its square root",
    "sigma_t^2 是方差：噪声要乘标准差，即它的平方根",
)
_AT_ZERO = ("noise is added at t = 0: the last step returns the mean alone", "t = 0 时加了噪声：最后一步只返回均值")
_OTHER = (
    "the two variances are mixed up: fixed_small is the smaller one, of the posterior, and fixed_large is beta_t",
    "两种方差弄混了：fixed_small 是较小的后验方差，fixed_large 是 beta_t",
)
_FIRST_FOR_ALL = ("every image has its own t: this took the first one for all",
"每幅图像有自己的 t：这里全都用了第一个")

Model = Callable[[np.ndarray, np.ndarray], np.ndarray]


def parts(rng: np.random.Generator) -> list[Part]:
    """Few steps with large betas, so that each of them counts. Two data sets for 10.4: a constant may fit one."""
    betas = np.linspace(rng.uniform(0.08, 0.12), rng.uniform(0.3, 0.4), int(rng.integers(9, 13)))
    return [
        Part("10.1", "p_mean", 2, [_p_mean(rng, betas)]),
        Part("10.2", "p_sample", 2, _p_sample(rng, betas)),
        Part("10.3", "p_sample_loop", 2, _p_sample_loop(rng, betas)),
        Part("10.4", "sample", 2, [_sample(rng, betas), _sample(rng, betas)]),
    ]


def _rows(table: np.ndarray, t: np.ndarray) -> np.ndarray:
    return table[t][:, None, None, None]


def best_model(betas: np.ndarray, mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """slopes, offsets (T,) of eps = slope x_t + offset, the best there is where every pixel is N(mean, std^2)."""
    ab = np.cumprod(1 - betas)
    slopes = np.sqrt(1 - ab) / (ab * std**2 + 1 - ab)
    return slopes, -slopes * np.sqrt(ab) * mean


def reverse_mean(x_t: np.ndarray, t: np.ndarray, eps: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Eq. 11."""
    ab = np.cumprod(1 - betas)
    return (x_t - _rows(betas / np.sqrt(1 - ab), t) * eps) / _rows(np.sqrt(1 - betas), t)


def deviations(betas: np.ndarray, variance: str, power: float = 0.5, at_zero: bool = False) -> np.ndarray:
    """What multiplies the noise of each step, (T,); 0 at t = 0 unless `at_zero`."""
    ab = np.cumprod(1 - betas)
    small = betas * (1 - np.append(1.0, ab[:-1])) / (1 - ab)
    sigma = (small if variance == "fixed_small" else betas) ** power
    return sigma if at_zero else np.append(0.0, sigma[1:])


def reverse_steps(
    model: Model, noise: np.ndarray, betas: np.ndarray, sigma: np.ndarray, steps: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """From noise[0] by the `steps` t, with noise[which] for each."""
    x = np.float64(noise[0])
    for step, k in zip(steps, which):
        t = np.full(len(x), step)
        x = reverse_mean(x, t, model(x, t), betas) + sigma[step] * noise[k]
    return x


def _p_mean(rng: np.random.Generator, betas: np.ndarray) -> Check:
    x, eps = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    t = (1 + rng.choice(len(betas) - 1, size=3, replace=False)).astype(np.int32)
    beta, alpha, bar = _rows(betas, t), _rows(1 - betas, t), _rows(np.cumprod(1 - betas), t)
    return Check(
        Call("p_mean", AsTensor(x), AsTensor(t), AsTensor(eps), betas), reverse_mean(x, t, eps, betas),
        mistakes=[
            Mistake(
                x - beta / np.sqrt(1 - bar) * eps, "the division by sqrt(alpha_t) is missing", "漏了除以 sqrt(alpha_t)",
            ),
            Mistake(
                (x - beta / np.sqrt(1 - bar) * eps) / np.sqrt(bar),
                "outside the brackets alpha_t belongs, not alpha-bar_t", "括号外应是 alpha_t，不是 alpha-bar_t",
            ),
            Mistake(
                (x - beta / np.sqrt(1 - alpha) * eps) / np.sqrt(alpha),
                "inside the brackets alpha-bar_t belongs, not alpha_t", "括号里应是 alpha-bar_t，不是 alpha_t",
            ),
            Mistake(
                (x - beta / (1 - bar) * eps) / np.sqrt(alpha), "the square root of 1 - alpha-bar_t is missing",
                "1 - alpha-bar_t 漏了平方根",
            ),
            Mistake(
                (x - beta / (1 - bar) * eps) / alpha, "both square roots are missing", "两个平方根都漏了",
            ),
            Mistake(
                (x - beta / np.sqrt(1 - bar) * eps) / alpha, "the square root of alpha_t is missing",
                "alpha_t 漏了平方根",
            ),
            Mistake(
                (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar), "this is x_0, not the mean of x_{t-1}",
                "这是 x_0，不是 x_{t-1} 的均值",
            ),
            Mistake(
                (x + beta / np.sqrt(1 - bar) * eps) / np.sqrt(alpha), "the noise is added: it must be taken away",
                "这里加上了噪声：应当减去",
            ),
            Mistake(reverse_mean(x, np.full_like(t, t[0]), eps, betas), *_FIRST_FOR_ALL),
        ],
    )


def _p_sample(rng: np.random.Generator, betas: np.ndarray) -> list[Check]:
    x, noise = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    slopes, offsets = rng.uniform(0.5, 1.5, size=len(betas)), rng.normal(size=len(betas))
    first_is_zero = np.append(0, 1 + rng.choice(len(betas) - 1, size=2, replace=False)).astype(np.int32)

    def check(variance: str, t: np.ndarray) -> Check:
        mean = reverse_mean(x, t, np.sin(_rows(slopes, t) * x) + _rows(offsets, t), betas)
        other = "fixed_large" if variance == "fixed_small" else "fixed_small"

        def answer(sigma: np.ndarray) -> np.ndarray:
            return mean + _rows(sigma, t) * noise

        mistakes = [
            Mistake(answer(deviations(betas, variance, power=1)), *_VARIANCE),
            Mistake(answer(deviations(betas, other)), *_OTHER),
            Mistake(
                mean, "no noise at all is added; where t = 0 decides, it must for each image by itself",
                "完全没有加噪声；若由 t = 0 决定，应对每幅图像单独判断",
            ),
        ]
        if variance == "fixed_large":
            mistakes += [
                Mistake(answer(deviations(betas, variance, at_zero=True)), *_AT_ZERO),
                Mistake(
                    answer(deviations(betas, variance, power=1, at_zero=True)),
                    f"{_VARIANCE[0]}. And {_AT_ZERO[0]}", f"{_VARIANCE[1]}。此外，{_AT_ZERO[1]}",
                ),
            ]
        return Check(
            Call("p_sample", Oracle("wavy", slopes, offsets), *map(AsTensor, (x, t, noise)), betas, variance),
            answer(deviations(betas, variance)), mistakes=mistakes,
        )

    return [check("fixed_large", first_is_zero), check("fixed_small", np.roll(first_is_zero, 1))]


def _p_sample_loop(rng: np.random.Generator, betas: np.ndarray) -> list[Check]:
    steps = len(betas)
    noise = rng.normal(size=(steps + 1, 3, 1, 4, 5)).astype(np.float32)
    slopes, offsets = best_model(betas, rng.uniform(-0.5, 0.5), rng.uniform(0.4, 0.7))
    down, order = np.arange(steps)[::-1], np.arange(1, steps + 1)

    def model(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return _rows(slopes, t) * x + _rows(offsets, t)

    def check(variance: str) -> Check:
        right = deviations(betas, variance)

        def answer(
            sigma: np.ndarray = right, steps: np.ndarray = down, which: np.ndarray = order
        ) -> np.ndarray:
            return reverse_steps(model, noise, betas, sigma, steps, which)

        other = "fixed_large" if variance == "fixed_small" else "fixed_small"
        mistakes = [
            Mistake(answer(deviations(betas, variance, power=1)), *_VARIANCE),
            Mistake(
                answer(deviations(betas, other)), "the argument variance is not passed on to p_sample",
                "参数 variance 没有传给 p_sample",
            ),
            Mistake(
                answer(steps=down[:-1]), "the last step, t = 0, is missing: this is x_1",
                "漏了最后一步 t = 0：这是 x_1",
            ),
            Mistake(
                answer(steps=down[::-1]), "t must fall, from T-1 to 0: here it grows",
                "t 应从 T-1 递减到 0：这里是递增",
            ),
            Mistake(
                answer(which=order - 1), "noise[0] is x_T and must not serve again: the first step takes noise[1]",
                "noise[0] 是 x_T，不能再用一次：第一步用 noise[1]",
            ),
            Mistake(
                answer(which=order[::-1]), "the first step, t = T-1, takes noise[1]: here the order is reversed",
                "第一步 (t = T-1) 用 noise[1]：这里顺序反了",
            ),
            Mistake(answer(which=np.ones_like(order)), "the same noise in every step", "每一步都用了同一份噪声"),
            Mistake(answer(np.zeros(steps)), "no step adds noise", "没有一步加了噪声"),
        ]
        if variance == "fixed_large":
            mistakes.append(Mistake(answer(deviations(betas, variance, at_zero=True)), *_AT_ZERO))
        return Check(
            Call("p_sample_loop", Oracle("affine", slopes, offsets), AsTensor(noise), betas, variance), answer(),
            mistakes=mistakes,
        )

    return [check("fixed_large"), check("fixed_small")]


def statistics(betas: np.ndarray, mean: float, std: float, sigma: np.ndarray) -> tuple[float, float]:
    """Mean and variance of x_0 that reverse steps with the best model make of N(0, 1); two scalar recursions."""
    slopes, offsets = best_model(betas, mean, std)
    drift = betas / np.sqrt(1 - np.cumprod(1 - betas))
    keep, move = (1 - drift * slopes) / np.sqrt(1 - betas), -drift * offsets / np.sqrt(1 - betas)
    centre, spread = 0.0, 1.0
    for t in reversed(range(len(betas))):
        centre, spread = keep[t] * centre + move[t], keep[t] ** 2 * spread + sigma[t] ** 2
    return centre, spread


def _sample(rng: np.random.Generator, betas: np.ndarray) -> Check:
    mean, std = rng.uniform(-0.5, 0.5), rng.uniform(0.4, 0.7)
    slopes, offsets = best_model(betas, mean, std)
    drift = betas / np.sqrt(1 - np.cumprod(1 - betas))
    keep = (1 - drift * slopes) / np.sqrt(1 - betas)
    sigma = deviations(betas, "fixed_large")

    def answer(sigma: np.ndarray = sigma, correlation: float = 0.0) -> np.ndarray:
        centre, spread = statistics(betas, mean, std, sigma)
        return np.array([centre, np.sqrt(spread), correlation])

    # What is left in x_0 of the noise of each step, and of x_T.
    left = np.array([sigma[t] * np.prod(keep[:t]) for t in range(len(betas))])
    start = np.prod(keep)
    centre, spread = statistics(betas, mean, std, sigma)
    uniform = centre + 0.5 * (start + left.sum())
    return Check(
        Call("statistics", slopes, offsets, (64, 1, 32, 32), betas, "fixed_large", harness=True), answer(),
        returns="any", tolerance=0.05,  # six standard errors of the correlation
        mistakes=[
            Mistake(answer(deviations(betas, "fixed_large", power=1)), *_VARIANCE),
            Mistake(answer(deviations(betas, "fixed_large", at_zero=True)), *_AT_ZERO),
            Mistake(answer(np.zeros(len(betas))), "no step adds noise", "没有一步加了噪声"),
            Mistake(
                np.array([centre, np.sqrt(start**2 + left.sum() ** 2), 0]),
                "the same noise in every step: draw new noise for each", "每一步都用了同一份噪声：每一步都要重新抽取",
            ),
            Mistake(
                answer(correlation=1), "the images of the batch share their noise: each needs its own",
                "一批图像共用了噪声：每幅图像要有自己的噪声",
            ),
            Mistake(
                np.array([uniform, np.sqrt(spread / 12), 0]),
                "the noise is uniform in [0, 1): it must be standard normal",
                "噪声是 [0, 1) 上的均匀分布：应为标准正态分布",
            ),
        ],
    )
