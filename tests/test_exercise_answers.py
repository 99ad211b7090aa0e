"""The closed forms behind the checks of exercises 10, 11 and 13 give numbers that nobody here made up."""

import numpy as np
import pytest

from course.grader.checks import ex10, ex11, ex13

MEAN, STD = 0.3, 0.5
ENTROPY = 0.5 * np.log(2 * np.pi * np.e * STD**2)
LINEAR = np.linspace(1e-4, 0.02, 1000)
SHORT = np.linspace(1e-4, 0.02, 200)


@pytest.mark.parametrize("betas, variance, mean, std", [
    (SHORT, "fixed_small", 0.288995, 0.492838), (SHORT, "fixed_large", 0.288995, 0.502804),
    (LINEAR, "fixed_small", 0.299997, 0.496110), (LINEAR, "fixed_large", 0.299997, 0.500752),
])
def test_ancestral_sampling_of_gaussian_data(betas, variance, mean, std):
    found = ex10.statistics(betas, MEAN, STD, ex10.deviations(betas, variance))
    np.testing.assert_allclose((found[0], found[1] ** 0.5), (mean, std), atol=1e-6)


def test_reverse_steps_are_those_recursions():
    slopes, offsets = ex10.best_model(SHORT, MEAN, STD)
    sigma = ex10.deviations(SHORT, "fixed_large")
    noise = np.random.default_rng(0).normal(size=(201, 1, 1, 200, 200))
    x = ex10.reverse_steps(
        lambda x, t: slopes[t][0] * x + offsets[t][0], noise, SHORT, sigma, np.arange(200)[::-1], np.arange(1, 201)
    )
    np.testing.assert_allclose((x.mean(), x.std()), (0.288995, 0.502804), atol=5 * STD / 200)


def test_ddim_gives_the_published_sum():
    """The diffusers test suite: 10 steps of the leading spacing, x_0 clipped, eps as it was."""
    x = (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)
    times = list(range(900, -1, -100))
    noise = np.concatenate([x[None], np.zeros((10, *x.shape))])
    levels = list(zip(times, [*times[1:], -1]))
    # There the last step goes to alpha-bar 1 too.
    found = ex11.loop(lambda x, t: x * t / (t + 1), noise, levels, np.cumprod(1 - LINEAR), 0.0, clip=True)
    assert np.abs(found).sum() == pytest.approx(172.0067, abs=1e-2)


@pytest.mark.parametrize("t, t_prev, variance", [(420, 400, 0.14771), (980, 960, 0.32460)])
def test_ddim_variance_is_the_published_one(t, t_prev, variance):
    ab = np.cumprod(1 - LINEAR)
    assert ex11.deviation(ab[t], ab[t_prev], 1.0) ** 2 == pytest.approx(variance, abs=1e-5)


def test_ddim_of_gaussian_data():
    """Without noise the map from x_T to x_0 is affine: two points tell its mean and its slope."""
    ab = np.cumprod(1 - LINEAR)
    slopes, offsets = ex10.best_model(LINEAR, MEAN, STD)
    times = [int(t) - 1 for t in np.round(1000 - np.arange(10) * 100)]
    noise = np.zeros((11, 2, 1, 1, 1))
    noise[0, 1] = 1
    zero, one = ex11.loop(
        lambda x, t: slopes[t] * x + offsets[t], noise, list(zip(times, [*times[1:], -1])), ab, 0.0
    ).ravel()
    np.testing.assert_allclose((zero, one - zero), (0.299295, 0.369955), atol=1e-6)


@pytest.mark.parametrize("betas, more_than_entropy", [(LINEAR, 0.001094), (SHORT, 0.010994)])
def test_bound_of_gaussian_data(betas, more_than_entropy):
    """Each term is a parabola in x_0 and the noise, so four points have the mean of all."""
    slopes, offsets = ex10.best_model(betas, MEAN, STD)
    x_start = MEAN + STD * np.array([-1, -1, 1, 1]).reshape(4, 1, 1, 1)
    noise = np.array([-1, 1, -1, 1]).reshape(1, 4, 1, 1, 1).repeat(len(betas), axis=0)
    terms, last = ex13.bound(slopes, offsets, x_start, noise, betas)
    assert (terms.sum(axis=0) + last).mean() - ENTROPY == pytest.approx(more_than_entropy, abs=1e-6)
