import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_diffusion.checkpoint import new_run
from ms_diffusion.classifier import Classifier, CrossEntropy, accuracy, load_classifier
from ms_diffusion.classifier_training import train_classifier
from ms_diffusion.config import Config, DiffusionConfig, ModelConfig, TrainConfig
from ms_diffusion.data import ImageDataset, to_float
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.unet import Unet, count_parameters, init_weights

SMALL = {"dim": 8, "dim_mults": (1, 2), "num_classes": 3}


def network(**options):
    model = Classifier(ModelConfig(**{**SMALL, **options}))
    init_weights(model, np.random.default_rng(0))
    return model


@pytest.mark.parametrize("options", [{}, {"block": "resnet"}, {"channels": 3, "norm": "layer_bias", "gelu": "tanh"}])
def test_both_modes_agree_and_images_do_not_mix(options):
    model = network(**options)
    x = np.random.default_rng(1).standard_normal((2, options.get("channels", 1), 8, 8))
    x, t = Tensor(x, ms.float32), Tensor([3, 150], ms.int32)
    eager, compiled = model(x, t).asnumpy(), ms.jit(model)(x, t).asnumpy()
    assert eager.shape == (2, 3) and np.abs(eager - compiled).max() < 1e-5
    assert np.abs(model(x[:1], t[:1]).asnumpy() - eager[:1]).max() < 1e-5
    assert count_parameters(model) < count_parameters(Unet(**{**SMALL, **options})) / 2


def test_a_classifier_needs_classes():
    with pytest.raises(UserError, match="model.num_classes is 0"):
        network(num_classes=0)


def test_cross_entropy_of_known_logits(jit):
    """-log softmax at the label, by hand: logits (0, log 2, log 5) are the probabilities 1/8, 2/8, 5/8."""
    logits = Tensor(np.log([[1.0, 2.0, 5.0]] * 2), ms.float32)

    def model(x, t):
        return logits + 0 * x.mean()

    loss = CrossEntropy(GaussianDiffusion(timesteps=20, schedule="cosine"))

    def run(x, t, noise, y):
        return loss.p_losses(model, x, t, noise, y)

    x, t = Tensor(np.ones((2, 1, 2, 2)), ms.float32), Tensor([3, 9], ms.int32)
    value = (ms.jit(run) if jit else run)(x, t, x, Tensor([0, 2], ms.int32))
    assert float(value.asnumpy()) == pytest.approx(-(np.log(1 / 8) + np.log(5 / 8)) / 2, rel=1e-6)


def test_it_learns_and_is_read_back(tmp_path):
    """Three gray levels: seen at little noise, guessed at the most of it."""
    images = np.tile(np.array([40, 128, 215], np.uint8).reshape(3, 1, 1, 1), (20, 1, 8, 8))
    dataset = ImageDataset(images, "levels", np.arange(60, dtype=np.int32) % 3)
    config = Config(
        model=ModelConfig(**{**SMALL, "dim_mults": (1,), "convnext_mult": 1}),
        diffusion=DiffusionConfig(timesteps=30, schedule="cosine"),
        train=TrainConfig(steps=150, batch_size=16, lr=1e-2, log_every=50),
    )
    with new_run(tmp_path / "classifier", config, {}) as folder:
        model = train_classifier(config, dataset, folder)
    diffusion = GaussianDiffusion(timesteps=30, schedule="cosine")
    shares = [accuracy(model, diffusion, to_float(images), dataset.labels, t) for t in (2, 29)]
    assert shares[0] > 0.95 and shares[1] < 0.7
    again = load_classifier(tmp_path / "classifier")
    assert again[0] == config
    x, t = Tensor(to_float(images[:3])), Tensor([2] * 3, ms.int32)
    assert np.array_equal(again[1](x, t).asnumpy(), model(x, t).asnumpy())
