"""Run folders and weight files.

A run is a folder that needs nothing else:
    config.yaml                            the resolved configuration
    versions.json                          what the numbers depend on
    metrics.jsonl                          one line of figures every train.log_every steps
    checkpoints/step_00001000.safetensors  network, optimiser, loss scale, step; the configuration once more
    samples/step_00001000.png, loss.png
    tensorboard/, logs/rank_0.log          the figures for TensorBoard; what the training said
    profile/                               MindSpore's, where train.profile asked for one
    lock                                   which process trains here, or did last
A file called *.partial is what a killed process was writing; nothing reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal, Optional, Union

import numpy as np
import safetensors.numpy
from mindspore import Tensor, nn
from safetensors import SafetensorError

from ms_diffusion import config as configuration
from ms_diffusion.config import Config
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.logs import LOG
from ms_diffusion.unet import Unet, build_unet

FORMAT = "ms_diffusion 2"
FORMATS = ("ms_diffusion 1", FORMAT)
"""What can be read. Format 1 is format 2 without the checksum: only safetensors' own checks guard such a file."""

# What a resumed run may change without becoming another run.
_RESUMABLE = {
    "train.steps", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_every",
    "train.sample_every", "train.sample_num", "train.max_skipped_steps", "train.tensorboard", "train.profile",
    "train.check_ranks_every", "train.batch_size", "train.accumulate",  # if the whole batch stays: `training` looks
    "data.folder", "data.cache", "data.download", "data.undecodable", "data.workers", "data.memory", "runtime.device",
    "runtime.mode", "runtime.threads", "runtime.jit_level",
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
    weights: Literal["ema", "model"]
    """Which weights the network has: their moving average, or those of the last step."""


# ---- Run folders ----


def create_run(folder: Union[str, Path], config: Config, versions: dict[str, str], overwrite: bool = False) -> Path:
    """`new_run` for one who needs no lock afterwards."""
    with new_run(folder, config, versions, overwrite) as made:
        return made


@contextlib.contextmanager
def new_run(
    folder: Union[str, Path], config: Config, versions: dict[str, str], overwrite: bool = False
) -> Iterator[Path]:
    """Make the run folder `folder`, write its config.yaml and versions.json, and hold its lock.

    Raises `UserError` where something is there already (unless `overwrite`, and it is a run), where another process
    trains in it, and where it cannot be written. Of several starts at the same moment one gets the folder.
    """
    folder = Path(folder)
    _check_vacant(folder, overwrite)  # before a lock is put where no run belongs
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out") from error
    with lock(folder):
        _check_vacant(folder, overwrite)  # another start may have been faster
        try:
            _clear(folder)
            write_config(folder, config)
            (folder / "checkpoints").mkdir()
            (folder / "samples").mkdir()
            (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out") from error
        yield folder


@contextlib.contextmanager
def open_run(folder: Union[str, Path]) -> Iterator[Config]:
    """The configuration of the run `folder`, to go on with it: its lock is held meanwhile.

    Raises `UserError` where there is no run, or another process trains in it.
    """
    read_config(folder)  # before a lock is put where no run is
    with lock(folder):
        yield read_config(folder)


def _check_vacant(folder: Path, overwrite: bool) -> None:
    """Raise `UserError` unless a run may be made in `folder`."""
    if not folder.exists():
        return
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"lock", "config.yaml.partial"}:
        return  # empty, but for what a start that was killed has left
    if not overwrite:
        raise UserError(
            f"{folder} is not empty: choose another --out, continue it with --resume {folder}, "
            "or replace it with --overwrite"
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--overwrite would delete {folder}, which is no run (it has no config.yaml): delete it by "
                        "hand, or choose another --out")


def _clear(folder: Path) -> None:
    """Delete what is in `folder` but its lock; config.yaml last, so that until then it is a run, to be overwritten."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


# Locks of this process. A forked child shares them, and would hold them beyond its parent's end.
_HELD: set[int] = set()


def _let_go() -> None:
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def lock(folder: Union[str, Path]) -> Iterator[None]:
    """Keep other trainings out of the run `folder`; the system frees the lock when this process ends, however it ends.

    The file `lock` in it says who holds it, and stays. Raises `UserError`, with process and host, where another one
    does. Where the file system has no locks (some network folders), one line on stderr says so. Readers need no lock.
    """
    path = Path(folder, "lock")
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    _HELD.add(held)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(held, 0)
            os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(held, 300, 0).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is in use: {holder} trains in it; wait for its end, stop it, or choose another --out"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL):
                raise UserError(f"cannot write {path}: {error.strerror}") from error
            LOG.warning("%s cannot be locked (%s): start no second training in this folder", path, error.strerror)
        yield
    finally:
        if held in _HELD:  # no longer in a forked child
            _HELD.remove(held)
            os.close(held)


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml, whole or not at all. Raises `UserError` where the disk refuses."""
    path = folder / "config.yaml"
    try:
        write_whole(path, configuration.to_yaml(config).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write the file `path` so that it has all of `content` or is as it was before, even if the power fails.

    Raises `OSError` where the disk refuses.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    except OSError as error:
        if error.errno != errno.EINVAL:  # a network folder that cannot
            raise
    finally:
        os.close(folder)


# ---- Checkpoints ----


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, np.ndarray], config: Config, keep: int = 0, keep_every: int = 0
) -> Path:
    """Write checkpoints/step_N.safetensors with a checksum, whole or not at all; then delete old ones.

    The newest `keep` stay (0 keeps all), and those of steps that `keep_every` divides (0: none). They are deleted only
    after the new one was read back. Raises `UserError` where the disk refuses; the earlier ones are untouched then.
    """
    path = folder / "checkpoints" / f"step_{step:08d}.safetensors"
    metadata = {"format": FORMAT, "step": str(step), "config": configuration.to_yaml(config)}
    metadata["sha256"] = _checksum(metadata, tensors)
    try:
        for stale in path.parent.glob("*.partial"):
            stale.unlink()
        # As bytes: a file that is mapped into memory kills the process where the disk is full.
        write_whole(path, safetensors.numpy.save(tensors, metadata))
    except OSError as error:
        raise UserError(
            f"cannot write the checkpoint {path}: {error.strerror}; the earlier checkpoints are whole"
        ) from error
    _prune(folder, step, path, keep, keep_every)
    return path


def _prune(folder: Path, step: int, newest: Path, keep: int, keep_every: int) -> None:
    # Later steps than the newest are damaged files that the resumed run has passed over: they count for nothing.
    saved = [(number, path) for number, path in _checkpoints(folder) if number <= step]
    old = [path for number, path in saved[keep:] if not (keep_every and number % keep_every == 0)]
    if keep == 0 or not old:
        return
    read_checkpoint(newest)
    for path in old:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("cannot delete the old checkpoint %s: %s", path, error.strerror)


def _checksum(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over metadata (without sha256) and the tensors' names, types, shapes and values; the order is no part."""
    names = sorted(tensors)
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    arrays = [(name, tensors[name].dtype.name, tensors[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([described, arrays], sort_keys=True).encode())
    for name in names:
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()


def _checkpoints(folder: Union[str, Path]) -> list[tuple[int, Path]]:
    """Step and path of the run's checkpoints by their names, the newest first."""
    try:
        names = os.listdir(Path(folder, "checkpoints"))
    except FileNotFoundError:
        names = []
    steps = ((re.fullmatch(r"step_(\d+)\.safetensors", name), name) for name in names)
    return sorted(((int(step[1]), Path(folder, "checkpoints", name)) for step, name in steps if step), reverse=True)


def latest_checkpoint(folder: Union[str, Path]) -> Optional[Path]:
    """The path of the largest step in the run `folder`, whole or not; None if there is none."""
    return next((path for _, path in _checkpoints(folder)), None)


def newest_checkpoint(folder: Union[str, Path]) -> Optional[tuple[Path, int, dict[str, np.ndarray]]]:
    """Path, step and tensors of the newest checkpoint that is whole; None if the run `folder` has no checkpoint.

    Names each damaged one on stderr and takes the one before it. Raises `UserError` where all are damaged.
    """
    tried, damaged = set(), []
    while True:  # listed anew each time: a training may delete old ones meanwhile
        path = next((path for _, path in _checkpoints(folder) if path not in tried), None)
        if path is None:
            break
        tried.add(path)
        try:
            return (path, *read_checkpoint(path))
        except UserError as error:
            if path.exists():
                LOG.warning("%s; taking the checkpoint before it", error)
                damaged.append(path.name)
    if damaged:
        raise UserError(
            f"{folder} has no checkpoint that is whole, damaged are {', '.join(damaged)}: copy one back from "
            f"elsewhere, or start anew with --out {folder} --overwrite"
        )
    return None


def read_checkpoint(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Step and tensors of a checkpoint. Raises `UserError` for a file that is damaged or none of ours."""
    try:
        content = path.read_bytes()
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") not in FORMATS:
        raise UserError(f"{path} is no checkpoint of {FORMAT!r}: its format is {metadata.get('format')!r}")
    checked = "sha256" in metadata or metadata["format"] == FORMAT
    if checked and metadata.get("sha256") != _checksum(metadata, tensors):
        raise UserError(f"the checkpoint {path} is damaged: its checksum is not that of its content")
    step, name = metadata.get("step", ""), re.fullmatch(r"step_(\d+)", path.stem)
    if not step.isdecimal() or (name and int(name[1]) != int(step)):
        raise UserError(f"the checkpoint {path} is damaged, or was renamed: it says that its step is {step!r}")
    return int(step), tensors


def model_tensors(model: nn.Cell) -> dict[str, np.ndarray]:
    """The network's weights under the names model.*."""
    return {f"model.{name}": parameter.asnumpy() for name, parameter in model.parameters_and_names()}


def load_weights(
    model: nn.Cell, tensors: dict[str, np.ndarray], source: Path, kind: Literal["ema", "model"] = "model"
) -> None:
    """Fill `model` from the model.* entries of `tensors`, or from the ema.* entries.

    Raises `UserError` unless every weight is there, none is left over, and every shape is the network's.
    """
    parameters = dict(model.parameters_and_names())
    weights = {name[len(kind) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{kind}.")}
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


def load_run(folder: Union[str, Path], weights: Optional[Literal["ema", "model"]] = None) -> Run:
    """Open the run `folder` at its newest checkpoint that is whole, also while it trains.

    `weights` chooses the moving average or the weights of the last step; None takes the average where there is one.
    Raises `UserError` where the run has no checkpoint, or no average and "ema" was asked for.
    """
    folder = Path(folder)
    config = read_config(folder)
    newest = newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"{folder} has no checkpoint yet: let it train for train.checkpoint_every steps")
    path, step, tensors = newest
    averaged = any(name.startswith("ema.") for name in tensors)
    if weights == "ema" and not averaged:
        raise UserError(f"{path} holds no moving average of the weights: ask for the weights \"model\", "
                        "or train with a train.ema_decay above 0")
    kind = weights or ("ema" if averaged else "model")
    model = build_unet(config.model)
    load_weights(model, tensors, path, kind)
    model.set_train(False)
    return Run(folder, config, model, build_diffusion(config.diffusion), step, kind)
