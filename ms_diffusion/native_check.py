"""Each native kernel beside MindSpore's own operators, before any of them serves: 0.15 s at the start of a process."""

from __future__ import annotations

from typing import Callable, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore import dtype as mstype

TOLERANCE = 1e-4
"""Largest difference, in units of the reference's largest number: rounding is 1e-6, and a wrong kernel near 1."""

Kernels = Callable[[str], ops.Custom]
"""A name of `native.NAMES` -> its operator."""


def failure(kernels: Kernels) -> Optional[str]:
    """The first of the kernels whose result or gradient is not that of MindSpore's operators; None if all agree."""
    draw = np.random.default_rng(0)
    for name, (reference, shapes) in _REFERENCES.items():
        inputs = [Tensor(draw.standard_normal(shape, dtype=np.float32)) for shape in shapes]
        if not _agree(_value_and_gradients(_differentiable(kernels, name), inputs),
                      _value_and_gradients(reference, inputs)):
            return name
    gradients = [Tensor(draw.standard_normal(shape, dtype=np.float32)) for shape in ((7, 5), (33,))]
    wanted = ops.sqrt(ops.square(gradients[0]).sum() + ops.square(gradients[1]).sum())
    if not _agree([kernels("global_norm")(*gradients)], [wanted]):
        return "global_norm"
    if not _agree(_native_adam(kernels("adam"), gradients), _adam(gradients)):
        return "adam"
    weights, averages = gradients, [Parameter(ops.ones_like(gradient)) for gradient in gradients]
    count = Tensor([_STEP], mstype.int32)
    wanted = [0.25 * average + 0.75 * weight for average, weight in zip(averages, weights)]
    kernels("ema")(*averages, *weights, Tensor([0.25], mstype.float32), count).asnumpy()
    if not _agree(averages, wanted):
        return "ema"
    token = Tensor([1.0], mstype.float32)
    return None if _agree([kernels("end")(token, gradients[0])], [token]) else "end"


def _agree(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Is every number finite and near? A comparison with NaN is false."""
    pairs = [(a.asnumpy(), b.asnumpy()) for a, b in zip(found, wanted)]
    return all(np.abs(a - b).max() <= TOLERANCE * np.abs(b).max() for a, b in pairs)


def _value_and_gradients(function: Callable, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What `function` returns, and the gradients by `inputs` of the sum of its sines: no two elements weigh alike."""

    def loss_and_value(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        value = function(*inputs)
        return ops.sin(value).sum(), value

    gradient = ms.value_and_grad(loss_and_value, grad_position=tuple(range(len(inputs))), has_aux=True)
    (_, value), gradients = gradient(*inputs)
    return [value, *gradients]


def _differentiable(kernels: Kernels, name: str) -> Callable:
    """The kernel as a function of what its gradient covers, with one output."""
    kernel = kernels(name)
    if name.endswith("attention"):
        scale = Tensor([_SCALE], mstype.float32)
        return lambda qkv: kernel(qkv, scale)
    if name.endswith("norm"):
        return lambda *inputs: kernel(*inputs)[0]
    return kernel


# MindSpore's own

_SCALE = 0.3
_STEP, _FACTOR, _LR, _BETA1, _BETA2, _EPS = 3, 0.5, 0.1, 0.9, 0.99, 1e-3


def _convolution(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    groups = x.shape[1] // weight.shape[1]
    return ops.conv2d(x, weight, *bias, stride=1, pad_mode="pad", padding=weight.shape[2] // 2, groups=groups)


def _halving(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    return ops.conv2d(x, weight, *bias, stride=2, pad_mode="pad", padding=1)


def _doubling(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    operator = ops.Conv2DTranspose(out_channel=x.shape[1], kernel_size=4, pad_mode="pad", pad=1, stride=2)
    out = operator(x, weight, (x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]))
    return ops.bias_add(out, *bias) if bias else out


def _group_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return ops.group_norm(x, gain.shape[0], gain.reshape((-1,)), bias, 1e-5)


def _layer_norm(x: Tensor, gain: Tensor) -> Tensor:
    centred = x - ops.mean(x, 1, True)
    return centred * ops.rsqrt(ops.mean(ops.square(centred), 1, True) + 1e-5) * gain


def _linear_attention(qkv: Tensor) -> Tensor:
    q, k, v = ops.chunk(qkv, 3, axis=1)
    context = ops.matmul(ops.softmax(k, -1), v.swapaxes(-1, -2)) * _SCALE
    return ops.matmul(context.swapaxes(-1, -2), ops.softmax(q, -2))


def _attention(qkv: Tensor) -> Tensor:
    q, k, v = ops.chunk(qkv, 3, axis=1)
    weights = ops.softmax(ops.matmul((q * _SCALE).swapaxes(-1, -2), k), -1)
    return ops.matmul(v, weights.swapaxes(-1, -2))


_REFERENCES = {
    "convolution": (_convolution, ((2, 9, 5, 7), (11, 9, 3, 3))),
    "convolution_bias": (_convolution, ((2, 33, 5, 3), (5, 33, 1, 1), (5,))),
    "halving": (_halving, ((2, 3, 6, 10), (5, 3, 4, 4))),
    "halving_bias": (_halving, ((2, 3, 6, 10), (5, 3, 4, 4), (5,))),
    "doubling": (_doubling, ((2, 3, 5, 7), (3, 5, 4, 4))),
    "doubling_bias": (_doubling, ((2, 3, 5, 7), (3, 5, 4, 4), (5,))),
    "depthwise": (_convolution, ((3, 5, 9, 7), (5, 1, 7, 7))),
    "depthwise_bias": (_convolution, ((3, 5, 4, 4), (5, 1, 7, 7), (5,))),
    "gelu_erf": (lambda x: ops.gelu(x, approximate="none"), ((3, 35),)),
    "gelu_tanh": (lambda x: ops.gelu(x, approximate="tanh"), ((3, 35),)),
    "silu": (ops.silu, ((3, 35),)),
    "group_norm": (_group_norm, ((3, 6, 5, 7), (2, 3), (6,))),
    "layer_norm": (_layer_norm, ((3, 6, 5, 7), (1, 6, 1, 1))),
    "linear_attention": (_linear_attention, ((2, 6, 5, 21),)),
    "attention": (_attention, ((2, 6, 5, 21),)),
}
"""The operator, and the shapes of its inputs."""


def _adam_state(gradients: Sequence[Tensor]) -> tuple[list[Parameter], ...]:
    """Weights and both moments before the step."""
    return tuple(
        [Parameter(ops.full_like(gradient, value)) for gradient in gradients] for value in (1.0, 0.2, 0.3)
    )


def _native_adam(kernel: ops.Custom, gradients: Sequence[Tensor]) -> list[Parameter]:
    weights, moment1, moment2 = _adam_state(gradients)
    numbers = [Tensor(value, mstype.float32) for value in (_FACTOR, _LR, _BETA1, _BETA2, _EPS)]
    powers = [Parameter(Tensor([beta**_STEP], mstype.float32)) for beta in (_BETA1, _BETA2)]
    steps = Parameter(Tensor([_STEP], mstype.int32))
    kernel(*weights, *moment1, *moment2, *gradients, *numbers, *powers, steps).asnumpy()
    return [*weights, *moment1, *moment2]


def _adam(gradients: Sequence[Tensor]) -> list[Parameter]:
    weights, moment1, moment2 = _adam_state(gradients)
    operator, power = ops.Adam(), _STEP + 1
    for weight, first, second, gradient in zip(weights, moment1, moment2, gradients):
        operator(weight, first, second, _BETA1**power, _BETA2**power, _LR, _BETA1, _BETA2, _EPS, gradient * _FACTOR)
    return [*weights, *moment1, *moment2]
