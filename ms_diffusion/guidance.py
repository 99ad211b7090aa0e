"""Guidance: a network that knows labels, or one beside it that does, becomes a plain `model(x_t, t)` to sample from.

The weight w: 0 is unconditional, 1 conditional, above 1 stronger; Ho and Salimans 2022 write 1 + w for it.
The labels are a Parameter, so that one compiled graph serves all of them: `tell` changes them.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from ms_diffusion.errors import UserError


class Guided(nn.Cell):
    """Classifier-free guidance, Ho and Salimans 2022, eq. 6: u + w (c - u), c told the labels and u none.

    `model(x_t, t, y)` predicts eps, x_0 or v; further channels than x_t has, a learned variance, are those of c. `null`
    is its label that stands for none. Both predictions come from one call with a batch of twice the size; at w = 1
    there is c alone.

    `rescale` is phi of Lin et al. 2023, section 3.4: so much of the result's standard deviation, of each image, is
    made that of c. `interval` (low, high) guides only at low <= t <= high, and takes c elsewhere; Kynkaanniemi et al.
    2024.
    """

    def __init__(
        self, model: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Sequence[int], weight: float = 1.0, *,
        null: int, rescale: float = 0.0, interval: Optional[Tuple[float, float]] = None,
    ) -> None:
        super().__init__(auto_prefix=False)  # the network's Parameters keep their names
        if not 0 <= rescale <= 1:
            raise UserError(f"the rescaling of guidance is {rescale}: it must be in [0, 1]")
        self.model = model
        self.weight, self.rescale, self.interval = float(weight), float(rescale), interval
        self.labels = _labels_parameter(labels)
        self.null = Tensor(np.full(len(labels), null, np.int32))

    def tell(self, labels: Sequence[int]) -> None:
        """From now on the images of a batch have `labels`, as many as before."""
        ops.assign(self.labels, Tensor(np.asarray(labels, np.int32)))  # a compiled graph would not see set_data

    def construct(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> what `model` returns."""
        if self.weight == 1.0:
            return self.model(x_t, t, self.labels)
        both = self.model(ops.concat((x_t, x_t)), ops.concat((t, t)), ops.concat((self.labels, self.null)))
        told, untold = ops.chunk(both, 2)
        channels = x_t.shape[1]
        c, u = told[:, :channels], untold[:, :channels]
        guided = u + self.weight * (c - u)
        if self.rescale > 0:
            guided = guided * (self.rescale * _std(c) / _std(guided) + (1 - self.rescale))
        if self.interval is not None:
            low, high = self.interval
            inside = ops.logical_and(t >= low, t <= high).reshape((-1, 1, 1, 1))
            guided = ops.select(ops.broadcast_to(inside, guided.shape), guided, c)
        return ops.concat((guided, told[:, channels:]), axis=1) if told.shape[1] > channels else guided


class ClassifierGuided(nn.Cell):
    """Classifier guidance, Dhariwal and Nichol 2021, Algorithm 2: eps - w sqrt(1 - alpha-bar_t) grad log p(y | x_t).

    `model(x_t, t)` predicts eps, or by `objective` x_start or v, which are moved to say the same. `classifier(x_t, t)`
    returns logits (B, classes). `alphas_cumprod` is (T,); between two t the log of the signal-to-noise ratio is
    interpolated.
    """

    def __init__(
        self, model: Callable[[Tensor, Tensor], Tensor], classifier: Callable[[Tensor, Tensor], Tensor],
        labels: Sequence[int], weight: float = 1.0, *, alphas_cumprod: np.ndarray, objective: str = "eps",
    ) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.classifier = model, classifier
        self.weight, self.objective = float(weight), objective
        self.labels = _labels_parameter(labels)
        alphas_cumprod = np.clip(alphas_cumprod, 1e-8, 1 - 1e-8)  # finite at zero terminal SNR
        self.log_snr = Tensor(np.log(alphas_cumprod / (1 - alphas_cumprod)), mstype.float32)

    def tell(self, labels: Sequence[int]) -> None:
        """From now on the images of a batch have `labels`, as many as before."""
        ops.assign(self.labels, Tensor(np.asarray(labels, np.int32)))  # a compiled graph would not see set_data

    def log_probability(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The sum over the batch of log p(y | x_t), whose gradient is that of each image."""
        return -ops.cross_entropy(self.classifier(x_t, t), self.labels, reduction="sum")

    def construct(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> what `model` returns."""
        gradient = ms.grad(self.log_probability, 0)(x_t, t)
        below = ops.cast(t, mstype.int32)
        above = ops.clamp(below + 1, 0, self.log_snr.shape[0] - 1)
        part = ops.cast(t, mstype.float32) - ops.cast(below, mstype.float32)
        log_snr = (1 - part) * ops.gather(self.log_snr, below, 0) + part * ops.gather(self.log_snr, above, 0)
        log_snr = log_snr.reshape((-1, 1, 1, 1))
        deviation = ops.sqrt(ops.sigmoid(-log_snr))  # sqrt(1 - alpha-bar_t)
        # x_0 = (x_t - deviation eps) / root and v = root eps - deviation x_0, with root = sqrt(alpha-bar_t).
        if self.objective == "eps":
            factor = -deviation
        elif self.objective == "x_start":
            factor = deviation * deviation * ops.rsqrt(ops.sigmoid(log_snr))
        else:
            factor = -deviation * ops.rsqrt(ops.sigmoid(log_snr))
        out, channels = self.model(x_t, t), x_t.shape[1]
        guided = out[:, :channels] + self.weight * factor * gradient
        return ops.concat((guided, out[:, channels:]), axis=1) if out.shape[1] > channels else guided


def label_images(images: Sequence[int], labels: Sequence[int]) -> np.ndarray:
    """The labels int32 (N,) of the images of these numbers: image i of a seed has labels[i % len(labels)]."""
    return np.asarray(labels, np.int32)[np.asarray(images) % len(labels)]


def parse_labels(words: str, num_classes: int) -> list[int]:
    """The labels that "3", "0,1,2" or "all" mean; `UserError` for any other words, and labels that are none."""
    if words == "all":
        return list(range(num_classes))
    try:
        labels = [int(word) for word in words.split(",")]
    except ValueError as error:
        raise UserError(f"--label is {words!r}: give a label, several with commas between, or all") from error
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f"--label is {words!r}: {wrong[0]} is no label of this run, which has 0 to {num_classes - 1}")
    return labels


def _labels_parameter(labels: Sequence[int]) -> Parameter:
    return Parameter(Tensor(np.asarray(labels, np.int32)), name="guidance.labels", requires_grad=False)


def _std(x: Tensor) -> Tensor:
    """The standard deviation of each image, (B, 1, 1, 1)."""
    centred = x - ops.mean(x, (1, 2, 3), True)
    return ops.sqrt(ops.mean(ops.square(centred), (1, 2, 3), True))
