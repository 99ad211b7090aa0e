import numpy as np
import pytest

from ms_diffusion.config import DiffusionConfig
from ms_diffusion.errors import UserError
from ms_diffusion.schedules import (
    NoiseSchedule,
    cosine_beta_schedule,
    linear_beta_schedule,
    make_schedule,
    quadratic_beta_schedule,
    sigmoid_beta_schedule,
    zero_terminal_snr,
)

ALL = [("linear", 200), ("linear", 1000), ("quadratic", 200), ("sigmoid", 300), ("cosine", 50), ("cosine", 1000)]


def schedule(name, timesteps, **options):
    return make_schedule(DiffusionConfig(schedule=name, timesteps=timesteps, **options))


@pytest.mark.parametrize(
    "name, timesteps, scaled, last",
    [("linear", 200, False, 0.132183), ("linear", 1000, True, 4.03583e-05), ("cosine", 1000, True, 2.42877e-09)],
)
def test_published_last_alphas_cumprod(name, timesteps, scaled, last):
    assert schedule(name, timesteps, scale_betas=scaled).alphas_cumprod[-1] == pytest.approx(last, rel=1e-5)


def test_linear_ends_and_middle():
    betas = linear_beta_schedule(1001)
    assert betas[[0, 500, 1000]] == pytest.approx([1e-4, 0.01005, 0.02], abs=1e-15)


def test_quadratic_ends_and_middle():
    # sqrt(beta) runs from 0.01 to 0.1, so its middle is 0.055.
    assert quadratic_beta_schedule(3, 1e-4, 1e-2) == pytest.approx([1e-4, 0.055**2, 1e-2], abs=1e-15)


def test_sigmoid_ends_and_middle():
    betas = sigmoid_beta_schedule(3, 0.0, 1.0)
    assert betas == pytest.approx([1 / (1 + np.e**6), 0.5, 1 / (1 + np.e**-6)], abs=1e-15)


def test_cosine_alphas_cumprod_is_the_squared_cosine():
    timesteps, s = 100, 0.008
    t = np.arange(1, timesteps) / timesteps  # the last beta is clipped
    expected = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2 / np.cos(s / (1 + s) * np.pi / 2) ** 2
    tables = NoiseSchedule(cosine_beta_schedule(timesteps))
    assert np.abs(tables.alphas_cumprod[:-1] - expected).max() < 1e-12
    assert tables.betas[-1] == 0.999


@pytest.mark.parametrize("timesteps", [100, 200, 500])
def test_scale_betas_makes_noise_of_x_T_at_every_T(timesteps):
    scaled = schedule("linear", timesteps)
    assert scaled.betas[-1] == pytest.approx(0.02 * 1000 / timesteps)
    assert scaled.alphas_cumprod[-1] < 1e-4
    assert schedule("linear", timesteps, scale_betas=False).betas[-1] == pytest.approx(0.02)


@pytest.mark.parametrize("name, timesteps", ALL)
def test_identities(name, timesteps):
    s = schedule(name, timesteps)
    ab, ab_prev = s.alphas_cumprod, s.alphas_cumprod_prev
    assert all(table.dtype == np.float64 for table in vars(s).values())
    assert len(s) == timesteps and ab_prev[0] == 1
    # The posterior composed with q(x_t | x_0) is q(x_{t-1} | x_0): its mean and its variance.
    c1, c2 = s.posterior_mean_coef1, s.posterior_mean_coef2
    assert np.abs(c1 + c2 * np.sqrt(ab) - np.sqrt(ab_prev)).max() < 1e-12
    assert np.abs(c2**2 * (1 - ab) + s.posterior_variance - (1 - ab_prev)).max() < 1e-12
    assert np.abs(s.sqrt_recip_alphas_cumprod * s.sqrt_alphas_cumprod - 1).max() < 1e-12
    relative = s.sqrt_recipm1_alphas_cumprod / (s.sqrt_one_minus_alphas_cumprod / s.sqrt_alphas_cumprod)
    assert np.abs(relative - 1).max() < 1e-8
    assert np.all(np.diff(s.snr) < 0)


@pytest.mark.parametrize("name, timesteps", ALL)
def test_one_step_kernels_compose_to_the_closed_form(name, timesteps):
    s = schedule(name, timesteps)
    mean, variance = 1.0, 0.0  # of x_t given x_0 = 1
    for t in range(timesteps):
        mean, variance = mean * np.sqrt(1 - s.betas[t]), variance * (1 - s.betas[t]) + s.betas[t]
        assert abs(mean - s.sqrt_alphas_cumprod[t]) < 1e-12
        assert abs(variance - s.sqrt_one_minus_alphas_cumprod[t] ** 2) < 1e-12


def test_posterior_variance_published():
    variance = schedule("linear", 1000).posterior_variance
    assert variance[[0, 487, 999]] == pytest.approx([0, 0.00979, 0.02], abs=1e-5)


@pytest.mark.parametrize("name, timesteps", ALL)
def test_zero_terminal_snr(name, timesteps):
    before, after = schedule(name, timesteps), schedule(name, timesteps, zero_terminal_snr=True, objective="v")
    assert after.sqrt_alphas_cumprod[-1] == 0 and after.betas[-1] == 1 and after.snr[-1] == 0
    assert after.sqrt_alphas_cumprod[0] == before.sqrt_alphas_cumprod[0]
    # Between them sqrt(alpha-bar) is the old one, moved and stretched: its steps stand in the same proportions.
    steps, wanted = np.diff(after.sqrt_alphas_cumprod), np.diff(before.sqrt_alphas_cumprod)
    assert np.abs(steps / steps.sum() - wanted / wanted.sum()).max() < 1e-12
    for table in vars(after).values():
        assert np.isfinite(table[:-1]).all()
    # x_T tells nothing of x_0: the last posterior is q(x_{T-1} | x_0).
    assert after.posterior_mean_coef2[-1] == 0
    assert after.posterior_mean_coef1[-1] == pytest.approx(after.sqrt_alphas_cumprod[-2], rel=1e-15)
    assert after.posterior_variance[-1] == pytest.approx(1 - after.alphas_cumprod[-2], rel=1e-15)


def test_zero_terminal_snr_by_hand():
    # sqrt(alpha-bar) is 1/2, 1/4, 1/8; less 1/8: 3/8, 1/8, 0; times 4/3: 1/2, 1/6, 0.
    assert zero_terminal_snr(np.array([0.75, 0.75, 0.75])) == pytest.approx([3 / 4, 8 / 9, 1], abs=1e-15)


@pytest.mark.parametrize("betas", [[0.0, 0.1], [1.0, 0.1], [0.1, 1.1], [[0.1]], [0.1, np.nan]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(UserError, match="between 0 and 1"):
        NoiseSchedule(np.array(betas))


@pytest.mark.parametrize("name, timesteps", ALL)
def test_continuous_time_meets_the_tables_and_its_inverse(name, timesteps):
    s = schedule(name, timesteps)
    assert s.log_snr == pytest.approx(np.log(s.snr), rel=1e-9, abs=1e-9)
    assert s.amplitudes(-1) == (1, 0)
    for t in (0, 1, timesteps // 2, timesteps - 1):
        assert s.amplitudes(t) == (s.sqrt_alphas_cumprod[t], s.sqrt_one_minus_alphas_cumprod[t])
        assert s.time_at(s.log_snr[t]) == pytest.approx(t, abs=1e-9)
    for t in (0.25, timesteps / 2 + 0.1, timesteps - 1.5):
        signal, noise = s.amplitudes(t)
        low, high = int(t), int(t) + 1
        assert signal**2 + noise**2 == pytest.approx(1, abs=1e-12)
        line = s.log_snr[low] + (t - low) * (s.log_snr[high] - s.log_snr[low])
        assert 2 * np.log(signal / noise) == pytest.approx(line, abs=1e-9)
        assert s.time_at(2 * np.log(signal / noise)) == pytest.approx(t, abs=1e-9)
    assert (s.time_at(1e3), s.time_at(-1e3)) == (0, timesteps - 1)


@pytest.mark.parametrize("name, timesteps", [("linear", 200), ("cosine", 1000), ("linear", 50)])
def test_continuous_time_up_to_an_x_T_without_signal(name, timesteps):
    """The angle is linear in t in the last interval, log-SNR before it; time_at is the inverse to its ends."""
    s = schedule(name, timesteps, zero_terminal_snr=True, objective="v")
    last = timesteps - 1
    assert s.amplitudes(last) == (0, 1) and s.time_at(-np.inf) == s.time_at(-1e5) == last
    first = np.arccos(s.sqrt_alphas_cumprod[-2])
    for part in (1e-6, 0.25, 0.5, 0.999999):
        signal, noise = s.amplitudes(last - 1 + part)
        angle = first + part * (np.pi / 2 - first)
        assert (signal, noise) == pytest.approx((np.cos(angle), np.sin(angle)), abs=1e-12)
        assert s.time_at(2 * np.log(signal / noise)) == pytest.approx(last - 1 + part, abs=1e-9)
    for t in (0.25, timesteps / 2 + 0.1, last - 1.5):
        signal, noise = s.amplitudes(t)
        line = (1 - t % 1) * s.log_snr[int(t)] + t % 1 * s.log_snr[int(t) + 1]
        assert 2 * np.log(signal / noise) == pytest.approx(line, abs=1e-9)
        assert s.time_at(line) == pytest.approx(t, abs=1e-9)
    assert s.time_at(s.log_snr[-2]) == pytest.approx(last - 1, abs=1e-9)
    signals = [s.amplitudes(t)[0] for t in np.linspace(last - 2, last, 41)]
    assert np.all(np.diff(signals) < 0) and max(-np.diff(signals)) < 0.2 * signals[0]
