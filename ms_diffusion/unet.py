"""The conditional U-Net eps_theta(x_t, t) of the annotated diffusion tutorial; with labels eps_theta(x_t, t, y)."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Optional

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from ms_diffusion.config import TUTORIAL, ModelConfig
from ms_diffusion.layers import (
    GELU,
    Attention,
    Conv2d,
    ConvNextBlock,
    Dense,
    Downsample,
    LinearAttention,
    PreNorm,
    Residual,
    ResnetBlock,
    SinusoidalPositionEmbeddings,
    Upsample,
)


class Unet(nn.Cell):
    """Predicts the noise in x_t; Ronneberger et al. 2015 with the blocks of the tutorial.

    The options are the fields of `ModelConfig`, and so are their defaults: the PyTorch baseline's network.
    Raises `UserError`, naming the option, for a size that cannot be.
    """

    def __init__(self, dim: int = ModelConfig.dim, **options: Any) -> None:
        super().__init__()
        config = ModelConfig(dim=dim, **options)
        self.config = config
        self.channels = config.channels
        self.downscale = config.downscale

        time_dim = dim * 4 if config.with_time_emb else None
        if config.block == "convnext":
            block = partial(
                ConvNextBlock, mult=config.convnext_mult, norm_kind=config.norm, conv_bias=config.conv_bias,
                gelu_form=config.gelu,
            )
        else:
            block = partial(ResnetBlock, groups=config.resnet_groups, conv_bias=config.conv_bias)

        def linear_attention(width: int) -> nn.Cell:
            attention = LinearAttention(width, scale_values=config.scale_values, norm=config.attention_norm)
            return Residual(PreNorm(width, attention, config.norm))

        init_dim = dim // 3 * 2 if config.init_dim is None else config.init_dim
        widths = [init_dim, *(dim * mult for mult in config.dim_mults)]
        stages = list(zip(widths[:-1], widths[1:]))

        self.init_conv = Conv2d(config.channels, init_dim, 7, bias=True)
        self.time_mlp = None
        if time_dim is not None:
            self.time_mlp = nn.SequentialCell([
                SinusoidalPositionEmbeddings(dim), Dense(dim, time_dim), GELU(config.gelu), Dense(time_dim, time_dim),
            ])

        downs = []
        for index, (width_in, width_out) in enumerate(stages):
            is_last = index == len(stages) - 1
            downs.append(nn.CellList([
                block(width_in, width_out, time_emb_dim=time_dim),
                block(width_out, width_out, time_emb_dim=time_dim),
                linear_attention(width_out),
                nn.Identity() if is_last else Downsample(width_out, config.conv_bias),
            ]))
        self.downs = nn.CellList(downs)

        self.mid_block1 = block(widths[-1], widths[-1], time_emb_dim=time_dim)
        self.mid_attn = Residual(PreNorm(widths[-1], Attention(widths[-1]), config.norm))
        self.mid_block2 = block(widths[-1], widths[-1], time_emb_dim=time_dim)

        # One stage fewer than on the way down, each ending in an upsampling: the first skip is never read.
        # The tutorial and its PyTorch source have it so, and a weight file must fit.
        ups = []
        for width_in, width_out in reversed(stages[1:]):
            ups.append(nn.CellList([
                block(width_out * 2, width_in, time_emb_dim=time_dim),
                block(width_in, width_in, time_emb_dim=time_dim),
                linear_attention(width_in),
                Upsample(width_in, config.conv_bias),
            ]))
        self.ups = nn.CellList(ups)

        out_dim = config.channels if config.out_dim is None else config.out_dim
        self.final_conv = nn.SequentialCell([block(widths[1], dim), Conv2d(dim, out_dim, 1, bias=config.conv_bias)])

        self.num_classes = config.num_classes
        self.label_emb = None
        if config.num_classes:  # the last row stands for no label, the null class of Ho and Salimans 2022
            self.label_emb = nn.Embedding(
                vocab_size=config.num_classes + 1, embedding_size=time_dim, use_one_hot=False,
                embedding_table="normal", dtype=mstype.float32, padding_idx=None,
            )

    @classmethod
    def tutorial(cls, dim: int = ModelConfig.dim, **options: Any) -> Unet:
        """The MindSpore tutorial's network, exactly: 2,992,180 parameters at the default sizes."""
        return cls(dim, **{**TUTORIAL, **options})

    def construct(self, x: Tensor, time: Tensor, label: Optional[Tensor] = None) -> Tensor:
        """(B, channels, H, W), int32 (B,) and, of a conditional network, int32 (B,) -> (B, out_dim, H, W).

        Labels are 0..num_classes-1, and num_classes or None where there is none. Raises ValueError for a wrong number
        of channels, a size that the stages cannot halve, or labels that the network was not built for.
        """
        if x.shape[1] != self.channels:
            raise ValueError(f"Unet was built for {self.channels} channels and got an image of {x.shape[1]}")
        if x.shape[2] % self.downscale != 0 or x.shape[3] % self.downscale != 0:
            raise ValueError(
                f"Unet halves the image: height {x.shape[2]} and width {x.shape[3]} must be multiples of "
                f"{self.downscale}"
            )
        x = self.init_conv(x)
        t = None
        if self.time_mlp is not None:
            t = self.time_mlp(time)
        if self.label_emb is not None:
            label = ops.full_like(time, self.num_classes, dtype=mstype.int32) if label is None else label
            t = t + self.label_emb(label)
        elif label is not None:
            raise ValueError("Unet was built without classes and got labels")

        skips = ()
        for block1, block2, attention, downsample in self.downs:
            x = attention(block2(block1(x, t), t))
            skips = (*skips, x)
            x = downsample(x)

        x = self.mid_block2(self.mid_attn(self.mid_block1(x, t)), t)

        last = len(skips) - 1
        for block1, block2, attention, upsample in self.ups:
            x = ops.concat((x, skips[last]), axis=1)
            last = last - 1
            x = upsample(attention(block2(block1(x, t), t)))
        return self.final_conv(x)


def init_weights(model: nn.Cell, generator: np.random.Generator) -> None:
    """Draw every weight and bias of `model` from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default; norms stay.

    He et al. 2015 with a = sqrt(5); an embedding is standard normal. Drawn on the host in the order of the cells: the
    same on every device.
    """
    for _, cell in model.cells_and_names():
        if isinstance(cell, nn.Embedding):
            values = generator.standard_normal(cell.embedding_table.shape)
            cell.embedding_table.set_data(Tensor(values, mstype.float32))
        if not isinstance(cell, (nn.Conv2d, nn.Conv2dTranspose, nn.Dense)):
            continue
        bound = 1 / math.sqrt(np.prod(cell.weight.shape[1:]))
        for parameter in (cell.weight, cell.bias) if cell.has_bias else (cell.weight,):
            values = generator.uniform(-bound, bound, parameter.shape)
            parameter.set_data(Tensor(values, mstype.float32))


def count_parameters(model: nn.Cell) -> int:
    """How many numbers `model` learns."""
    return sum(int(np.prod(parameter.shape)) for parameter in model.trainable_params())


def build_unet(config: ModelConfig) -> Unet:
    """The network that `config` describes."""
    return Unet(**dataclasses.asdict(config))
