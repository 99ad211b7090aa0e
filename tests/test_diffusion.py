import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from scipy.stats import norm

from ms_diffusion.diffusion import GaussianDiffusion, extract
from ms_diffusion.errors import UserError
from ms_diffusion.randomness import image_noise

M, S = 0.3, 0.5  # the data of the oracle: every pixel is N(M, S^2)


def tensor(x):
    return Tensor(x, ms.float32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def zero_model(x, t):
    return ops.zeros_like(x)


def steps(*t):
    return Tensor(np.array(t, np.int32))


def at(table, *t):
    """A float64 table at t, ready to multiply images."""
    return table[list(t)].reshape(-1, 1, 1, 1)


def test_extract(jit):
    table, t = tensor([1.0, 4.0, 9.0]), steps(2, 0)

    def run(table, t):
        return extract(table, t, (2, 3, 4, 4))

    out = (ms.jit(run) if jit else run)(table, t).asnumpy()
    assert out.shape == (2, 1, 1, 1) and out.ravel().tolist() == [9, 1]


def test_q_sample_and_predict_x_start_are_inverse(jit):
    diffusion = GaussianDiffusion(timesteps=200)
    x_start, noise, t = random(4, 1, 3, 3), random(4, 1, 3, 3, seed=1), (0, 1, 100, 199)
    q_sample = ms.jit(diffusion.q_sample) if jit else diffusion.q_sample
    x_t = q_sample(tensor(x_start), steps(*t), tensor(noise))
    ab = at(diffusion.schedule.alphas_cumprod, *t)
    assert np.abs(x_t.asnumpy() - (np.sqrt(ab) * x_start + np.sqrt(1 - ab) * noise)).max() < 1e-6
    back = diffusion.predict_x_start(x_t, steps(*t), tensor(noise)).asnumpy()
    # 1 / sqrt(alpha-bar_199) magnifies float32 by 160.
    assert np.abs(back - x_start).max() < 1e-4


def test_q_posterior_is_bayes_rule(jit):
    """Precision-weighted product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    diffusion = GaussianDiffusion(timesteps=200)
    x_start, x_t, t = random(3, 1, 2, 2), random(3, 1, 2, 2, seed=1), (1, 100, 199)
    function = ms.jit(diffusion.q_posterior) if jit else diffusion.q_posterior
    mean, variance = (out.asnumpy() for out in function(tensor(x_start), tensor(x_t), steps(*t)))
    s = diffusion.schedule
    alpha, beta, prev = (at(table, *t) for table in (s.alphas, s.betas, s.alphas_cumprod_prev))
    precision = alpha / beta + 1 / (1 - prev)
    expected = (np.sqrt(alpha) * x_t / beta + np.sqrt(prev) * x_start / (1 - prev)) / precision
    assert np.abs(variance - 1 / precision).max() < 1e-6
    assert np.abs(mean - expected).max() < 1e-6


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_p_mean_variance_is_eq_11(variance, jit):
    diffusion = GaussianDiffusion(timesteps=200, variance=variance, clip_x_start=False)
    x_t, t = random(3, 1, 2, 2), (0, 100, 199)
    eps = 0.3 * x_t + 0.1

    def model(x, t):
        return 0.3 * x + 0.1

    def run(x_t, t):
        return diffusion.p_mean_variance(model, x_t, t)

    mean, sigma2, _ = (out.asnumpy() for out in (ms.jit(run) if jit else run)(tensor(x_t), steps(*t)))
    s = diffusion.schedule
    alpha, beta, ab = (at(table, *t) for table in (s.alphas, s.betas, s.alphas_cumprod))
    expected = (x_t - beta / np.sqrt(1 - ab) * eps) / np.sqrt(alpha)
    assert np.abs(mean - expected).max() < 1e-5
    tilde = beta * (1 - at(s.alphas_cumprod_prev, *t)) / (1 - ab)
    assert np.abs(sigma2 - (tilde if variance == "fixed_small" else beta)).max() < 1e-7


def test_clipping_of_x_start():
    x_t, t = tensor(random(2, 1, 4, 4) * 3), steps(150, 199)
    free, clipped = (GaussianDiffusion(clip_x_start=clip) for clip in (False, True))
    unbounded = free.p_mean_variance(zero_model, x_t, t)[2].asnumpy()
    bounded = clipped.p_mean_variance(zero_model, x_t, t)[2].asnumpy()
    assert np.abs(unbounded).max() > 10
    assert np.array_equal(bounded, np.clip(unbounded, -1, 1))


@pytest.mark.parametrize("loss, expected", [("l2", 1.0), ("huber", 0.42466), ("l1", 0.79788)])
def test_loss_of_a_network_that_predicts_nothing(loss, expected, jit):
    """E|n|, E n^2 and E Huber(n) of unit noise, by its quantiles instead of by chance."""
    diffusion = GaussianDiffusion(loss=loss)
    noise = norm.ppf((np.arange(64 * 1024) + 0.5) / (64 * 1024)).reshape(4, 1, 128, 128)

    def run(x, t, noise):
        return diffusion.p_losses(zero_model, x, t, noise)

    value = (ms.jit(run) if jit else run)(tensor(noise), steps(0, 50, 100, 199), tensor(noise))
    assert float(value.asnumpy()) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("gamma, k", [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_p2_weights(gamma, k):
    diffusion = GaussianDiffusion(p2_gamma=gamma, p2_k=k)
    noise = tensor(np.ones((1, 1, 2, 2)))
    for t in (0, 100, 199):
        ab = diffusion.schedule.alphas_cumprod[t]
        value = float(diffusion.p_losses(zero_model, noise, steps(t), noise).asnumpy())
        assert value == pytest.approx((k + ab / (1 - ab)) ** -gamma, rel=1e-5)


def test_no_noise_is_added_at_the_last_step(jit):
    diffusion = GaussianDiffusion(variance="fixed_large")
    x_t = tensor(random(2, 1, 4, 4))
    step = diffusion.reverse_step(zero_model, jit)
    quiet, loud = (step(x_t, steps(0, 1), tensor(np.full((2, 1, 4, 4), n))).asnumpy() for n in (0.0, 1.0))
    assert np.array_equal(quiet[0], loud[0])
    assert np.allclose(loud[1] - quiet[1], np.sqrt(diffusion.schedule.betas[1]), atol=1e-6)


def oracle_of(diffusion):
    """The best network for the data N(M, S^2): eps*(x, t) in closed form."""
    ab = diffusion.schedule.alphas_cumprod
    slope, mean = tensor(np.sqrt(1 - ab) / (ab * S**2 + 1 - ab)), tensor(np.sqrt(ab) * M)

    def model(x, t):
        return extract(slope, t, x.shape) * (x - extract(mean, t, x.shape))

    return model


def exact_output(schedule, variance):
    """Mean and standard deviation of what ancestral sampling makes of the oracle: two scalar recursions."""
    mean, var = 0.0, 1.0
    sigma2 = schedule.posterior_variance if variance == "fixed_small" else schedule.betas
    for t in reversed(range(len(schedule))):
        ab = schedule.alphas_cumprod[t]
        gain = S**2 * np.sqrt(ab) / (ab * S**2 + 1 - ab)  # E[x_0 | x_t] = M + gain (x_t - sqrt(ab) M)
        c1, c2 = schedule.posterior_mean_coef1[t], schedule.posterior_mean_coef2[t]
        mean = c1 * (M + gain * (mean - np.sqrt(ab) * M)) + c2 * mean
        var = (c1 * gain + c2) ** 2 * var + (sigma2[t] if t > 0 else 0)
    return mean, np.sqrt(var)


LINEAR_200 = {"timesteps": 200, "schedule": "linear", "scale_betas": False}
LINEAR_1000 = {"timesteps": 1000, "schedule": "linear"}
COSINE_1000 = {"timesteps": 1000, "schedule": "cosine"}


@pytest.mark.parametrize(
    "options, variance, mean, std",
    [
        (LINEAR_200, "fixed_small", 0.288995, 0.492838), (LINEAR_200, "fixed_large", 0.288995, 0.502804),
        (LINEAR_1000, "fixed_small", 0.299997, 0.496110), (LINEAR_1000, "fixed_large", 0.299997, 0.500752),
        (COSINE_1000, "fixed_small", 0.300000, 0.497993), (COSINE_1000, "fixed_large", 0.300000, 0.500418),
    ],
)
def test_ancestral_sampling_of_gaussian_data(options, variance, mean, std):
    diffusion = GaussianDiffusion(**options, variance=variance, clip_x_start=False)
    # The published values, from this library's tables ...
    assert exact_output(diffusion.schedule, variance) == pytest.approx((mean, std), abs=1e-6)
    # ... and from the sampler itself, in graph mode, to three standard errors.
    noise = image_noise(0, range(16), (1, 64, 64))
    samples = diffusion.sample(oracle_of(diffusion), noise).asnumpy()
    assert abs(samples.mean() - mean) < 3 * std / np.sqrt(samples.size)
    assert abs(samples.std() - std) < 3 * std / np.sqrt(2 * samples.size)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("rederive", [False, True])
@pytest.mark.parametrize("t", [0, 29, 12.25])
def test_denoiser(t, rederive, clip, jit):
    """Two readings of one prediction, at whole and fractional t, against NumPy; t arrives as it was given."""
    diffusion = GaussianDiffusion(timesteps=30, clip_x_start=clip)
    signal, noise = diffusion.schedule.amplitudes(t)
    x_t = (2 * random(2, 1, 3, 3)).astype(np.float32)

    def model(x, time):
        return 0.5 * x + 0.01 * ops.cast(time, ms.float32).reshape((-1, 1, 1, 1))

    x_start, eps = diffusion.denoiser(model, jit, rederive)(x_t, t)
    expected_eps = 0.5 * x_t + 0.01 * t
    expected = (x_t - noise * expected_eps) / signal
    if clip:
        expected = np.clip(expected, -1, 1)
        assert t == 0 or np.abs(expected).max() == 1, "the test clips something"
        expected_eps = (x_t - signal * expected) / noise if rederive else expected_eps
    assert x_start.dtype == eps.dtype == np.float32
    assert np.abs(x_start - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    assert np.abs(eps - expected_eps).max() < 1e-3 if t == 0 else np.abs(eps - expected_eps).max() < 1e-5


def test_whole_t_reaches_the_model_as_int32_and_fractions_as_float32():
    diffusion, traced = GaussianDiffusion(timesteps=30), []

    def model(x, t):
        traced.append(t.dtype)
        return 0.5 * x

    denoise, x = diffusion.denoiser(model, jit=False), np.zeros((2, 1, 3, 3), np.float32)
    for t in (29, 3, 0, 4.5):
        denoise(x, t)
    assert traced == [ms.int32] * 3 + [ms.float32]


def test_loop_yields_every_step_in_both_modes_alike():
    diffusion = GaussianDiffusion(timesteps=30)
    model = oracle_of(diffusion)
    runs = []
    for jit in (False, True):
        step, noise = diffusion.reverse_step(model, jit), image_noise(0, [0, 1], (1, 4, 4))
        runs.append([x.asnumpy() for x in diffusion.p_sample_loop(step, noise)])
    assert len(runs[0]) == len(runs[1]) == 30
    assert np.abs(np.array(runs[0]) - np.array(runs[1])).max() < 1e-5
    last = diffusion.sample(model, image_noise(0, [0, 1], (1, 4, 4)), jit=False).asnumpy()
    assert np.array_equal(last, runs[0][-1])


@pytest.mark.parametrize(
    "options, key",
    [
        ({"timesteps": 1}, "diffusion.timesteps is 1"), ({"timesteps": 20}, "scale_betas makes the last beta 1,"),
        ({"beta_start": 0.0}, "beta_start"), ({"beta_end": 1.0}, "beta_end"), ({"p2_k": 0.0}, "diffusion.p2_k"),
        ({"p2_gamma": -1.0}, "diffusion.p2_gamma"), ({"loss": "l3"}, "diffusion.loss"),
    ],
)
def test_values_that_cannot_be_are_refused(options, key):
    with pytest.raises(UserError, match=key):
        GaussianDiffusion(**options)
