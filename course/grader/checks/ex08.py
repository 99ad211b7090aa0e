"""Exercise 8: the loss."""

from __future__ import annotations

from typing import Callable

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex08_loss.py"
TITLE = Both("The loss", "损失函数")

_SOME = (slice(2), slice(1, None), slice(None))
"""The harness takes the loss of these images: a single number may be right by chance."""
_SUM = ("a sum where the mean is asked for: divide by the number of elements", "这里应取平均，不是求和：要除以元素个数")


def parts(rng: np.random.Generator) -> list[Part]:
    """Errors on both sides of 1, where Huber's distance changes its form."""
    prediction, target = (1.3 * rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    return [
        Part("8.1", "l1_loss", 1, [_l1(prediction, target)]),
        Part("8.2", "l2_loss", 1, [_l2(prediction, target)]),
        Part("8.3", "huber_loss", 2, [_huber(prediction, target)]),
        Part("8.4", "p_losses", 2, _p_losses(rng)),
    ]


def _distance(d: np.ndarray, loss: str) -> np.ndarray:
    if loss == "l2":
        return d**2
    return np.abs(d) if loss == "l1" else np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5)


def _l1(prediction: np.ndarray, target: np.ndarray) -> Check:
    d = np.float64(prediction) - target
    return Check(
        Call("l1_loss", AsTensor(prediction), AsTensor(target)), np.abs(d).mean(),
        mistakes=[
            Mistake(np.abs(d).sum(), *_SUM),
            Mistake(
                d.mean(), "without the absolute value positive and negative errors cancel",
                "没有取绝对值，正负误差会相互抵消",
            ),
            Mistake(
                np.abs(d.mean()), "the absolute value of the mean: take it of each element, before the mean",
                "这是平均值的绝对值：应先对每个元素取绝对值，再求平均",
            ),
            Mistake(np.square(d).mean(), "this is the squared error, L2", "这是平方误差 (L2)"),
        ],
    )


def _l2(prediction: np.ndarray, target: np.ndarray) -> Check:
    d = np.float64(prediction) - target
    return Check(
        Call("l2_loss", AsTensor(prediction), AsTensor(target)), np.square(d).mean(),
        mistakes=[
            Mistake(np.square(d).sum(), *_SUM),
            Mistake(
                np.sqrt(np.square(d).mean()), "a root that nobody asked for: the loss is the mean square itself",
                "多开了一次平方根：损失就是均方误差本身",
            ),
            Mistake(
                np.square(d).mean() / 2, "a factor 1/2 that nobody asked for: it belongs to Huber's loss",
                "多了系数 1/2：它属于 Huber 损失",
            ),
            Mistake(
                d.mean() ** 2, "the square of the mean: square each element, before the mean",
                "这是平均值的平方：应先对每个元素平方，再求平均",
            ),
            Mistake(np.abs(d).mean(), "this is the absolute error, L1", "这是绝对误差 (L1)"),
        ],
    )


def _huber(prediction: np.ndarray, target: np.ndarray) -> Check:
    d = np.float64(prediction) - target
    size = np.abs(d)
    small = size < 1
    return Check(
        Call("huber_loss", AsTensor(prediction), AsTensor(target)), _distance(d, "huber").mean(),
        mistakes=[
            Mistake(_distance(d, "huber").sum(), *_SUM),
            Mistake(
                np.where(small, d**2, size - 0.5).mean(), "the factor 1/2 at the square is missing",
                "平方项漏了系数 1/2",
            ),
            Mistake(
                np.where(small, d**2 / 2, size).mean(),
                "the - 1/2 of the straight part is missing: at |d| = 1 the two pieces do not meet",
                "直线部分漏了 - 1/2：两段在 |d| = 1 处接不上",
            ),
            Mistake(
                np.where(small, size - 0.5, d**2 / 2).mean(),
                "the two pieces are swapped: the square is for small errors", "两段写反了：小误差用平方",
            ),
            Mistake(
                np.where(d < 1, d**2 / 2, size - 0.5).mean(),
                "choose by |d| < 1: a large negative error is large too", "应按 |d| < 1 选择：很大的负误差也是大误差",
            ),
            Mistake(
                (d**2 / 2).mean(), "all errors are squared: large ones count linearly",
                "所有误差都用了平方：大误差应是线性的",
            ),
        ],
    )


def _p_losses(rng: np.random.Generator) -> list[Check]:
    timesteps = int(rng.integers(12, 30))
    alphas_cumprod = np.cumprod(1 - np.linspace(rng.uniform(0.01, 0.05), rng.uniform(0.1, 0.3), timesteps))
    t = np.sort(rng.choice(timesteps, size=3, replace=False)).astype(np.int32)
    x_start, noise = (1.3 * rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    slopes, offsets = rng.uniform(0.5, 1.5, size=timesteps), rng.normal(size=timesteps)
    tensors = AsTensor(x_start), AsTensor(t), AsTensor(noise)
    rows = (slice(None), None, None, None)
    ab = alphas_cumprod[t][rows]
    x_t = np.sqrt(ab) * x_start + np.sqrt(1 - ab) * noise

    def model(x: np.ndarray) -> np.ndarray:
        return np.sin(slopes[t][rows] * x) + offsets[t][rows]

    def check(loss: str) -> Check:
        def value(
            x: np.ndarray, target: np.ndarray = noise, loss: str = loss, total: Callable = np.mean
        ) -> np.ndarray:
            distance = _distance(model(x) - target, loss)
            return np.array([total(distance[some]) for some in _SOME])

        def with_first_t(some: slice) -> float:
            first = alphas_cumprod[t[some][0]]
            x = np.sqrt(first) * x_start + np.sqrt(1 - first) * noise
            return _distance(model(x) - noise, loss)[some].mean()

        others = [
            Mistake(
                value(x_t, loss=other), f"this is {other}: the argument loss says {loss}",
                f"这是 {other}：参数 loss 要求的是 {loss}",
            )
            for other in ("l1", "l2", "huber") if other != loss
        ]
        return Check(
            Call("losses", slopes, offsets, *tensors, alphas_cumprod, loss, harness=True), value(x_t),
            mistakes=[
                Mistake(
                    value(x_t, x_start), "the target is the noise: this compares the prediction with the image",
                    "目标是噪声：这里却把预测与图像相比",
                ),
                Mistake(
                    value(x_t, x_t), "the target is the noise: this compares the prediction with x_t",
                    "目标是噪声：这里却把预测与 x_t 相比",
                ),
                Mistake(
                    value(x_start), "the model must see the noised image x_t: this shows it x_0",
                    "模型看到的应是加噪后的图像 x_t：这里却给了它 x_0",
                ),
                Mistake(
                    value(ab * x_start + (1 - ab) * noise), "both square roots of alpha-bar are missing in x_t",
                    "x_t 中 alpha-bar 的两个平方根都漏了",
                ),
                Mistake(
                    value(np.sqrt(ab) * x_start + (1 - ab) * noise),
                    "1 - alpha-bar_t is the variance: in x_t noise is multiplied by the standard deviation, its root",
                    "1 - alpha-bar_t 是方差：x_t 中噪声要乘标准差，即它的平方根",
                ),
                Mistake(
                    value(np.sqrt(1 - ab) * x_start + np.sqrt(ab) * noise), "in x_t the two factors are swapped",
                    "x_t 中的两个系数写反了",
                ),
                Mistake(
                    np.array([with_first_t(some) for some in _SOME]),
                    "every image has its own t: in x_t this took the first one for all",
                    "每幅图像有自己的 t：x_t 中却全都用了第一个",
                ),
                Mistake(value(x_t, total=np.sum), *_SUM),
                *others,
            ],
        )

    gain = float(rng.uniform(0.5, 1.5))
    d = gain * x_t - noise
    value, slope = np.square(d).mean(), (2 * d * x_t).mean()
    gradient = Check(
        Call("gradient", gain, *tensors, alphas_cumprod, "l2", harness=True), [value, slope],
        mistakes=[
            Mistake(
                [value, np.zeros(())],
                "the loss is right, its gradient 0: the way from the model to the loss must not leave MindSpore's "
                "operators, as asnumpy() does, nor be cut by stop_gradient",
                "损失正确，但梯度为 0：从模型到损失必须全程使用 MindSpore 算子，不能经过 asnumpy()，"
                "也不能用 stop_gradient 截断",
            ),
        ],
    )
    return [check("l2"), check("huber"), check("l1"), gradient]
