"""Exercise 9: a training step with a dynamic loss scale."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part

FILE = "ex09_train_step.py"
TITLE = Both("A training step with a dynamic loss scale", "带动态损失缩放的训练步")

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_NOT_UNDONE = (
    "the loss scale is not undone: divide the gradients by it, loss_scaler.unscale(gradients)",
    "损失缩放没有还原：要把梯度除以缩放系数，即 loss_scaler.unscale(gradients)",
)
_TWICE = (
    "the gradients are too small by the loss scale: divided by it twice, or of a loss that was never scaled",
    "梯度恰好小了缩放系数倍：要么除了两次，要么损失根本没有缩放",
)


def parts(rng: np.random.Generator) -> list[Part]:
    """A line fitted by least squares: its gradients are a closed form, and Adam's steps by hand."""
    return [
        Part("9.1", "loss_and_gradients", 2, [_gradients(rng), _small_gradients(rng)]),
        Part("9.2", "all_finite", 1, [_all_finite(rng)]),
        Part("9.3", "make_train_step: a good step", 3, [_good_steps(rng)]),
        Part("9.4", "make_train_step: an overflow", 2, [_overflow(rng, np.inf), _overflow(rng, np.nan)]),
        Part("9.5", "make_train_step: the scale", 2, [_scale(rng)]),
    ]


def _has_shape(found: object, shape: tuple[int, ...]) -> bool:
    return isinstance(found, np.ndarray) and found.shape == shape


class _Data:
    """Steps' batches x (S, N, D) and target (S, N), and where the line begins; the bias is the first weight."""

    def __init__(self, rng: np.random.Generator, steps: int) -> None:
        self.x = rng.normal(size=(steps, 6, 3)).astype(np.float32)
        self.target = rng.normal(2, 1, size=(steps, 6)).astype(np.float32)
        self.weights = rng.uniform(0.2, 1, size=4).astype(np.float32)
        self.scale = float(2 ** rng.integers(13, 17))
        self.rate = float(rng.uniform(0.01, 0.05))

    def overflow(self, step: int, by: float = np.inf) -> None:
        """Make the gradients of a step finite, and those of its scaled loss not; or all of them NaN."""
        if np.isnan(by):
            self.x[step, 1, 2] = by
        else:
            self.x[step] = 1e17 * (1 + np.abs(self.x[step]))
            self.target[step] = 3e18 * (1 + np.abs(self.target[step]))

    def loss_and_gradient(self, step: int, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Of the mean squared error; the bias comes first."""
        x = np.insert(np.float64(self.x[step]), 0, 1, axis=1)
        error = x @ weights - self.target[step]
        return np.square(error).mean(), 2 * (error[:, None] * x).mean(axis=0)

    def call(self, function: str, window: int) -> Call:
        """A call of the harness's."""
        return Call(
            function, self.weights[:1], self.weights[1:], self.scale, window, self.rate, self.x, self.target,
            harness=True,
        )


def _gradients(rng: np.random.Generator) -> Check:
    data = _Data(rng, 1)
    loss, gradient = data.loss_and_gradient(0, data.weights)

    def answer(loss_by: float, gradient_by: float) -> list[np.ndarray]:
        scaled = gradient * gradient_by
        return [np.asarray(loss * loss_by), scaled[:1], scaled[1:]]

    return Check(
        Call(
            "gradients", data.weights[:1], data.weights[1:], data.scale, AsTensor(data.x[0]), AsTensor(data.target[0]),
            harness=True,
        ),
        answer(1, 1),
        mistakes=[
            Mistake(answer(1, data.scale), *_NOT_UNDONE),
            Mistake(
                answer(data.scale, 1), "the loss that is returned is still scaled: return the loss itself",
                "返回的损失仍是缩放过的：应返回损失本身",
            ),
            Mistake(
                answer(data.scale, data.scale), "loss and gradients are both returned still scaled: unscale the "
                "gradients, return the loss itself", "返回的损失和梯度都仍是缩放过的：梯度要还原，损失要返回它本身",
            ),
            Mistake(answer(1, 1 / data.scale), *_TWICE),
        ],
    )


def _small_gradients(rng: np.random.Generator) -> Check:
    """The products are float16: numbers of few digits, so that nothing is rounded but what gets too small."""
    x, weights = rng.integers(1, 5, size=(4, 3)) / 4, rng.integers(-4, 5, size=4) / 4
    target = rng.integers(10, 20, size=4) / 2
    scale, factor = float(2 ** rng.integers(14, 17)), 2.0**-26
    error = weights[0] + x @ weights[1:] - target
    gradient = factor * 2 * (error[:, None] * x).mean(axis=0)
    tensors = AsTensor(x.astype(np.float32)), AsTensor(target.astype(np.float32))
    return Check(
        Call("small_gradients", weights[:1], weights[1:], scale, *tensors, factor, harness=True), gradient,
        tolerance=1e-3,
        mistakes=[
            Mistake(
                lambda found: _has_shape(found, (3,)) and np.all(np.abs(found) < 1e-3 * np.abs(gradient)),
                "small gradients became 0 in float16: differentiate loss_scaler.scale(loss), not the loss",
                "很小的梯度在 float16 中变成了 0：应对 loss_scaler.scale(loss) 求导，而不是对损失本身",
            ),
        ],
    )


def _all_finite(rng: np.random.Generator) -> Check:
    def case(*wrong: tuple[int, float]) -> tuple[np.ndarray, ...]:
        arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((4,), (3, 2), (5,))]
        for place, value in wrong:
            arrays[place].flat[rng.integers(1, arrays[place].size)] = value
        return tuple(arrays)

    cases = {
        "fine": case(), "first": case((0, np.inf)), "last": case((2, np.inf)), "nan": case((1, np.nan)),
        "minus": case((1, -np.inf)), "cancel": case((0, np.inf), (2, -np.inf)),
        "large": tuple(np.full(shape, 3e38, np.float32) for shape in ((4,), (3, 2))),
    }
    names = list(rng.permutation(list(cases)))

    def said(name: str, value: float) -> object:
        return lambda found: _has_shape(found, (len(names),)) and found[names.index(name)] == value

    return Check(
        Call("finites", tuple(cases[name] for name in names), harness=True),
        np.array([float(name in ("fine", "large")) for name in names]), returns="any",
        mistakes=[
            Mistake(
                said("fine", 0.0), "finite gradients are called infinite: the answer is True where all are finite",
                "梯度全部有限，却被判为无穷：全部有限时应返回 True",
            ),
            Mistake(
                said("last", 1.0), "only some of the gradients are looked at: infinity in the last one passes",
                "只检查了一部分梯度：最后一个梯度中的无穷大没有被发现",
            ),
            Mistake(
                said("first", 1.0), "only some of the gradients are looked at: infinity in the first one passes",
                "只检查了一部分梯度：第一个梯度中的无穷大没有被发现",
            ),
            Mistake(
                said("nan", 1.0), "NaN passes: neither a comparison with infinity nor ops.isinf sees it",
                "NaN 没有被发现：与无穷大比较或 ops.isinf 都发现不了它",
            ),
            Mistake(said("minus", 1.0), "minus infinity passes", "负无穷没有被发现"),
            Mistake(
                said("large", 0.0),
                "finite gradients are called infinite because their sum overflows: look at each number",
                "梯度都是有限的，但它们的和溢出了，于是被判为无穷：应检查每个数",
            ),
        ],
    )


def _trained(data: _Data, steps: Sequence[str], scale_by: float = 1.0, loss_by: float = 1.0) -> list[np.ndarray]:
    """Losses, weights, moments and count by Adam in float64; a step is "good", "skipped" or "zero" (its gradients)."""
    weights, first, second, count, losses = np.float64(data.weights), 0.0, 0.0, 0, []
    for step, kind in enumerate(steps):
        if kind == "skipped":
            continue
        loss, gradient = data.loss_and_gradient(step, weights) if kind == "good" else (0.0, np.zeros(4))
        losses.append(loss * loss_by)
        gradient = gradient * scale_by
        count += 1
        first = _BETA1 * first + (1 - _BETA1) * gradient
        second = _BETA2 * second + (1 - _BETA2) * gradient**2
        rate = data.rate * np.sqrt(1 - _BETA2**count) / (1 - _BETA1**count)
        weights = weights - rate * first / (np.sqrt(second) + _EPS)
    return [np.array(losses), weights, first, second, np.array([count])]


def _good_steps(rng: np.random.Generator) -> Check:
    data, steps = _Data(rng, 3), ("good",) * 3

    def answer(**changed: float) -> list[np.ndarray]:
        losses, *state = _trained(data, steps, **changed)
        return [losses, np.ones(3), np.full(3, data.scale), *state]

    still = answer()
    still[0] = np.array([data.loss_and_gradient(step, data.weights)[0] for step in range(3)])
    still[3:] = [np.float64(data.weights), np.zeros(4), np.zeros(4), np.zeros(1)]
    return Check(
        data.call("train", 1000), answer(), returns="any",
        mistakes=[
            Mistake(
                answer(scale_by=data.scale), _NOT_UNDONE[0] + ". Adam hides it in the weights, its moments tell",
                _NOT_UNDONE[1] + "。Adam 的权重上看不出这个错误，但它的动量会暴露出来",
            ),
            Mistake(
                answer(loss_by=data.scale), "the loss that is returned is still scaled: return the loss itself",
                "返回的损失仍是缩放过的：应返回损失本身",
            ),
            Mistake(answer(scale_by=1 / data.scale), *_TWICE),
            Mistake(
                still, "the optimizer is never called: optimizer(gradients)", "没有调用优化器：optimizer(gradients)",
            ),
        ],
    )


def _overflow(rng: np.random.Generator, by: float) -> Check:
    data = _Data(rng, 3)
    data.overflow(1, by)

    def answer(kind: str, scales: Sequence[float], finite: float = 0.0) -> list[np.ndarray]:
        _, *state = _trained(data, ("good", kind, "good"))
        return [np.array([1, finite, 1]), data.scale * np.array(scales), *state]

    def form(found: object) -> bool:
        shapes = (3,), (3,), (4,), (4,), (4,), (1,)
        return isinstance(found, list) and len(found) == 6 and all(map(_has_shape, found, shapes))

    return Check(
        data.call("overflow", 1000), answer("skipped", (1, 0.5, 0.5)), returns="any",
        mistakes=[
            Mistake(
                lambda found: form(found) and found[0][1] == 1,
                "where the gradients of the scaled loss overflow, step says that they are finite: is the loss scaled "
                "before the backward pass, and are all the gradients looked at?",
                "缩放后的损失梯度已经溢出，step 却说梯度有限：反向传播之前损失缩放了吗？所有梯度都检查了吗？",
            ),
            Mistake(
                lambda found: form(found) and not np.all(np.isfinite(np.concatenate(found[2:5]))),
                "the overflow is not skipped: infinite gradients reached the optimizer, and the weights are lost",
                "溢出的那一步没有跳过：无穷大的梯度进入了优化器，权重已经毁掉",
            ),
            Mistake(
                answer("zero", (1, 0.5, 0.5)),
                "an overflow must change nothing but the scale: with zeros for gradients Adam still moves the weights "
                "and its moments; do not call it at all",
                "溢出时除缩放系数外什么都不能变：即使梯度换成 0，Adam 仍会改动权重和动量；这一步根本不要调用它",
            ),
            Mistake(
                answer("skipped", (1, 1, 1)),
                "the scale is not halved after an overflow: call loss_scaler.adjust(finite)",
                "溢出后缩放系数没有减半：要调用 loss_scaler.adjust(finite)",
            ),
            Mistake(
                answer("skipped", (1, 0.25, 0.25)),
                "the scale is divided twice after an overflow: adjust it once a step",
                "溢出后缩放系数被除了两次：每一步只调用一次 adjust",
            ),
            Mistake(
                answer("skipped", (0.5, 0.5, 0.25)),
                "the scale falls after good steps: adjust(finite) takes True where the gradients are finite",
                "正常的一步之后缩放系数反而减小：梯度有限时 adjust(finite) 的参数应为 True",
            ),
        ],
    )


def _scale(rng: np.random.Generator) -> Check:
    window, steps = int(rng.integers(2, 4)), 9
    data = _Data(rng, steps)
    bad = window + 1
    data.overflow(bad)
    finite = np.arange(steps) != bad

    def answer(*, good: int = 1, overflow: int = 1, inverted: bool = False, lost: bool = False) -> np.ndarray:
        scale, counter, scales = data.scale, 0, []
        for step in range(steps):
            fine = finite[step] and not (lost and step > bad)
            for _ in range(good if fine else overflow):
                if fine != inverted:
                    counter += 1
                    scale, counter = (2 * scale, 0) if counter == window else (scale, counter)
                else:
                    scale, counter = max(scale / 2, 1), 0
            scales.append(scale)
        return np.array(scales)

    return Check(
        data.call("scales", window), answer(), returns="array", tolerance=1e-6,
        mistakes=[
            Mistake(
                answer(good=0, overflow=0), "the scale never changes: call loss_scaler.adjust(finite) in every step",
                "缩放系数从不变化：每一步都要调用 loss_scaler.adjust(finite)",
            ),
            Mistake(
                answer(good=0), "the scale never grows: call loss_scaler.adjust(finite) after good steps too",
                "缩放系数从不增大：正常的一步之后也要调用 loss_scaler.adjust(finite)",
            ),
            Mistake(
                answer(overflow=0),
                "the scale is not made smaller after an overflow: adjust(finite) belongs outside the if",
                "溢出后缩放系数没有减小：adjust(finite) 应放在 if 之外",
            ),
            Mistake(
                answer(good=2, overflow=2), "the scale is adjusted twice in a step: once is enough",
                "一步之内调整了两次缩放系数：一次就够",
            ),
            Mistake(
                answer(inverted=True), "adjust(finite) takes True where the gradients are finite: this is the opposite",
                "梯度有限时 adjust(finite) 的参数应为 True：这里写反了",
            ),
            Mistake(
                answer(lost=True),
                "after the overflow every step overflows: the step was not skipped, the weights are lost",
                "溢出之后每一步都溢出：那一步没有跳过，权重已经毁掉",
            ),
        ],
    )
