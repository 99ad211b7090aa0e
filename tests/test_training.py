import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from ms_diffusion import checkpoint, training
from ms_diffusion.config import Config, DiffusionConfig, ModelConfig, RuntimeConfig, TrainConfig
from ms_diffusion.data import ImageDataset, to_float
from ms_diffusion.errors import UserError
from ms_diffusion.train_step import learning_rates
from ms_diffusion.training import build, train

SMALL = Config(
    model=ModelConfig(dim=8, dim_mults=(1,), convnext_mult=1),
    diffusion=DiffusionConfig(timesteps=30),
    train=TrainConfig(steps=6, batch_size=4, lr=1e-3, log_every=2, checkpoint_every=2, sample_every=0, sample_num=4),
)


def dataset():
    return ImageDataset(np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8), "noise")


def labelled():
    return ImageDataset(dataset().images, "noise", np.arange(10, dtype=np.int32) % 3)


CONDITIONAL = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, num_classes=3))


def with_train(config, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def run(config, folder, **options):
    checkpoint.create_run(folder, config, {})
    train(config, labelled() if config.model.num_classes else dataset(), folder, **options)
    return checkpoint.read_checkpoint(checkpoint.latest_checkpoint(folder))


@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("kind", [SMALL, CONDITIONAL], ids=["unconditional", "conditional"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind, mode, tmp_path):
    config = dataclasses.replace(kind, runtime=RuntimeConfig(mode=mode))
    step, whole = run(config, tmp_path / "whole")
    assert step == 6
    # Stopped after its checkpoint at step 4, with lines of metrics beyond it.
    run(config, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "step_00000006.safetensors").unlink()
    train(config, labelled() if config.model.num_classes else dataset(), tmp_path / "parts", resume=True)
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


def test_samples_that_are_not_finite_cost_a_picture_and_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "sample", lambda *_, **__: (np.full((4, 1, 8, 8), np.nan, np.float32), []))
    assert run(with_train(SMALL, sample_every=3), tmp_path / "run")[0] == 6
    assert not list((tmp_path / "run" / "samples").iterdir())
    assert "step 3: the samples are not finite" in capsys.readouterr().err


def test_pictures_come_from_the_moving_average(tmp_path):
    """With a decay that never forgets, the average is what it was when it began: after the first step."""
    config = with_train(SMALL, sample_every=3, ema_decay=1 - 1e-7, ema_ramp=1.0, ema_start=1, lr=0.1)
    run(config, tmp_path / "run")
    first, last = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "run" / "samples").iterdir()))
    assert np.array_equal(first, last)
    tensors = checkpoint.read_checkpoint(checkpoint.latest_checkpoint(tmp_path / "run"))[1]
    moved = np.abs(tensors["model.init_conv.weight"] - tensors["ema.init_conv.weight"]).max()
    assert moved > 0.1, "the weights themselves must have moved"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_learns(precision, tmp_path):
    """One gray image, again and again: far below the loss of a network that predicts nothing, which is 1."""
    options = {"batch_size": 16, "lr": 1e-2, "log_every": 20, "checkpoint_every": 100, "precision": precision}
    config = with_train(SMALL, steps=100, **options)
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


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_stays_nan_ends_the_run_and_leaves_the_last_good_checkpoint(log_every, tmp_path):
    """A learning rate beyond all reason: the first step makes weights of 1e30, and every loss after it is NaN."""
    options = {"lr": 1e30, "max_grad_norm": 0.0, "max_skipped_steps": 5, "checkpoint_every": 1, "log_every": log_every}
    config = with_train(SMALL, steps=100, **options)
    checkpoint.create_run(tmp_path / "run", config, {})
    with pytest.raises(UserError, match="step 7: the loss is nan, and so for 6 steps in a row, more than"):
        train(config, dataset(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001.safetensors"]
    assert "the loss is nan" in (tmp_path / "run" / "logs" / "rank_0.log").read_text().splitlines()[-1]


def test_steps_that_overflow_are_counted(tmp_path):
    """Half precision ends at 65504: gradients that are scaled by 2^24 overflow until the scale is small enough."""
    config = with_train(SMALL, steps=40, precision="fp16", loss_scale=2.0**24, log_every=10)
    run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = sum(line["skipped"] for line in lines)
    assert skipped == lines[-1]["skipped_total"] > 0
    assert lines[-1]["loss_scale"] == 2.0 ** (24 - skipped) and lines[-1]["skipped"] == 0
    assert lines[-1]["lr"] == pytest.approx(learning_rates(config.train)[39 - skipped])


def test_nothing_left_to_do_and_nothing_to_resume(tmp_path):
    checkpoint.create_run(tmp_path / "run", SMALL, {})
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        train(SMALL, dataset(), tmp_path / "run", resume=True)
    run(SMALL, tmp_path / "done")
    with pytest.raises(UserError, match="has made its 6 steps: give more --train.steps"):
        train(SMALL, dataset(), tmp_path / "done", resume=True)


@pytest.mark.parametrize("kind", [SMALL, CONDITIONAL], ids=["unconditional", "conditional"])
def test_micro_batches_train_the_network_of_the_whole_batch(kind, tmp_path):
    """Adam divides by the root of a square that may be tiny, so the first learning rates are small, as in a warm-up."""
    config = with_train(kind, lr=1e-4, lr_warmup_steps=6, label_drop=0.5)
    whole = run(config, tmp_path / "whole")[1]
    parts = run(with_train(config, batch_size=1, accumulate=4), tmp_path / "parts")[1]
    assert whole.keys() == parts.keys()
    worst = {name: np.abs(whole[name] - parts[name]).max() for name in whole}
    assert max(worst.values()) < 1e-6, max(worst, key=worst.get)
    begun = build(config)[0].parameters()
    moved = [np.abs(whole[name] - begun[name].asnumpy()).max() for name in whole if name.startswith("model.")]
    assert min(moved) > 1e-5, "the weights must have moved by more than that"


def test_a_picture_of_a_conditional_run_has_a_row_for_each_label(tmp_path):
    config = with_train(CONDITIONAL, sample_every=6, sample_num=6, ema_decay=0.0)
    run(config, tmp_path / "run")
    with Image.open(tmp_path / "run" / "samples" / "step_00000006.png") as picture:
        assert picture.size == (2 + 2 * 58, 2 + 3 * 58)


@pytest.mark.parametrize("data, message", [
    (dataset(), "model.num_classes is 3, and noise has no labels"),
    (ImageDataset(dataset().images, "noise", np.arange(10, dtype=np.int32)), "is 3, and noise has 10 classes: take 10"),
    (ImageDataset(dataset().images, "noise", np.arange(3, dtype=np.int32)), "3 labels of 10 images"),
])
def test_labels_that_are_not_the_networks_are_refused(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(CONDITIONAL, data, tmp_path / "run")


def test_a_network_learns_its_labels(tmp_path):
    """Three gray levels: told the right one, the network finds the noise better than told another."""
    levels = np.array([40, 128, 215], np.uint8)
    images = np.tile(levels.reshape(3, 1, 1, 1), (1, 1, 8, 8))
    config = with_train(
        CONDITIONAL, steps=250, batch_size=16, lr=1e-2, checkpoint_every=250, log_every=50, label_drop=0.2
    )
    config = dataclasses.replace(config, diffusion=DiffusionConfig(timesteps=30, schedule="cosine"))
    checkpoint.create_run(tmp_path / "run", config, {})
    train(config, ImageDataset(images, "levels", np.arange(3, dtype=np.int32)), tmp_path / "run")
    opened = checkpoint.load_run(tmp_path / "run")
    noise, labels = np.random.default_rng(0).standard_normal((48, 1, 8, 8)), np.arange(48) % 3
    x_start, t = to_float(images[labels]), Tensor([25] * 48, ms.int32)
    x_t = opened.diffusion.q_sample(Tensor(x_start), t, Tensor(noise, ms.float32))
    right, *wrong = (
        np.square(opened.model(x_t, t, Tensor((labels + k) % 3, ms.int32)).asnumpy() - noise).mean() for k in range(3)
    )
    assert right < 0.95 * min(wrong)  # a network that heeds no label makes them equal
