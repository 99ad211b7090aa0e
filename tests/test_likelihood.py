import math
from itertools import repeat

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from ms_diffusion import likelihood
from ms_diffusion.config import ModelConfig
from ms_diffusion.diffusion import GaussianDiffusion, extract
from ms_diffusion.guidance import Guided
from ms_diffusion.randomness import image_noise, weights_generator
from ms_diffusion.unet import build_unet, init_weights

M, S = 0.3, 0.5  # the data of the oracle: every pixel is N(M, S^2)
LINEAR_200 = {"timesteps": 200, "schedule": "linear", "scale_betas": False}
LINEAR_1000 = {"timesteps": 1000, "schedule": "linear"}
COSINE_1000 = {"timesteps": 1000, "schedule": "cosine"}


def tensor(x):
    return Tensor(x, ms.float32)


# ---- The bound ----


def oracle_of(diffusion):
    """The best network for the data N(M, S^2): eps*(x, t) in closed form."""
    ab = diffusion.schedule.alphas_cumprod
    slope, mean = tensor(np.sqrt(1 - ab) / (ab * S**2 + 1 - ab)), tensor(np.sqrt(ab) * M)

    def model(x, t):
        return extract(slope, t, x.shape) * (x - extract(mean, t, x.shape))

    return model


@pytest.mark.parametrize(
    "options, variance, gap",
    [
        (LINEAR_1000, "fixed_large", 0.001094), (LINEAR_1000, "fixed_small", 0.569928),
        (COSINE_1000, "fixed_large", 0.000612), (LINEAR_200, "fixed_large", 0.010994),
    ],
)
def test_the_bound_of_gaussian_data_less_their_entropy(options, variance, gap):
    """Published values. Each term is a square of (x_0, noise), so the four points (+-1, +-1) give its mean exactly."""
    diffusion = GaussianDiffusion(**options, variance=variance, clip_x_start=False)
    ones, turned = np.array([1, 1, -1, -1]).reshape(4, 1, 1, 1), np.array([1, -1, 1, -1]).reshape(4, 1, 1, 1)
    noise = iter([turned.astype(np.float32)] * len(diffusion.schedule))
    step = likelihood.bound_step(diffusion, oracle_of(diffusion), levels=None)
    bound = likelihood.variational_bound(step, diffusion.schedule, (M + S * ones).astype(np.float32), noise)
    entropy = 0.5 * math.log(2 * math.pi * math.e * S**2)
    assert entropy == pytest.approx(0.725791, abs=1e-6)
    assert bound.total.mean() - entropy == pytest.approx(gap, abs=1e-4)
    assert bound.terms.mean(axis=0)[1:].min() > 0, "a divergence"


def test_the_prior_term_is_the_divergence_from_unit_noise():
    schedule = GaussianDiffusion(timesteps=50, scale_betas=False).schedule
    ab, x_start = schedule.alphas_cumprod[-1], np.array([[-1.0, 0.5]])
    assert 0.3 < ab < 0.9

    def divergence(x):
        q, p = norm(math.sqrt(ab) * x, math.sqrt(1 - ab)), norm(0, 1)
        return quad(lambda y: q.pdf(y) * (q.logpdf(y) - p.logpdf(y)), -12, 12)[0]

    expected = (divergence(-1.0) + divergence(0.5)) / 2
    assert likelihood.prior_term(schedule, x_start) == pytest.approx([expected], rel=1e-8)


def test_the_prior_term_vanishes_with_the_terminal_snr():
    schedule = GaussianDiffusion(objective="v", zero_terminal_snr=True).schedule
    assert likelihood.prior_term(schedule, np.ones((2, 3))).tolist() == [0, 0]


def pixels(count, size=4):
    levels = np.random.default_rng(0).integers(0, 256, (count, 1, size, size))
    return (levels / 127.5 - 1).astype(np.float32)


def test_a_bound_does_not_depend_on_the_batch_size():
    diffusion = GaussianDiffusion(timesteps=30)
    step, images = likelihood.bound_step(diffusion, oracle_of(diffusion)), pixels(5)
    whole, parts = (
        likelihood.bound_of_images(step, diffusion.schedule, images, 3, batch_size=size) for size in (5, 2)
    )
    assert whole.terms.shape == (5, 30) and whole.prior.shape == (5,)
    assert np.allclose(whole.terms, parts.terms, rtol=1e-5, atol=1e-6) and np.array_equal(whole.prior, parts.prior)
    assert np.array_equal(whole.total, whole.terms.sum(axis=1) + whole.prior)
    other = likelihood.bound_of_images(step, diffusion.schedule, images, 4, batch_size=5)
    assert not np.allclose(whole.terms, other.terms, rtol=1e-3)


def test_uniform_pixels_cost_eight_bits_and_no_bound_is_less(jit):
    """256 values, all alike probable: no model codes them in fewer than 8 bits on average."""
    diffusion = GaussianDiffusion(timesteps=100, variance="fixed_large", objective="x_start")

    def guess(x, t):
        return 0.2 * x

    step = likelihood.bound_step(diffusion, guess, jit)
    bound = likelihood.bound_of_images(step, diffusion.schedule, pixels(8, 16), 0, batch_size=8)
    found = likelihood.bits(bound.total)
    assert found.mean() > 8 + 4 * found.std() / math.sqrt(8)


# ---- Labels: images of class 0 are N(-M, S^2), those of class 1 N(M, S^2) ----

MEANS = {0: -M, 1: M, 2: 0.0}  # 2 is no label: the mean of all
LABELS = np.array([0, 1, 1, 0, 1], np.int32)
ENTROPY = 0.5 * math.log(2 * math.pi * math.e * S**2)


def conditional_oracle(diffusion):
    """The best network for them that is told a label: at whole t from tables, which can be compiled."""
    ab, means = diffusion.schedule.alphas_cumprod, tensor(list(MEANS.values()))
    signal, slope = tensor(np.sqrt(ab)), tensor(np.sqrt(1 - ab) / (ab * S**2 + 1 - ab))

    def model(x, t, y):
        mean = ops.gather(means, y, 0).reshape((-1, 1, 1, 1))
        return extract(slope, t, x.shape) * (x - extract(signal, t, x.shape) * mean)

    return model


def class_images(signs):
    """(5, 1, 2, 2): M or -M of LABELS, and so many S beside it."""
    means = np.array([MEANS[label] for label in LABELS]).reshape(5, 1, 1, 1)
    return (means + S * np.reshape(signs, (1, 1, 2, 2))).astype(np.float32)


def test_the_bound_of_labelled_images_less_their_conditional_entropy(monkeypatch):
    """The published value for one class is that for two: each image is told its own label, and none costs more.

    Each term is a square of (x_0, noise), so the four pixels (+-1, +-1) give its mean exactly.
    """
    diffusion = GaussianDiffusion(**LINEAR_1000, variance="fixed_large", clip_x_start=False)
    noise = np.broadcast_to(np.float32([[1, -1], [1, -1]]), (2, 1, 2, 2))
    monkeypatch.setattr(likelihood, "image_noise", lambda *_: repeat(noise))
    totals, model = [], Guided(conditional_oracle(diffusion), [2, 2], null=2)
    step = likelihood.bound_step(diffusion, model, levels=None)
    for labels in (LABELS, np.full(5, 2)):
        totals.append(likelihood.bound_of_images(
            step, diffusion.schedule, class_images([1, 1, -1, -1]), 0, batch_size=2,
            before=lambda images, labels=labels: model.tell(labels[images]),
        ).total)
    assert np.abs(totals[0] - ENTROPY - 0.001094).max() < 1e-4
    assert totals[1].min() > totals[0].max() + 0.05


@pytest.mark.parametrize("batch_size", [10, 4])
def test_the_density_of_labelled_images(batch_size):
    diffusion = GaussianDiffusion(**COSINE_1000)
    images = class_images([0.5, -1.5, 0, 1])

    def oracle(x, t, y):
        signal, sigma = diffusion.schedule.amplitudes(float(t.asnumpy()[0]))
        mean = ops.gather(tensor(list(MEANS.values())), y, 0).reshape((-1, 1, 1, 1))
        return sigma * (x - signal * mean) / (signal**2 * S**2 + sigma**2)

    model = Guided(oracle, [2] * batch_size, null=2)
    found = likelihood.ode_bound_of_images(
        likelihood.ode_step(diffusion, model, jit=False), diffusion, images, 0, probes=2, batch_size=batch_size,
        levels=10**6, before=lambda images: model.tell(LABELS[images]),
    )
    means = np.array([MEANS[label] for label in LABELS]).reshape(5, 1, 1, 1)
    expected = -norm(means, S).logpdf(images).reshape(5, 4).mean(axis=1) - math.log(2 / (10**6 - 1))
    assert np.abs(found - expected[:, None]).max() < 1e-3


def test_labels_reach_a_compiled_bound():
    """A network that is its label: what the second batch is told is not what the first was."""
    diffusion = GaussianDiffusion(timesteps=30, clip_x_start=False)

    def label(x, t, y):
        return ops.ones_like(x) * y.reshape((-1, 1, 1, 1))

    bounds = []
    for jit in (True, False):
        model = Guided(label, [2, 2], null=2)
        bounds.append(likelihood.bound_of_images(
            likelihood.bound_step(diffusion, model, jit), diffusion.schedule, pixels(5), 0, batch_size=2,
            before=lambda images, model=model: model.tell(LABELS[images]),
        ).total)
    assert np.abs(bounds[0] / bounds[1] - 1).max() < 1e-4 and np.ptp(bounds[1]) > 0.1


# ---- The ODE ----


class Mixture:
    """x_0 ~ sum_k w_k N(m_k, s_k^2 I) in two dimensions, as a network that knows every fractional t."""

    weights, means, stds = np.array([0.3, 0.7]), np.array([[-0.5, 0.2], [0.6, -0.3]]), np.array([0.4, 0.5])

    def __init__(self, diffusion):
        self.objective = diffusion.config.objective
        self.schedule = diffusion.schedule

    def log_density(self, x, ab):
        """log p_t of x (N, 2), in float64."""
        variances = ab * self.stds**2 + 1 - ab
        squares = np.square(x[:, None] - np.sqrt(ab) * self.means).sum(axis=2)
        return logsumexp(np.log(self.weights / (2 * np.pi * variances)) - squares / (2 * variances), axis=1)

    def __call__(self, x, t):
        signal, sigma = self.schedule.amplitudes(float(t.asnumpy()[0]))
        ab, rest = signal**2, sigma**2
        variances = [ab * std**2 + rest for std in self.stds.tolist()]
        apart = [x - signal * tensor(mean.reshape(1, 1, 1, 2)) for mean in self.means]
        logs = [
            math.log(weight) - math.log(variance) - ops.square(d).sum(axis=3, keepdims=True) / (2 * variance)
            for weight, variance, d in zip(self.weights.tolist(), variances, apart)
        ]
        shares = ops.softmax(ops.concat(logs, axis=3), axis=3)
        gains = [signal * std**2 / variance for std, variance in zip(self.stds.tolist(), variances)]
        x_start = sum(shares[..., k : k + 1] * (tensor(self.means[k]) + gains[k] * apart[k]) for k in range(2))
        eps = (x - signal * x_start) / sigma
        return {"eps": eps, "x_start": x_start, "v": signal * eps - sigma * x_start}[self.objective]


@pytest.mark.parametrize(
    "options",
    [
        COSINE_1000, {**COSINE_1000, "objective": "x_start"}, {**COSINE_1000, "objective": "v"},
        {**COSINE_1000, "objective": "v", "zero_terminal_snr": True},
    ], ids=str,
)
def test_the_density_of_a_mixture(options):
    """To 1e-3 nats. In two dimensions the probes (1, 1) and (1, -1) are all there are, so their mean is exact.

    Where alpha-bar_T is larger than the cosine's 2e-9, the data's x_T are not quite the model's: 0.005 nats for linear.
    """
    diffusion = GaussianDiffusion(**options)
    mixture = Mixture(diffusion)
    x_start = np.array([[-0.6, 0.1], [0.5, -0.4], [0.0, 0.0], [1.0, 1.0], [-1.0, 0.8]])
    images = np.repeat(x_start, 2, axis=0).reshape(10, 1, 1, 2).astype(np.float32)
    probes = np.array([[1, 1], [1, -1]] * 5).reshape(10, 1, 1, 2)
    step = likelihood.ode_step(diffusion, mixture, jit=False)
    found, calls = likelihood.ode_log_likelihood(step, diffusion, images, probes)
    found = 2 * found.reshape(5, 2)
    first = mixture.log_density(x_start, diffusion.schedule.alphas_cumprod[0])
    assert np.abs(found.mean(axis=1) - first).max() < 1e-3
    assert np.abs(found.mean(axis=1) - mixture.log_density(x_start, 1.0)).max() < 1e-3
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.01, "the Jacobian has more than a diagonal"
    assert 20 < calls < 1000


def test_the_projection_is_that_of_the_jacobian(jit):
    """eps = A x with a known A: probe . A . probe; the half that speaks of the variance is left out."""
    matrix = np.random.default_rng(0).standard_normal((4, 4))
    weights = tensor(matrix.T)
    diffusion = GaussianDiffusion(variance="learned")

    def model(x, t):
        prediction = ops.matmul(x.reshape((-1, 4)), weights).reshape((-1, 1, 2, 2))
        return ops.concat((prediction, 7 * x), axis=1)

    x, probe = np.random.default_rng(1).standard_normal((2, 3, 4))
    step = likelihood.ode_step(diffusion, model, jit)
    shaped = [tensor(array.reshape(3, 1, 2, 2)) for array in (x, probe)]
    prediction, product = step(shaped[0], tensor(np.zeros(3)), shaped[1])
    assert np.abs(prediction.asnumpy().reshape(3, 4) - x @ matrix.T).max() < 1e-5
    assert np.abs(product.asnumpy() - np.einsum("bi,ij,bj->b", probe, matrix, probe)).max() < 1e-5


def test_the_network_itself_in_both_modes():
    diffusion, model = GaussianDiffusion(timesteps=50, objective="v"), build_unet(ModelConfig(dim=8, dim_mults=(1,)))
    init_weights(model, weights_generator(0))
    probes = np.sign(next(image_noise(0, range(3), (1, 4, 4))))
    found = [
        likelihood.ode_log_likelihood(
            likelihood.ode_step(diffusion, model, jit), diffusion, pixels(3), probes, rtol=1e-3, atol=1e-3
        )[0] for jit in (True, False)
    ]
    assert found[0].shape == (3,) and np.abs(found[0] - found[1]).max() < 1e-3


def test_a_density_does_not_depend_on_the_batch_size():
    diffusion = GaussianDiffusion(**COSINE_1000)
    step, images = likelihood.ode_step(diffusion, Mixture(diffusion), jit=False), pixels(3, 2)[:, :, :1]
    whole, parts = (
        likelihood.ode_bound_of_images(step, diffusion, images, 0, probes=2, batch_size=size) for size in (6, 4)
    )
    assert whole.shape == (3, 2) and np.abs(whole - parts).max() < 1e-3, "more than the solver's tolerance"
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 1e-2, "the probes of an image are one and the same"


def test_the_ode_bounds_the_probability_of_gaussian_pixels():
    """Pixels drawn from N(M, S^2) and rounded: their bits are the entropy less the width of a value."""
    diffusion = GaussianDiffusion(**LINEAR_1000)
    drawn = M + S * next(image_noise(5, range(8), (1, 32, 32)))
    images = (np.round((drawn + 1) * 127.5) / 127.5 - 1).astype(np.float32)
    log_snr = tensor(np.log(diffusion.schedule.snr))

    def model(x, t):
        low = ops.floor(t)
        index, part = ops.cast(low, ms.int32), t - low
        after = ops.clamp(index + 1, None, 999)
        level = ((1 - part) * ops.gather(log_snr, index, 0) + part * ops.gather(log_snr, after, 0)).reshape(-1, 1, 1, 1)
        ab, rest = ops.sigmoid(level), ops.sigmoid(-level)
        return ops.sqrt(rest) * (x - ops.sqrt(ab) * M) / (ab * S**2 + rest)

    step = likelihood.ode_step(diffusion, model, jit=False)
    found = likelihood.ode_bound_of_images(step, diffusion, images, 0, probes=2, batch_size=16)
    assert np.abs(found[:, 0] - found[:, 1]).max() < 1e-4, "a diagonal Jacobian needs one probe"
    expected = -norm(M, S).logpdf(images).reshape(8, -1).mean(axis=1) - math.log(2 / 255)
    assert np.abs(found[:, 0] - expected).max() < 1e-3
    entropy = 0.5 * math.log(2 * math.pi * math.e * S**2) - math.log(2 / 255)
    assert abs(found.mean() - entropy) < 4 * math.sqrt(0.5 / images.size)


def test_hutchinsons_error():
    # Variances 2 and 8 of two probes each, of a mean over two images: sqrt((2 + 8) / 2) / 2.
    assert likelihood.hutchinson_error(np.array([[1.0, 3.0], [2.0, 6.0]])) == pytest.approx(math.sqrt(5) / 2)
    assert math.isnan(likelihood.hutchinson_error(np.array([[1.0], [2.0]])))
    estimates = np.random.default_rng(0).normal(0, 0.3, (2000, 4, 5))
    found = np.mean([likelihood.hutchinson_error(estimate) for estimate in estimates])
    assert found == pytest.approx(estimates.mean(axis=(1, 2)).std(), rel=0.05)
