import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore.amp import DynamicLossScaler

from ms_diffusion import checkpoint
from ms_diffusion.config import Config, DiffusionConfig, ModelConfig, RuntimeConfig, TrainConfig
from ms_diffusion.data import ImageDataset
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.training import draw_batch, learning_rates, make_optimizer, make_train_step, train

LR, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8


class Affine(nn.Cell):
    """A network whose gradients are known: a x_t + b."""

    def __init__(self):
        super().__init__()
        self.a = Parameter(Tensor(0.5, ms.float32), name="a")
        self.b = Parameter(Tensor(-0.2, ms.float32), name="b")

    def construct(self, x, t):
        return self.a * x + self.b


def affine_step(jit, max_grad_norm=0.0, scale=1024.0, window=1000):
    model, diffusion = Affine(), GaussianDiffusion(timesteps=100)
    optimizer = make_optimizer(model, TrainConfig(steps=100, lr=LR, lr_min=LR, adam_eps=EPS))
    loss_scaler = DynamicLossScaler(scale, 2, window)
    step = make_train_step(model, diffusion, optimizer, loss_scaler, max_grad_norm, jit)
    return model, diffusion, optimizer, loss_scaler, step


def batch(seed=0):
    generator = np.random.default_rng(seed)
    x_start, noise = generator.standard_normal((2, 4, 1, 3, 3)).astype(np.float32)
    return x_start, generator.integers(0, 100, 4).astype(np.int32), noise


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1, 100.0])
def test_three_steps_by_hand(max_grad_norm, jit):
    """Loss, gradients, clipping and Adam, written out in NumPy float64."""
    model, diffusion, _, _, step = affine_step(jit, max_grad_norm)
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


def test_an_overflow_changes_nothing_but_the_scale(jit):
    model, _, optimizer, loss_scaler, step = affine_step(jit)
    x_start, t, noise = batch()
    step(Tensor(x_start), Tensor(t), Tensor(noise))

    def state():
        counters = (optimizer.global_step, optimizer.beta1_power)
        return [p.asnumpy().copy() for p in (model.a, model.b, *optimizer.moment1, *optimizer.moment2, *counters)]

    before = state()
    noise[0, 0, 0, 0] = 1e30  # its square overflows
    _, _, finite = step(Tensor(x_start), Tensor(t), Tensor(noise))
    assert not bool(finite.asnumpy())
    assert all(np.array_equal(a, b) for a, b in zip(before, state()))
    assert float(loss_scaler.scale_value.asnumpy()) == 512 and int(loss_scaler.counter.asnumpy()) == 0
    step(*map(Tensor, batch()))
    assert not np.array_equal(before[0], state()[0]), "the step after it must train again"


def test_the_scale_grows_after_a_window_and_the_loss_stays_unscaled(jit):
    _, _, _, loss_scaler, step = affine_step(jit, window=3)
    losses, scales = [], []
    for _ in range(4):
        loss, _, _ = step(*map(Tensor, batch()))
        losses.append(float(loss.asnumpy()))
        scales.append(float(loss_scaler.scale_value.asnumpy()))
    assert scales == [1024, 1024, 2048, 2048]
    assert max(losses) / min(losses) < 1.2


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


SMALL = Config(
    model=ModelConfig(dim=8, dim_mults=(1,), convnext_mult=1),
    diffusion=DiffusionConfig(timesteps=30),
    train=TrainConfig(steps=6, batch_size=4, lr=1e-3, log_every=2, checkpoint_every=2, sample_every=0, sample_num=4),
)


def dataset():
    return ImageDataset(np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8), "noise")


def with_train(config, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def run(config, folder, **options):
    checkpoint.create_run(folder, config, {})
    train(config, dataset(), folder, **options)
    return checkpoint.read_checkpoint(checkpoint.latest_checkpoint(folder))


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(mode, tmp_path):
    config = dataclasses.replace(SMALL, runtime=RuntimeConfig(mode=mode))
    step, whole = run(config, tmp_path / "whole")
    assert step == 6
    # Stopped after its checkpoint at step 4, with lines of metrics beyond it.
    run(config, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "step_00000006.safetensors").unlink()
    train(config, dataset(), tmp_path / "parts", resume=True)
    step, parts = checkpoint.read_checkpoint(checkpoint.latest_checkpoint(tmp_path / "parts"))
    assert step == 6 and whole.keys() == parts.keys() and len(whole) > 100
    assert [name for name in whole if not np.array_equal(whole[name], parts[name])] == []
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    losses = [[(line["step"], line["loss"], line["lr"]) for line in map(json.loads, lines)] for lines in metrics]
    assert losses[0] == losses[1] and [line[0] for line in losses[0]] == [2, 4, 6]


def test_a_run_leaves_its_pictures_and_figures(tmp_path):
    run(with_train(SMALL, sample_every=3), tmp_path / "run")
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["step_00000003.png", "step_00000006.png"]
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["skipped"] == 0 and line["seconds_per_step"] > 0 and line["loss"] > 0 for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx(learning_rates(SMALL.train)[[1, 3, 5]])
    assert checkpoint.load_run(tmp_path / "run").step == 6


def test_training_learns(tmp_path):
    """One gray image, again and again: far below the loss of a network that predicts nothing, which is 1."""
    config = with_train(SMALL, steps=100, batch_size=16, lr=1e-2, log_every=20, checkpoint_every=100)
    checkpoint.create_run(tmp_path / "run", config, {})
    train(config, ImageDataset(np.full((3, 1, 8, 8), 128, np.uint8), "gray"), tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] < 0.3


def test_both_modes_train_alike(tmp_path):
    states = []
    for mode in ("graph", "pynative"):
        config = dataclasses.replace(SMALL, runtime=RuntimeConfig(mode=mode))
        states.append(run(config, tmp_path / mode)[1])
    graph, pynative = states
    # Adam divides by the root of a square that may be tiny, so single weights may differ by a part of a step.
    differences = [np.abs(graph[name] - pynative[name]).max() for name in graph if name.startswith("model.")]
    assert max(differences) < 1e-3 and np.median(differences) < 1e-5


def test_gradients_that_stay_infinite_end_the_run(tmp_path):
    # Learning rates beyond all reason: the weights overflow after the first steps.
    config = with_train(SMALL, steps=100, lr=1e30, loss_scale=2.0, max_grad_norm=0.0)
    checkpoint.create_run(tmp_path / "run", config, {})
    with pytest.raises(UserError, match="the gradients are not finite even at loss scale 1"):
        train(config, dataset(), tmp_path / "run")


def test_nothing_left_to_do_and_nothing_to_resume(tmp_path):
    checkpoint.create_run(tmp_path / "run", SMALL, {})
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        train(SMALL, dataset(), tmp_path / "run", resume=True)
    run(SMALL, tmp_path / "done")
    with pytest.raises(UserError, match="has made its 6 steps: give more --train.steps"):
        train(SMALL, dataset(), tmp_path / "done", resume=True)


def test_a_batch_is_a_function_of_seed_and_step():
    config = dataclasses.replace(SMALL, data=dataclasses.replace(SMALL.data, horizontal_flip=True))
    first, again, later = (draw_batch(dataset(), config, step) for step in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not any(np.array_equal(a, b) for a, b in zip(first, later))
    x_start, t, noise = first
    assert (x_start.dtype, t.dtype, noise.dtype) == (np.float32, np.int32, np.float32)
    assert x_start.shape == noise.shape == (4, 1, 8, 8) and t.shape == (4,)


def test_time_steps_are_uniform_and_flips_are_fair():
    images = np.zeros((4, 1, 1, 2), np.uint8)
    images[..., 1] = 255  # which side is white tells a flip
    config = with_train(SMALL, batch_size=512)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, horizontal_flip=True))
    batches = [draw_batch(ImageDataset(images, "sides"), config, step) for step in range(40)]
    t = np.concatenate([batch[1] for batch in batches])
    expected = len(t) / 30
    chi_squared = ((np.bincount(t, minlength=30) - expected) ** 2 / expected).sum()
    assert chi_squared < 58.3  # the 99.9 % point for 29 degrees of freedom
    flipped = np.concatenate([batch[0][:, 0, 0, 0] > 0 for batch in batches])
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(flipped))
