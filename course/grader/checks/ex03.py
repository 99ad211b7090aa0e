"""Exercise 3: the image from the noise, and back."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex03_x_start.py"
TITLE = Both("x_0 from the noise, and back", "由噪声求 x_0，以及反过来")


def parts(rng: np.random.Generator) -> list[Part]:
    """Each image of the batch at another t, every axis of another length."""
    timesteps = int(rng.integers(10, 20))
    betas = rng.uniform(0.02, 0.2, size=timesteps)
    t = 1 + rng.choice(timesteps - 1, size=3, replace=False).astype(np.int32)
    x_t, other = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    return [
        Part("3.1", "predict_x_start", 3, [_predict_x_start(betas, t, x_t, other)]),
        Part("3.2", "predict_noise", 3, [_predict_noise(betas, t, x_t, other)]),
    ]


def _tables(betas: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha-bar_t, alpha_t and alpha-bar_{t-1}, each (B, 1, 1, 1)."""
    bar = np.cumprod(1 - betas)
    return tuple(table[t][:, None, None, None] for table in (bar, 1 - betas, np.append(1.0, bar[:-1])))


def _predict_x_start(betas: np.ndarray, t: np.ndarray, x_t: np.ndarray, noise: np.ndarray) -> Check:
    bar, alpha, previous = _tables(betas, t)

    def solved(bar: np.ndarray) -> np.ndarray:
        return (x_t - np.sqrt(1 - bar) * noise) / np.sqrt(bar)

    return Check(
        Call("predict_x_start", AsTensor(x_t), AsTensor(t), AsTensor(noise), betas), solved(bar),
        mistakes=[
            Mistake(
                solved(alpha), "alpha_t stands where alpha-bar_t belongs: x_t holds the noise of all steps up to t",
                "这里应是 alpha-bar_t，不是 alpha_t：x_t 含有到 t 为止每一步的噪声",
            ),
            Mistake(
                solved(previous), "off by one: alpha-bar_t, not alpha-bar_{t-1}",
                "差了一步：是 alpha-bar_t，不是 alpha-bar_{t-1}",
            ),
            Mistake(
                x_t - np.sqrt(1 - bar) * noise,
                "the noise is gone, but the image still shrunk: divide by sqrt(alpha-bar_t)",
                "噪声减掉了，但图像仍是缩小的：再除以 sqrt(alpha-bar_t)",
            ),
            Mistake(
                (x_t - np.sqrt(1 - bar) * noise) * np.sqrt(bar),
                "multiplied where it must be divided by sqrt(alpha-bar_t)",
                "应除以 sqrt(alpha-bar_t)，却乘了",
            ),
            Mistake(
                (x_t - np.sqrt(1 - bar) * noise) / bar, "a square root is missing: divide by sqrt(alpha-bar_t)",
                "漏了平方根：应除以 sqrt(alpha-bar_t)",
            ),
            Mistake(
                (x_t - (1 - bar) * noise) / np.sqrt(bar),
                "1 - alpha-bar_t is the variance: noise is multiplied by the standard deviation, its square root",
                "1 - alpha-bar_t 是方差：噪声要乘标准差，即它的平方根",
            ),
            Mistake(
                (x_t - (1 - bar) * noise) / bar, "both square roots are missing", "两个平方根都漏了",
            ),
            Mistake(
                (x_t - np.sqrt(bar) * noise) / np.sqrt(1 - bar), "the two factors are swapped", "两个系数写反了",
            ),
            Mistake(
                x_t - np.sqrt(1 - bar) * noise / np.sqrt(bar),
                "brackets are missing: x_t must be divided by sqrt(alpha-bar_t) too",
                "漏了括号：x_t 也要除以 sqrt(alpha-bar_t)",
            ),
            Mistake(
                x_t / np.sqrt(bar) - (1 / bar - 1) * noise, "a square root is missing: sqrt(1 / alpha-bar_t - 1)",
                "漏了平方根：sqrt(1 / alpha-bar_t - 1)",
            ),
            Mistake(
                x_t / np.sqrt(bar) - np.sqrt(1 - bar) * noise,
                "only x_t was divided by sqrt(alpha-bar_t): the noise must be too",
                "只有 x_t 除以了 sqrt(alpha-bar_t)：噪声也要除",
            ),
            Mistake(
                (x_t + np.sqrt(1 - bar) * noise) / np.sqrt(bar), "the noise must be taken away, not added",
                "噪声应减去，不是加上",
            ),
        ],
    )


def _predict_noise(betas: np.ndarray, t: np.ndarray, x_t: np.ndarray, x_start: np.ndarray) -> Check:
    bar, alpha, previous = _tables(betas, t)

    def solved(bar: np.ndarray) -> np.ndarray:
        return (x_t - np.sqrt(bar) * x_start) / np.sqrt(1 - bar)

    return Check(
        Call("predict_noise", AsTensor(x_t), AsTensor(t), AsTensor(x_start), betas), solved(bar),
        mistakes=[
            Mistake(
                solved(alpha), "alpha_t stands where alpha-bar_t belongs", "这里应是 alpha-bar_t，不是 alpha_t",
            ),
            Mistake(
                solved(previous), "off by one: alpha-bar_t, not alpha-bar_{t-1}",
                "差了一步：是 alpha-bar_t，不是 alpha-bar_{t-1}",
            ),
            Mistake(
                x_t - x_start,
                "x_0 in x_t is shrunk: take away sqrt(alpha-bar_t) x_0, then divide by the standard deviation",
                "x_t 中的 x_0 是缩小的：先减去 sqrt(alpha-bar_t) x_0，再除以标准差",
            ),
            Mistake(
                x_t - np.sqrt(bar) * x_start, "divide by sqrt(1 - alpha-bar_t): the noise has variance 1",
                "还要除以 sqrt(1 - alpha-bar_t)：噪声的方差是 1",
            ),
            Mistake(
                (x_t - np.sqrt(bar) * x_start) / (1 - bar),
                "1 - alpha-bar_t is the variance: divide by the standard deviation, its square root",
                "1 - alpha-bar_t 是方差：应除以标准差，即它的平方根",
            ),
            Mistake(
                (x_t - np.sqrt(bar) * x_start) * np.sqrt(1 - bar),
                "multiplied where it must be divided by sqrt(1 - alpha-bar_t)", "应除以 sqrt(1 - alpha-bar_t)，却乘了",
            ),
            Mistake(
                (x_t - bar * x_start) / (1 - bar), "both square roots are missing", "两个平方根都漏了",
            ),
            Mistake(
                (x_t - np.sqrt(1 - bar) * x_start) / np.sqrt(bar), "the two factors are swapped", "两个系数写反了",
            ),
            Mistake(
                x_t - np.sqrt(bar) * x_start / np.sqrt(1 - bar),
                "brackets are missing: x_t must be divided by sqrt(1 - alpha-bar_t) too",
                "漏了括号：x_t 也要除以 sqrt(1 - alpha-bar_t)",
            ),
            Mistake(
                (x_t + np.sqrt(bar) * x_start) / np.sqrt(1 - bar), "x_0 must be taken away, not added",
                "x_0 应减去，不是加上",
            ),
            Mistake(
                (x_t - bar * x_start) / np.sqrt(1 - bar), "a square root is missing: sqrt(alpha-bar_t) x_0",
                "漏了平方根：sqrt(alpha-bar_t) x_0",
            ),
            Mistake(
                (x_t - x_start) / np.sqrt(1 - bar), "x_0 in x_t is shrunk: sqrt(alpha-bar_t) x_0",
                "x_t 中的 x_0 是缩小的：sqrt(alpha-bar_t) x_0",
            ),
            Mistake(
                -solved(bar), "the sign is wrong: x_t minus sqrt(alpha-bar_t) x_0",
                "符号反了：是 x_t 减 sqrt(alpha-bar_t) x_0",
            ),
        ],
    )
