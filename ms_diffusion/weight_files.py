"""Weights in one file, PyTorch's or MindSpore's, with the network's options inside.

    .pt, .pth       torch.save of {"config": options, "state_dict": weights}; a plain state dict is read too
    .safetensors    either side's names; the options are in the metadata
    .ckpt           mindspore.save_checkpoint; the options are an entry of text
    a run folder    its newest whole checkpoint, or one of its checkpoint files; the moving average where there is one;
                    read only

A file without options is read by `torch_bridge.infer_config`. PyTorch is imported when a .pt or .pth file is met.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Union

import mindspore as ms
import numpy as np
import yaml
from mindspore import Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ms_diffusion import checkpoint
from ms_diffusion.config import ModelConfig
from ms_diffusion.errors import UserError
from ms_diffusion.torch_bridge import infer_config, naming, rename, unseen_options
from ms_diffusion.unet import Unet, build_unet

SUFFIXES = {".pt": "torch", ".pth": "torch", ".safetensors": None, ".ckpt": "mindspore"}
"""What a file is by its name's end, and whose names it is written with; a .safetensors file takes either."""

_OPTIONS = "ms_diffusion.model"
"""Where the options stand in a .safetensors file's metadata and in a .ckpt file, as YAML."""

Entries = dict[str, Union[np.ndarray, str]]
"""What a file holds by name: arrays, or what else it is in words."""


@dataclass(frozen=True)
class Weights:
    """A network's weights and what they mean."""

    tensors: dict[str, np.ndarray]
    """Under our names, in the order of the network."""
    config: ModelConfig
    """The network's options."""
    names: str = "mindspore"
    """Whose names they had in the file: "torch" or "mindspore"."""
    assumed: str = ""
    """What the file did not say and had to be assumed, in a sentence."""
    left_out: int = 0
    """How many entries of the file are not the network's."""


def load_model(path: Union[str, Path], prefix: str = "", **unseen: Any) -> Unet:
    """The network in the weight file or run folder `path`, with its weights, from that alone.

    `prefix` and `unseen` as in `read_weights`. Warns of what it assumed. Raises `UserError` for what does not fit.
    """
    weights = read_weights(path, prefix, **unseen)
    if weights.assumed:
        warnings.warn(f"{path}: {weights.assumed}", stacklevel=2)
    model = build_unet(weights.config)
    checkpoint.load_weights(model, {f"model.{name}": value for name, value in weights.tensors.items()}, Path(path))
    model.set_train(False)
    return model


# ---- Reading ----


def read_weights(path: Union[str, Path], prefix: str = "", **unseen: Any) -> Weights:
    """Read a weight file of any kind, or the newest whole checkpoint of a run folder.

    With `prefix` only the entries whose names begin so are the network's, without it: a file of
    denoising-diffusion-pytorch's Trainer wants "ema.denoise_fn.". `unseen` holds gelu, scale_values or resnet_groups
    for a file without options (weights do not show them). Raises `UserError`, with the names of all, for weights that
    are missing, left over, misshapen or not float32, and for options that the file contradicts.
    """
    path = _find(Path(path))
    entries, options, names = _READERS[path.suffix](path)
    if names == "run":
        averaged = any(name.startswith("ema.") for name in entries)
        prefix, names = prefix or ("ema." if averaged else "model."), "mindspore"
    try:
        chosen = _select(entries, prefix)
        if options is None:
            config = infer_config(chosen, **unseen)
            assumed = _assumption(config, unseen)
        else:
            config = _model_config(options)
            assumed = ""
            _check_unseen(config, unseen)
        names = naming(chosen, config, otherwise=names)
        tensors = rename(chosen, config, names, "mindspore")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Weights(tensors, config, names, assumed, len(entries) - len(chosen))


def _find(path: Path) -> Path:
    """The file that `path` means."""
    if path.is_dir():
        checkpoint.read_config(path)
        newest = checkpoint.newest_checkpoint(path)
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet: let it train for train.checkpoint_every steps")
        return newest[0]
    check_suffix(path, "or be a run folder")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path


def check_suffix(path: Path, otherwise: str = "") -> None:
    """Raise `UserError` unless the name `path` ends in one of `SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise UserError(" ".join([f"{path} must end in {', '.join(SUFFIXES)}", otherwise]).strip())


def _select(entries: Entries, prefix: str) -> dict[str, np.ndarray]:
    """The arrays under `prefix`, by the rest of their names; `UserError` where there are none or something else."""
    chosen = {name[len(prefix) :]: value for name, value in entries.items() if name.startswith(prefix)}
    if "init_conv.weight" not in chosen:
        ends = [name[: -len("init_conv.weight")] for name in entries if name.endswith(".init_conv.weight")]
        if ends:
            raise UserError(f"its names have a prefix: give as prefix one of {', '.join(sorted(ends))}")
        if not chosen:
            raise UserError(f"nothing in it has a name that begins with {prefix!r}")
    others = [f"{name} ({value})" for name, value in sorted(chosen.items()) if isinstance(value, str)]
    if others:
        raise UserError(f"not float32 arrays: {', '.join(others)}")
    return chosen


def _model_config(options: Any) -> ModelConfig:
    """The options from a file: a mapping, or its YAML, or the YAML of a run's whole configuration."""
    try:
        mapping = yaml.safe_load(options) if isinstance(options, str) else options
        return ModelConfig(**mapping.get("model", mapping))
    except (AttributeError, TypeError, UserError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"its options do not fit this version of ms_diffusion: {line}") from error


def _assumption(config: ModelConfig, given: dict[str, Any]) -> str:
    guesses = [f"{key}={value}" for key, value in sorted(unseen_options(config).items()) if key not in given]
    if not guesses:
        return ""
    return f"assumed {', '.join(guesses)}: the file does not say it and weights do not show it; give what differs"


def _check_unseen(config: ModelConfig, unseen: dict[str, Any]) -> None:
    for key, value in sorted(unseen.items()):
        if getattr(config, key) != value:
            raise UserError(f"{key} is {getattr(config, key)!r} in the file and {value!r} was asked for: leave it out")


def _read_safetensors(path: Path) -> tuple[Entries, Any, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") in checkpoint.FORMATS:
                return checkpoint.read_checkpoint(path)[1], metadata["config"], "run"
            entries = {}
            for name in file.keys():  # noqa: SIM118
                try:
                    entries[name] = file.get_tensor(name)
                except (AttributeError, TypeError):  # NumPy has no such type
                    entries[name] = file.get_slice(name).get_dtype()
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return entries, metadata.get(_OPTIONS), "torch"


def _read_ckpt(path: Path) -> tuple[Entries, Any, str]:
    try:
        loaded = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise UserError(f"cannot read {path}: it is damaged, or no checkpoint of MindSpore's") from error
    options = loaded.pop(_OPTIONS, None)
    entries = {name: "str" if isinstance(value, str) else value.asnumpy() for name, value in loaded.items()}
    return entries, options, "mindspore"


def _read_pt(path: Path) -> tuple[Entries, Any, str]:
    torch = _torch(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes lead it to
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise UserError(
            f"cannot read {path} with torch.load(weights_only=True): {reason}; it must hold a network's state_dict()"
        ) from error
    options = None
    if isinstance(loaded, dict) and loaded.keys() == {"config", "state_dict"}:
        options, loaded = loaded["config"], loaded["state_dict"]
    pairs = list(_flatten(loaded, (), torch))
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise UserError(f"{path}: two of its entries have the same name")
    return entries, options, "torch"


def _flatten(tree: Any, path: tuple[str, ...], torch: Any) -> Iterator[tuple[str, Union[np.ndarray, str]]]:
    """(name, entry) of everything in nested dictionaries, the names joined by dots."""
    name = ".".join(path)
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flatten(value, (*path, str(key)), torch)
    elif isinstance(tree, torch.Tensor):
        try:
            yield name, np.array(tree.detach().numpy(), order="C")
        except (TypeError, RuntimeError):  # NumPy has no such type
            yield name, str(tree.dtype)
    else:
        yield name, type(tree).__name__


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a PyTorch file, and PyTorch is not installed: pip install torch") from error
    return torch


_READERS = {".pt": _read_pt, ".pth": _read_pt, ".safetensors": _read_safetensors, ".ckpt": _read_ckpt}


# ---- Writing ----


def write_weights(path: Union[str, Path], weights: Weights, names: Optional[str] = None) -> str:
    """Write `weights` with their options, whole or not at all; returns whose names the file has.

    A .safetensors file takes `names`, "torch" or "mindspore"; by default the other side than `weights.names`.
    Raises `UserError` for names that the file's kind does not have, and where the disk refuses.
    """
    path = Path(path)
    check_suffix(path)
    own = SUFFIXES[path.suffix]
    if own and names not in (None, own):
        raise UserError(f"{path} has {own}'s names: leave names={names} out, or write a .safetensors file")
    names = own or names or {"torch": "mindspore", "mindspore": "torch"}[weights.names]
    options = {**dataclasses.asdict(weights.config), "dim_mults": list(weights.config.dim_mults)}
    text = yaml.safe_dump(options, sort_keys=False)
    tensors = rename(weights.tensors, weights.config, "mindspore", names)
    try:
        with tempfile.TemporaryDirectory(prefix=".partial", dir=path.parent) as folder:
            partial = Path(folder) / f"weights{path.suffix}"
            _WRITERS[path.suffix](partial, tensors, text)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    return names


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray], options: str) -> None:
    save_file(tensors, path, {_OPTIONS: options})  # one entry only: safetensors writes several in any order


def _write_ckpt(path: Path, tensors: dict[str, np.ndarray], options: str) -> None:
    parameters = [{"name": name, "data": Tensor(value)} for name, value in tensors.items()]
    ms.save_checkpoint(parameters, str(path), append_dict={_OPTIONS: options})
    path.chmod(path.stat().st_mode | stat.S_IWUSR)  # MindSpore leaves it read-only


def _write_pt(path: Path, tensors: dict[str, np.ndarray], options: str) -> None:
    torch = _torch(path)
    state_dict = {name: torch.from_numpy(np.array(value, order="C")) for name, value in tensors.items()}
    with open(path, "wb") as file:  # given a path, torch.save would write its name into the file
        torch.save({"config": yaml.safe_load(options), "state_dict": state_dict}, file)


_WRITERS = {".pt": _write_pt, ".pth": _write_pt, ".safetensors": _write_safetensors, ".ckpt": _write_ckpt}
