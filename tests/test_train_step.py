import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from ms_diffusion.config import Config, DiffusionConfig, ModelConfig, TrainConfig
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.randomness import weights_generator
from ms_diffusion.train_step import TrainState, ema_decay, learning_rates, make_optimizer, make_train_step
from ms_diffusion.unet import build_unet, init_weights

LR, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8


class Affine(nn.Cell):
    """A network whose gradients are known: a x_t + b."""

    def __init__(self):
        super().__init__()
        self.a = Parameter(Tensor(0.5, ms.float32), name="a")
        self.b = Parameter(Tensor(-0.2, ms.float32), name="b")

    def construct(self, x, t):
        return self.a * x + self.b


def affine_step(jit, average=None, **options):
    common = {"steps": 100, "lr": LR, "lr_min": LR, "adam_eps": EPS, "max_grad_norm": 0.0, "loss_scale": 1024.0}
    state = TrainState(Affine(), TrainConfig(**{**common, **options}), Affine())
    diffusion = GaussianDiffusion(timesteps=100)
    return state, diffusion, make_train_step(state, diffusion, jit, average)


def batch(seed=0, size=4):
    generator = np.random.default_rng(seed)
    x_start, noise = generator.standard_normal((2, size, 1, 3, 3)).astype(np.float32)
    return x_start, generator.integers(0, 100, size).astype(np.int32), noise


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1, 100.0])
def test_three_steps_by_hand(max_grad_norm, jit):
    """Loss, gradients, clipping and Adam, written out in NumPy float64."""
    state, diffusion, step = affine_step(jit, max_grad_norm=max_grad_norm)
    model = state.model
    theta, m, v = np.array([0.5, -0.2]), np.zeros(2), np.zeros(2)
    for count in range(1, 4):
        x_start, t, noise = batch(count)
        ab = diffusion.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        x_t = np.sqrt(ab) * x_start + np.sqrt(1 - ab) * noise
        difference = theta[0] * x_t + theta[1] - noise
        gradient = np.array([2 * (difference * x_t).mean(), 2 * difference.mean()])
        norm_by_hand = np.sqrt((gradient**2).sum())
        loss, norm, finite = step(Tensor(x_start), Tensor(t), Tensor(noise))
        assert bool(finite.asnumpy())
        assert float(loss.asnumpy()) == pytest.approx((difference**2).mean(), rel=1e-5)
        assert float(norm.asnumpy()) == pytest.approx(norm_by_hand, rel=1e-5)
        if max_grad_norm:
            gradient = gradient * min(1, max_grad_norm / norm_by_hand)
        m, v = BETA1 * m + (1 - BETA1) * gradient, BETA2 * v + (1 - BETA2) * gradient**2
        theta = theta - LR * (m / (1 - BETA1**count)) / (np.sqrt(v / (1 - BETA2**count)) + EPS)
        assert [float(model.a.asnumpy()), float(model.b.asnumpy())] == pytest.approx(theta, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "v", "zero_terminal_snr": True, "loss_weight": "min_snr"}, {"variance": "learned"},
        {"objective": "x_start", "loss_weight": "vlb"}, {"variance": "learned", "loss_weight": "vlb"},
    ], ids=str,
)
def test_the_network_learns_whatever_it_is_asked(options):
    """Thirty steps on one batch, in both modes alike: from the same weights to a smaller loss."""
    config = Config(model=ModelConfig(dim=8, dim_mults=(1,)), diffusion=DiffusionConfig(timesteps=100, **options))
    curves = []
    for jit in (True, False):
        model = build_unet(config.model)
        init_weights(model, weights_generator(0))
        state = TrainState(model, TrainConfig(steps=30, lr=0.003, lr_min=0.003))
        step = make_train_step(state, build_diffusion(config.diffusion), jit)
        x_start, t, noise = batch(size=8)
        inputs = np.clip(x_start, -1, 1), t, noise
        curves.append([float(step(*map(Tensor, inputs))[0].asnumpy()) for _ in range(30 if jit else 3)])
    assert np.isfinite(curves[0]).all() and curves[0][-1] < 0.8 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0][:3], rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_overflow_changes_nothing_but_the_scale(accumulate, jit):
    state, _, step = affine_step(jit, accumulate=accumulate)
    x_start, t, noise = batch()
    step(Tensor(x_start), Tensor(t), Tensor(noise))

    def values():
        return {name: parameter.asnumpy().copy() for name, parameter in state.parameters().items()}

    before = values()
    noise[0, 0, 0, 0] = 1e30  # its square overflows
    _, _, finite = step(Tensor(x_start), Tensor(t), Tensor(noise))
    assert not bool(finite.asnumpy())
    after = values()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"loss_scaler.scale_value", "loss_scaler.counter"}
    assert after["loss_scaler.scale_value"] == 512 and after["loss_scaler.counter"] == 0
    step(*map(Tensor, batch()))
    again = values()
    moved = {name for name in before if not np.array_equal(before[name], again[name])}
    assert {"model.a", "model.b", "ema.a", "ema.b", "optimizer.global_step"} <= moved, "the next step must train again"


def test_the_scale_grows_after_a_window_and_the_loss_stays_unscaled(jit):
    state, _, step = affine_step(jit, loss_scale_window=2, loss_scale_factor=4, loss_scale_max=8192.0)
    losses, scales = [], []
    for _ in range(7):
        loss, _, _ = step(*map(Tensor, batch()))
        losses.append(float(loss.asnumpy()))
        scales.append(float(state.loss_scaler.scale_value.asnumpy()))
    assert scales == [1024, 4096, 4096, 8192, 8192, 8192, 8192], "up to loss_scale_max"
    assert max(losses) / min(losses) < 1.5


def test_learning_rates():
    rates = learning_rates(TrainConfig(steps=13, lr=1.0, lr_min=0.1, lr_warmup_steps=4, lr_decay_steps=12))
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.55)  # half of the cosine
    assert rates[12] == pytest.approx(0.1)
    assert np.all(np.diff(rates[4:]) <= 0)
    assert learning_rates(TrainConfig(steps=1, lr=1.0)).tolist() == [1.0]


def test_the_optimizer_follows_the_learning_rates():
    """Adam's first steps on a constant gradient move by the learning rate itself."""
    parameter = Parameter(Tensor(np.zeros(1), ms.float32), name="p")
    cell = nn.Cell()
    cell.p = parameter
    config = TrainConfig(steps=5, lr=0.1, lr_min=0.01, lr_warmup_steps=2)
    optimizer, before = make_optimizer(cell, config), 0.0
    for rate in learning_rates(config):
        optimizer((Tensor(np.ones(1), ms.float32),))
        after = float(parameter.asnumpy()[0])
        assert before - after == pytest.approx(rate, rel=1e-4)
        before = after


def test_adam_adds_eps_before_the_bias_correction():
    """MindSpore's Adam is not PyTorch's where gradients are as small as eps: the README's table says so."""
    cell = nn.Cell()
    cell.p = Parameter(Tensor(np.zeros(1), ms.float32), name="p")
    make_optimizer(cell, TrainConfig(steps=2, lr=1.0, adam_eps=1e-8))((Tensor([1e-8], ms.float32),))
    root = np.sqrt(1 - BETA2)
    assert -float(cell.p.asnumpy()[0]) == pytest.approx(root / (root + 1), rel=1e-4)  # PyTorch's is 1 / (1 + 1)


def mean_of_equal_ranks(tensors):
    """What ranks with equal batches would return, written so that forgetting the gradients or the loss is seen."""
    return tuple(tensor * 0.5 for tensor in tensors)


def test_gradients_and_loss_are_averaged_over_the_ranks(jit):
    _, _, alone = affine_step(jit)
    _, _, averaged = affine_step(jit, average=mean_of_equal_ranks)
    ours, theirs = ([float(value.asnumpy()) for value in step(*map(Tensor, batch()))] for step in (alone, averaged))
    assert theirs == pytest.approx([0.5 * ours[0], 0.5 * ours[1], 1.0], rel=1e-6)


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_are_the_whole_batch(micro_batches, jit):
    """Ten steps of K micro-batches against ten steps of one batch of K times the size."""
    ends = []
    for accumulate in (1, micro_batches):
        state, _, step = affine_step(jit, accumulate=accumulate, max_grad_norm=0.5)
        for seed in range(10):
            loss, norm, finite = step(*map(Tensor, batch(seed, size=4 * micro_batches)))
            assert bool(finite.asnumpy())
        ends.append([float(loss.asnumpy()), float(norm.asnumpy())]
                    + [float(parameter.asnumpy().sum()) for parameter in state.parameters().values()])
    assert ends[1] == pytest.approx(ends[0], abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("start, every", [(0, 1), (2, 1), (0, 3), (2, 2)])
def test_the_moving_average_by_hand(start, every, jit):
    state, _, step = affine_step(jit, ema_decay=0.4, ema_ramp=5.0, ema_start=start, ema_every=every)
    names = [average.name for average in state.averages]
    assert names == ["ema.a", "ema.b"]
    average = np.array([0.5, -0.2])
    for count in range(1, 9):
        step(*map(Tensor, batch(count)))
        weights = np.array([float(state.model.a.asnumpy()), float(state.model.b.asnumpy())])
        n = (count - start) // every
        if count <= start:
            average = weights
        elif (count - start) % every == 0:
            decay = min(0.4, (1 + n) / (5 + n))  # the ramp ends at n = 2, where both are above 0.4
            average = decay * average + (1 - decay) * weights
        assert [float(value.asnumpy()) for value in state.averages] == pytest.approx(average, abs=1e-6)


def test_without_a_second_network_there_is_no_average():
    state = TrainState(Affine(), TrainConfig())
    assert state.averages == () and not [name for name in state.parameters() if name.startswith("ema.")]


def test_the_average_begins_as_the_weights():
    model, average = Affine(), Affine()
    model.a.set_data(Tensor(7.0, ms.float32))
    state = TrainState(model, TrainConfig(), average)
    assert float(average.a.asnumpy()) == 7.0 and state.parameters()["ema.a"] is average.a
    assert average.a.name != model.a.name and not average.a.requires_grad


def test_the_decay_after_many_steps():
    def decay(step, **options):
        return float(ema_decay(TrainConfig(**options), Tensor([step], ms.int32)).asnumpy()[0])

    assert decay(1) == pytest.approx(2 / 11) and decay(10**6) == pytest.approx(0.999)
    assert decay(10**6, ema_ramp=1.0) == decay(1, ema_ramp=1.0) == pytest.approx(0.999)
    assert decay(16_000_001, ema_start=16_000_000, ema_decay=0.9999) == pytest.approx(2 / 11)
