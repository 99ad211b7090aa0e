"""What the benchmark measures: training, forward pass and sampling of a network, and single layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Collection, Literal, Sequence

from ms_diffusion.config import Config
from ms_diffusion.errors import UserError

STEPS = ("training", "forward", "sampling")
"""The kinds of workload that are a whole network's."""
SAMPLES, SAMPLING_STEPS = 64, 20
"""Images of the sampling, and the reverse steps they take."""


@dataclass(frozen=True)
class Operator:
    """A layer that `layers` and `torch_twin` both have: `maker(**options)`, or the layer at `path` within it."""

    name: str
    maker: str
    options: dict[str, Any]
    path: str
    shape: tuple[int, ...]
    """Of its input, (B, C, H, W)."""

    def inside(self, layer: Any) -> Any:
        """The layer at `path` in `layer`, of either framework."""
        for name in self.path.split(".") if self.path else ():
            layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
        return layer


@dataclass(frozen=True)
class Workload:
    """What every contestant does in its turn."""

    config: Config
    source: str
    """The file the configuration came from."""
    kind: Literal["training", "forward", "sampling", "operators"]
    batch_size: int
    operators: tuple[Operator, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its calls in words; those of the operators are `split_operators`'s."""
        if self.kind == "sampling":
            return f"reverse step, batch {self.batch_size}", f"sampling, {SAMPLING_STEPS} steps of {self.batch_size}"
        return (f"{self.kind}, batch {self.batch_size}",)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, C, H, W) of the images."""
        return (self.batch_size, *self.config.image_shape)


def steps(config: Config, source: str, kinds: Collection[str], batch_sizes: Sequence[int]) -> list[Workload]:
    """Those of STEPS that are in `kinds`: training and forward at each of `batch_sizes`, and the sampling.

    Raises `UserError` for too few timesteps to sample.
    """
    timesteps = config.diffusion.timesteps
    if "sampling" in kinds and timesteps < SAMPLING_STEPS:
        raise UserError(f"{source}: diffusion.timesteps is {timesteps}: the benchmark samples {SAMPLING_STEPS} steps")
    sizes = {"sampling": [SAMPLES]}
    return [Workload(config, source, kind, size)
            for kind in STEPS if kind in kinds for size in sizes.get(kind, batch_sizes)]


def growth(
    config: Config, source: str, batch_sizes: Sequence[int], image_sizes: Sequence[int], dims: Sequence[int]
) -> list[Workload]:
    """Training at each width and image size. Raises `UserError` for a size that cannot be."""
    loads = []
    for dim in dims:
        for size in image_sizes:
            grown = dataclasses.replace(
                config, model=dataclasses.replace(config.model, dim=dim),
                data=dataclasses.replace(config.data, image_size=size),
            )
            loads += [Workload(grown, source, "training", batch_size) for batch_size in batch_sizes]
    return loads


def operators(config: Config, source: str, batch_size: int) -> Workload:
    """Single layers at the width and the image size of each stage; those that the network lacks stand there too."""
    model = config.model
    found = []
    for stage, mult in enumerate(model.dim_mults):
        dim, size = model.dim * mult, config.data.image_size // 2**stage
        narrow, wide = ((batch_size, width, size, size) for width in (dim, dim * model.convnext_mult))
        block = {
            "dim": dim, "dim_out": dim, "mult": model.convnext_mult, "norm_kind": model.norm,
            "conv_bias": model.conv_bias, "gelu_form": model.gelu,
        }
        attention = ("LinearAttention", {"dim": dim, "scale_values": model.scale_values, "norm": model.attention_norm})
        found += [
            Operator("conv 3x3", "ConvNextBlock", block, "net.1", narrow),
            Operator("conv 1x1", *attention, "to_qkv", narrow),
            Operator("depthwise 7x7", "ConvNextBlock", block, "ds_conv", narrow),
            Operator("GELU erf", "ConvNextBlock", {**block, "gelu_form": "erf"}, "net.2", wide),
            Operator("GELU tanh", "ConvNextBlock", {**block, "gelu_form": "tanh"}, "net.2", wide),
            Operator("SiLU", "Block", {"dim": dim, "dim_out": dim}, "act", narrow),
            Operator("group norm", "make_norm", {"kind": "group", "dim": wide[1]}, "", wide),
            Operator("layer norm", "make_norm", {"kind": "layer", "dim": dim}, "", narrow),
            Operator("linear attention", *attention, "", narrow),
        ]
        if stage > 0:
            above = model.dim * model.dim_mults[stage - 1]
            options = {"dim": above, "conv_bias": model.conv_bias}
            found += [
                Operator("4x4 down", "Downsample", options, "", (batch_size, above, 2 * size, 2 * size)),
                Operator("4x4 up", "Upsample", options, "", (batch_size, above, size, size)),
            ]
    found.append(Operator("attention", "Attention", {"dim": dim}, "", narrow))
    return Workload(config, source, "operators", batch_size, tuple(found))
