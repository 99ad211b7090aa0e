import math
from itertools import count

import numpy as np
import pytest
from mindspore import Tensor, ops
from mindspore import dtype as mstype

from ms_diffusion import conversions, editing, samplers
from ms_diffusion.config import DiffusionConfig
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.randomness import image_noise
from ms_diffusion.schedules import make_schedule

M, S = 0.3, 0.5  # data whose every pixel is N(M, S^2)
LINEAR = make_schedule(DiffusionConfig(timesteps=1000))
COSINE = make_schedule(DiffusionConfig(timesteps=1000, schedule="cosine"))
NO_SIGNAL = make_schedule(DiffusionConfig(timesteps=1000, schedule="cosine", objective="v", zero_terminal_snr=True))
DETERMINISTIC = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "heun", "euler", "pndm", "plms", "ode")


def gaussian(schedule):
    """The best network for N(M, S^2), in closed form, also where x_t holds no signal."""

    def denoise(x, t):
        a, s = schedule.amplitudes(t)
        gain = a * S**2 / (a**2 * S**2 + s**2)
        x_start = M + gain * (x - a * M)
        return x_start, (x - a * x_start) / s

    return denoise


def mixture(x, t):
    """The best network for half N(-0.5, 0.2^2), half N(0.5, 0.2^2): nonlinear."""
    a, s = LINEAR.amplitudes(t)
    variance = (a * 0.2) ** 2 + s**2
    centre = 0.5 * np.tanh(0.5 * a * x / variance)  # the mean of the means, given x
    x_start = centre + a * 0.2**2 / variance * (x - a * centre)
    return x_start, (x - a * x_start) / s


def normal(size=2, seed=0):
    generators = [np.random.default_rng((seed, i)) for i in range(size)]
    while True:
        yield np.stack([generator.standard_normal((1, 3, 3)) for generator in generators])


IMAGE = np.random.default_rng(1).uniform(-1, 1, (1, 1, 3, 3))


# ---- Levels ----


@pytest.mark.parametrize("strength, levels", [(1, 1000), (0.5, 500), (0.001, 1), (1e-9, 1), (0.9999, 1000)])
def test_strength_is_a_share_of_the_levels(strength, levels):
    assert np.array_equal(editing.until(LINEAR, strength).alphas_cumprod, LINEAR.alphas_cumprod[:levels])


@pytest.mark.parametrize("strength", [0, -0.1, 1.1, math.nan])
def test_a_strength_that_cannot_be(strength):
    with pytest.raises(UserError, match="strength is .*: it must be above 0 and at most 1"):
        editing.until(LINEAR, strength)


def test_a_code_is_where_there_is_signal():
    assert len(editing.encodable(NO_SIGNAL, 1)) == 999 and len(editing.encodable(NO_SIGNAL, 0.5)) == 500
    assert len(editing.encodable(COSINE, 1)) == 1000


# ---- Variations ----


def last(arrays):
    *_, x = arrays
    return x


def exact(schedule, name, steps, image, strength):
    """Mean and standard deviation of a pixel, read off: pixel 0 gets no noise, pixel i only that of the i-th array."""
    pixels = 2 + 3 * steps
    noise = (np.eye(1, pixels, i).reshape(1, 1, 1, -1) for i in range(1, pixels))
    mean, *others = last(editing.variations(
        samplers.find(name), gaussian(schedule), schedule, noise, steps, images=np.full((1, 1, 1, 1), image),
        strength=strength,
    )).ravel()
    return mean, math.sqrt(sum((value - mean) ** 2 for value in others))


@pytest.mark.parametrize("schedule, strength", [(LINEAR, 0.3), (COSINE, 0.5), (NO_SIGNAL, 0.7)])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_variations_of_gaussian_data(name, schedule, strength):
    """x_t is N(a c, s^2) of the image c: a solver of the flow scales it, a stochastic one draws from p(x_0 | x_t).

    The many Langevin steps of predictor_corrector forget c: what is left is N(M, S^2).
    """
    image, steps = 0.9, 200
    spacing = editing._spacing(samplers.find(name))
    first, *_ = samplers.times(editing.until(schedule, strength), steps, spacing)
    a, s = schedule.amplitudes(first)
    variance = a**2 * S**2 + s**2
    if name in DETERMINISTIC:
        gain, rest = S / math.sqrt(variance), 0
    else:
        gain, rest = a * S**2 / variance, S**2 * s**2 / variance
    expected = (M + gain * a * (image - M), math.sqrt(gain**2 * s**2 + rest))
    if name == "predictor_corrector":
        expected = (M, S)
    error = 3e-2 if name in ("ddim", "euler", "euler_maruyama") else 1e-2
    assert exact(schedule, name, steps, image, strength) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_strength_0_gives_the_image_and_strength_1_samples(name):
    sampler, denoise = samplers.find(name), gaussian(COSINE)
    (same,) = editing.variations(sampler, denoise, COSINE, normal(), 9, images=IMAGE, strength=0)
    assert same.shape == (2, 1, 3, 3) and (same == IMAGE).all()
    ours = list(editing.variations(sampler, denoise, COSINE, normal(), 9, images=IMAGE, strength=1))
    assert np.array_equal(ours, list(sampler(denoise, COSINE, normal(), 9)))


def test_the_adaptive_solver_starts_where_its_steps_do():
    """With leading steps 75 of 100 levels; the flow's answer from there, not from t = 99."""
    sampler = samplers.find("ode", spacing="leading", tolerance=1e-8)
    quiet = iter(np.zeros((9, 1, 1, 1, 1)))
    x = last(editing.variations(
        sampler, gaussian(LINEAR), LINEAR, quiet, 4, images=np.full((1, 1, 1, 1), 0.9), strength=0.1
    ))
    a, s = LINEAR.amplitudes(75)
    expected = M + S / math.sqrt(a**2 * S**2 + s**2) * a * (0.9 - M)
    assert x.item() == pytest.approx(expected, abs=2e-4)


def test_more_steps_than_levels_below():
    loop = editing.variations(samplers.ddim, mixture, LINEAR, normal(), 101, images=IMAGE, strength=0.1)
    with pytest.raises(UserError, match="steps is 101: there are 100 noise levels"):
        next(loop)


# ---- Interpolation ----


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("angle", [1e-9, 0.5, 1.5, 3])
def test_slerp_turns(angle, share):
    first, second = np.array([[1.0, 0]]), np.array([[math.cos(angle), math.sin(angle)]])
    turned = [math.cos(share * angle), math.sin(share * angle)]
    assert editing.slerp(first, second, [share]) == pytest.approx(np.array([turned]), abs=1e-9)
    longer = editing.slerp(2 * first, 3 * second, [share])
    assert longer == pytest.approx(editing.slerp(first, 1.5 * second, [share]) * 2, abs=1e-12)


def test_slerp_of_what_has_no_angle_is_straight():
    zero, one = np.zeros((2, 1, 2, 2), np.float32), np.ones((2, 1, 2, 2), np.float32)
    mixed = editing.slerp(zero, one, [0.25, 1])
    assert mixed.dtype == np.float32 and mixed[:, 0, 0, 0] == pytest.approx([0.25, 1])
    assert editing.slerp(one, 3 * one, [0.25, 0.5])[:, 0, 0, 0] == pytest.approx([1.5, 2])


@pytest.mark.parametrize("strength", [0.2, 1])
def test_the_ends_of_an_interpolation_are_the_images(strength):
    first, second = (np.random.default_rng(i).uniform(-1, 1, (3, 1, 3, 3)) for i in (0, 1))
    errors = []
    for iterations in (1, 60):
        loop = editing.interpolation(
            mixture, LINEAR, 20, first=first, second=second, shares=[0, 0.5, 1], strength=strength,
            iterations=iterations,
        )
        arrays = list(loop)
        errors.append(max(np.abs(arrays[-1][0] - first[0]).max(), np.abs(arrays[-1][2] - second[2]).max()))
        assert len(arrays) == 20 and np.abs(arrays[-1][1] - first[1]).max() > 0.1
    assert errors[1] < 1e-9 and errors[0] > 1e-3


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, NO_SIGNAL])
def test_an_interpolation_of_gaussian_data(schedule):
    """The flow is affine, so codes, their mixture and what is decoded are closed forms."""
    first, second = (np.random.default_rng(i).uniform(-1, 1, (1, 1, 3, 3)) for i in (0, 1))
    a, s = schedule.amplitudes(599)
    scale = math.sqrt(a**2 * S**2 + s**2) / S
    codes = [a * M + scale * (x - M) for x in (first, second)]
    lengths = [np.linalg.norm(code) for code in codes]
    angle = math.acos((codes[0] * codes[1]).sum() / (lengths[0] * lengths[1]))
    mixed = (math.sin(0.7 * angle) * codes[0] + math.sin(0.3 * angle) * codes[1]) / math.sin(angle)
    expected = M + (mixed - a * M) / scale
    ours = last(editing.interpolation(
        gaussian(schedule), schedule, 400, first=first, second=second, shares=[0.3], strength=0.6
    ))
    assert np.abs(ours - expected).max() < 1e-2


# ---- Inpainting ----


def test_the_walk_of_repaint():
    """Down to 3, up to 5, down to 1, up to 3, down: the appendix's list for 6 steps, jumps of 2, 2 resamplings."""
    assert editing.walk(6, 2, 2) == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]
    assert editing.walk(3, 1, 3) == [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]
    assert editing.walk(4, 9, 1) == [4, 3, 2, 1, 0]
    paper = editing.walk(250, 10, 10)
    assert sum(abs(a - b) for a, b in zip(paper, paper[1:])) == 4570  # transitions, as published


@pytest.mark.parametrize("jump, resamplings, message", [
    (0, 2, "jump is 0, resamplings 2"), (2, 0, "at least 1"), (5, 2, "jump is 5, and there are 5 steps"),
])
def test_walks_that_cannot_be(jump, resamplings, message):
    with pytest.raises(UserError, match=message):
        editing.walk(5, jump, resamplings)


def read_off(schedule, sampler, denoise, image, known, steps, **options):
    """Mean and covariance of the pixels: image 0 gets no noise, each other one unit of a single number of it."""
    pixels = image.size
    places = editing.walk(steps, options["jump"], options["resamplings"])
    size = 1 + pixels * 3 * len(places)
    noise = (
        np.eye(size, pixels, -1 - pixels * i).reshape(size, *image.shape[1:]) for i in count()
    )
    x = last(editing.inpainting(sampler, denoise, schedule, noise, steps, images=image, known=known, **options))
    x = x.reshape(size, pixels)
    return x[0], (x - x[0]).T @ (x - x[0])


RHO = 0.8


def correlated(schedule):
    """The best network for two pixels N(M, S^2) with correlation RHO."""
    covariance = S**2 * np.array([[1, RHO], [RHO, 1]])

    def denoise(x, t):
        a, s = schedule.amplitudes(t)
        gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(2))
        x_start = M + (x - a * M) @ gain.T
        return x_start, (x - a * x_start) / s

    return denoise


@pytest.mark.parametrize("schedule", [COSINE, NO_SIGNAL])
def test_an_unknown_pixel_comes_to_its_conditional_distribution(schedule):
    """N(M + RHO (c - M), (1 - RHO^2) S^2) beside a known c. Without resampling it hardly knows of c."""
    image, known = np.array([-0.6, 0.0]).reshape(1, 1, 1, 2), np.array([True, False])
    mean, std = M + RHO * (-0.6 - M), S * math.sqrt(1 - RHO**2)

    def errors(steps, resamplings):
        means, covariance = read_off(
            schedule, samplers.ancestral, correlated(schedule), image, known, steps, jump=5, resamplings=resamplings
        )
        assert means[0] == -0.6 and not covariance[0].any(), "a known pixel never changes"
        return abs(means[1] - mean), abs(math.sqrt(covariance[1, 1]) - std)

    none, four, sixteen, coarse = errors(60, 1), errors(60, 4), errors(60, 16), errors(30, 16)
    assert none[0] > 0.25 and four[0] < none[0] / 2 and sixteen[0] < four[0] / 2 and sixteen[0] < coarse[0] / 2
    assert sixteen[0] < 0.05 and sixteen[1] < 0.03


def test_pixels_that_know_nothing_of_the_others_are_sampled():
    """Independent pixels, no resampling: the unknown one is ancestral sampling's, whatever the known one is."""
    image, known = np.array([5.0, 0.0]).reshape(1, 1, 1, 2), np.array([True, False])
    means, covariance = read_off(
        COSINE, samplers.ancestral, gaussian(COSINE), image, known, 1000, jump=1, resamplings=1
    )
    assert (means[1], math.sqrt(covariance[1, 1])) == pytest.approx((0.300000, 0.497993), abs=1e-6)


@pytest.mark.parametrize("steps, jump, resamplings", [(60, 10, 4), (60, 1, 2)])
@pytest.mark.parametrize("sampler", [samplers.ancestral, samplers.ddim])
def test_going_up_and_down_again_changes_no_distribution(sampler, steps, jump, resamplings):
    """What goes up is q(x_t | x_s): independent pixels stay the data's, but for the sampler's own error."""
    image, known = np.array([5.0, 0.0]).reshape(1, 1, 1, 2), np.array([True, False])
    means, covariance = read_off(
        COSINE, sampler, gaussian(COSINE), image, known, steps, jump=jump, resamplings=resamplings
    )
    assert (means[1], math.sqrt(covariance[1, 1])) == pytest.approx((M, S), abs=0.04)


@pytest.mark.parametrize("name, options", [("ancestral", {}), ("ddim", {}), ("ddim", {"eta": 1.0})])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_known_pixels_come_back_bit_for_bit(name, options, dtype):
    """Whatever the mask, for one image of the batch or all, and for a network that is far off."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 2, 4, 4)).astype(dtype)
    for known in (rng.uniform(size=(4, 4)) < 0.5, rng.uniform(size=(3, 1, 4, 4)) < 0.5, np.ones((4, 4), bool)):
        noise = (z.astype(dtype) for z in image_noise(0, range(3), (2, 4, 4)))
        arrays = list(editing.inpainting(
            samplers.find(name, **options), lambda x, t: (np.sin(9 * x), 3 - x), COSINE, noise, 6, images=images,
            known=known, jump=2, resamplings=3,
        ))
        assert len(arrays) == sum(b < a for a, b in zip(editing.walk(6, 2, 3), editing.walk(6, 2, 3)[1:]))
        everywhere = np.broadcast_to(known, images.shape)
        assert arrays[-1].dtype == dtype and np.array_equal(arrays[-1][everywhere], images[everywhere])
        if not known.all():
            assert not (arrays[-1] == images)[~everywhere].any()


# ---- Any network, any batch ----


def edits(denoise, schedule, noise, images):
    yield editing.variations(samplers.ancestral, denoise, schedule, noise, 4, images=images, strength=0.6)
    yield editing.variations(samplers.dpmpp_2m, denoise, schedule, noise, 4, images=images, strength=1)
    yield editing.interpolation(
        denoise, schedule, 4, first=images, second=images[::-1], shares=np.linspace(0, 1, len(images)), iterations=2
    )
    yield editing.inpainting(
        samplers.ancestral, denoise, schedule, noise, 4, images=images, known=np.eye(3, dtype=bool), jump=2,
        resamplings=2,
    )


@pytest.mark.parametrize(
    "objective, zero", [("eps", False), ("x_start", False), ("v", False), ("x_start", True), ("v", True)]
)
def test_every_objective(objective, zero, jit):
    """The best network for N(M, S^2) in each of its forms edits as the closed form does; float32 against float64."""
    diffusion = GaussianDiffusion(
        timesteps=100, schedule="cosine", objective=objective, zero_terminal_snr=zero, clip_x_start=False
    )
    schedule = diffusion.schedule
    log_snr = Tensor(np.maximum(schedule.log_snr, -60), mstype.float32)

    def model(x, t):
        below = ops.cast(t, mstype.int32)
        lower, upper = (ops.gather(log_snr, ops.clamp(below + i, 0, 99), 0) for i in (0, 1))
        here = (lower + (ops.cast(t, mstype.float32) - below) * (upper - lower)).reshape((-1, 1, 1, 1))
        a, s = ops.sqrt(ops.sigmoid(here)), ops.sqrt(ops.sigmoid(-here))
        variance = a * a * S**2 + s * s
        if objective == "eps":
            return s * (x - a * M) / variance
        x_start = M + a * S**2 / variance * (x - a * M)
        return x_start if objective == "x_start" else conversions.to_v(x_start, "x_start", x, a, s)

    images = np.random.default_rng(0).uniform(-1, 1, (4, 1, 3, 3)).astype(np.float32)
    ours = edits(diffusion.denoiser(model, jit), schedule, image_noise(0, range(4), (1, 3, 3)), images)
    expected = edits(gaussian(schedule), schedule, image_noise(0, range(4), (1, 3, 3)), images.astype(np.float64))
    for theirs, reference in zip(ours, expected):
        assert np.abs(last(theirs) - last(reference)).max() < 2e-3


def test_an_image_does_not_depend_on_its_batch():
    for i in (0, 1, 3):
        three, two = (
            last(list(edits(mixture, LINEAR, normal(n), np.repeat(IMAGE, n, 0)))[i]) for n in (3, 2)
        )
        assert np.abs(three[:2] - two).max() < 1e-12
