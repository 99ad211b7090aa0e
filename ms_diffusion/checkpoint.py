"""Run folders and weight files.

A run is a folder that needs nothing else:
    config.yaml                            the resolved configuration
    versions.json                          what the numbers depend on
    metrics.jsonl                          one line of figures every train.log_every steps
    checkpoints/step_00001000.safetensors  network, optimiser, loss scale, step; the configuration once more
    samples/step_00001000.png, loss.png
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import Tensor, nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ms_diffusion import config as configuration
from ms_diffusion.config import Config
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.unet import Unet, build_unet

FORMAT = "ms_diffusion 1"

# What a resumed run may change without becoming another run.
_RESUMABLE = {
    "train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.sample_num",
    "data.folder", "data.cache", "data.download", "runtime.device", "runtime.mode",
}


@dataclass(frozen=True)
class Run:
    """A run folder, opened: the configuration, the network with its weights, and the diffusion."""

    folder: Path
    config: Config
    model: Unet
    diffusion: GaussianDiffusion
    step: int
    """Training steps behind these weights."""


def create_run(folder: Union[str, Path], config: Config, versions: dict[str, str], overwrite: bool = False) -> Path:
    """Make the run folder `folder` and write its config.yaml and versions.json.

    Raises `UserError` where something is there already (unless `overwrite`, and it is a run) or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise UserError(
                f"{folder} is not empty: choose another --out, continue it with --resume {folder}, "
                "or replace it with --overwrite"
            )
        if not (folder / "config.yaml").is_file():
            raise UserError(f"--overwrite would delete {folder}, which is no run (it has no config.yaml): delete it by "
                            "hand, or choose another --out")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "samples").mkdir()
        write_config(folder, config)
        (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out") from error
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml, whole or not at all."""
    partial = folder / "config.yaml.partial"
    partial.write_text(configuration.to_yaml(config))
    os.replace(partial, folder / "config.yaml")


def save_checkpoint(folder: Path, step: int, tensors: dict[str, np.ndarray], config: Config) -> Path:
    """Write checkpoints/step_N.safetensors whole or not at all: to a temporary name, flushed, then renamed.

    Raises `UserError` where the disk refuses.
    """
    path = folder / "checkpoints" / f"step_{step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    metadata = {"format": FORMAT, "step": str(step), "config": configuration.to_yaml(config)}
    try:
        save_file(tensors, partial, metadata)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write the checkpoint {path}: {error}; the earlier checkpoints are whole") from error
    return path


def latest_checkpoint(folder: Union[str, Path]) -> Optional[Path]:
    """The checkpoint of the largest step in the run `folder`; None if there is none."""
    return max(Path(folder, "checkpoints").glob("step_*.safetensors"), default=None)


def read_checkpoint(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Step and tensors of a checkpoint. Raises `UserError` for a file that is damaged or none of ours."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of {FORMAT!r}: its format is {metadata.get('format')!r}")
    return int(metadata["step"]), tensors


def model_tensors(model: nn.Cell) -> dict[str, np.ndarray]:
    """The network's weights under the names model.*."""
    return {f"model.{name}": parameter.asnumpy() for name, parameter in model.parameters_and_names()}


def load_weights(model: nn.Cell, tensors: dict[str, np.ndarray], source: Path) -> None:
    """Fill `model` from the model.* entries of `tensors`.

    Raises `UserError` unless every weight is there, none is left over, and every shape is the network's.
    """
    parameters = dict(model.parameters_and_names())
    weights = {name[len("model.") :]: value for name, value in tensors.items() if name.startswith("model.")}
    wrong = [f"{name} is missing" for name in parameters.keys() - weights.keys()]
    wrong += [f"{name} is not in the network" for name in weights.keys() - parameters.keys()]
    wrong += [
        f"{name} is {weights[name].shape}, not {parameters[name].shape}"
        for name in parameters.keys() & weights.keys()
        if weights[name].shape != parameters[name].shape
    ]
    if wrong:
        raise UserError(f"{source} does not fit the network: {'; '.join(sorted(wrong)[:5])} ({len(wrong)} in all)")
    for name, value in weights.items():
        parameters[name].set_data(Tensor(value))


def read_config(folder: Union[str, Path]) -> Config:
    """The resolved configuration of the run `folder`. Raises `UserError` where there is none."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    return configuration.load(path)


def check_resumable(saved: Config, asked: Config) -> None:
    """Raise `UserError`, with both values, for an option that a resumed run cannot change."""
    for group, options in dataclasses.asdict(saved).items():
        for name, old in options.items():
            new = getattr(getattr(asked, group), name)
            if new != old and f"{group}.{name}" not in _RESUMABLE:
                raise UserError(
                    f"{group}.{name} is {old!r} in the run and {new!r} on the command line: a resumed run keeps it; "
                    "leave the option out, or start another run with --out"
                )


def load_run(folder: Union[str, Path]) -> Run:
    """Open the run `folder` at its latest checkpoint. Raises `UserError` where it has none."""
    folder = Path(folder)
    config = read_config(folder)
    path = latest_checkpoint(folder)
    if path is None:
        raise UserError(f"{folder} has no checkpoint yet: let it train for train.checkpoint_every steps")
    step, tensors = read_checkpoint(path)
    model = build_unet(config.model)
    load_weights(model, tensors, path)
    model.set_train(False)
    return Run(folder, config, model, build_diffusion(config.diffusion), step)
