"""Exercise 2: noise on an image, in one step and at once."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex02_q_sample.py"
TITLE = Both("Noise on an image: q_sample", "给图像加噪声：q_sample")


def parts(rng: np.random.Generator) -> list[Part]:
    """Each image of the batch at another t, every axis of another length."""
    timesteps = int(rng.integers(12, 30))
    betas = rng.uniform(0.02, 0.3, size=timesteps)
    # All different, one of them 0, none the last: the next index is in the table too.
    t = np.append(0, 1 + rng.choice(timesteps - 2, size=2, replace=False)).astype(np.int32)
    rng.shuffle(t)
    x, noise = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    return [
        Part("2.1", "extract", 2, [_extract(betas, t, x)]),
        Part("2.2", "q_step", 3, [_q_step(betas, t, x, noise)]),
        Part("2.3", "q_sample", 3, [_q_sample(betas, t, x, noise)]),
    ]


def _rows(table: np.ndarray, t: np.ndarray) -> np.ndarray:
    return table[t][:, None, None, None]


def _extract(table: np.ndarray, t: np.ndarray, x: np.ndarray) -> Check:
    return Check(
        Call("extract", table, AsTensor(t), x.shape), _rows(table, t),
        mistakes=[
            Mistake(
                table[t], "shape (B,) would multiply the width of an image: reshape to (B, 1, 1, 1)",
                "形状 (B,) 会乘到图像的宽度上：请 reshape 成 (B, 1, 1, 1)",
            ),
            Mistake(
                _rows(np.append(table[-1], table[:-1]), t), "off by one: table[t], not table[t - 1]",
                "差了一步：是 table[t]，不是 table[t - 1]",
            ),
            Mistake(
                _rows(table, np.full_like(t, t[0])), "every image has its own t: this took the first one for all",
                "每幅图像有自己的 t：这里全都用了第一个",
            ),
        ],
    )


def _q_step(betas: np.ndarray, t: np.ndarray, x: np.ndarray, noise: np.ndarray) -> Check:
    beta = _rows(betas, t)
    alphas_cumprod = _rows(np.cumprod(1 - betas), t)
    off = _rows(np.roll(betas, 1), t)
    # At t = 0 one step and the closed form agree; the other images tell them apart.
    return Check(
        Call("q_step", AsTensor(x), AsTensor(t), AsTensor(noise), betas), np.sqrt(1 - beta) * x + np.sqrt(beta) * noise,
        mistakes=[
            Mistake(
                (1 - beta) * x + beta * noise, "both square roots are missing", "两个平方根都漏了",
            ),
            Mistake(
                np.sqrt(1 - beta) * x + beta * noise,
                "beta_t is the variance: noise is multiplied by the standard deviation, its square root",
                "beta_t 是方差：噪声要乘标准差，即它的平方根",
            ),
            Mistake(
                (1 - beta) * x + np.sqrt(beta) * noise, "the square root at the image is missing: sqrt(1 - beta_t) x",
                "图像前漏了平方根：sqrt(1 - beta_t) x",
            ),
            Mistake(
                np.sqrt(beta) * x + np.sqrt(1 - beta) * noise, "the two factors are swapped", "两个系数写反了",
            ),
            Mistake(
                x + np.sqrt(beta) * noise, "the image must shrink: sqrt(1 - beta_t) x, so that the variance stays 1",
                "图像要缩小：sqrt(1 - beta_t) x，这样方差保持为 1",
            ),
            Mistake(
                np.sqrt(alphas_cumprod) * x + np.sqrt(1 - alphas_cumprod) * noise,
                "this is the closed form of all steps: here one step, with beta_t",
                "这是多步的闭式：此处只走一步，用 beta_t",
            ),
            Mistake(
                np.sqrt(1 - off) * x + np.sqrt(off) * noise, "off by one: betas[t], not betas[t - 1]",
                "差了一步：是 betas[t]，不是 betas[t - 1]",
            ),
        ],
    )


def _q_sample(betas: np.ndarray, t: np.ndarray, x: np.ndarray, noise: np.ndarray) -> Check:
    table = np.cumprod(1 - betas)
    bar, alpha, off = _rows(table, t), _rows(1 - betas, t), _rows(np.append(1.0, table[:-1]), t)
    return Check(
        Call("q_sample", AsTensor(x), AsTensor(t), AsTensor(noise), betas), np.sqrt(bar) * x + np.sqrt(1 - bar) * noise,
        mistakes=[
            Mistake(
                np.sqrt(alpha) * x + np.sqrt(1 - alpha) * noise,
                "alpha_t stands where alpha-bar_t belongs: take the product of all alphas up to t",
                "这里应是 alpha-bar_t，不是 alpha_t：取到 t 为止所有 alpha 的乘积",
            ),
            Mistake(bar * x + (1 - bar) * noise, "both square roots are missing", "两个平方根都漏了"),
            Mistake(
                np.sqrt(bar) * x + (1 - bar) * noise,
                "1 - alpha-bar_t is the variance: noise is multiplied by the standard deviation, its square root",
                "1 - alpha-bar_t 是方差：噪声要乘标准差，即它的平方根",
            ),
            Mistake(
                bar * x + np.sqrt(1 - bar) * noise, "the square root at the image is missing: sqrt(alpha-bar_t) x_0",
                "图像前漏了平方根：sqrt(alpha-bar_t) x_0",
            ),
            Mistake(
                np.sqrt(1 - bar) * x + np.sqrt(bar) * noise, "the two factors are swapped", "两个系数写反了",
            ),
            Mistake(
                np.sqrt(off) * x + np.sqrt(1 - off) * noise, "off by one: alpha-bar_t, not alpha-bar_{t-1}",
                "差了一步：是 alpha-bar_t，不是 alpha-bar_{t-1}",
            ),
            Mistake(
                np.sqrt(bar) * x - np.sqrt(1 - bar) * noise, "the noise is added, not taken away",
                "噪声是加上去的，不是减去",
            ),
            Mistake(
                np.sqrt(bar) * x + (1 - np.sqrt(bar)) * noise,
                "sqrt(1 - alpha-bar_t), not 1 - sqrt(alpha-bar_t)",
                "是 sqrt(1 - alpha-bar_t)，不是 1 - sqrt(alpha-bar_t)",
            ),
        ],
    )
