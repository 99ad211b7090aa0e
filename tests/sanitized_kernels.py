"""Calls every native kernel of a sanitized library, odd sizes and 1 to 8 threads; tests/test_native.py runs it.

  python tests/sanitized_kernels.py LIBRARY  # in the environment of native_build.preload()

The arrays are NumPy's, each with a guarded border of its own: MindSpore's would lie side by side in one pool, where a
kernel that leaves its array is not noticed. Outputs begin as NaN, and must be finite afterwards.
"""

import ctypes
import sys
import threading

import numpy as np

SIZES = [(1, 1, 1, 1), (2, 3, 1, 1), (1, 5, 7, 9), (3, 17, 6, 5), (2, 40, 9, 3), (19, 4, 4, 4), (2, 9, 28, 28)]
"""(batch, channels, height, width) of inputs."""


def array(*shape):
    return np.asarray(np.random.default_rng(0).normal(size=shape), np.float32)


def call(library, name, inputs, *shapes):
    """Run the kernel; returns its outputs, which have the `shapes`."""
    outputs = [np.full(shape, np.nan, np.float32) for shape in shapes]
    arrays = [*inputs, *outputs]
    count = len(arrays)
    dimensions = [(ctypes.c_int64 * max(1, a.ndim))(*a.shape) for a in arrays]
    status = getattr(library, f"ms_diffusion_{name}")(
        count, (ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays]),
        (ctypes.c_int * count)(*[a.ndim for a in arrays]),
        (ctypes.c_void_p * count)(*[ctypes.addressof(shape) for shape in dimensions]), None, None, None,
    )
    assert status == 0, (name, status)
    for output in outputs:
        assert np.isfinite(output).all(), (name, [a.shape for a in arrays])
    return outputs


def convolutions(library, batch, channels, height, width):
    def both(kind, weight, *out_shape):
        x, bias = array(batch, channels, height, width), array(out_shape[1])
        for name, extra in ((kind, []), (f"{kind}_bias", [bias])):
            (y,) = call(library, name, [x, weight, *extra], out_shape)
            call(library, f"{name}_gradient", [x, weight, y], x.shape, weight.shape, *(a.shape for a in extra))

    for outputs in (1, 6, 35):
        for kernel in (1, 3, 5, 7):
            both("convolution", array(outputs, channels, kernel, kernel), batch, outputs, height, width)
        if min(height, width) > 1:
            both("halving", array(outputs, channels, 4, 4), batch, outputs, height // 2, width // 2)
        both("doubling", array(channels, outputs, 4, 4), batch, outputs, 2 * height, 2 * width)
    for kernel in (3, 5, 7):
        both("depthwise", array(channels, 1, kernel, kernel), batch, channels, height, width)


def pointwise(library, batch, channels, height, width):
    x = array(batch, channels, height, width)
    for name in ("gelu_erf", "gelu_tanh", "silu"):
        (y,) = call(library, name, [x], x.shape)
        call(library, f"{name}_gradient", [x, y], x.shape)


def normalizations(library, batch, channels, height, width):
    x, bias = array(batch, channels, height, width), array(channels)
    for groups in {1, channels}:
        gain = array(groups, channels // groups)
        y, statistics = call(library, "group_norm", [x, gain, bias], x.shape, (batch, groups, 2))
        call(library, "group_norm_gradient", [x, gain, statistics, y], x.shape, gain.shape, bias.shape)
    gain = array(1, channels, 1, 1)
    y, statistics = call(library, "layer_norm", [x, gain], x.shape, (batch, 2, height, width))
    call(library, "layer_norm_gradient", [x, gain, statistics, y], x.shape, gain.shape)


def attentions(library, batch, channels, height, width):
    for heads in (1, 3):
        qkv, scale = array(batch, 3 * heads, channels, height * width), np.array([0.3], np.float32)
        for name in ("linear_attention", "attention"):
            (out,) = call(library, name, [qkv, scale], (batch, heads, *qkv.shape[2:]))
            call(library, f"{name}_gradient", [qkv, scale, out], qkv.shape)


def updates(library, *shape):
    gradients = [array(*shape), array(20001), array()]
    call(library, "global_norm", gradients, (1,))
    state = [np.fabs(gradient, out=np.empty_like(gradient)) for _ in range(3) for gradient in gradients]
    scalars = [np.array(value, np.float32) for value in (0.5, 1e-2, 0.9, 0.99, 1e-8, 0.9, 0.99)]
    for factor in (0.5, np.inf):
        scalars[0][...] = factor
        call(library, "adam", [*state, *gradients, *scalars, np.array(1, np.int32)], (1,))
    averages = [np.ones_like(gradient) for gradient in gradients]
    call(library, "ema", [*averages, *gradients, np.array([0.5], np.float32), np.array([7], np.int32)], (1,))


def while_the_number_of_threads_changes(library):
    """A kernel that has memory for each share must not have more shares than it began with."""
    stop = threading.Event()

    def change():
        threads = 0
        while not stop.wait(2e-5):
            threads = threads % 8 + 1
            library.ms_diffusion_set_threads(threads)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(100):
            normalizations(library, 2, 9, 28, 28)
            convolutions(library, 8, 5, 7, 9)
    finally:
        stop.set()
        changer.join()


def main():
    """Every kernel, for every size, with every number of threads."""
    library = ctypes.CDLL(sys.argv[1])
    for threads in range(1, 9):
        library.ms_diffusion_set_threads(threads)
        for size in SIZES:
            for kernels in (convolutions, pointwise, normalizations, attentions, updates):
                kernels(library, *size)
    while_the_number_of_threads_changes(library)


if __name__ == "__main__":
    main()
