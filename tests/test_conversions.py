import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_diffusion import conversions
from ms_diffusion.conversions import KINDS, to_eps, to_score, to_v, to_x_start

TO = {"eps": to_eps, "x_start": to_x_start, "v": to_v, "score": to_score}


def truth(angle, size=6):
    """x_0 and eps, and what follows from them by definition."""
    x_start, eps = np.random.default_rng(0).standard_normal((2, size))
    signal, sigma = np.cos(angle), np.sin(angle)
    x_t = signal * x_start + sigma * eps
    # The score is the gradient of log N(x_t; signal x_0, sigma^2).
    score = -(x_t - signal * x_start) / sigma**2
    return {"x_start": x_start, "eps": eps, "v": signal * eps - sigma * x_start, "score": score}, x_t, signal, sigma


@pytest.mark.parametrize("angle", [0.01, 0.5, 1.5])
@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_each(kind, wanted, angle):
    values, x_t, signal, sigma = truth(angle)
    found = TO[wanted](values[kind], kind, x_t, signal, sigma)
    assert np.abs(found - values[wanted]).max() < 1e-11 * np.abs(values["score"]).max()


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_of_tensors(kind, wanted, jit):
    values, x_t, signal, sigma = truth(0.7)
    function = TO[wanted]

    def run(value, x_t, signal, sigma):
        return function(value, kind, x_t, signal, sigma)

    inputs = [Tensor(array, ms.float32) for array in (values[kind], x_t, signal, sigma)]
    assert np.abs((ms.jit(run) if jit else run)(*inputs).asnumpy() - values[wanted]).max() < 1e-5


def test_v_is_a_rotation_of_x_start_and_eps():
    """(x_t, v) has the length of (x_0, eps), and is turned from it by the angle."""
    angle = 0.4
    values, x_t, signal, sigma = truth(angle)
    v = to_v(values["eps"], "eps", x_t, signal, sigma)
    before, after = values["x_start"] + 1j * values["eps"], x_t + 1j * v
    assert np.abs(after - before * np.exp(-1j * angle)).max() < 1e-12


def test_v_serves_where_nothing_is_left_of_the_image():
    values, _, _, _ = truth(0.3)
    x_t, v = values["eps"], -values["x_start"]  # signal 0, sigma 1
    assert np.array_equal(to_x_start(v, "v", x_t, 0.0, 1.0), values["x_start"])
    assert np.array_equal(to_eps(v, "v", x_t, 0.0, 1.0), values["eps"])
    assert np.array_equal(to_v(values["x_start"], "x_start", x_t, 0.0, 1.0), v)


def test_another_kind_is_refused():
    for function in (conversions.to_eps, conversions.to_x_start, conversions.to_v, conversions.to_score):
        with pytest.raises(ValueError, match="eps, x_start, v or score"):
            function(1.0, "noise", 1.0, 0.6, 0.8)
