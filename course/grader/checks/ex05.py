"""Exercise 5: the sinusoidal embedding of t."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex05_embedding.py"
TITLE = Both("Sinusoidal embedding of t", "时间步 t 的正弦编码")


def parts(rng: np.random.Generator) -> list[Part]:
    """Some even dim, and times whose angles float32 can tell apart."""
    dim = 2 * int(rng.integers(4, 12))
    t = rng.choice(np.arange(1, 200), size=5, replace=False).astype(np.int32)
    return [
        Part("5.1", "frequencies", 3, [_frequencies(dim)]),
        Part("5.2", "sinusoidal_embedding", 5, [_embedding(dim, t)]),
    ]


def _geometric(dim: int, base: float = 10000.0, last: bool = True) -> np.ndarray:
    half = dim // 2
    return base ** (-np.arange(half) / (half - last))


def _frequencies(dim: int) -> Check:
    right = _geometric(dim)
    return Check(
        Call("frequencies", dim), right, returns="array", tolerance=1e-6,
        mistakes=[
            Mistake(
                _geometric(dim, last=False), "the last one must be 1/10000: divide i by dim / 2 - 1, not by dim / 2",
                "最后一个应为 1/10000：i 要除以 dim / 2 - 1，不是 dim / 2",
            ),
            Mistake(
                1 / right, "the exponent's sign is wrong: frequencies fall from 1 to 1/10000",
                "指数的符号反了：频率从 1 降到 1/10000",
            ),
            Mistake(
                _geometric(dim, base=np.e ** 4), "log10 where the natural logarithm belongs: np.log(10000)",
                "用了 log10，应为自然对数：np.log(10000)",
            ),
            Mistake(
                _geometric(dim, base=1000.0), "1000 where 10000 is asked for", "底数应为 10000，却是 1000",
            ),
            Mistake(
                10000.0 ** (-np.arange(dim) / (dim - 1)), "dim / 2 frequencies, not dim: each has a sine and a cosine",
                "只有 dim / 2 个频率，不是 dim 个：每个频率有一个正弦和一个余弦",
            ),
            Mistake(
                np.linspace(1, 1e-4, dim // 2), "equal ratios, not equal steps: an exponential",
                "应为等比，不是等差：用指数",
            ),
        ],
    )


def _embedding(dim: int, t: np.ndarray) -> Check:
    angles = t[:, None] * _geometric(dim)
    sine, cosine = np.sin(angles), np.cos(angles)

    def joined(angles: np.ndarray) -> np.ndarray:
        return np.concatenate((np.sin(angles), np.cos(angles)), axis=1)

    return Check(
        Call("sinusoidal_embedding", AsTensor(t), dim), joined(angles), tolerance=2e-4,
        mistakes=[
            Mistake(
                np.concatenate((cosine, sine), axis=1), "the halves are swapped: first the sines, then the cosines",
                "两半写反了：先正弦，后余弦",
            ),
            Mistake(
                np.stack((sine, cosine), axis=2).reshape(len(t), dim),
                "sines and cosines in turns: all sines stand before all cosines",
                "正弦余弦交替排列：应先放全部正弦，再放全部余弦",
            ),
            Mistake(
                np.concatenate((sine, sine), axis=1), "the second half must be cosines", "后一半应为余弦",
            ),
            Mistake(
                joined(2 * np.pi * angles), "no factor 2 pi: the angle is t times the frequency",
                "没有 2 pi：角度就是 t 乘频率",
            ),
            Mistake(
                joined(np.radians(angles)), "the angles are in radians already: no conversion from degrees",
                "角度已是弧度：不要再从度换算",
            ),
            Mistake(
                joined(angles + _geometric(dim)), "off by one: t as it is, not t + 1", "差了一步：直接用 t，不是 t + 1",
            ),
            Mistake(
                joined(t[:, None] * _geometric(dim, last=False)),
                "the last frequency must be 1/10000: divide i by dim / 2 - 1",
                "最后一个频率应为 1/10000：i 要除以 dim / 2 - 1",
            ),
            Mistake(
                joined(angles).T, "the shape is (B, dim): the times are the rows", "形状是 (B, dim)：每行对应一个 t",
            ),
        ],
    )
