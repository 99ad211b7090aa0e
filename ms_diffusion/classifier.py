"""A classifier of noisy images, p(y | x_t): what classifier guidance climbs; Dhariwal and Nichol 2021, section 4."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Optional, Tuple, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_diffusion import checkpoint, guidance
from ms_diffusion.config import Config, ModelConfig
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.layers import (
    GELU,
    Attention,
    Conv2d,
    ConvNextBlock,
    Dense,
    Downsample,
    PreNorm,
    Residual,
    ResnetBlock,
    SinusoidalPositionEmbeddings,
)


class Classifier(nn.Cell):
    """The way down of `Unet`, one block a stage in the place of two, then the mean over the pixels.

    The options are the network's, `ModelConfig`, whose `num_classes` must be above 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.num_classes:
            raise UserError("model.num_classes is 0: a classifier needs the number of classes")
        dim, time_dim = config.dim, config.dim * 4
        if config.block == "convnext":
            block = partial(
                ConvNextBlock, mult=config.convnext_mult, norm_kind=config.norm, conv_bias=config.conv_bias,
                gelu_form=config.gelu,
            )
        else:
            block = partial(ResnetBlock, groups=config.resnet_groups, conv_bias=config.conv_bias)
        widths = [dim, *(dim * mult for mult in config.dim_mults)]
        self.init_conv = Conv2d(config.channels, dim, 7, bias=True)
        self.time_mlp = nn.SequentialCell([
            SinusoidalPositionEmbeddings(dim), Dense(dim, time_dim), GELU(config.gelu), Dense(time_dim, time_dim),
        ])
        self.downs = nn.CellList([
            nn.CellList([
                block(width_in, width_out, time_emb_dim=time_dim),
                nn.Identity() if stage == len(config.dim_mults) else Downsample(width_out, config.conv_bias),
            ])
            for stage, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:]), start=1)
        ])
        self.attention = Residual(PreNorm(widths[-1], Attention(widths[-1]), config.norm))
        self.head = Dense(widths[-1], config.num_classes)

    def construct(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, channels, H, W), (B,) -> logits (B, num_classes)."""
        x, time = self.init_conv(x_t), self.time_mlp(t)
        for block, downsample in self.downs:
            x = downsample(block(x, time))
        return self.head(ops.mean(self.attention(x), (2, 3)))


@ms.jit_class
class CrossEntropy:
    """What the classifier learns by, in the place of `GaussianDiffusion` in `train_step.make_train_step`."""

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self.diffusion = diffusion

    def p_losses(self, model: nn.Cell, x_start: Tensor, t: Tensor, noise: Tensor, y: Tensor) -> Tensor:
        """-log p(y | x_t), the mean over the batch."""
        return ops.cross_entropy(model(self.diffusion.q_sample(x_start, t, noise), t), y)


def accuracy(
    model: nn.Cell, diffusion: GaussianDiffusion, images: np.ndarray, labels: np.ndarray, t: int, seed: int = 0
) -> float:
    """The share of `images` (N, C, H, W) whose label is the likeliest at noise level `t`."""
    noise = np.random.default_rng((seed, t)).standard_normal(images.shape, dtype=np.float32)
    steps = Tensor(np.full(len(images), t, np.int32))
    logits = model(diffusion.q_sample(Tensor(images), steps, Tensor(noise)), steps)
    return float((logits.asnumpy().argmax(axis=1) == labels).mean())


def load_classifier(folder: Union[str, Path]) -> tuple[Config, Classifier]:
    """The configuration and the network of a folder that `scripts/train_classifier.py` made, or `UserError`."""
    config = checkpoint.read_config(folder)
    newest = checkpoint.newest_checkpoint(Path(folder))
    if newest is None:
        raise UserError(f"{folder} holds no classifier: make one with scripts/train_classifier.py")
    path, _, tensors = newest
    model = Classifier(config.model)
    averaged = any(name.startswith("ema.") for name in tensors)
    checkpoint.load_weights(model, tensors, path, "ema" if averaged else "model")
    model.update_parameters_name("classifier.")  # in one graph with a network, whose names are the same
    return config, model


def guide(
    run: checkpoint.Run, words: Optional[str], size: int, *, weight: Optional[float] = None, rescale: float = 0.0,
    interval: Optional[Tuple[int, int]] = None, folder: Union[str, Path, None] = None,
) -> tuple[nn.Cell, Optional[list[int]]]:
    """What samples from `run` as a command line asks, in batches of `size`, and the labels that images take in turn.

    `words` are those of `guidance.parse_labels`; without them nothing is guided, and the labels are None. `folder` is
    a classifier's. Raises `UserError` for what this run cannot do.
    """
    asked = {
        "--guidance": weight is not None, "--guidance_rescale": rescale > 0,
        "--guidance_interval": interval is not None, "--classifier": folder is not None,
    }
    classes, labelled = run.config.model.num_classes, run.config.model.num_classes > 0
    if words is None:
        useless = [name for name, given in asked.items() if given]
        if useless:
            raise UserError(f"{useless[0]} has no label to guide to: give --label, or leave it out")
        if labelled and not run.config.train.label_drop:
            raise UserError(f"{run.folder} never trained without labels (train.label_drop is 0): give --label")
        return run.model, None
    if interval is not None and interval[0] > interval[1]:
        raise UserError(f"--guidance_interval is {list(interval)}: its first noise level must not be above its last")
    if folder is not None:
        if rescale or interval is not None:
            raise UserError("--guidance_rescale and --guidance_interval are not for a --classifier: leave them out")
        config, classifier = load_classifier(folder)
        _check_classifier(run.config, config, folder)
        labels = guidance.parse_labels(words, config.model.num_classes)
        alphas_cumprod = run.diffusion.schedule.alphas_cumprod
        return guidance.ClassifierGuided(
            run.model, classifier, guidance.label_images(range(size), labels), 1.0 if weight is None else weight,
            alphas_cumprod=alphas_cumprod, objective=run.config.diffusion.objective,
        ), labels
    if not labelled:
        raise UserError(
            f"{run.folder} knows no labels (model.num_classes is 0): leave --label out, give a --classifier, or train "
            "with --model.num_classes"
        )
    if weight not in (None, 1.0) and not run.config.train.label_drop:
        raise UserError(f"{run.folder} never trained without labels (train.label_drop is 0): leave --guidance out")
    labels = guidance.parse_labels(words, classes)
    return guidance.Guided(
        run.model, guidance.label_images(range(size), labels), 1.0 if weight is None else weight, null=classes,
        rescale=rescale, interval=interval,
    ), labels


def _check_classifier(ours: Config, theirs: Config, folder: Union[str, Path]) -> None:
    """Raise `UserError` unless the classifier saw such images with such noise."""
    if ours.image_shape != theirs.image_shape:
        raise UserError(f"{folder} classifies images of {theirs.image_shape}, and the run's are {ours.image_shape}")
    for name in ("timesteps", "schedule", "beta_start", "beta_end", "scale_betas", "zero_terminal_snr"):
        old, new = getattr(ours.diffusion, name), getattr(theirs.diffusion, name)
        if old != new:
            raise UserError(f"diffusion.{name} is {new!r} in {folder} and {old!r} in the run: train another classifier")
