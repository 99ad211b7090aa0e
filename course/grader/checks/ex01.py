"""Exercise 1: schedules and their tables."""

from __future__ import annotations

import numpy as np

from course.grader.check import Both, Call, Check, Mistake, Part

FILE = "ex01_schedule.py"
TITLE = Both("Noise schedules and their tables", "噪声调度与系数表")


def parts(rng: np.random.Generator) -> list[Part]:
    """Random lengths and ends; betas in no order, so that an index that is off by one shows."""
    return [
        Part("1.1", "linear_beta_schedule", 1, [_linear(rng)]),
        Part("1.2", "cosine_beta_schedule", 3, [_cosine(rng)]),
        Part("1.3", "alphas_cumprod", 2, [_alphas_cumprod(rng)]),
        Part("1.4", "alphas_cumprod_prev", 2, [_alphas_cumprod_prev(rng)]),
    ]


def _linear(rng: np.random.Generator) -> Check:
    timesteps, start, end = int(rng.integers(10, 40)), rng.uniform(1e-4, 1e-3), rng.uniform(0.01, 0.05)
    step = np.arange(timesteps) / (timesteps - 1)
    return Check(
        Call("linear_beta_schedule", timesteps, start, end), start + (end - start) * step, returns="array",
        mistakes=[
            Mistake(
                start + (end - start) * np.arange(timesteps) / timesteps,
                "the last beta must be beta_end itself: T values have T - 1 steps between them",
                "最后一个 beta 应恰为 beta_end：T 个值之间有 T - 1 步",
            ),
            Mistake(
                start + (end - start) * np.arange(timesteps + 1) / timesteps,
                "T + 1 values: one too many", "有 T + 1 个值：多了一个",
            ),
            Mistake(
                (start**0.5 + (end**0.5 - start**0.5) * step) ** 2,
                "beta_t itself grows in equal steps, not its square root (that is the quadratic schedule)",
                "等步长增长的是 beta_t 本身，不是它的平方根（那是 quadratic 调度）",
            ),
            Mistake(
                1 - (start + (end - start) * step),
                "these are the alphas: return the betas", "这是 alpha：应返回 beta",
            ),
            Mistake(
                end + (start - end) * step,
                "the wrong way round: beta grows from beta_start to beta_end",
                "方向反了：beta 从 beta_start 增到 beta_end",
            ),
        ],
    )


def _cosine(rng: np.random.Generator) -> Check:
    timesteps, s, largest = int(rng.integers(10, 40)), rng.uniform(0.005, 0.02), rng.uniform(0.9, 0.99)

    def curve(steps: int, s: float, power: int = 2) -> np.ndarray:
        return np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** power

    def betas(f: np.ndarray) -> np.ndarray:
        return 1 - f[1:] / f[:-1]

    f = curve(timesteps, s)
    return Check(
        Call("cosine_beta_schedule", timesteps, s, largest), np.minimum(betas(f), largest), returns="array",
        mistakes=[
            Mistake(
                betas(f), "the last betas must be clipped at max_beta", "最后的 beta 应截断到 max_beta",
            ),
            Mistake(
                np.minimum(betas(curve(timesteps, s, 1)), largest),
                "the cosine is not squared: f(i) = cos(...)^2", "余弦没有平方：f(i) = cos(...)^2",
            ),
            Mistake(
                np.minimum(betas(curve(timesteps, 0.0)), largest),
                "the offset s is missing: (i / T + s) / (1 + s)", "缺少偏移 s：(i / T + s) / (1 + s)",
            ),
            Mistake(
                np.minimum(betas(f / f[0]) ** 0.5, largest), "a square root too many: beta = 1 - f(i) / f(i - 1)",
                "多开了一次平方根：beta = 1 - f(i) / f(i - 1)",
            ),
            Mistake(
                f[1:] / f[0], "this is alpha-bar: return beta = 1 - f(i) / f(i - 1)",
                "这是 alpha-bar：应返回 beta = 1 - f(i) / f(i - 1)",
            ),
            Mistake(
                np.minimum(1 - f[1:] / f[0], largest),
                "1 - alpha-bar is not beta: divide f(i) by f(i - 1), not by f(0)",
                "1 - alpha-bar 不是 beta：f(i) 应除以 f(i - 1)，不是 f(0)",
            ),
            Mistake(
                lambda answer: np.shape(answer) == (timesteps - 1,),
                "T - 1 values: i runs from 0 to T, T + 1 points, which make T betas",
                "只有 T - 1 个值：i 从 0 到 T 共 T + 1 个点，得到 T 个 beta",
            ),
        ],
    )


def _alphas_cumprod(rng: np.random.Generator) -> Check:
    betas = rng.uniform(0.01, 0.3, size=int(rng.integers(10, 40)))
    expected = np.exp(np.cumsum(np.log1p(-betas)))
    return Check(
        Call("alphas_cumprod", betas), expected, returns="array",
        mistakes=[
            Mistake(
                1 - betas, "this is alpha_t: alpha-bar_t is the product of alpha_0 to alpha_t",
                "这是 alpha_t：alpha-bar_t 是 alpha_0 到 alpha_t 的连乘积",
            ),
            Mistake(
                np.cumprod(betas), "the product is of alpha_t = 1 - beta_t, not of beta_t",
                "连乘的是 alpha_t = 1 - beta_t，不是 beta_t",
            ),
            Mistake(
                np.sqrt(expected), "this is sqrt(alpha-bar_t): no square root here", "这是 sqrt(alpha-bar_t)：不要开方",
            ),
            Mistake(
                np.cumsum(1 - betas), "a sum where a product is asked for: cumprod, not cumsum",
                "应求连乘积，却求了和：用 cumprod，不是 cumsum",
            ),
            Mistake(
                np.append(1.0, expected[:-1]), "off by one: alpha-bar at t = 0 is alpha_0 already, not 1",
                "差了一步：t = 0 处的 alpha-bar 已是 alpha_0，不是 1",
            ),
        ],
    )


def _alphas_cumprod_prev(rng: np.random.Generator) -> Check:
    betas = rng.uniform(0.01, 0.3, size=int(rng.integers(10, 40)))
    product = np.exp(np.cumsum(np.log1p(-betas)))
    return Check(
        Call("alphas_cumprod_prev", betas), np.append(1.0, product[:-1]), returns="array",
        mistakes=[
            Mistake(product, "this is alpha-bar_t: move it by one step", "这是 alpha-bar_t：需要移动一步"),
            Mistake(
                np.roll(product, 1), "before the first step there is no noise: the first value is 1, not the last one",
                "第一步之前没有噪声：第一个值是 1，不是最后一个值",
            ),
            Mistake(
                np.append(0.0, product[:-1]), "before the first step there is no noise: the first value is 1, not 0",
                "第一步之前没有噪声：第一个值是 1，不是 0",
            ),
            Mistake(
                np.append(product[1:], 1.0), "moved the wrong way: alpha-bar_{t-1} is the value before",
                "移反了方向：alpha-bar_{t-1} 是前一个值",
            ),
            Mistake(
                product[:-1], "T - 1 values: the first one, before any step, is missing",
                "只有 T - 1 个值：缺了第一个，即第一步之前的值",
            ),
            Mistake(
                np.append(1.0, product), "T + 1 values: the last one has no step after it, leave it out",
                "有 T + 1 个值：最后一个之后没有步骤，应去掉",
            ),
        ],
    )
