"""Exercise 4: the posterior q(x_{t-1} | x_t, x_0)."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex04_posterior.py"
TITLE = Both("The posterior's mean and variance", "后验的均值与方差")


def parts(rng: np.random.Generator) -> list[Part]:
    """The tables, then one step of three images at t = 0, and of three at other t."""
    betas = rng.uniform(0.02, 0.3, size=int(rng.integers(10, 20)))
    x_start, x_t = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    t = 1 + rng.choice(len(betas) - 1, size=3, replace=False).astype(np.int32)
    first = np.zeros(3, np.int32)
    return [
        Part("4.1", "posterior_variance", 2, [_variance(betas)]),
        Part("4.2", "posterior_mean_coefficients", 3, [_coefficients(betas)]),
        Part("4.3", "q_posterior", 3, [_first(betas, first, x_start, x_t), _posterior(betas, t, x_start, x_t)]),
    ]


class _Bayes:
    """Bayes' rule for Gaussians, in which precisions add: of x_{t-1} given x_0, and of x_t given x_{t-1}."""

    def __init__(self, betas: np.ndarray) -> None:
        self.betas, self.alphas = betas, 1 - betas
        self.bar = np.cumprod(self.alphas)
        self.previous = np.append(1.0, self.bar[:-1])
        # Multiplied by beta (1 - alpha-bar_{t-1}), so that t = 0 is no special case.
        precision = betas + self.alphas * (1 - self.previous)
        self.variance = betas * (1 - self.previous) / precision
        self.of_x_start = np.sqrt(self.previous) * betas / precision
        self.of_x_t = np.sqrt(self.alphas) * (1 - self.previous) / precision


def _variance(betas: np.ndarray) -> Check:
    q = _Bayes(betas)
    return Check(
        Call("posterior_variance", betas), q.variance, returns="array",
        mistakes=[
            Mistake(
                betas, "this is beta_t, the variance where x_0 is not known", "这是 beta_t，即不知道 x_0 时的方差",
            ),
            Mistake(
                np.sqrt(q.variance), "this is the standard deviation: no square root here", "这是标准差：不要开方",
            ),
            Mistake(
                (1 - q.previous) / (1 - q.bar), "the factor beta_t is missing", "漏了因子 beta_t",
            ),
            Mistake(
                betas * (1 - q.bar) / np.append(1.0, (1 - q.bar)[:-1]),
                "upside down: (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)",
                "分子分母反了：(1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)",
            ),
            Mistake(
                betas * q.previous / q.bar, "ratios of 1 - alpha-bar, not of alpha-bar",
                "是 1 - alpha-bar 之比，不是 alpha-bar 之比",
            ),
            Mistake(
                betas * (1 - np.append(q.bar[-1], q.bar[:-1])) / (1 - q.bar),
                "at t = 0 the variance is 0, as alpha-bar_{t-1} is 1 there: np.roll brings the last value",
                "t = 0 处方差为 0，因为那里 alpha-bar_{t-1} = 1：np.roll 带来的是最后一个值",
            ),
            Mistake(
                betas * (1 - q.alphas) / (1 - q.bar), "alpha_t stands where alpha-bar_{t-1} belongs",
                "这里应是 alpha-bar_{t-1}，不是 alpha_t",
            ),
        ],
    )


def _coefficients(betas: np.ndarray) -> Check:
    q = _Bayes(betas)
    right = [q.of_x_start, q.of_x_t]
    rest = 1 - q.bar
    return Check(
        Call("posterior_mean_coefficients", betas), right, returns="array", tolerance=1e-9,
        mistakes=[
            Mistake(
                right[::-1], "the two are swapped: first the one of x_0, then the one of x_t",
                "两个系数反了：先是 x_0 的，再是 x_t 的",
            ),
            Mistake(
                [betas * np.sqrt(q.bar) / rest, q.of_x_t],
                "x_0 is multiplied by sqrt(alpha-bar_{t-1}), one step earlier",
                "x_0 要乘 sqrt(alpha-bar_{t-1})，早一步",
            ),
            Mistake(
                [betas * q.previous / rest, (1 - q.previous) * q.alphas / rest], "both square roots are missing",
                "两个平方根都漏了",
            ),
            Mistake(
                [betas * q.previous / rest, q.of_x_t], "the square root of alpha-bar_{t-1} is missing",
                "alpha-bar_{t-1} 漏了平方根",
            ),
            Mistake(
                [q.of_x_start, (1 - q.previous) * q.alphas / rest], "the square root of alpha_t is missing",
                "alpha_t 漏了平方根",
            ),
            Mistake(
                [q.of_x_start, (1 - q.previous) * np.sqrt(q.bar) / rest],
                "alpha-bar_t stands where alpha_t belongs, in the factor of x_t",
                "x_t 的系数里应是 alpha_t，不是 alpha-bar_t",
            ),
            Mistake(
                [betas * np.sqrt(q.previous), (1 - q.previous) * np.sqrt(q.alphas)],
                "both must be divided by 1 - alpha-bar_t", "两个系数都要除以 1 - alpha-bar_t",
            ),
            Mistake(
                [betas * np.sqrt(q.previous) / np.sqrt(rest), (1 - q.previous) * np.sqrt(q.alphas) / np.sqrt(rest)],
                "divided by the standard deviation: divide by the variance, 1 - alpha-bar_t",
                "除以了标准差：应除以方差 1 - alpha-bar_t",
            ),
        ],
    )


def _call(betas: np.ndarray, t: np.ndarray, x_start: np.ndarray, x_t: np.ndarray) -> Call:
    return Call("q_posterior", AsTensor(x_start), AsTensor(x_t), AsTensor(t), betas)


def _first(betas: np.ndarray, t: np.ndarray, x_start: np.ndarray, x_t: np.ndarray) -> Check:
    """Before the first step there is x_0 and no doubt about it."""
    nothing = np.zeros((3, 1, 1, 1))
    return Check(
        _call(betas, t, x_start, x_t), [x_start.astype(np.float64), nothing],
        mistakes=[
            Mistake(
                [x_t.astype(np.float64), nothing], "x_0 and x_t are swapped: at t = 0 the mean is x_0",
                "x_0 与 x_t 写反了：t = 0 处均值就是 x_0",
            ),
            Mistake(
                [x_start.astype(np.float64), nothing + betas[0]], "at t = 0 the variance is 0: this is beta_t",
                "t = 0 处方差为 0：这里用了 beta_t",
            ),
            Mistake(
                lambda answer: len(answer) == 2 and np.isinf(answer[1]).all(), "this is the variance's logarithm",
                "这是方差的对数",
            ),
        ],
    )


def _posterior(betas: np.ndarray, t: np.ndarray, x_start: np.ndarray, x_t: np.ndarray) -> Check:
    q = _Bayes(betas)

    def step(t: np.ndarray) -> list[np.ndarray]:
        one, other, variance = (table[t][:, None, None, None] for table in (q.of_x_start, q.of_x_t, q.variance))
        return [one * x_start + other * x_t, variance]

    mean, variance = step(t)
    return Check(
        _call(betas, t, x_start, x_t), [mean, variance],
        mistakes=[
            Mistake(
                [mean, np.sqrt(variance)], "the second value is the standard deviation: return the variance",
                "第二个值是标准差：应返回方差",
            ),
            Mistake([mean, betas[t][:, None, None, None]], "the variance is beta_t: return beta-tilde_t",
                    "这里的方差是 beta_t：应返回 beta-tilde_t"),
            Mistake([variance, mean], "the two are swapped: first the mean, then the variance",
                    "顺序反了：先均值，后方差"),
            Mistake(
                [mean, np.broadcast_to(variance, mean.shape)],
                "the variance has shape (B, 1, 1, 1), one number an image",
                "方差的形状是 (B, 1, 1, 1)，每幅图像一个数",
            ),
            Mistake(
                step(t - 1), "off by one: the tables at t, not at t - 1", "差了一步：取表中 t 处的值，不是 t - 1",
            ),
            Mistake(
                step(np.full_like(t, t[0])), "every image has its own t: this took the first one for all",
                "每幅图像有自己的 t：这里全都用了第一个",
            ),
        ],
    )
