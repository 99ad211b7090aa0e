"""The check at the start finds every kernel whose values or gradients are wrong."""

import pytest
from mindspore import ops

from ms_diffusion import native, native_build, native_check

try:
    LIBRARY = native_build.build()
except native_build.NativeUnavailable as reason:
    pytest.skip(f"no native kernels here: {reason}", allow_module_level=True)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))


def test_the_kernels_are_right():
    assert native_check.failure(native._make) is None


def test_every_kernel_is_looked_at():
    looked_at = []

    def kernels(name):
        looked_at.append(name)
        return native._make(name)

    native_check.failure(kernels)
    assert sorted(looked_at) == sorted(native.NAMES)


def replaced(name, function):
    """All kernels, but for `name` a function of the right kernel."""
    return lambda asked: function(native._make(asked)) if asked == name else native._make(asked)


def each(function, outputs):
    return tuple(map(function, outputs)) if isinstance(outputs, tuple) else function(outputs)


@pytest.mark.parametrize("name", [name for name in native.NAMES if name not in ("adam", "ema")])
def test_a_wrong_value_is_found(name):
    wrong = replaced(name, lambda kernel: lambda *inputs: each(lambda value: value * 1.001, kernel(*inputs)))
    assert native_check.failure(wrong) == name


@pytest.mark.parametrize("name", [name for name in native.NAMES if name not in ("adam", "ema", "global_norm", "end")])
def test_a_wrong_gradient_is_found(name):
    wrong = replaced(name, lambda kernel: lambda *inputs: each(ops.stop_gradient, kernel(*inputs)))
    assert native_check.failure(wrong) == name


@pytest.mark.parametrize("name", ["adam", "ema"])
def test_an_update_that_changes_nothing_is_found(name):
    assert native_check.failure(replaced(name, lambda kernel: lambda *inputs: inputs[-1])) == name
