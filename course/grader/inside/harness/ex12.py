"""Exercise 12: a network that knows labels, and counts how often it is asked."""

from __future__ import annotations

from types import ModuleType
from typing import List, Tuple

import numpy as np
from for_harnesses import at
from mindspore import Tensor, ops


def guided(
    module: ModuleType, slopes: np.ndarray, offsets: np.ndarray, x_t: Tensor, t: Tensor, labels: Tensor, weight: float,
    null: int,
) -> Tuple[Tensor, int]:
    """`guided_eps` of model(x_t, t, y) = sin(slopes[y] x_t) + offsets[t], and the number of the model's calls."""
    batches: List[int] = []

    def model(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if not len(x_t) == len(t) == len(y):
            raise ValueError(f"the model is asked with {len(x_t)} images, {len(t)} times and {len(y)} labels")
        batches.append(len(x_t))
        return ops.sin(at(slopes, y) * x_t) + at(offsets, t)

    return module.guided_eps(model, x_t, t, labels, weight, null), len(batches)
