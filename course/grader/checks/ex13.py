"""Exercise 13: the variational bound."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Oracle, Part
from course.grader.checks.ex10 import best_model, reverse_mean
from course.grader.checks.ex11 import not_finite

FILE = "ex13_bound.py"
TITLE = Both("The variational bound", "变分界")

_SWAPPED = ("the two Gaussians are swapped: KL(q || p) is not KL(p || q)",
"两个高斯分布写反了：KL(q || p) 不等于 KL(p || q)")
_SUM = ("a sum over the dimensions where their mean is asked for", "在各维度上应取平均，不是求和")


def parts(rng: np.random.Generator) -> list[Part]:
    """Gaussian data, and the network that is best for them."""
    return [
        Part("13.1", "normal_kl", 1, [_normal_kl(rng)]),
        Part("13.2", "prior_term", 1, [_prior_term(rng)]),
        Part("13.3", "bound_term", 2, _bound_term(rng)),
        Part("13.4", "variational_bound", 2, [_bound(rng)]),
    ]


def divergence(mean1: np.ndarray, v1: np.ndarray, mean2: np.ndarray, v2: np.ndarray) -> np.ndarray:
    """KL(N(mean1, v1) || N(mean2, v2)) in nats."""
    return 0.5 * (np.log(v2 / v1) + v1 / v2 + (mean1 - mean2) ** 2 / v2 - 1)


def _of_images(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=(1, 2, 3))


def prior(x_start: np.ndarray, ab: float) -> np.ndarray:
    """L_T (B,), where alpha-bar_T is `ab`."""
    return _of_images(divergence(np.sqrt(ab) * x_start, 1 - ab, 0, 1))


def term(
    slopes: np.ndarray, offsets: np.ndarray, x_start: np.ndarray, t: int, noise: np.ndarray, betas: np.ndarray,
    kind: str = "right",
) -> np.ndarray:
    """L_{t-1} of one t, or L_0, of each image and dimension; or what a mistake makes of it."""
    ab = np.cumprod(1 - betas)
    now, before, beta = ab[t], ab[t - 1] if t else 1.0, betas[t]
    x_t = np.sqrt(now) * x_start + np.sqrt(1 - now) * noise
    seen = x_start if kind == "sees x_0" else x_t
    p_mean = reverse_mean(x_t, np.full(len(x_t), t), slopes[t] * seen + offsets[t], betas)
    if t == 0:
        squared = (x_start - p_mean) ** 2 / beta
        if kind == "no half in L_0":
            return np.log(2 * np.pi * beta) + squared
        return 0.5 * squared if kind == "no constant in L_0" else 0.5 * (np.log(2 * np.pi * beta) + squared)
    q_mean = (np.sqrt(before) * beta * x_start + np.sqrt(1 - beta) * (1 - before) * x_t) / (1 - now)
    q_variance = beta if kind == "beta for both" else beta * (1 - before) / (1 - now)
    if kind == "swapped":
        return divergence(p_mean, beta, q_mean, q_variance)
    return divergence(q_mean, q_variance, p_mean, beta)


def _normal_kl(rng: np.random.Generator) -> Check:
    mean1, mean2, log1, log2 = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(4))
    v1, v2, squared = np.exp(np.float64(log1)), np.exp(np.float64(log2)), (np.float64(mean1) - mean2) ** 2
    right = divergence(mean1, v1, mean2, v2)
    return Check(
        Call("normal_kl", *map(AsTensor, (mean1, log1, mean2, log2))), right,
        mistakes=[
            Mistake(divergence(mean2, v2, mean1, v1), *_SWAPPED),
            Mistake(2 * right, "the factor 1/2 is missing", "漏了系数 1/2"),
            Mistake(right + 0.5, "the - 1 is missing: two equal Gaussians have 0", "漏了 - 1：两个分布相同时应为 0"),
            Mistake(
                0.5 * (np.log(v1 / v2) + v1 / v2 + squared / v2 - 1),
                "the logarithm has the wrong sign: log v2 - log v1",
                "对数项的符号反了：应为 log v2 - log v1",
            ),
            Mistake(
                0.5 * (np.log(v2 / v1) + v1 / v2 + squared / v1 - 1),
                "the squared distance is divided by the second variance, not the first",
                "平方距离应除以第二个方差，不是第一个",
            ),
            Mistake(
                0.5 * (np.log(v2 / v1) + v1 / v2 + np.sqrt(squared) / v2 - 1), "the distance of the means is squared",
                "均值之差要平方",
            ),
            Mistake(
                divergence(mean1, v1**2, mean2, v2**2), "exp(log v) is the variance already: do not square it",
                "exp(log v) 已经是方差：不要再平方",
            ),
            Mistake(
                right / np.log(2), "these are bits: nats are asked for, without log(2)",
                "这是比特：要求的是奈特，不除以 log(2)",
            ),
            Mistake(
                right.mean(), "one number where each element has its own",
                "每个元素各有一个值，这里却只返回一个数",
            ),
        ],
    )


def _prior_term(rng: np.random.Generator) -> Check:
    x_start = rng.normal(rng.uniform(0.5, 1), 0.5, size=(3, 2, 4, 5)).astype(np.float32)
    betas = np.linspace(rng.uniform(0.02, 0.04), rng.uniform(0.1, 0.2), int(rng.integers(8, 13)))
    alphas_cumprod = np.cumprod(1 - betas)
    ab = alphas_cumprod[-1]
    right = prior(x_start, ab)
    return Check(
        Call("prior_term", AsTensor(x_start), alphas_cumprod), right,
        mistakes=[
            Mistake(_of_images(divergence(0, 1, np.sqrt(ab) * x_start, 1 - ab)), *_SWAPPED),
            Mistake(right * x_start[0].size, *_SUM),
            Mistake(
                right.mean(), "a mean over the images too: each image has its own",
                "在图像之间也取了平均：每幅图像各有一个值",
            ),
            Mistake(
                _of_images(divergence(ab * x_start, 1 - ab, 0, 1)),
                "the mean is sqrt(alpha-bar_T) x_0: the root is missing",
                "均值是 sqrt(alpha-bar_T) x_0：漏了平方根",
            ),
            Mistake(
                _of_images(divergence(np.sqrt(ab) * x_start, np.sqrt(1 - ab), 0, 1)),
                "log_variance is the logarithm of 1 - alpha-bar_T, not of its root",
                "log_variance 是 1 - alpha-bar_T 的对数，不是它的平方根的对数",
            ),
            Mistake(
                prior(x_start, alphas_cumprod[0]), "alpha-bar_T is the last entry of the table, not the first",
                "alpha-bar_T 是表的最后一个元素，不是第一个",
            ),
            Mistake(2 * right, "the factor 1/2 is missing", "漏了系数 1/2"),
        ],
    )


def _setting(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """betas, slopes and offsets of the best network, and images of the data."""
    betas = np.linspace(rng.uniform(0.02, 0.04), rng.uniform(0.1, 0.2), int(rng.integers(10, 15)))
    mean, std = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.7)
    x_start = rng.normal(mean, std, size=(3, 1, 4, 5)).astype(np.float32)
    return (betas, *best_model(betas, mean, std), x_start)


def _bound_term(rng: np.random.Generator) -> list[Check]:
    betas, slopes, offsets, x_start = _setting(rng)
    noise = rng.normal(size=x_start.shape).astype(np.float32)

    def check(t: np.ndarray, kinds: dict[str, tuple[str, str]]) -> Check:
        def answer(kind: str = "right") -> np.ndarray:
            pieces = [
                term(slopes, offsets, x_start[[i]], int(step), noise[[i]], betas, kind) for i, step in enumerate(t)
            ]
            return _of_images(np.concatenate(pieces))

        return Check(
            Call(
                "bound_term", Oracle("affine", slopes, offsets), AsTensor(x_start), AsTensor(t), AsTensor(noise), betas
            ),
            answer(), mistakes=[
                *(Mistake(answer(kind), *hint) for kind, hint in kinds.items()),
                Mistake(answer() * x_start[0].size, *_SUM),
                Mistake(
                    answer().mean(), "a mean over the images too: each image has its own",
                    "在图像之间也取了平均：每幅图像各有一个值",
                ),
                *([] if np.all(t > 0) else [Mistake(
                    not_finite(t.shape),
                    "NaN or infinity at t = 0: there the variance of q is 0; the term is L_0, no divergence",
                    "t = 0 处出现 NaN 或无穷大：那里 q 的方差为 0；该项是 L_0，不是 KL 散度",
                )]),
            ],
        )

    later = (1 + rng.choice(len(betas) - 1, size=3, replace=False)).astype(np.int32)
    with_first = later.copy()
    with_first[rng.integers(1, 3)] = 0
    sees = "the model must see x_t: this shows it x_0", "模型看到的应是 x_t：这里却给了它 x_0"
    return [
        check(later, {
            "swapped": _SWAPPED,
            "beta for both": (
                "q has the variance beta_t (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t): beta_t is that of p",
                "q 的方差是 beta_t (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)：beta_t 是 p 的方差",
            ),
            "sees x_0": sees,
        }),
        check(with_first, {
            "no half in L_0": ("in L_0 the factor 1/2 is missing", "L_0 中漏了系数 1/2"),
            "no constant in L_0": (
                "in L_0 the term log(2 pi beta_0) is missing: it is a density",
                "L_0 中漏了 log(2 pi beta_0)：它来自概率密度",
            ),
            "sees x_0": sees,
        }),
    ]


def bound(
    slopes: np.ndarray, offsets: np.ndarray, x_start: np.ndarray, noise: np.ndarray, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The terms (T, B), and L_T (B,)."""
    terms = [_of_images(term(slopes, offsets, x_start, t, noise[t], betas)) for t in range(len(betas))]
    return np.stack(terms), prior(x_start, np.cumprod(1 - betas)[-1])


def _bound(rng: np.random.Generator) -> Check:
    betas, slopes, offsets, x_start = _setting(rng)
    noise = rng.normal(size=(len(betas), *x_start.shape)).astype(np.float32)
    terms, last = bound(slopes, offsets, x_start, noise, betas)
    return Check(
        Call("variational_bound", Oracle("affine", slopes, offsets), AsTensor(x_start), AsTensor(noise), betas),
        terms.sum(axis=0) + last,
        mistakes=[
            Mistake(terms.sum(axis=0), "L_T is missing", "漏了 L_T"),
            Mistake(terms[1:].sum(axis=0) + last, "L_0, the term at t = 0, is missing", "漏了 L_0，即 t = 0 的一项"),
            Mistake(terms[:-1].sum(axis=0) + last, "the term at t = T-1 is missing", "漏了 t = T-1 的一项"),
            Mistake(
                terms.mean(axis=0) + last, "the mean over t where the sum is asked for", "对 t 应求和，不是取平均",
            ),
            Mistake(
                terms.mean(axis=0), "the sum over t is asked for, not the mean; and L_T is missing",
                "对 t 应求和，不是取平均；并且漏了 L_T",
            ),
            Mistake(
                bound(slopes, offsets, x_start, noise[::-1], betas)[0].sum(axis=0) + last,
                "noise[t] makes the x_t of the term at t: here the order is reversed",
                "noise[t] 用来得到 t 处那一项的 x_t：这里顺序反了",
            ),
            Mistake(
                bound(slopes, offsets, x_start, noise[:1].repeat(len(betas), 0), betas)[0].sum(axis=0) + last,
                "the same noise in every term: noise[t] is for t", "每一项都用了同一份噪声：t 处用 noise[t]",
            ),
        ],
    )
