from typing import Callable

from mindspore import Tensor, ops


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    return unconditional + weight * (conditional - unconditional)


def guided_eps(model: Callable, x_t: Tensor, t: Tensor, labels: Tensor, weight: float, null: int) -> Tensor:
    none = ops.full_like(labels, null)
    both = model(ops.concat((x_t, x_t)), ops.concat((t, t)), ops.concat((labels, none)))
    conditional, unconditional = ops.chunk(both, 2)
    return guide(conditional, unconditional, weight)


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, null: int) -> Tensor:
    return ops.select(uniform < probability, ops.full_like(labels, null), labels)
