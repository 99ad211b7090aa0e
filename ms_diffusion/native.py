"""The C++ kernels of `kernels/` as MindSpore operators with gradients: float32, on a CPU, optional.

`operator` gives one of `NAMES`, or None where MindSpore's own operators must serve. Each is called with tensors only;
strides, groups and heads follow from their shapes:

- convolution, halving, depthwise (x, weight), doubling (x, weight); with `_bias` also the bias
- gelu_erf, gelu_tanh, silu (x)
- group_norm (x, gain (groups, channels of a group), bias), layer_norm (x, gain): the first output; the others are
  the statistics that their gradients read
- linear_attention, attention (q k v (B, 3 heads, d, N), scale (1,)) -> (B, heads, d, N)
- global_norm (gradient, ...) -> (1,)
- ema (average, ..., weight, ..., decay d (1,), t of adam) -> t: average <- d average + (1 - d) weight, where it lies
- end (token (1,), what must be computed before, of any type) -> token: the last operator of a step, for `asleep`
- adam (parameter, ..., first moment, ..., second moment, ..., gradient, ..., and eight scalars: a factor for the
  gradients, the learning rate, beta1, beta2, epsilon, beta1^t, beta2^t, t) -> t (1,): changes the parameters, the
  moments, the two powers and t where they lie, unless the factor is not finite; Kingma and Ba 2014, Algorithm 1, in
  the order of section 2's last remark
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Optional

import mindspore as ms
from mindspore import Tensor, ops
from mindspore import dtype as mstype

from ms_diffusion import native_build, native_check, runtime

NAMES = (
    "convolution", "convolution_bias", "halving", "halving_bias", "doubling", "doubling_bias", "depthwise",
    "depthwise_bias", "gelu_erf", "gelu_tanh", "silu", "group_norm", "layer_norm", "linear_attention", "attention",
    "global_norm", "adam", "ema", "end",
)
PATIENCE = 60.0
"""Seconds that `asleep` sleeps at most: a step that failed never tells its end, and MindSpore must tell the failure."""
_STATE: dict[str, Any] = {"library": None, "operators": {}}


def operator(name: str) -> Optional[ops.Custom]:
    """The operator `name` of `NAMES`; None, after one line on stderr that says why, where there are no kernels."""
    if not enabled():
        return None
    operators = _STATE["operators"]
    if name not in operators:
        operators[name] = _make(name)
    return operators[name]


def enabled() -> bool:
    """Are there kernels for this machine, this device and this MindSpore, are they right, and are they wanted?"""
    if _STATE["library"] is None:
        _STATE["library"] = ""
        try:
            _open()
        except native_build.NativeUnavailable as reason:
            _STATE.update(library="", operators={})
            print(f"MindSpore's own operators serve: {reason}", file=sys.stderr)
            if runtime.device() == "CPU":
                _warn_of_slow_convolutions(ms.__version__)
    return bool(_STATE["library"])


def library() -> str:
    """The path of the kernels' library, whose name follows from its content; empty where `enabled` is false."""
    return _STATE["library"] if enabled() else ""


def asleep(step: Callable) -> Callable:
    """`step`, which ends by the operator `end`, but returning only after that, and sleeping until then.

    MindSpore's own wait for a Tensor spins in a thread that takes half of one of two cores away from the kernels: a
    training step of Fashion-MNIST took 185 ms so, and 121 ms asleep (README, "Speed on a CPU").
    """
    opened = native_build.load(Path(library()))
    opened.ms_diffusion_ended.restype = ctypes.c_int64
    opened.ms_diffusion_wait.argtypes = (ctypes.c_int64, ctypes.c_double)

    def call(*arguments: Tensor) -> Any:
        ended = opened.ms_diffusion_ended()
        outputs = step(*arguments)
        opened.ms_diffusion_wait(ended + 1, PATIENCE)
        return outputs

    return call


def clocks() -> dict[str, tuple[int, float]]:
    """Calls of each native kernel that this process has called, and the seconds in them, by the kernel's name."""
    if not enabled():
        return {}
    opened, taken = native_build.load(Path(library())), {}
    name, calls, nanoseconds = ctypes.c_char_p(), ctypes.c_int64(), ctypes.c_int64()
    while opened.ms_diffusion_clock(len(taken), *map(ctypes.byref, (name, calls, nanoseconds))):
        taken[name.value.decode()[len("ms_diffusion_") :]] = (calls.value, nanoseconds.value / 1e9)
    return taken


def _open() -> None:
    if os.environ.get("MS_DIFFUSION_NATIVE") == "0":
        raise native_build.NativeUnavailable("MS_DIFFUSION_NATIVE is 0")
    if runtime.device() != "CPU":
        raise native_build.NativeUnavailable("the native kernels are for the CPU")
    library = native_build.find()
    native_build.load(library).ms_diffusion_set_threads(runtime.threads())
    _STATE["library"] = str(library)
    wrong = native_check.failure(operator)
    if wrong is not None:
        raise native_build.NativeUnavailable(
            f"the native kernel {wrong} of {library} computes something else here: build with another compiler, by CXX"
        )


def _warn_of_slow_convolutions(version: str) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= (2, 9):
        warnings.warn(
            f"MindSpore {version} runs CPU convolutions on oneDNN's reference kernel, about 50 times slower than 2.8.0 "
            "(two cores, a training step of Fashion-MNIST: 20 s and more, not 0.4): build the native kernels by python "
            "scripts/build_kernels.py (0.2 s, in any version), or install mindspore==2.8.0",
            stacklevel=3,
        )


def _make(name: str) -> ops.Custom:
    if name.startswith(("convolution", "halving", "doubling", "depthwise")):
        return _convolution(name)
    if name.startswith(("gelu", "silu")):
        return _activation(name)
    return {
        "group_norm": _group_norm, "layer_norm": _layer_norm, "linear_attention": _attention, "attention": _attention,
        "global_norm": _global_norm, "adam": _in_place, "ema": _in_place, "end": _end,
    }[name](name)


def _custom(
    symbol: str, shapes: Callable, outputs: int = 1, bprop: Optional[Callable] = None, dtype: Any = mstype.float32
) -> ops.Custom:
    dtypes = dtype if outputs == 1 else (dtype,) * outputs
    return ops.Custom(
        f"{_STATE['library']}:ms_diffusion_{symbol}", out_shape=shapes, out_dtype=dtypes, func_type="aot", bprop=bprop
    )


# MindSpore wants each gradient as a plain function (x, ..., out, dout), and no two operators on one symbol.


def _convolution(name: str) -> ops.Custom:
    kind = name.split("_")[0]

    def same(x, weight, *bias):
        return [x[0], weight[0], x[2], x[3]]

    def halved(x, weight, *bias):
        return [x[0], weight[0], x[2] // 2, x[3] // 2]

    def doubled(x, weight, *bias):
        return [x[0], weight[1], x[2] * 2, x[3] * 2]

    shape = {"halving": halved, "doubling": doubled}.get(kind, same)
    if name.endswith("_bias"):
        gradient = _custom(f"{name}_gradient", lambda x, weight, dy: (x, weight, [dy[1]]), outputs=3)

        def bprop_bias(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
            return gradient(x, weight, dout)

        return _custom(name, shape, bprop=bprop_bias)
    gradient = _custom(f"{name}_gradient", lambda x, weight, dy: (x, weight), outputs=2)

    def bprop(x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return gradient(x, weight, dout)

    return _custom(name, shape, bprop=bprop)


def _activation(name: str) -> ops.Custom:
    gradient = _custom(f"{name}_gradient", lambda x, dy: x)

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return (gradient(x, dout),)

    return _custom(name, lambda x: x, bprop=bprop)


def _group_norm(name: str) -> ops.Custom:
    gradient = _custom(f"{name}_gradient", lambda x, gain, statistics, dy: (x, gain, [x[1]]), outputs=3)

    def bprop(x: Tensor, gain: Tensor, bias: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, ...]:
        return gradient(x, gain, out[1], dout[0])

    return _custom(name, lambda x, gain, bias: (x, [x[0], gain[0], 2]), outputs=2, bprop=bprop)


def _layer_norm(name: str) -> ops.Custom:
    gradient = _custom(f"{name}_gradient", lambda x, gain, statistics, dy: (x, gain), outputs=2)

    def bprop(x: Tensor, gain: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, ...]:
        return gradient(x, gain, out[1], dout[0])

    return _custom(name, lambda x, gain: (x, [x[0], 2, x[2], x[3]]), outputs=2, bprop=bprop)


def _attention(name: str) -> ops.Custom:
    gradient = _custom(f"{name}_gradient", lambda qkv, scale, dy: qkv)

    def bprop(qkv: Tensor, scale: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return gradient(qkv, scale, dout), ops.zeros_like(scale)

    return _custom(name, lambda qkv, scale: [qkv[0], qkv[1] // 3, qkv[2], qkv[3]], bprop=bprop)


def _global_norm(name: str) -> ops.Custom:
    return _custom(name, lambda *gradients: [1])


def _in_place(name: str) -> ops.Custom:
    return _custom(name, lambda *inputs: [1], dtype=mstype.int32)


def _end(name: str) -> ops.Custom:
    return _custom(name, lambda token, before: token)
