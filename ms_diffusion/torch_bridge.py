"""Weight names of MindSpore and of PyTorch for the same network, and the network's options from its weights.

The names follow from the kinds of the cells, never from their positions: a GroupNorm's gamma and beta are PyTorch's
weight and bias, and every other parameter keeps its name, its shape and its layout. PyTorch itself is not needed here.

`Unet(use_convnext=True)` of denoising-diffusion-pytorch 0.11.0 to 0.11.2 (the annotated post's first form) is this
network with norm = attention_norm = "layer_bias", name for name and number for number: nothing is edited. With other
norms it cannot be expressed: a norm of each pixel over its channels is no GroupNorm. Its ResNet blocks are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
from mindspore import nn

from ms_diffusion.config import TUTORIAL, ModelConfig
from ms_diffusion.errors import UserError
from ms_diffusion.unet import build_unet

Arrays = dict[str, np.ndarray]

_TORCH_NAMES = {
    nn.GroupNorm: {"gamma": "weight", "beta": "bias"}, nn.Embedding: {"embedding_table": "weight"},
}
"""What PyTorch calls the parameters of a cell of that kind, where it differs."""


def torch_names(model: nn.Cell) -> dict[str, str]:
    """PyTorch's name for each parameter of `model`, by our name."""
    names = {}
    for path, cell in model.cells_and_names():
        renamed = next((table for kind, table in _TORCH_NAMES.items() if isinstance(cell, kind)), {})
        for name, _ in cell.parameters_and_names(expand=False):
            stem = f"{path}." if path else ""
            names[stem + name] = stem + renamed.get(name, name)
    return names


@lru_cache(maxsize=16)
def _parameters(config: ModelConfig) -> tuple[tuple[dict[str, str], tuple[int, ...]], ...]:
    """Both names and the shape of every parameter, in the order of the network."""
    model = build_unet(config)
    names = torch_names(model)
    return tuple(
        ({"mindspore": name, "torch": names[name]}, parameter.shape)
        for name, parameter in model.parameters_and_names()
    )


def to_torch(tensors: Arrays, config: ModelConfig) -> Arrays:
    """Our weights under PyTorch's names; order and errors as in `rename`."""
    return rename(tensors, config, "mindspore", "torch")


def from_torch(tensors: Arrays, config: ModelConfig) -> Arrays:
    """PyTorch's weights under our names; order and errors as in `rename`."""
    return rename(tensors, config, "torch", "mindspore")


def rename(tensors: Arrays, config: ModelConfig, side: str, other: str) -> Arrays:
    """Weights with the names of one side, "torch" or "mindspore", under those of the other, in the network's order.

    Raises `UserError`, naming all of them, for missing, extra and misshapen ones and for other types than float32.
    """
    _check(tensors, {names[side]: shape for names, shape in _parameters(config)})
    return {names[other]: tensors[names[side]] for names, _ in _parameters(config)}


def naming(tensors: Arrays, config: ModelConfig, otherwise: str) -> str:
    """Whose names these are, "torch" or "mindspore", by the greater number of hits; `otherwise` in a draw."""
    hits = {side: sum(names[side] in tensors for names, _ in _parameters(config)) for side in ("torch", "mindspore")}
    return otherwise if hits["torch"] == hits["mindspore"] else max(hits, key=hits.get)


def _check(tensors: Arrays, shapes: dict[str, tuple[int, ...]]) -> None:
    common = sorted(tensors.keys() & shapes.keys())
    findings = {
        "missing": sorted(shapes.keys() - tensors.keys()),
        "extra": sorted(tensors.keys() - shapes.keys()),
        "misshapen": [
            f"{name} {tensors[name].shape} instead of {shapes[name]}"
            for name in common if tensors[name].shape != shapes[name]
        ],
        "not float32": [f"{name} ({tensors[name].dtype})" for name in common if tensors[name].dtype != np.float32],
    }
    if any(findings.values()):
        lists = [f"{finding}: {', '.join(names)}" for finding, names in findings.items() if names]
        raise UserError(f"the weights do not fit the network; {'; '.join(lists)}")


# ---- The options ----


def infer_config(tensors: Arrays, **unseen: Any) -> ModelConfig:
    """The options of the network whose weights these are, under our names or PyTorch's.

    Weights cannot show gelu, scale_values and resnet_groups: give them in `unseen`. Without, they are the tutorial's
    where conv_bias and attention_norm are the tutorial's, and else the defaults; `unseen_options` lists them.
    Raises `UserError`, with the names, for weights of another network.
    """
    foreign = sorted(name for name in tensors if re.search(r"\.block[12]\.block\.\d", name))
    if foreign:
        raise UserError(
            "of denoising-diffusion-pytorch only Unet(use_convnext=True) is read, and these are its ResNet blocks: "
            + ", ".join(foreign)
        )
    stages = len({name.split(".")[1] for name in tensors if name.startswith("downs.")})
    block = "convnext" if any(".ds_conv." in name for name in tensors) else "resnet"
    telling = ["init_conv.weight", "final_conv.1.weight"]
    telling += [f"downs.{stage}.2.fn.fn.to_qkv.weight" for stage in range(stages)]
    telling += ["downs.0.0.net.1.weight"] if block == "convnext" else []
    lacking = [name for name in telling if name not in tensors or tensors[name].ndim != 4]
    if lacking:
        raise UserError(f"these are no weights of Unet: missing, or not of 4 dimensions: {', '.join(sorted(lacking))}")

    init_dim, channels = tensors["init_conv.weight"].shape[:2]
    out_dim, dim = tensors["final_conv.1.weight"].shape[:2]
    widths = [tensors[f"downs.{stage}.2.fn.fn.to_qkv.weight"].shape[1] for stage in range(stages)]
    odd = [f"downs.{stage} has {width}" for stage, width in enumerate(widths) if dim < 1 or width % dim]
    if odd:
        raise UserError(f"these are no weights of Unet: its channels are multiples of {dim}, and {', '.join(odd)}")
    seen = {
        "dim": dim, "channels": channels, "dim_mults": tuple(width // dim for width in widths), "block": block,
        "init_dim": None if init_dim == dim // 3 * 2 else init_dim,
        "out_dim": None if out_dim == channels else out_dim,
        "num_classes": next((len(tensors[name]) - 1 for name in tensors if name.startswith("label_emb.")), 0),
        "with_time_emb": any(name.startswith("time_mlp.") for name in tensors),
        "conv_bias": any(
            re.search(r"\.(ds_conv|res_conv|proj|net\.[14])\.bias$|^((downs|ups)\.\d+\.3|final_conv\.1)\.bias$", name)
            for name in tensors
        ),
        "norm": _norm(tensors, r"\.fn\.norm\.|\.net\.[03]\."),
        "attention_norm": _norm(tensors, r"\.to_out\.1\."),
    }
    if block == "convnext":
        seen["convnext_mult"] = tensors["downs.0.0.net.1.weight"].shape[0] // widths[0]
    tutorial = all(seen[option] == TUTORIAL[option] for option in ("conv_bias", "attention_norm"))
    guess = {option: TUTORIAL[option] for option in ("gelu", "scale_values")} if tutorial else {}
    return ModelConfig(**seen, **{**guess, **unseen})


def _norm(tensors: Arrays, where: str) -> str:
    """Which of `ModelConfig`'s norms stand at the places that the pattern `where` matches."""
    letters = {name.rpartition(".")[2] for name in tensors if re.search(where + r"[gb]$", name)}
    return "layer_bias" if "b" in letters else "layer" if "g" in letters else "group"


def unseen_options(config: ModelConfig) -> dict[str, Any]:
    """The options of this network that no weight shows, with their values."""
    unseen = {"scale_values": config.scale_values}
    if config.block == "convnext" or config.with_time_emb:
        unseen["gelu"] = config.gelu
    if config.block == "resnet":
        unseen["resnet_groups"] = config.resnet_groups
    return unseen
