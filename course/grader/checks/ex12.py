"""Exercise 12: classifier-free guidance."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex12_guidance.py"
TITLE = Both("Classifier-free guidance", "无分类器引导")

_ONE_MORE = (
    "this is the paper's w, our w is its 1 + w: w = 1 must give the prediction with the label",
    "这是论文中的 w，这里的 w 等于论文中的 1 + w：w = 1 应得到有标签的预测",
)
_SWAPPED = (
    "with and without the label are swapped: w = 0 must give the prediction without it",
    "有标签和无标签的预测弄反了：w = 0 应得到无标签的预测",
)


def parts(rng: np.random.Generator) -> list[Part]:
    """Labels, times and weights at random."""
    return [
        Part("12.1", "guide", 1, [_guide(rng, float(rng.uniform(1.5, 4))), _guide(rng, 0.0), _guide(rng, 1.0)]),
        Part("12.2", "guided_eps", 3, _guided_eps(rng)),
        Part("12.3", "drop_labels", 2, [_drop_labels(rng)]),
    ]


def _mixed(c: np.ndarray, u: np.ndarray, weight: float) -> np.ndarray:
    return u + weight * (np.float64(c) - u)


def _guide(rng: np.random.Generator, weight: float) -> Check:
    c, u = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    others = [
        (_mixed(c, u, 1 + weight), *_ONE_MORE),
        (_mixed(u, c, weight), *_SWAPPED),
        (weight * np.float64(c), "only the prediction with the label is used", "只用了有标签的预测"),
        (u + weight * np.float64(c), "the difference c - u is multiplied by w, not c alone",
        "w 乘的是差 c - u，不是 c"),
        (
            c + weight * (np.float64(c) - u), "the difference is added to u, not to c: w = 1 must give c",
            "差应加在 u 上，不是加在 c 上：w = 1 应得到 c",
        ),
    ]
    expected = _mixed(c, u, weight)
    return Check(
        Call("guide", AsTensor(c), AsTensor(u), weight), expected,
        mistakes=[Mistake(*other) for other in others if np.abs(other[0] - expected).max() > 0.1],
    )


def _guided_eps(rng: np.random.Generator) -> list[Check]:
    classes, timesteps = int(rng.integers(4, 8)), int(rng.integers(10, 20))
    slopes, offsets = rng.uniform(0.3, 2, classes + 1), rng.normal(size=timesteps)
    x = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
    t = rng.choice(timesteps, size=3, replace=False).astype(np.int32)
    null, *labels = (int(label) for label in rng.permutation(classes + 1)[:4])
    labels = np.array(labels, np.int32)

    def model(labels: np.ndarray, t: np.ndarray = t) -> np.ndarray:
        rows = (slice(None), None, None, None)
        return np.sin(slopes[labels][rows] * x) + offsets[t][rows]

    c, u = model(labels), model(np.full_like(labels, null))
    one_call = np.ones(())

    def check(weight: float) -> Check:
        right = _mixed(c, u, weight)
        others = [
            (_mixed(u, c, weight), *_SWAPPED),
            (_mixed(c, u, 1 + weight), *_ONE_MORE),
            (c, "this is the prediction with the label alone", "这只是有标签的预测"),
            (u, "this is the prediction without the label alone: both halves are told `null`",
             "这只是无标签的预测：两半都用了 `null`"),
            (
                _mixed(c, model(np.zeros_like(labels)), weight),
                "0 stands for no label here: it is a label like others, the argument `null` means none",
                "这里用 0 表示无标签：0 是普通的标签，表示无标签的是参数 `null`",
            ),
        ]
        return Check(
            Call(
                "guided", slopes, offsets, AsTensor(x), AsTensor(t), AsTensor(labels), weight, null, harness=True
            ),
            [right, one_call], returns=["tensor", "number"],
            mistakes=[
                Mistake(
                    [right, 2 * one_call], "right, but by two calls of the model: one call with a batch of 2 B",
                    "结果正确，但调用了两次模型：应用大小为 2B 的一批只调用一次",
                ),
                *(
                    Mistake([other[0], calls * one_call], *other[1:])
                    for other in others for calls in (1, 2) if np.abs(other[0] - right).max() > 0.1
                ),
            ],
        )

    return [check(float(rng.uniform(1.5, 4))), check(0.0), check(1.0)]


def _drop_labels(rng: np.random.Generator) -> Check:
    count, probability = 12, float(rng.uniform(0.3, 0.6))
    null, *labels = (int(label) for label in rng.permutation(count + 1) + 1)
    labels = np.array(labels, np.int32)
    uniform = rng.uniform(size=count).astype(np.float32)
    uniform[:2] = probability / 2, (1 + probability) / 2  # at least one of each
    dropped = uniform < probability
    return Check(
        Call("drop_labels", AsTensor(labels), AsTensor(uniform), probability, null), np.where(dropped, null, labels),
        returns="any",
        mistakes=[
            Mistake(
                np.where(dropped, labels, null),
                "the wrong labels are dropped: `null` where the number is below the probability",
                "丢错了标签：小于 probability 的才换成 `null`",
            ),
            Mistake(
                np.full_like(labels, null), "every label is dropped: each image is decided by its own number",
                "所有标签都被丢弃了：每幅图像由它自己的数决定",
            ),
            Mistake(labels, "no label is dropped", "没有丢弃任何标签"),
            Mistake(
                np.where(dropped, 0, labels), "a dropped label becomes `null`, not 0",
                "丢弃的标签应换成 `null`，不是 0",
            ),
        ],
    )
