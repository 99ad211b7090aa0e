import math

import numpy as np
import pytest
from mindspore import ops
from scipy.integrate import quad, solve_ivp

from ms_diffusion import samplers
from ms_diffusion.config import DiffusionConfig
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.randomness import image_noise
from ms_diffusion.schedules import make_schedule
from ms_diffusion.unet import Unet, init_weights

M, S = 0.3, 0.5  # the data of the first oracle: every pixel is N(M, S^2)
LINEAR_200 = make_schedule(DiffusionConfig(timesteps=200, scale_betas=False))
LINEAR = make_schedule(DiffusionConfig(timesteps=1000))
COSINE = make_schedule(DiffusionConfig(timesteps=1000, schedule="cosine"))
LOG = {"spacing": "log_snr"}


class Gaussian:
    """The best network for the data N(M, S^2), in closed form; counts its calls."""

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, 0

    def __call__(self, x, t):
        self.calls += 1
        a, s = self.schedule.amplitudes(t)
        eps = s * (x - a * M) / (a**2 * S**2 + s**2)
        return (x - s * eps) / a, eps


def unit_noise(pixels):
    """Pixel 0 gets no noise at all; pixel i gets 1 from the i-th array and 0 from the others."""
    for i in range(1, pixels):
        z = np.zeros((1, 1, 1, pixels))
        z[..., i] = 1
        yield z


def exact(sampler, schedule, steps, **options):
    """Mean and standard deviation of a sampler that is linear in x and the noise: every coefficient is read off."""
    pixels = 2 + 3 * steps
    *_, x = sampler(Gaussian(schedule), schedule, unit_noise(pixels), steps, **options)
    mean, *others = x.ravel()
    return mean, math.sqrt(sum((value - mean) ** 2 for value in others))


@pytest.mark.parametrize(
    "sampler, schedule, steps, options, mean, std",
    [
        (samplers.ancestral, LINEAR_200, 200, {"variance": "fixed_small"}, 0.288995, 0.492838),
        (samplers.ancestral, LINEAR_200, 200, {"variance": "fixed_large"}, 0.288995, 0.502804),
        (samplers.ancestral, LINEAR, 1000, {"variance": "fixed_small"}, 0.299997, 0.496110),
        (samplers.ancestral, LINEAR, 1000, {"variance": "fixed_large"}, 0.299997, 0.500752),
        (samplers.ancestral, COSINE, 1000, {"variance": "fixed_small"}, 0.300000, 0.497993),
        (samplers.ancestral, COSINE, 1000, {"variance": "fixed_large"}, 0.300000, 0.500418),
        (samplers.ddim, LINEAR_200, 200, {}, 0.242904, 0.523479),
        (samplers.ddim, LINEAR, 10, {}, 0.299295, 0.369955),
        (samplers.ddim, LINEAR, 20, {}, 0.299178, 0.431368),
        (samplers.ddim, LINEAR, 50, {}, 0.299102, 0.471403),
        (samplers.ddim, LINEAR, 100, {}, 0.299075, 0.485447),
        (samplers.ddim, LINEAR, 50, {"spacing": "leading"}, 0.298911, 0.472439),
        (samplers.ddim, COSINE, 20, {}, 0.299993, 0.462110),
    ],
)
def test_published_answers_for_gaussian_data(sampler, schedule, steps, options, mean, std):
    assert exact(sampler, schedule, steps, **options) == pytest.approx((mean, std), abs=1e-6)


def posterior(a, s):
    """E[x_0 | x_t] = constant + gain x_t for the Gaussian data."""
    gain = a * S**2 / (a**2 * S**2 + s**2)
    return M - gain * a * M, gain


def ddim_of_eta(eta):
    def step(a, s, a1, s1):
        sigma = eta * s1 / s * math.sqrt(1 - a**2 / a1**2)
        rest = math.sqrt(s1**2 - sigma**2)
        return a1 - rest * a / s, rest / s, sigma  # of x_0, of x_t, of noise

    return step


def euler_maruyama_step(a, s, a1, s1):
    beta = math.log(a1**2 / a**2)
    return beta * a / s**2, 1 + beta / 2 - beta / s**2, math.sqrt(beta) * (s1 > 0)


def predictor_step(a, s, a1, s1):
    beta = 1 - a**2 / a1**2
    return beta * a / s**2, 2 - math.sqrt(1 - beta) - beta / s**2, math.sqrt(beta) * (s1 > 0)


def langevin_step(size):
    def step(a, s):
        return size * a / s**2, 1 - size / s**2, math.sqrt(2 * size)

    return step


def apply(mean, var, a, s, coefficients):
    of_start, of_x, of_noise = coefficients
    constant, gain = posterior(a, s)
    slope = of_start * gain + of_x
    return of_start * constant + slope * mean, slope**2 * var + of_noise**2


def walk(schedule, steps):
    levels = [schedule.amplitudes(t) for t in (*samplers.times(schedule, steps, "trailing"), -1)]
    return [(*now, *then) for now, then in zip(levels, levels[1:])]


@pytest.mark.parametrize("schedule, steps", [(LINEAR_200, 200), (LINEAR, 50), (LINEAR, 1000), (COSINE, 100)])
@pytest.mark.parametrize(
    "sampler, options, recursion",
    [
        (samplers.ddim, {"eta": 0.5}, ddim_of_eta(0.5)), (samplers.ddim, {"eta": 1.0}, ddim_of_eta(1.0)),
        (samplers.euler, {"spacing": "trailing"}, ddim_of_eta(0.0)),
        (samplers.euler_maruyama, {}, euler_maruyama_step),
        (samplers.predictor_corrector, {"corrections": 0}, predictor_step),
    ],
)
def test_one_step_samplers_follow_their_scalar_recursion(sampler, options, recursion, schedule, steps):
    """Written from the formulas in x_t and x_0, where the samplers use x_t and eps."""
    mean, var = 0.0, 1.0
    for a, s, a1, s1 in walk(schedule, steps):
        mean, var = apply(mean, var, a, s, recursion(a, s, a1, s1))
    assert exact(sampler, schedule, steps, **options) == pytest.approx((mean, math.sqrt(var)), rel=1e-9)


def test_langevin_corrections_follow_their_scalar_recursion():
    mean, var = 0.0, 1.0
    for a, s, a1, s1 in walk(LINEAR_200, 200):
        mean, var = apply(mean, var, a, s, predictor_step(a, s, a1, s1))
        if s1 > 0:
            size = 2 * (a / a1) ** 2 * (0.16 * s1) ** 2
            mean, var = apply(mean, var, a1, s1, langevin_step(size)(a1, s1))
    assert exact(samplers.predictor_corrector, LINEAR_200, 200) == pytest.approx((mean, math.sqrt(var)), rel=1e-9)


def exact_flow(schedule, t):
    """The probability-flow ODE's answer: (x - a M) / sqrt(a^2 S^2 + s^2) never changes; at t = 0 comes E[x_0 | x]."""
    scales = []
    for time in (t, 0):
        a, s = schedule.amplitudes(time)
        scales.append((a, math.sqrt(a**2 * S**2 + s**2)))
    (a_first, first), (a_last, last) = scales
    gain = a_last * S**2 / last**2
    return M - gain * last / first * a_first * M, gain * last / first


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
@pytest.mark.parametrize(
    "name, options, error",
    [
        ("heun", {}, 1e-3), ("euler", {"spacing": "log_snr"}, 5e-2), ("dpmpp_2m", LOG, 1e-3), ("dpmpp_3m", LOG, 2e-5),
        ("unipc", LOG, 2e-4), ("unipc", {"order": 3, **LOG}, 2e-5), ("plms", {"spacing": "leading"}, 5e-4),
        ("pndm", {"spacing": "leading"}, 5e-4), ("ode", {}, 1e-4), ("ode", {"tolerance": 1e-9}, 1e-8),
    ],
)
def test_solvers_come_to_the_flow_of_gaussian_data(name, options, error, schedule):
    sampler = samplers.SAMPLERS[name]
    spacing = options.get("spacing", "karras" if name == "heun" else "log_snr")
    first = samplers.times(schedule, 100, spacing)[0]
    assert exact(sampler, schedule, 100, **options) == pytest.approx(exact_flow(schedule, first), abs=error)


@pytest.mark.parametrize(
    "name, options, error",
    [
        ("dpmpp_2m_sde", LOG, 2e-4), ("heun", {"churn": 40.0}, 2e-3), ("euler", {"churn": 40.0}, 4e-2),
        ("predictor_corrector", {}, 5e-3), ("euler_maruyama", {"spacing": "log_snr"}, 1e-2),
    ],
)
def test_stochastic_solvers_come_to_the_data(name, options, error):
    assert exact(samplers.SAMPLERS[name], LINEAR, 200, **options) == pytest.approx((M, S), abs=error)


# ---- A mixture of two Gaussians: nonlinear, and still exact ----

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.2, 0.3])


def mixture_mean(x, a, s):
    """E[x_0 | x_t] pixel by pixel."""
    variances = (a * STDS) ** 2 + s**2
    distance = x[..., None] - a * MEANS
    logits = np.log(WEIGHTS) - distance**2 / (2 * variances) - np.log(variances) / 2
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (share * (MEANS + a * STDS**2 / variances * distance)).sum(-1)


def mixture(x, t):
    a, s = LINEAR.amplitudes(t)
    x_start = mixture_mean(x, a, s)
    return x_start, (x - a * x_start) / s


def mixture_flow(x, start, end):
    """x at `end` by another solver in other variables, to eleven digits: d(x / a) / d log(sigma) = x / a - x_0."""
    (a, s), (a1, s1) = LINEAR.amplitudes(start), LINEAR.amplitudes(end)

    def derivative(log_sigma, y):
        sigma = np.exp(log_sigma)
        a = 1 / np.sqrt(1 + sigma**2)
        return y - mixture_mean(y * a, a, sigma * a)

    span = (np.log(s / a), np.log(s1 / a1))
    return a1 * solve_ivp(derivative, span, x / a, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]


@pytest.mark.parametrize(
    "name, options, order",
    [
        ("ddim", {"spacing": "log_snr"}, 1), ("euler", {}, 1), ("heun", {}, 2), ("dpmpp_2m", LOG, 2),
        ("dpmpp_3m", LOG, 3), ("unipc", {"order": 1, **LOG}, 2), ("unipc", LOG, 3), ("unipc", {"order": 3, **LOG}, 4),
        ("plms", {"spacing": "linspace"}, 2.5), ("pndm", {"spacing": "linspace"}, 2.5),
    ],
)
def test_order_of_convergence(name, options, order):
    """The slope of log error over log steps from 20 to 160; pseudo multistep methods are of order 2 at least."""
    x = np.linspace(-2.5, 2.5, 41)
    spacing = options.get("spacing", "karras" if name in ("euler", "heun") else "log_snr")
    errors = []
    for steps in (20, 160):
        *_, at_zero, _ = samplers.find(name, **options)(mixture, LINEAR, iter([x.reshape(1, 1, 1, -1)]), steps)
        expected = mixture_flow(x, samplers.times(LINEAR, steps, spacing)[0], 0)
        errors.append(np.sqrt(np.mean((at_zero.ravel() - expected) ** 2)))
    slope = math.log(errors[0] / errors[1]) / math.log(8)
    assert slope == pytest.approx(order, abs=0.25 if order in (1, 2) else 0.5), errors


def test_dpmpp_3m_is_of_order_3():
    """Where its first steps, of orders 1 and 2, no longer count."""
    x, errors = np.linspace(-2.5, 2.5, 41), []
    for steps in (80, 320):
        *_, at_zero, _ = samplers.dpmpp_3m(mixture, LINEAR, iter([x.reshape(1, 1, 1, -1)]), steps, **LOG)
        expected = mixture_flow(x, samplers.times(LINEAR, steps, "log_snr")[0], 0)
        errors.append(np.sqrt(np.mean((at_zero.ravel() - expected) ** 2)))
    assert math.log(errors[0] / errors[1]) / math.log(4) == pytest.approx(3, abs=0.05), errors


def test_adaptive_solver_keeps_its_tolerance():
    x = np.linspace(-2.5, 2.5, 41)
    *_, sample = samplers.ode(mixture, LINEAR, iter([x.reshape(1, 1, 1, -1)]), 7, tolerance=1e-8)
    expected = mixture_mean(mixture_flow(x, 999, 0), *LINEAR.amplitudes(0))
    assert np.abs(sample.ravel() - expected).max() < 1e-6


# ---- Published numbers ----


@pytest.mark.parametrize("as_v, total, mean", [(False, 172.0067, 0.223967), (True, 52.5302, 0.0684)])
def test_published_sums_of_ddim(as_v, total, mean):
    """The loop of diffusers' own test: leading, 10 steps, x_0 clipped, eps not derived again."""

    def denoise(x, t):
        a, s = LINEAR.amplitudes(t)
        output = x * t / (t + 1)
        x_start, eps = (a * x - s * output, a * output + s * x) if as_v else ((x - s * output) / a, output)
        return np.clip(x_start, -1, 1), eps

    x = (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)
    *_, sample = samplers.ddim(denoise, LINEAR, iter([x]), 10, spacing="leading")
    assert np.abs(sample).sum() == pytest.approx(total, abs=1e-2)
    assert np.abs(sample).mean() == pytest.approx(mean, abs=1e-3)


def test_published_sums_of_ddim_to_either_end():
    """From beta = 0.01. set_alpha_to_one=False of diffusers ends at the first noise level, alpha-bar_0, not at x_0."""
    schedule = make_schedule(DiffusionConfig(timesteps=1000, beta_start=0.01))
    answers = []

    def denoise(x, t):
        (a, s), eps = schedule.amplitudes(t), x * t / (t + 1)
        answers.append((np.clip((x - s * eps) / a, -1, 1), eps))
        return answers[-1]

    x = (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)
    *_, at_zero, sample = samplers.ddim(denoise, schedule, iter([x]), 10, spacing="leading")
    x_start, eps = answers[-1]
    again = math.sqrt(0.99) * x_start + 0.1 * eps  # alpha-bar_0 = 1 - beta_0 = 0.99
    for found, total, mean in ((sample, 149.8295, 0.1951), (again, 149.0784, 0.1941), (at_zero, 149.0784, 0.1941)):
        assert np.abs(found).sum() == pytest.approx(total, abs=1e-3)
        assert np.abs(found).mean() == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("t, then, variance", [(420, 400, 0.14771), (980, 960, 0.32460)])
def test_published_variances_of_ddim(t, then, variance):
    def nothing(x, t):
        return 0 * x, 0 * x

    first, *_ = samplers.ddim(nothing, LINEAR, iter([np.zeros(1), np.ones(1)]), [t, then], eta=1.0)
    assert first[0] ** 2 == pytest.approx(variance, abs=1e-5)


# ---- Step by step with diffusers, in float64 ----


@pytest.fixture
def diffusers():
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers", reason="the package diffusers (requirements-dev.txt) is not installed")


def exact_tables(scheduler, levels=None):
    """Give a scheduler of diffusers this library's tables in float64; its own are float32. `levels` are its sigmas'."""
    torch = pytest.importorskip("torch")
    table = torch.from_numpy(LINEAR.alphas_cumprod)
    scheduler.alphas_cumprod, scheduler.betas = table, torch.from_numpy(LINEAR.betas)
    if levels is not None:
        sigmas = [s / a for a, s in map(LINEAR.amplitudes, levels)]
        assert np.abs(np.array(sigmas) / scheduler.sigmas.numpy()[: len(sigmas)] - 1).max() < 1e-4
        scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)


def normal(seed=0):
    generator = np.random.default_rng(seed)
    while True:
        yield generator.standard_normal((2, 1, 3, 3))


def assert_equal_steps(ours, scheduler, first, kept=slice(None), **options):
    """Every x of `ours` against the loop that a reader of diffusers writes; `kept` are its whole steps."""
    torch = pytest.importorskip("torch")
    theirs, x = [], torch.from_numpy(first)
    for t in scheduler.timesteps:
        eps = torch.from_numpy(mixture(x.numpy(), int(t))[1])
        noise = {"variance_noise": torch.from_numpy(next(options["noise"]))} if "noise" in options else {}
        x = scheduler.step(eps, t, x, **options.get("arguments", {}), **noise).prev_sample
        theirs.append(x.numpy())
    ours, theirs = np.array(list(ours)), np.array(theirs)[kept]
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-6 and np.abs(ours[-1]).max() > 0.1


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize(
    "variance, spacing", [("fixed_small", "leading"), ("fixed_small", "trailing"), ("fixed_large", "leading")]
)
def test_ancestral_is_diffusers_ddpm(variance, spacing, steps, diffusers, monkeypatch):
    """Its fixed_large adds noise to the image where the last time is not 0, so trailing is left out."""
    torch = pytest.importorskip("torch")
    scheduler = diffusers.DDPMScheduler(1000, variance_type=variance, clip_sample=False, timestep_spacing=spacing)
    exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    theirs = normal()
    first = next(theirs)
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: torch.from_numpy(next(theirs)))
    ours = samplers.ancestral(mixture, LINEAR, normal(), steps, spacing=spacing, variance=variance)
    assert_equal_steps(ours, scheduler, first)


@pytest.mark.parametrize("steps, spacing", [(10, "leading"), (10, "trailing"), (50, "leading"), (50, "trailing")])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers(eta, steps, spacing, diffusers):
    scheduler = diffusers.DDIMScheduler(1000, 1e-4, 0.02, clip_sample=False, timestep_spacing=spacing)
    exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    theirs = normal()
    first = next(theirs)
    ours = samplers.ddim(mixture, LINEAR, normal(), steps, spacing=spacing, eta=eta)
    assert_equal_steps(ours, scheduler, first, arguments={"eta": eta}, noise=theirs)


@pytest.mark.parametrize("steps", [10, 50])
def test_inversion_is_diffusers(steps, diffusers):
    torch = pytest.importorskip("torch")
    scheduler = diffusers.DDIMInverseScheduler(1000, 1e-4, 0.02, clip_sample=False, timestep_spacing="leading")
    exact_tables(scheduler)
    scheduler.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    ours = samplers.ddim_inversion(mixture, LINEAR, normal(), steps, spacing="leading")
    assert_equal_steps(ours, scheduler, next(normal()))


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_plms_and_pndm_are_diffusers(name, steps, diffusers):
    skip = name == "plms"
    scheduler = diffusers.PNDMScheduler(1000, 1e-4, 0.02, skip_prk_steps=skip, set_alpha_to_one=True)
    exact_tables(scheduler)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    ours = samplers.SAMPLERS[name](mixture, LINEAR, normal(), steps)
    kept = [*range(1, steps + 1)] if skip else [3, 7, 11, *range(12, steps + 9)]
    assert_equal_steps(ours, scheduler, next(normal()), kept)


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("name, kind", [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")])
def test_dpm_solver_is_diffusers(name, kind, steps, diffusers):
    scheduler = diffusers.DPMSolverMultistepScheduler(1000, 1e-4, 0.02, solver_order=2, algorithm_type=kind)
    chosen = samplers.times(LINEAR, steps, "trailing")
    scheduler.set_timesteps(timesteps=chosen)
    exact_tables(scheduler, chosen)
    theirs = normal()
    first = next(theirs)
    ours = samplers.SAMPLERS[name](mixture, LINEAR, normal(), steps, spacing="trailing")
    assert_equal_steps(ours, scheduler, first, noise=theirs)


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_dpmpp_3m_is_diffusers_but_for_half_of_a_bend(steps, diffusers):
    """Its third order takes u^2 / 2 for the u^2 of the parabola c0 + c1 u + c2 u^2 through the last three x_0.

    u is lambda from the newest of them. Eq. 12 of the paper has x_0'' u^2 / 2, and x_0'' is 2 c2; with half of it
    the order is 2. Were x_0 not to depend on x_t, the two would differ by what the halves sum up to.
    """
    torch = pytest.importorskip("torch")
    chosen = samplers.times(LINEAR, steps, "trailing")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000, 1e-4, 0.02, solver_order=3, solver_type="heun", prediction_type="sample", lower_order_final=False,
    )
    scheduler.set_timesteps(timesteps=chosen)
    exact_tables(scheduler, chosen)

    def log_ratio(t):
        a, s = LINEAR.amplitudes(t)
        return math.log(a / s)

    def known(t):
        return np.sin(log_ratio(t) + np.arange(18).reshape(2, 1, 3, 3))

    ours = list(samplers.dpmpp_3m(lambda x, t: (known(t), None), LINEAR, normal(), steps, spacing="trailing"))
    x, missing, largest = torch.from_numpy(next(normal())), 0.0, 0.0
    for i, t in enumerate(chosen):
        x = scheduler.step(torch.from_numpy(known(t)), t, x).prev_sample
        (_, s), (a1, s1) = LINEAR.amplitudes(t), LINEAR.amplitudes(chosen[i + 1] if i + 1 < steps else -1)
        missing = s1 / s * missing
        if i >= 2 and i + 1 < steps:
            u = [log_ratio(each) - log_ratio(t) for each in chosen[i - 2 : i + 1]]
            c2 = np.polyfit(u, np.reshape([known(each) for each in chosen[i - 2 : i + 1]], (3, -1)), 2)[0]
            h = math.log(a1 / s1) - log_ratio(t)
            integral, _ = quad(lambda u, h: math.exp(u - h) * u**2, 0, h, args=(h,))
            missing = missing + a1 / 2 * integral * c2.reshape(2, 1, 3, 3)
        assert np.abs(ours[i] - x.numpy() - missing).max() < 1e-6  # it rounds x to float32
        largest = max(largest, np.abs(missing).max())
    assert largest > 1e-3


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_diffusers(order, steps, diffusers):
    scheduler = diffusers.UniPCMultistepScheduler(
        1000, 1e-4, 0.02, solver_order=order, timestep_spacing="trailing", final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    exact_tables(scheduler, samplers.times(LINEAR, steps, "trailing"))
    ours = samplers.unipc(mixture, LINEAR, normal(), steps, spacing="trailing", order=order)
    assert_equal_steps(ours, scheduler, next(normal()))


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun_are_diffusers(name, steps, diffusers):
    """They walk in x_0 + sigma eps, and Heun's scheduler is stepped twice a step."""
    torch = pytest.importorskip("torch")
    kind = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}[name]
    scheduler = kind(1000, 1e-4, 0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    sigmas = [s / a for a, s in map(LINEAR.amplitudes, samplers.times(LINEAR, steps, "trailing"))]
    doubled = [*sigmas, 0.0] if name == "euler" else [sigmas[0], *np.repeat(sigmas[1:], 2), 0.0]
    assert np.abs(scheduler.sigmas.numpy()[: len(doubled) - 1] / doubled[:-1] - 1).max() < 1e-4
    scheduler.sigmas = torch.tensor([*doubled, 0.0], dtype=torch.float64)
    x = torch.from_numpy(next(normal())) / LINEAR.amplitudes(999)[0]
    theirs = []
    for i, t in enumerate(scheduler.timesteps):
        eps = mixture((x / math.hypot(1, doubled[i])).numpy(), int(t))[1]
        x = scheduler.step(torch.from_numpy(eps), t, x).prev_sample
        theirs.append((x / math.hypot(1, doubled[i + 1])).numpy())
    theirs = theirs if name == "euler" else theirs[1::2] + theirs[-1:]
    ours = list(samplers.SAMPLERS[name](mixture, LINEAR, normal(), steps, spacing="trailing"))
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs)) < 1e-6 and len(ours) == len(theirs)


# ---- Identities ----


def untrained(**options):
    """A network, which says something of everything."""
    model = Unet(dim=8, dim_mults=(1,), **options)
    init_weights(model, np.random.default_rng(0))
    return model


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_ancestral_at_every_step_is_algorithm_2(variance, jit):
    """Through a network, its compiled `denoiser`, and Tensors on one side only."""
    diffusion, learned = GaussianDiffusion(timesteps=30, schedule="cosine", variance=variance), variance == "learned"
    model = untrained(out_dim=2 if learned else 1)
    step, denoise = diffusion.reverse_step(model, jit), diffusion.denoiser(model, jit, tell_variance=learned)
    expected = [x.asnumpy() for x in diffusion.p_sample_loop(step, image_noise(0, [0, 1], (1, 4, 4)))]
    noise = image_noise(0, [0, 1], (1, 4, 4))
    ours = list(samplers.ancestral(denoise, diffusion.schedule, noise, 30, variance=variance))
    assert len(ours) == 30 and max(np.abs(a - b).max() for a, b in zip(ours, expected)) < 1e-4


class LearnedGaussian(Gaussian):
    """What a network has learned that knows the Gaussian data and the steps: also the best variance of each.

    p(x_s | x_t) of Gaussian data is Gaussian. Its variance is that of the posterior, beta-tilde, and what x_t leaves
    open of x_0; the network says where between log beta-tilde and log beta that lies.
    """

    def __init__(self, schedule, chosen):
        super().__init__(schedule)
        self.then = dict(zip(chosen, [*chosen[1:], -1]))

    def __call__(self, x, t):
        (a, s), (a1, s1) = self.schedule.amplitudes(t), self.schedule.amplitudes(self.then[t])
        constant, gain = posterior(a, s)
        x_start, said = constant + gain * x, 0 * x
        if s1 > 0:
            alpha = (a / a1) ** 2
            beta, smallest = 1 - alpha, (1 - alpha) * s1**2 / s**2
            left = S**2 * s**2 / (a**2 * S**2 + s**2)  # Var[x_0 | x_t]
            best = smallest + (a1 * beta / s**2) ** 2 * left
            said = said + 2 * math.log(best / smallest) / math.log(beta / smallest) - 1
        return x_start, (x - a * x_start) / s, said


@pytest.mark.parametrize("steps", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "quadratic", "linspace"])
def test_the_best_variance_makes_few_steps_exact(spacing, steps):
    """x_T is noise alone and every p(x_s | x_t) is right, so every x_t has the data's x_t's mean and deviation."""
    schedule = make_schedule(DiffusionConfig(timesteps=1000, zero_terminal_snr=True, objective="v"))
    chosen = samplers.times(schedule, steps, spacing)
    denoise = LearnedGaussian(schedule, chosen)
    xs = list(samplers.ancestral(denoise, schedule, unit_noise(2 + steps), chosen, variance="learned"))
    errors = []
    for t, x in zip(chosen[1:], xs):
        mean, *others = x.ravel()
        a, s = schedule.amplitudes(t)
        errors += [mean - a * M, math.sqrt(sum((value - mean) ** 2 for value in others)) - math.hypot(a * S, s)]
    assert len(errors) == 2 * (steps - 1) and np.abs(errors).max() < 1e-9
    if steps == 10:
        for variance in ("fixed_small", "fixed_large"):
            *_, x, _ = samplers.ancestral(denoise, schedule, unit_noise(12), chosen, variance=variance)
            std = np.sqrt(np.square(x.ravel()[1:] - x.ravel()[0]).sum())
            assert abs(std - math.hypot(*np.multiply(schedule.amplitudes(chosen[-1]), (S, 1)))) > 1e-2


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_network_that_learned_the_variance_serves_every_sampler(name):
    """They see its prediction alone: the same as of a network that says no more."""
    def found(variance, out):
        diffusion = GaussianDiffusion(timesteps=30, variance=variance)
        denoise = diffusion.denoiser(lambda x, t: out(0.3 * x), jit=False)
        return list(samplers.SAMPLERS[name](denoise, diffusion.schedule, image_noise(0, [0, 1], (1, 3, 3)), 5))

    def twice(x):
        return ops.concat((x, ops.ones_like(x)), axis=1)

    alone, learned = found("fixed_small", lambda x: x), found("learned", twice)
    assert np.array_equal(alone, learned) and np.abs(alone[-1]).max() > 0.01


def test_a_network_that_learned_no_variance_tells_none():
    with pytest.raises(UserError, match="the network learned none .diffusion.variance is fixed_large.: choose"):
        GaussianDiffusion(variance="fixed_large").denoiser(untrained(), tell_variance=True)


def final(sampler, steps, schedule=LINEAR, **options):
    noise = (z.astype(np.float64) for z in image_noise(0, [0, 1], (1, 3, 3)))
    *_, x = sampler(Gaussian(schedule), schedule, noise, steps, **options)
    return x


def test_ddim_with_eta_1_is_ancestral_sampling():
    for steps in (1, 7, 1000):
        assert np.abs(final(samplers.ddim, steps, eta=1.0) - final(samplers.ancestral, steps)).max() < 1e-12


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_first_order_is_ddim(spacing):
    """DPM-Solver++ and UniPC of order 1 without its correction, PLMS of one value, and Euler in sigma are one step."""
    ddim = final(samplers.ddim, 1, spacing=spacing)
    for name in ("euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"):
        assert np.abs(final(samplers.SAMPLERS[name], 1, spacing=spacing) - ddim).max() < 1e-9, name
    assert np.abs(final(samplers.euler, 9, spacing=spacing) - final(samplers.ddim, 9, spacing=spacing)).max() < 1e-9


@pytest.mark.parametrize("steps", [20, 50])
def test_inversion_is_undone_by_ddim(steps):
    image = np.random.default_rng(0).uniform(-1, 1, (2, 1, 3, 3))
    errors = []
    for iterations in (1, 60):
        inverted = list(samplers.ddim_inversion(mixture, LINEAR, iter([image]), steps, iterations=iterations))
        *_, back = samplers.ddim(mixture, LINEAR, iter([inverted[-1]]), steps)
        errors.append(np.abs(back - image).max())
        assert len(inverted) == steps
    assert errors[1] < min(1e-6, errors[0] / 100), errors


CALLS = {
    "heun": lambda n: 2 * n - 1, "plms": lambda n: n + min(1, n - 1), "pndm": lambda n: n + 3 * min(3, n - 1),
    "predictor_corrector": lambda n: 2 * n - 1,
}


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_as_many_arrays_as_steps_and_as_many_calls_as_promised(name, steps):
    denoise = Gaussian(COSINE)
    arrays = list(samplers.SAMPLERS[name](denoise, COSINE, image_noise(0, [0, 1], (1, 2, 2)), steps))
    assert len(arrays) == steps
    assert all(x.shape == (2, 1, 2, 2) and x.dtype == np.float32 and np.isfinite(x).all() for x in arrays)
    if name != "ode":
        assert denoise.calls == CALLS.get(name, lambda n: n)(steps)


@pytest.mark.parametrize("name", sorted(set(samplers.SAMPLERS) - {"ode"}))  # whose steps fit the whole batch
def test_an_image_does_not_depend_on_its_batch(name):
    three, two = (
        list(samplers.SAMPLERS[name](mixture, LINEAR, image_noise(0, range(n), (1, 2, 2)), 10))[-1] for n in (3, 2)
    )
    assert np.abs(three[:2] - two).max() < 1e-5


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_where_x_T_holds_no_signal(name):
    """alpha-bar_T = 0, Lin et al. 2023: what divides by its root is refused, the others come to the data.

    Through the `denoiser` of the best network that predicts v; also at fractions of the last interval.
    """
    diffusion = GaussianDiffusion(timesteps=1000, objective="v", zero_terminal_snr=True, clip_x_start=False)
    schedule, pixels = diffusion.schedule, 202

    def model(x, t):
        a, s = schedule.amplitudes(float(t.asnumpy()[0]))
        constant, gain = posterior(a, s)
        x_start = constant + gain * x
        return (a * x - x_start) / s  # v = a eps - s x_0, and eps = (x - a x_0) / s

    denoise, sampler = diffusion.denoiser(model, jit=False), samplers.find(name, spacing="trailing")
    noise = (z.astype(np.float32) for z in unit_noise(pixels))
    if name in ("ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc", "ode"):
        *_, x = sampler(denoise, schedule, noise, 100)
        mean, *others = x.ravel().astype(np.float64)
        std = math.sqrt(sum((value - mean) ** 2 for value in others))
        assert mean == pytest.approx(M, abs=1e-5) and std == pytest.approx(S, abs=0.04)
    else:
        with pytest.raises(UserError, match="x_T holds no signal, and this sampler divides by it: choose ancestral, "):
            samplers.check(sampler, schedule, 100)
        xs = list(sampler(denoise, schedule, noise, [998.5, 998, 20]))
        assert np.isfinite(xs).all(), "there is a signal between the last two levels"
    with pytest.raises(UserError, match="spacing is 'log_snr', but x_T holds no signal|choose from trailing, leading"):
        next(samplers.SAMPLERS[name](denoise, schedule, noise, 5, spacing="log_snr"))


# ---- Times ----


def test_times_of_diffusers_and_the_papers():
    assert samplers.times(LINEAR, 5, "trailing") == [999, 799, 599, 399, 199]
    assert samplers.times(LINEAR, 5, "leading") == [800, 600, 400, 200, 0]
    assert samplers.times(LINEAR, 4, "linspace") == [999, 666, 333, 0]
    assert samplers.times(LINEAR, 4, "quadratic") == [999, 444, 111, 0]
    sigmas = [np.divide(*LINEAR.amplitudes(t)[::-1]) for t in samplers.times(LINEAR, 3, "karras")]
    smallest = 0.01 / math.sqrt(1 - 1e-4)  # beta_0 = 1e-4
    middle = ((80 ** (1 / 7) + smallest ** (1 / 7)) / 2) ** 7
    assert sigmas == pytest.approx([80, middle, smallest], rel=1e-9)
    snrs = [2 * np.log(np.divide(*LINEAR.amplitudes(t))) for t in samplers.times(LINEAR, 11, "log_snr")]
    assert np.ptp(np.diff(snrs)) < 1e-9 and snrs[0] == pytest.approx(LINEAR.log_snr[-1])


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("schedule", [LINEAR_200, COSINE])
def test_times_fall_at_every_number_of_steps(spacing, schedule):
    for steps in (*range(1, 60), len(schedule) // 2 + 1, len(schedule) - 1, len(schedule)):
        chosen = samplers.times(schedule, steps, spacing)
        assert len(chosen) == steps and chosen[0] <= len(schedule) - 1 and chosen[-1] >= 0
        assert all(np.diff(chosen) < 0)
        whole = spacing not in ("log_snr", "karras")
        assert all(isinstance(t, int if whole else float) for t in chosen)
        if steps == len(schedule) and whole:
            assert chosen == list(range(steps))[::-1]


def test_times_can_be_given():
    given = final(samplers.dpmpp_2m, [900, 500.5, 20])
    assert np.isfinite(given).all() and not np.array_equal(given, final(samplers.dpmpp_2m, [900, 500, 20]))


# ---- Mistakes ----


@pytest.mark.parametrize(
    "name, steps, options, message",
    [
        ("ddim", 1001, {}, "there are 1000 noise levels, so choose from 1 to 1000"), ("heun", 0, {}, "steps is 0"),
        ("ddim", 10, {"spacing": "even"}, "choose from trailing, leading, linspace, quadratic, log_snr, karras"),
        ("plms", 10, {"spacing": "karras"}, "choose from trailing, leading, linspace$"),
        ("ddim", 10, {"eta": -0.1}, "eta is -0.1"), ("ddim", 10, {"eta": 1.1}, "eta is 1.1"),
        ("ancestral", 10, {"variance": "small"}, "choose from fixed_small, fixed_large, learned"),
        ("unipc", 10, {"order": 5}, "order is 5"), ("heun", 10, {"churn": -1.0}, "churn is -1.0"),
        ("euler", 10, {"churn": 1.0, "churn_noise": -1.0}, "churn_noise -1.0"),
        ("heun", 10, {"churn": 1.0, "churn_from": 3.0, "churn_to": 2.0}, "churn_from is 3.0, churn_to 2.0"),
        ("heun", 10, {"churn_to": 2.0}, "churn is 0, and churn_from, churn_to and churn_noise are parts of it"),
        ("predictor_corrector", 10, {"corrections": -1}, "corrections -1"),
        ("predictor_corrector", 10, {"snr": 0.0}, "snr is 0.0"), ("ode", 10, {"tolerance": 0.0}, "tolerance is 0.0"),
        ("ddim", [10, 20], {}, "must fall"), ("ddim", [], {}, "must fall"), ("ddim", [1000, 1], {}, "from 999"),
    ],
)
def test_options_that_cannot_be_are_refused(name, steps, options, message):
    sampler = samplers.find(name, **options)
    with pytest.raises(UserError, match=message):
        next(sampler(Gaussian(LINEAR), LINEAR, image_noise(0, [0], (1, 2, 2)), steps))
    with pytest.raises(UserError, match=message):
        samplers.check(sampler, LINEAR, steps)


def test_find_names_what_there_is():
    with pytest.raises(UserError, match="no sampler dimm: choose from ancestral, ddim, dpmpp_2m, "):
        samplers.find("dimm")
    with pytest.raises(UserError, match="eta is no option of the sampler heun, which has: spacing, churn, "):
        samplers.find("heun", eta=0.5)
    assert samplers.find("ddim", eta=0.5).keywords == {"eta": 0.5}
