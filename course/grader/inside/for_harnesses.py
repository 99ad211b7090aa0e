"""What several harnesses use, in the student's process: models whose answers the grader knows, and a loss scaler."""

from __future__ import annotations

from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.amp import DynamicLossScaler

_SCALER = DynamicLossScaler(1.0, 2, 1)


def affine(slopes: np.ndarray, offsets: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """model(x_t, t) = slopes[t] x_t + offsets[t], tables (T,): the best network for Gaussian data is of this kind."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        return at(slopes, t) * x_t + at(offsets, t)

    return model


def wavy(slopes: np.ndarray, offsets: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """model(x_t, t) = sin(slopes[t] x_t) + offsets[t], tables (T,)."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        return ops.sin(at(slopes, t) * x_t) + at(offsets, t)

    return model


def at(table: np.ndarray, index: Tensor) -> Tensor:
    """table[index], float32 (B, 1, 1, 1). Raises ValueError unless the index is int32 or int64 (B,) within it."""
    if not isinstance(index, Tensor) or index.dtype not in (ms.int32, ms.int64) or index.ndim != 1:
        raise ValueError("the model takes t and labels as int32 Tensors of shape (B,)")
    values = index.asnumpy()
    if values.min() < 0 or values.max() >= len(table):
        raise ValueError(f"the model is asked for {values.tolist()}, which goes beyond 0 to {len(table) - 1}")
    return Tensor(table[values].astype(np.float32).reshape(-1, 1, 1, 1))


def loss_scaler(scale: float, window: int) -> DynamicLossScaler:
    """The process's one scaler, set anew; its factor is 2.

    MindSpore 2.8 finds the compiled `unscale` by the address of the scaler's Parameter: a second scaler that lies where
    a first one lay, and is gone, divides by the first one's number.
    """
    ops.assign(_SCALER.scale_value, Tensor(scale, ms.float32))
    ops.assign(_SCALER.counter, Tensor(0, ms.int32))
    _SCALER.scale_window = window
    return _SCALER
