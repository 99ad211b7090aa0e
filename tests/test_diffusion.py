import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from scipy.stats import norm

from ms_diffusion.diffusion import GaussianDiffusion, discretised_log_likelihood, extract
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


def compiled(function, jit):
    return ms.jit(function) if jit else function


def test_the_default_loss_is_what_it_always_was(jit):
    """Bit for bit: eq. 14 as this library first had it."""
    diffusion = GaussianDiffusion()
    ones = tensor(np.ones(200))

    def model(x, t):
        return ops.sin(x) + 0.01 * t.reshape((-1, 1, 1, 1))

    def loss(x_start, t, noise):
        return diffusion.p_losses(model, x_start, t, noise)

    def first_loss(x_start, t, noise):
        difference = model(diffusion.q_sample(x_start, t, noise), t) - noise
        return ops.mean(ops.square(difference) * extract(ones, t, x_start.shape))

    inputs = tensor(random(4, 1, 8, 8)), steps(0, 1, 100, 199), tensor(random(4, 1, 8, 8, seed=1))
    assert compiled(loss, jit)(*inputs).asnumpy() == compiled(first_loss, jit)(*inputs).asnumpy()


# ---- What the network predicts ----

OBJECTIVES = ["eps", "x_start", "v"]


def truths(diffusion, x_start, noise, *t):
    """x_t, and the right answer to each objective."""
    ab = at(diffusion.schedule.alphas_cumprod, *t)
    v = np.sqrt(ab) * noise - np.sqrt(1 - ab) * x_start
    return np.sqrt(ab) * x_start + np.sqrt(1 - ab) * noise, {"eps": noise, "x_start": x_start, "v": v}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_network_of_each_objective(objective, jit):
    diffusion = GaussianDiffusion(objective=objective, clip_x_start=False)
    x_start, noise, t = random(3, 1, 2, 2), random(3, 1, 2, 2, seed=1), (0, 50, 150)
    x_t, right = truths(diffusion, x_start, noise, *t)
    answer = tensor(right[objective])

    def model(x_t, t):
        return answer

    def run(x_t, t, x_start, noise):
        mean, _, _ = diffusion.p_mean_variance(model, x_t, t)
        x_found, eps, _ = diffusion.predictions(model, x_t, t, *diffusion.signal_and_sigma(t, x_t.shape))
        return (x_found, eps, mean, diffusion.p_losses(model, x_start, t, noise))

    found = compiled(run, jit)(*map(tensor, [x_t]), steps(*t), tensor(x_start), tensor(noise))
    x_found, eps_found, mean, loss = (out.asnumpy() for out in found)
    # From x_0 the noise of t = 0 is found with an error that 1 / sqrt(1 - alpha-bar_0) magnifies 45 times.
    assert np.abs(x_found - x_start).max() < 1e-4 and np.abs(eps_found - noise).max() < 1e-4
    s = diffusion.schedule
    expected = at(s.posterior_mean_coef1, *t) * x_start + at(s.posterior_mean_coef2, *t) * x_t
    assert np.abs(mean - expected).max() < 1e-4
    assert loss < 1e-12


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_x_start_of_each_objective_is_clipped_where_asked(objective):
    x_t, t = tensor(random(2, 1, 4, 4) * 3), steps(100, 150)
    free, clipped = (
        GaussianDiffusion(objective=objective, clip_x_start=clip).p_mean_variance(two_x, x_t, t)[2].asnumpy()
        for clip in (False, True)
    )
    assert np.abs(free).max() > 2
    assert np.array_equal(clipped, np.clip(free, -1, 1))


def two_x(x, t):
    return 2 * x


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gamma", [5.0, 0.5])
def test_min_snr_weighs_the_error_of_x_start_alike_for_each_objective(objective, gamma, jit):
    """min(SNR, gamma) d^2 for an error d of x_0, whatever the network predicts; Hang et al. 2023, section 3.4."""
    diffusion = GaussianDiffusion(objective=objective, loss_weight="min_snr", min_snr_gamma=gamma)
    x_start, noise, d = random(1, 1, 2, 2), random(1, 1, 2, 2, seed=1), 0.3

    def run(x_start, t, noise, answer):
        return diffusion.p_losses(lambda x, t: answer, x_start, t, noise)

    loss = compiled(run, jit)
    for t in (5, 20, 60, 120):
        ab = diffusion.schedule.alphas_cumprod[t]
        x_t, _ = truths(diffusion, x_start, noise, t)
        wrong = x_start + d
        eps = (x_t - np.sqrt(ab) * wrong) / np.sqrt(1 - ab)
        answer = {"eps": eps, "x_start": wrong, "v": np.sqrt(ab) * eps - np.sqrt(1 - ab) * wrong}[objective]
        found = loss(tensor(x_start), steps(t), tensor(noise), tensor(answer))
        assert float(found.asnumpy()) == pytest.approx(min(ab / (1 - ab), gamma) * d**2, rel=1e-4)


def gradient_of(loss, jit, position=0):
    """The gradient of `loss` by its argument at `position`."""
    return compiled(ms.grad(loss, position), jit)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_vlb_weights_make_the_loss_the_bound(objective, variance, jit):
    """The gradient by the prediction is that of T times the bound's terms, for each t; at t = 0 of the density."""
    options = {"objective": objective, "variance": variance, "clip_x_start": False}
    weighted, plain = GaussianDiffusion(**options, loss_weight="vlb"), GaussianDiffusion(**options)

    def loss(answer, x_start, t, noise):
        return weighted.p_losses(lambda x, t: answer, x_start, t, noise)

    def bound(answer, x_start, t, noise):
        return 200 * ops.mean(plain.vlb_terms(lambda x, t: answer, x_start, t, noise, None))

    answer, x_start, noise = (tensor(random(5, 1, 2, 2, seed=seed)) for seed in range(3))
    inputs = answer, x_start, steps(0, 1, 2, 50, 150), noise
    assert_close_for_each_image(*(gradient_of(function, jit)(*inputs).asnumpy() for function in (loss, bound)))


def assert_close_for_each_image(found, expected, tolerance=1e-4):
    """In units of the image's largest number, which is not 0."""
    largest = np.abs(expected).max(axis=(1, 2, 3))
    assert largest.min() > 0
    assert (np.abs(found - expected).max(axis=(1, 2, 3)) / largest).max() < tolerance


# ---- Learned variance, Nichol and Dhariwal 2021 ----


def saying(prediction, said):
    """A network that learns its variance."""

    def model(x, t):
        return ops.concat((prediction, said), axis=1)

    return model


def test_the_ends_of_the_learned_variance_are_beta_tilde_and_beta(jit):
    diffusion, t = GaussianDiffusion(variance="learned"), (0, 1, 100, 199)
    x = tensor(random(4, 3, 2, 2))

    def run(x_t, t, said):
        return diffusion.p_mean_variance(saying(x_t, said), x_t, t)[1]

    variance = compiled(run, jit)
    s = diffusion.schedule
    tilde = np.append(s.posterior_variance[1], s.posterior_variance[1:])  # beta-tilde_1 is 0: as beta-tilde_2
    for said, table in ((-1, tilde), (1, s.betas), (0, np.sqrt(tilde * s.betas))):
        found = variance(x, steps(*t), tensor(np.full(x.shape, said))).asnumpy()
        assert found.shape == x.shape
        assert np.abs(found / at(table, *t) - 1).max() < 1e-5


def test_a_network_without_room_for_the_variance_is_refused(jit):
    step = GaussianDiffusion(variance="learned").reverse_step(tenth, jit)
    x_t = tensor(random(2, 3, 4, 4))
    with pytest.raises(ValueError, match="returns 6 channels, and this one 3: give it out_dim=6"):
        step(x_t, steps(0, 1), x_t)


def test_learned_variance_in_the_reverse_step(jit):
    diffusion = GaussianDiffusion(variance="learned")
    said = tensor(np.ones((2, 1, 4, 4)))

    def model(x, t):
        return ops.concat((0.1 * x, said), axis=1)

    step, large = diffusion.reverse_step(model, jit), GaussianDiffusion(variance="fixed_large").reverse_step(tenth, jit)
    x_t, noise, t = tensor(random(2, 1, 4, 4)), tensor(random(2, 1, 4, 4, seed=1)), steps(0, 100)
    assert np.abs(step(x_t, t, noise).asnumpy() - large(x_t, t, noise).asnumpy()).max() < 1e-5


def tenth(x, t):
    return 0.1 * x


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_the_hybrid_loss_leaves_the_prediction_to_l_simple(objective, loss, jit):
    """Its gradient by the prediction is L_simple's, exactly; its gradient by the variance that of the bound / 1000."""
    fixed = GaussianDiffusion(objective=objective, loss=loss)
    learned = GaussianDiffusion(objective=objective, loss=loss, variance="learned", clip_x_start=False)

    def simple(prediction, said, x_start, t, noise):
        return fixed.p_losses(lambda x, t: prediction, x_start, t, noise)

    def hybrid(prediction, said, x_start, t, noise):
        return learned.p_losses(saying(prediction, said), x_start, t, noise)

    def bound(prediction, said, x_start, t, noise):
        return 200 * ops.mean(learned.vlb_terms(saying(prediction, said), x_start, t, noise))

    x_start = np.clip(random(4, 1, 2, 2), -1, 1)
    right = truths(fixed, x_start, random(4, 1, 2, 2, seed=1), 0, 1, 20, 50)[1][objective]
    inputs = (
        tensor(right + 0.1 * random(4, 1, 2, 2, seed=2)), tensor(random(4, 1, 2, 2, seed=3)), tensor(x_start),
        steps(0, 1, 20, 50), tensor(random(4, 1, 2, 2, seed=1)),
    )
    expected = gradient_of(simple, jit)(*inputs).asnumpy()
    assert np.abs(expected).min() > 0
    assert np.array_equal(gradient_of(hybrid, jit)(*inputs).asnumpy(), expected)
    expected = gradient_of(bound, jit, 1)(*inputs).asnumpy() / 1000
    assert_close_for_each_image(gradient_of(hybrid, jit, 1)(*inputs).asnumpy(), expected)
    whole = [float(function(*inputs).asnumpy()) for function in (hybrid, simple, bound)]
    assert whole[0] == pytest.approx(whole[1] + whole[2] / 1000, rel=1e-5)


def test_the_learned_bound_as_loss_teaches_the_prediction_too(jit):
    diffusion = GaussianDiffusion(variance="learned", loss_weight="vlb", clip_x_start=False)

    def loss(prediction, said, x_start, t, noise):
        return diffusion.p_losses(saying(prediction, said), x_start, t, noise)

    def bound(prediction, said, x_start, t, noise):
        return 200 * ops.mean(diffusion.vlb_terms(saying(prediction, said), x_start, t, noise))

    noise = random(3, 1, 2, 2)
    inputs = (
        tensor(noise + 0.1), tensor(random(3, 1, 2, 2, seed=1)), tensor(np.clip(random(3, 1, 2, 2, seed=2), -1, 1)),
        steps(0, 1, 100), tensor(noise),
    )
    for position in (0, 1):
        functions = (loss, bound)
        assert_close_for_each_image(*(gradient_of(f, jit, position)(*inputs).asnumpy() for f in functions))


# ---- The variational bound ----


def test_a_term_of_the_bound_is_the_divergence_of_two_gaussians(jit):
    """By quadrature over x_{t-1}, with q from Bayes' rule."""
    diffusion = GaussianDiffusion(variance="fixed_large", clip_x_start=False)
    s, t, x_start, noise = diffusion.schedule, 30, 0.4, -0.7
    x_t = np.sqrt(s.alphas_cumprod[t]) * x_start + np.sqrt(1 - s.alphas_cumprod[t]) * noise
    precision = s.alphas[t] / s.betas[t] + 1 / (1 - s.alphas_cumprod_prev[t])
    mean = (np.sqrt(s.alphas[t]) * x_t / s.betas[t] + np.sqrt(s.alphas_cumprod_prev[t]) * x_start
            / (1 - s.alphas_cumprod_prev[t])) / precision
    q = norm(mean, precision**-0.5)
    eps = 0.2
    p = norm((x_t - s.betas[t] / np.sqrt(1 - s.alphas_cumprod[t]) * eps) / np.sqrt(s.alphas[t]), np.sqrt(s.betas[t]))
    grid = np.linspace(mean - 10 * q.std(), mean + 10 * q.std(), 20001)
    expected = np.sum(q.pdf(grid) * (q.logpdf(grid) - p.logpdf(grid))) * (grid[1] - grid[0])

    def run(x_start, t, noise):
        return diffusion.vlb_terms(lambda x, t: 0.2 * ops.ones_like(x), x_start, t, noise)

    found = compiled(run, jit)(*(tensor(np.full((1, 1, 2, 2), x)) for x in (x_start,)), steps(t),
                               tensor(np.full((1, 1, 2, 2), noise)))
    assert found.asnumpy() == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("mean", [-1.02, -0.31, 0.4, 1.0])
@pytest.mark.parametrize("std", [0.002, 0.05, 1.0])
def test_the_discretised_gaussian(mean, std, jit):
    """Against SciPy's distribution function in float64, far into the tails; and all values together are certain."""
    values = np.linspace(-1, 1, 256)
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    lower, upper = (edges[:-1] - mean) / std, (edges[1:] - mean) / std
    expected = np.where(lower > 0, norm.sf(lower) - norm.sf(upper), norm.cdf(upper) - norm.cdf(lower))

    def run(x, mean, log_variance):
        return discretised_log_likelihood(x, mean, log_variance, 256)

    inputs = tensor(values), tensor(np.full(256, mean)), tensor(np.full(256, 2 * np.log(std)))
    found = compiled(run, jit)(*inputs).asnumpy()
    seen = expected > 1e-20
    assert np.abs(found - np.log(np.maximum(expected, 1e-30)))[seen].max() < 0.02
    assert np.all(found[expected < 1e-32] == found.min()) and found.min() >= np.log(1e-30) - 1e-4
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def test_zero_terminal_snr_begins_from_noise_alone(jit):
    """Ancestral sampling of Gaussian data with the perfect v: mean and standard deviation are the data's."""
    diffusion = GaussianDiffusion(
        timesteps=200, objective="v", zero_terminal_snr=True, variance="fixed_large", clip_x_start=False
    )
    ab = diffusion.schedule.alphas_cumprod
    # v* = sqrt(ab) eps* - sqrt(1 - ab) x_0*, both linear in x - sqrt(ab) M.
    slope = tensor(np.sqrt(ab * (1 - ab)) * (1 - S**2) / (ab * S**2 + 1 - ab))
    offset, signal = tensor(-np.sqrt(1 - ab) * M), tensor(np.sqrt(ab) * M)

    def model(x, t):
        return extract(slope, t, x.shape) * (x - extract(signal, t, x.shape)) + extract(offset, t, x.shape)

    samples = diffusion.sample(model, image_noise(0, range(16), (1, 64, 64)), jit).asnumpy()
    mean, std = exact_output(diffusion.schedule, "fixed_large")
    assert mean == pytest.approx(M, abs=1e-12), "with alpha-bar_T = 0 nothing of the mean is lost"
    assert abs(samples.mean() - mean) < 3 * std / np.sqrt(samples.size)
    assert abs(samples.std() - std) < 3 * std / np.sqrt(2 * samples.size)


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
        ({"zero_terminal_snr": True}, "diffusion.zero_terminal_snr"), ({"objective": "score"}, "diffusion.objective"),
    ],
)
def test_values_that_cannot_be_are_refused(options, key):
    with pytest.raises(UserError, match=key):
        GaussianDiffusion(**options)
