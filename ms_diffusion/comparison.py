"""Our network and process against their PyTorch twins, from the schedule's tables to a sampled image.

Both get the same weights, the same images in the same order, the same t and the same noise. The order of the checks
is the order in which an error travels, so the first check that fails is the one to mend.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence, Union

import mindspore as ms
import numpy as np
import torch
from matplotlib.figure import Figure
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.amp import DynamicLossScaler
from tqdm import tqdm

from ms_diffusion import config as configuration
from ms_diffusion import runtime, torch_bridge, torch_twin, training
from ms_diffusion.config import Config, DiffusionConfig, TrainConfig
from ms_diffusion.data import ImageDataset, to_uint8
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.randomness import image_noise
from ms_diffusion.visualize import to_picture

Arrays = dict[str, np.ndarray]
"""Weights or gradients by their names."""
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, t, noise."""

TOLERANCES = {
    "weights": 0.0, "schedule tables": 1e-6, "layer outputs": 1e-5, "layer inputs": 1e-5, "U-Net output": 1e-4,
    "loss": 1e-5, "gradients": 1e-3, "optimiser step": 1e-2, "loss curve": 1e-3, "sampling": 1e-3,
}
"""The checks, in their order, and how far each may be off; `EXPLANATIONS` has the units."""

EXPLANATIONS = {
    "weights": "both networks hold the same numbers under the same names; nothing is missing and nothing left over",
    "schedule tables": "every table of the process, in units of max(1, |table|)",
    "layer outputs": "each layer and each block called by itself, in PyNative, on the input that PyTorch's layer read: "
    "an error stands at the layer that makes it, and again at the blocks around that layer; layers without parts also "
    "on normal numbers and on a hundredth of them, because the first steps' activations hide a wrong epsilon or GELU",
    "layer inputs": "what each layer reads when every layer before it hands on exactly PyTorch's numbers, in PyNative: "
    "an error here is in the wiring between the layers",
    "U-Net output": "eps_theta(x_t, t) of the whole network",
    "loss": "the training loss of the first batch, relative",
    "gradients": "relative L2 of each parameter's gradient; a gradient below 1/1000 of the mean size is measured "
    "against that",
    "optimiser step": "each weight after the first training step (loss scale, clipping, Adam) against PyTorch's "
    "clip_grad_norm_ and Adam on the same gradients, in units of the learning rate; MindSpore's Adam adds epsilon "
    "before the bias correction (the end of section 2 of Kingma and Ba 2014), PyTorch's after it, so for this one step "
    "PyTorch's gets the epsilon that makes the formulas equal",
    "loss curve": "the training loss of each step, relative, ten times more after the tenth step; each framework "
    "trains by its own gradients and its own Adam with the same epsilon",
    "sampling": "x_t after each reverse step from pure noise to an image, per pixel",
}


@dataclass(frozen=True)
class Row:
    """How far our numbers lie from PyTorch's in one place."""

    check: str
    """Which of `TOLERANCES`."""
    name: str
    """Where: a table, a layer, a parameter, a step."""
    size: int = 0
    """How many numbers were compared."""
    max_abs: float = math.nan
    """Largest absolute error."""
    mean_abs: float = math.nan
    """Mean absolute error."""
    relative_l2: float = math.nan
    """Euclidean norm of the error over that of PyTorch's numbers."""
    cosine: float = math.nan
    """Of the angle between the two, as vectors."""
    share: float = 0.0
    """Share of the numbers within tolerance."""
    tolerance: float = 0.0
    """How far off they may be."""
    used: float = math.inf
    """The error as a share of the tolerance: above 1 the check fails."""
    note: str = ""
    """What the figures do not say: which argument of a layer it was, or why there are none."""

    @property
    def passed(self) -> bool:
        """Within tolerance; not so where it is no number."""
        return self.used <= 1


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared; the rows stand in the order of the checks."""

    rows: list[Row] = field(default_factory=list)
    losses: tuple[list[float], list[float]] = ((), ())
    """The training curve: ours, PyTorch's."""
    samples: tuple[np.ndarray, np.ndarray] = ((), ())
    """Sampled images (N, C, H, W): ours, PyTorch's."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know besides the rows."""

    @property
    def passed(self) -> bool:
        """Every row is within its tolerance."""
        return all(row.passed for row in self.rows)

    @property
    def first_broken(self) -> Optional[Row]:
        """The row to mend first: a layer where one broke, else the first past its tolerance; None if all passed."""
        broken = [row for row in self.rows if not row.passed]
        layers = [row for row in broken if row.check in ("layer outputs", "layer inputs")]
        return next(iter([*layers, *broken]), None)

    def summary(self) -> list[tuple[Row, Row, int]]:
        """For each check: its rows as one, the worst of them, and how many they are."""
        lines = []
        for check in TOLERANCES:
            rows = [row for row in self.rows if row.check == check]
            if rows:
                worst = max(rows, key=lambda row: math.inf if math.isnan(row.used) else row.used)
                lines.append((_together(rows, worst), worst, len(rows)))
        return lines


def measure(
    check: str, name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float, *,
    unit: Union[float, np.ndarray] = 1.0, rms: bool = False, note: str = "",
) -> Row:
    """How far `ours` lies from `theirs`.

    It is within tolerance where every |error| is at most `tolerance` times `unit` (a number, or one for each element);
    with `rms`, where the root of the mean squared error is.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        shapes = f"our shape is {ours.shape}, PyTorch's {theirs.shape}"
        return Row(check, name, tolerance=tolerance, note=f"{note}: {shapes}" if note else shapes)
    error = np.abs(ours - theirs)
    norm, our_norm, error_norm = (math.sqrt(np.square(x).sum()) for x in (theirs, ours, error))
    allowed = np.broadcast_to(tolerance * np.asarray(unit, np.float64), error.shape)
    if rms:
        used = _ratio(error_norm, math.sqrt(np.square(allowed).sum()))
    else:
        used = float(np.max(np.divide(error, allowed, out=np.where(error == 0, 0.0, np.inf), where=allowed > 0)))
    return Row(
        check, name, error.size, float(error.max()), float(error.mean()), _ratio(error_norm, norm),
        _ratio(float((ours * theirs).sum()), our_norm * norm, 1.0 if our_norm == norm else 0.0),
        float((error <= allowed).mean()), tolerance, used, note,
    )


def _ratio(value: float, of: float, zero_of_zero: float = 0.0) -> float:
    if of == 0:
        return zero_of_zero if value == 0 else math.inf
    return value / of


def _together(rows: list[Row], worst: Row) -> Row:
    """Several rows of one check as one: the worst of each figure, the means weighted by size."""
    sizes = np.array([max(row.size, 1) for row in rows])
    return dataclasses.replace(
        worst, size=sum(row.size for row in rows),
        max_abs=float(np.max([row.max_abs for row in rows])),
        mean_abs=float(np.average([row.mean_abs for row in rows], weights=sizes)),
        relative_l2=float(np.max([row.relative_l2 for row in rows])),
        cosine=float(np.min([row.cosine for row in rows])),
        share=float(np.average([row.share for row in rows], weights=sizes)),
    )


# ---- All checks ----


def compare(
    model: nn.Cell, weights: Arrays, config: Config, dataset: ImageDataset, *,
    steps: int = 10, sampling_steps: int = 50, tolerance: float = 1.0,
) -> Comparison:
    """Compare `model` with the PyTorch twin that `config` describes, both filled with `weights`.

    `model` is ours or your own port of it: a layer is compared with the twin's layer of the same path. `weights` are
    those of `unet.Unet`, by its names; a weight that `model` lacks is a finding, not an error. `steps` is the length
    of the training curve, `sampling_steps` that of the sampling; `tolerance` multiplies every entry of `TOLERANCES`.
    The mode is `config.runtime.mode`; single layers are called in PyNative always.
    Raises `UserError` for weights of another shape and for sizes that cannot be.
    """
    if steps > config.train.steps:
        raise UserError(f"--steps is {steps}, more than train.steps, {config.train.steps}: raise --train.steps too")
    sampling = _sampling_options(config, sampling_steps)
    allowed = {check: value * tolerance for check, value in TOLERANCES.items()}
    pair = Pair(
        model, torch_twin.Unet(**dataclasses.asdict(config.model)), build_diffusion(config.diffusion),
        torch_twin.GaussianDiffusion(**dataclasses.asdict(config.diffusion)), config,
    )
    batch = training.draw_batch(dataset, config, 0)
    x_t, t = _array(pair.their_diffusion.q_sample(*map(_torch, batch))), batch[1]
    if pair.jit:
        print("graph mode compiles four graphs, each before its first number", file=sys.stderr)

    with _one_torch_thread():
        fill(pair, weights)
        rows = compare_weights(pair, weights, allowed["weights"])
        rows += compare_tables(pair, allowed["schedule tables"])
        calls = record_calls(pair.twin, x_t, t)
        calls_and_probes = add_probes(pair.twin, calls, config.train.seed)
        rows += compare_layer_outputs(model, calls_and_probes, allowed["layer outputs"])
        rows += compare_layer_inputs(model, calls, x_t, t, allowed["layer inputs"])
        rows += compare_output(pair, x_t, t, allowed["U-Net output"])
        gradient_rows, gradients = compare_gradients(pair, weights, batch, allowed["loss"], allowed["gradients"])
        rows += gradient_rows
        expected = first_update(pair, gradients, equal_formulas=True)
        apart = first_update(pair, gradients, equal_formulas=False)
        training_rows, losses = compare_training(
            pair, weights, expected, dataset, steps, allowed["optimiser step"], allowed["loss curve"]
        )
        rows += training_rows
        fill(pair, weights)
        sampling_rows, samples = compare_sampling(pair, sampling, allowed["sampling"])
        return Comparison(rows + sampling_rows, losses, samples, [_note_on_adam(expected, apart, config.train)])


def _sampling_options(config: Config, sampling_steps: int) -> DiffusionConfig:
    try:
        return dataclasses.replace(config.diffusion, timesteps=sampling_steps)
    except UserError as error:
        raise UserError(f"--sampling_steps is {sampling_steps}: {error}") from error


@dataclass(frozen=True)
class Pair:
    """The two networks and the two processes of one configuration."""

    model: nn.Cell
    twin: torch.nn.Module
    diffusion: GaussianDiffusion
    their_diffusion: Any
    config: Config

    @property
    def jit(self) -> bool:
        """Compile what MindSpore computes."""
        return self.config.runtime.mode == "graph"


def fill(pair: Pair, weights: Arrays) -> None:
    """Give both networks `weights`; what our network lacks is left out. Raises `UserError` for another shape."""
    for name, parameter in pair.model.parameters_and_names():
        if name in weights:
            if weights[name].shape != parameter.shape:
                raise UserError(f"{name} is {parameter.shape} in our network and {weights[name].shape} in the weights")
            parameter.set_data(Tensor(weights[name].copy()))
    theirs = torch_bridge.to_torch(weights, pair.config.model)
    with torch.no_grad():
        for name, parameter in pair.twin.named_parameters():
            parameter.copy_(torch.tensor(theirs[name]))


# ---- One check each ----


def compare_weights(pair: Pair, weights: Arrays, tolerance: float) -> list[Row]:
    """The parameters of the two networks: their names, and their numbers after `fill`."""
    ours = network_weights(pair.model)
    missing = [name for name in weights if name not in ours]
    extra = [name for name in ours if name not in weights]
    rows = [Row("weights", name, tolerance=tolerance, note="our network lacks it") for name in missing]
    rows += [Row("weights", name, tolerance=tolerance, note="PyTorch's network has no such weight") for name in extra]
    shared = _by_torch_names(pair, weights, ours)
    theirs = dict(pair.twin.named_parameters())
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (
        [shared[name] for name in theirs], [_array(value) for value in theirs.values()],
    )]
    return [*rows, measure("weights", f"{len(theirs)} parameters", *flat, tolerance)]


def compare_tables(pair: Pair, tolerance: float) -> list[Row]:
    """Every table of the process."""
    rows = []
    for name, table in vars(pair.diffusion).items():
        if isinstance(table, Tensor):
            theirs = _array(getattr(pair.their_diffusion, name))
            unit = np.maximum(1, np.abs(theirs))
            rows.append(measure("schedule tables", name, table.asnumpy(), theirs, tolerance, unit=unit))
    return rows


@dataclass(frozen=True)
class Call:
    """One call of a layer of the twin."""

    path: str
    inputs: tuple[Any, ...]
    output: np.ndarray
    note: str = ""


def record_calls(twin: torch.nn.Module, x_t: np.ndarray, t: np.ndarray) -> list[Call]:
    """What every layer and block of the twin reads and returns, in the order in which they finish: parts first."""
    calls, handles = [], []

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.append(Call(path, _array(inputs), _array(output)))

    for path, module in twin.named_modules():
        if path:
            handles.append(module.register_forward_hook(keep(path)))
    with torch.no_grad():
        twin(_torch(x_t), _torch(t))
    for handle in handles:
        handle.remove()
    return calls


def add_probes(twin: torch.nn.Module, calls: Sequence[Call], seed: int) -> list[Call]:
    """`calls`, and after each of a layer without parts what that layer makes of normal numbers, large and small."""
    modules = dict(twin.named_modules())
    probed = []
    for call in calls:
        probed.append(call)
        module, x = modules[call.path], call.inputs[0]
        if not any(module.children()) and x.dtype.kind == "f":
            normal = next(image_noise(seed, range(len(x)), x.shape[1:]))
            for factor, name in ((1.0, "normal numbers"), (0.01, "small normal numbers")):
                probe = np.float32(factor) * normal
                with torch.no_grad():
                    output = _array(module(_torch(probe)))
                probed.append(Call(call.path, (probe,), output, f"on {name}"))
    return probed


def compare_layer_outputs(model: nn.Cell, calls: Sequence[Call], tolerance: float) -> list[Row]:
    """Each layer by itself, on the inputs of PyTorch's layer."""
    cells = dict(model.cells_and_names())
    rows = []
    for call in calls:
        if call.path in cells:
            output = cells[call.path](*_mindspore(call.inputs)).asnumpy()
            rows.append(measure("layer outputs", call.path, output, call.output, tolerance, note=call.note))
        else:
            rows.append(Row("layer outputs", call.path, tolerance=tolerance, note="our network has no such layer"))
    return rows


def compare_layer_inputs(
    model: nn.Cell, calls: Sequence[Call], x_t: np.ndarray, t: np.ndarray, tolerance: float
) -> list[Row]:
    """What each layer reads while every layer reads and returns PyTorch's numbers instead of its own."""
    expected = {}
    for call in calls:
        expected.setdefault(call.path, []).append(call)
    rows, handles = [], []

    def replace_inputs(path: str) -> Callable[..., Any]:
        def hook(cell: nn.Cell, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if not expected[path]:
                rows.append(Row("layer inputs", path, tolerance=tolerance, note="PyTorch calls it less often"))
                return inputs
            call = expected[path][0]
            for index, (ours, theirs) in enumerate(zip_longest(inputs, call.inputs)):
                note = f"argument {index + 1}" if len(call.inputs) > 1 else ""
                if (ours is None) != (theirs is None):
                    note = f"argument {index + 1} is given by one network only"
                    rows.append(Row("layer inputs", path, tolerance=tolerance, note=note))
                elif ours is not None:
                    rows.append(measure("layer inputs", path, ours.asnumpy(), theirs, tolerance, note=note))
            return _mindspore(call.inputs)

        return hook

    def replace_output(path: str) -> Callable[..., Any]:
        def hook(cell: nn.Cell, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return _mindspore(expected[path].pop(0).output) if expected[path] else output

        return hook

    for path, cell in model.cells_and_names():
        if path in expected:
            handles += [
                cell.register_forward_pre_hook(replace_inputs(path)), cell.register_forward_hook(replace_output(path))
            ]
    model(_mindspore(x_t), _mindspore(t))
    for handle in handles:
        handle.remove()
    unused = [path for path, left in expected.items() if left]
    return rows + [Row("layer inputs", path, tolerance=tolerance, note="our network never calls it") for path in unused]


def compare_output(pair: Pair, x_t: np.ndarray, t: np.ndarray, tolerance: float) -> list[Row]:
    """The prediction of the whole network."""

    def forward(x: Tensor, time: Tensor) -> Tensor:
        return pair.model(x, time)

    ours = (ms.jit(forward) if pair.jit else forward)(_mindspore(x_t), _mindspore(t))
    with torch.no_grad():
        theirs = pair.twin(_torch(x_t), _torch(t))
    return [measure("U-Net output", "eps_theta(x_t, t)", ours.asnumpy(), _array(theirs), tolerance)]


def compare_gradients(
    pair: Pair, weights: Arrays, batch: Batch, loss_tolerance: float, tolerance: float
) -> tuple[list[Row], Arrays]:
    """The loss of `batch` and the gradient of every parameter; also returns ours, by PyTorch's names."""
    parameters = [(name, value) for name, value in pair.model.parameters_and_names() if value.requires_grad]

    def forward(x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return pair.diffusion.p_losses(pair.model, x_start, t, noise)

    gradients_of = ms.value_and_grad(forward, grad_position=None, weights=[value for _, value in parameters])
    loss, gradients = (ms.jit(gradients_of) if pair.jit else gradients_of)(*map(Tensor, batch))
    their_loss = np.array(_their_gradients(pair, batch))
    rows = [measure("loss", "p_losses", loss.asnumpy(), their_loss, loss_tolerance, unit=np.abs(their_loss))]

    zeros = {name: np.zeros_like(value) for name, value in weights.items()}
    ours = {name: gradient.asnumpy() for (name, _), gradient in zip(parameters, gradients)}
    ours = _by_torch_names(pair, zeros, ours)
    theirs = {
        name: np.zeros_like(ours[name]) if value.grad is None else _array(value.grad)
        for name, value in pair.twin.named_parameters()
    }
    floor = 1e-3 * _rms(np.concatenate([gradient.ravel() for gradient in theirs.values()]))
    for name, gradient in theirs.items():
        unit = max(floor, _rms(gradient))
        rows.append(measure("gradients", name, ours[name], gradient, tolerance, unit=unit, rms=True))
    return rows, ours


def first_update(pair: Pair, gradients: Arrays, equal_formulas: bool) -> Arrays:
    """What clip_grad_norm_ and PyTorch's Adam make of the twin's weights with our `gradients`.

    `equal_formulas` divides Adam's epsilon by sqrt(1 - beta_2): where MindSpore's Adam has it, in the first step.
    """
    config = pair.config.train
    twin = copy.deepcopy(pair.twin)
    for name, parameter in twin.named_parameters():
        parameter.grad = torch.tensor(gradients[name])
    optimizer = _adam(twin, config, config.adam_eps / math.sqrt(1 - config.adam_beta2) if equal_formulas else None)
    _their_update(twin, optimizer, config, training.learning_rates(config)[0])
    return {name: _array(parameter) for name, parameter in twin.named_parameters()}


def compare_training(
    pair: Pair, weights: Arrays, expected: Arrays, dataset: ImageDataset, steps: int, tolerance: float,
    curve_tolerance: float,
) -> tuple[list[Row], tuple[list[float], list[float]]]:
    """Our weights after the first step against `expected`, then the losses of `steps` steps in both frameworks."""
    config = pair.config.train
    optimizer = training.make_optimizer(pair.model, config)
    loss_scaler = DynamicLossScaler(config.loss_scale, config.loss_scale_factor, config.loss_scale_window)
    train_step = training.make_train_step(
        pair.model, pair.diffusion, optimizer, loss_scaler, config.max_grad_norm, pair.jit
    )
    their_optimizer = _adam(pair.twin, config)
    rates = training.learning_rates(config)
    rows, losses, their_losses = [], [], []
    with _progress(steps, "training") as bar:
        for step, rate in enumerate(rates[:steps]):
            batch = training.draw_batch(dataset, pair.config, step)
            losses.append(float(train_step(*map(Tensor, batch))[0].asnumpy()))
            their_losses.append(_their_gradients(pair, batch))
            _their_update(pair.twin, their_optimizer, config, rate)
            if step == 0:
                ours = _by_torch_names(pair, weights, network_weights(pair.model))
                for name, theirs in expected.items():
                    # Of a tiny learning rate 1 % is less than the last digit of a large weight.
                    unit = rate + np.spacing(np.abs(theirs).max()) / TOLERANCES["optimiser step"]
                    rows.append(measure("optimiser step", name, ours[name], theirs, tolerance, unit=unit))
            bar.update()
    for step, pair_of_losses in enumerate(zip(losses, their_losses), start=1):
        ours, theirs = map(np.array, pair_of_losses)
        # Rounding errors grow as training goes on.
        allowed = curve_tolerance if step <= 10 else 10 * curve_tolerance
        rows.append(measure("loss curve", f"step {step}", ours, theirs, allowed, unit=np.abs(theirs)))
    return rows, (losses, their_losses)


def compare_sampling(
    pair: Pair, options: DiffusionConfig, tolerance: float
) -> tuple[list[Row], tuple[np.ndarray, np.ndarray]]:
    """Every x_t of Algorithm 2 with the process `options`; also returns the images, ours and PyTorch's."""
    train, shape = pair.config.train, pair.config.image_shape
    diffusion, theirs = build_diffusion(options), torch_twin.GaussianDiffusion(**dataclasses.asdict(options))
    noise, their_noise = (image_noise(train.seed, range(train.sample_num), shape) for _ in range(2))
    their_x = _torch(next(their_noise))
    rows = []
    with _progress(options.timesteps, "sampling") as bar, torch.no_grad():
        steps = diffusion.p_sample_loop(diffusion.reverse_step(pair.model, pair.jit), noise)
        for t, x in zip(reversed(range(options.timesteps)), steps):
            times = torch.full((train.sample_num,), t)
            their_x = theirs.p_sample(pair.twin, their_x, times, _torch(next(their_noise)))
            rows.append(measure("sampling", f"t = {t}", x.asnumpy(), _array(their_x), tolerance))
            bar.update()
    return rows, (x.asnumpy(), _array(their_x))


# ---- The report ----


def to_table(comparison: Comparison) -> str:
    """One line for each check, for the terminal."""
    lines = [_SUMMARY_HEAD, *_summary_cells(comparison)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def verdict(comparison: Comparison) -> str:
    """The result in one line; it names the layer to mend."""
    row = comparison.first_broken
    if row is None:
        return "PASSED: every check is within its tolerance"
    measured = [f"{row.used:.3g} times the tolerance of {row.tolerance:g}"] if row.size else []
    reason = ", ".join([row.note] * bool(row.note) + measured)
    if row.check.startswith("layer"):
        return f"FAILED: the first layer that broke is {row.name} ({row.check[:-1]}: {reason})"
    return f"FAILED: first past its tolerance is {row.check}, {row.name} ({reason}); every layer passed by itself"


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into; it becomes `folder` at the end, or vanishes after an error.

    Raises `UserError` where something is there already (unless `overwrite`, and it is a report) or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise UserError(f"{folder} is not empty: choose another --out, or replace it with --overwrite")
        if not (folder / "report.json").is_file():
            raise UserError(f"--overwrite would delete {folder}, which is no report (it has no report.json): delete it "
                            "by hand, or choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}; choose another --out") from error
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp made it for its owner alone
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_report(comparison: Comparison, folder: Path, config: Config, about: dict[str, str]) -> None:
    """Write report.md, report.json, config.yaml, loss.png, layers.png and samples.png into `folder`.

    `about` says in words what a reader must know to repeat it: the command, the machine, the versions.
    """
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    (folder / "report.json").write_text(json.dumps(_to_json(comparison, config, about), indent=1) + "\n")
    (folder / "report.md").write_text(_to_markdown(comparison, about))
    _plot_losses(comparison, folder / "loss.png")
    _plot_layers(comparison, folder / "layers.png")
    _plot_samples(comparison, folder / "samples.png")


def about_this_machine(config: Config, command: str, weights: str) -> dict[str, str]:
    """What the numbers depend on: command, weights, mode, device, processor and versions."""
    versions = runtime.versions()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "command": command, "weights": weights, "mode": config.runtime.mode, "device": versions.pop("device"),
        "processor": f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} logical cores",
        **versions, "torch": torch.__version__,
    }


_SUMMARY_HEAD = (
    "check", "compared", "max abs", "mean abs", "relative L2", "cosine", "within", "tolerance", "used", "worst", "",
)
_ROW_HEAD = ("", "numbers", "max abs", "mean abs", "relative L2", "cosine", "within", "used", "")


def _summary_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (row.check, str(count), *_figures(row), f"{row.tolerance:g}", _percent(row.used), worst.name, _word(row))
        for row, worst, count in comparison.summary()
    ]


def _figures(row: Row) -> tuple[str, ...]:
    errors = tuple(f"{value:.1e}" for value in (row.max_abs, row.mean_abs, row.relative_l2))
    return (*errors, f"{row.cosine:.8f}", _percent(math.floor(row.share * 1e5) / 1e5))  # 100 % means all


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _word(row: Row) -> str:
    return "pass" if row.passed else "FAIL"


def _to_markdown(comparison: Comparison, about: dict[str, str]) -> str:
    def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
        return ["", *(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)), ""]

    text = ["# Against PyTorch", "", f"**{verdict(comparison)}**"]
    text += table(("", ""), [(key, f"`{value}`") for key, value in about.items()])
    text += ["## Summary", "", "Of each check the worst figure; `used` is the error as a share of the tolerance."]
    text += table(_SUMMARY_HEAD, _summary_cells(comparison))
    text += [f"- **{check}** (tolerance {TOLERANCES[check]:g}): {EXPLANATIONS[check]}." for check in TOLERANCES]
    text += [f"- {note}" for note in comparison.notes]
    for name in ("loss", "layers", "samples"):
        text += ["", f"![{name}]({name}.png)"]
    for check in TOLERANCES:
        rows = [row for row in comparison.rows if row.check == check]
        text += ["", f"## {check[0].upper()}{check[1:]}"]
        text += table(_ROW_HEAD, [
            (f"`{row.name}`", str(row.size), *_figures(row), _percent(row.used), f"{_word(row)} {row.note}".strip())
            for row in rows
        ])
    return "\n".join(text)


def _to_json(comparison: Comparison, config: Config, about: dict[str, str]) -> dict[str, Any]:
    def plain(row: Row) -> dict[str, Any]:
        fields = {**dataclasses.asdict(row), "passed": row.passed}
        # JSON has no infinity.
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }

    first = comparison.first_broken
    return {
        "passed": comparison.passed, "verdict": verdict(comparison), "first_broken": first and plain(first),
        "about": about, "config": dataclasses.asdict(config),
        "summary": [{**plain(row), "worst": worst.name, "compared": n} for row, worst, n in comparison.summary()],
        "losses": dict(zip(("ours", "torch"), comparison.losses)), "notes": comparison.notes,
        "rows": [plain(row) for row in comparison.rows],
    }


def _plot_losses(comparison: Comparison, path: Path) -> None:
    ours, theirs = (np.array(losses) for losses in comparison.losses)
    steps = np.arange(1, len(ours) + 1)
    tolerances = [row.tolerance for row in comparison.rows if row.check == "loss curve"]
    figure = Figure(figsize=(7, 6))
    curves, difference = figure.subplots(2, 1, sharex=True)
    curves.plot(steps, ours, label="ms_diffusion", color="tab:blue", linewidth=2.5, alpha=0.6)
    curves.plot(steps, theirs, label="PyTorch", color="black", linewidth=1, linestyle="--")
    curves.set(ylabel="loss", yscale="log")
    curves.legend()
    difference.plot(steps, np.abs(ours - theirs) / np.abs(theirs), color="tab:red", linewidth=1, marker=".")
    difference.plot(steps, tolerances, color="gray", linestyle=":")
    difference.set(xlabel="step", ylabel="relative difference\n(dotted: tolerance)")
    difference.xaxis.get_major_locator().set_params(integer=True)
    # A difference of nothing has no logarithm.
    difference.set_yscale("symlog", linthresh=1e-8)
    difference.set_ylim(bottom=0)
    for axis in (curves, difference):
        axis.grid(alpha=0.3, which="both")
    _save(figure, path)


def _plot_layers(comparison: Comparison, path: Path) -> None:
    # Where a layer has several rows, the worst.
    worst = {}
    for row in comparison.rows:
        if row.check == "layer outputs" and not row.used <= getattr(worst.get(row.name), "used", -1.0):
            worst[row.name] = row
    rows = list(worst.values())
    figure = Figure(figsize=(8, 1.5 + 0.13 * len(rows)))
    axis = figure.subplots()
    places = np.arange(len(rows))
    colours = ["tab:blue" if row.passed else "tab:red" for row in rows]
    axis.barh(places, [row.max_abs for row in rows], color=colours)
    axis.axvline(rows[0].tolerance, color="gray", linestyle=":")
    axis.set_yticks(places, [row.name for row in rows], fontsize=6)
    axis.invert_yaxis()
    axis.margins(y=0.005)
    axis.set_xscale("symlog", linthresh=1e-8)
    axis.set_xlim(0, 3 * np.nanmax([rows[0].tolerance, *(row.max_abs for row in rows)]))
    axis.set_xlabel("largest absolute error of the layer's output, on PyTorch's input (dotted: tolerance)")
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _plot_samples(comparison: Comparison, path: Path) -> None:
    ours, theirs = (np.nan_to_num(images[:8]) for images in comparison.samples)
    difference = np.abs(ours - theirs).max(axis=1, keepdims=True)
    figure = Figure(figsize=(1.3 * len(ours) + 1.2, 4.4), layout="constrained")
    axes = figure.subplots(3, len(ours), squeeze=False)
    for column, images in enumerate(zip(to_uint8(ours), to_uint8(theirs))):
        for axis, image in zip(axes[:, column], images):
            axis.imshow(to_picture(image), cmap="gray", vmin=0, vmax=255)
        shown = axes[2, column].imshow(difference[column, 0], cmap="magma", vmin=0, vmax=difference.max() or 1)
    for axis, name in zip(axes[:, 0], ("ms_diffusion", "PyTorch", "difference")):
        axis.set_ylabel(name)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes.ravel().tolist(), location="bottom", shrink=0.6, aspect=50)
    figure.savefig(path, dpi=120)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)


# ---- Between the frameworks ----


def network_weights(model: nn.Cell) -> Arrays:
    """A copy of the network's weights by their names."""
    return {name: parameter.asnumpy().copy() for name, parameter in model.parameters_and_names()}


def _by_torch_names(pair: Pair, defaults: Arrays, ours: Arrays) -> Arrays:
    """`ours` by PyTorch's names; what our network lacks is taken from `defaults`, what it has too much is dropped."""
    return torch_bridge.to_torch({name: ours.get(name, value) for name, value in defaults.items()}, pair.config.model)


def _their_gradients(pair: Pair, batch: Batch) -> float:
    """Give the twin's parameters their gradients, and return the loss."""
    pair.twin.zero_grad()
    loss = pair.their_diffusion.p_losses(pair.twin, *map(_torch, batch))
    loss.backward()
    return loss.item()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """With more, the idle threads of each framework spin on the cores that the other needs: 3 to 10 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _adam(twin: torch.nn.Module, config: TrainConfig, eps: Optional[float] = None) -> torch.optim.Adam:
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.Adam(twin.parameters(), betas=betas, eps=config.adam_eps if eps is None else eps)


def _note_on_adam(equal: Arrays, apart: Arrays, config: TrainConfig) -> str:
    differences = np.concatenate([np.abs(equal[name] - apart[name]).ravel() for name in equal])
    differences /= training.learning_rates(config)[0]
    return (
        f"With epsilon where PyTorch has it, the first step moves {np.mean(differences > 0.01):.1%} of the weights by "
        f"another amount, by more than 1 % of the learning rate; the mean of all is {differences.mean():.2%}. "
        "It fades as 1 - beta_2^t approaches 1; what it does to the training is in the loss curve."
    )


def _their_update(twin: torch.nn.Module, optimizer: torch.optim.Adam, config: TrainConfig, rate: float) -> None:
    """Clip the twin's gradients and update its weights."""
    if config.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(twin.parameters(), config.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _progress(total: int, name: str) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=name, unit="step", dynamic_ncols=True, mininterval=interval)


def _rms(array: np.ndarray) -> float:
    return math.sqrt(np.square(array, dtype=np.float64).mean())


def _array(value: Any) -> Any:
    """A torch tensor as a NumPy array; a tuple of them likewise; None as it is."""
    if isinstance(value, tuple):
        return tuple(_array(item) for item in value)
    return None if value is None else value.detach().numpy().copy()


def _torch(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.int64 if array.dtype.kind == "i" else torch.float32)


def _mindspore(value: Any) -> Any:
    """A NumPy array as our tensor; a tuple of them likewise; None as it is."""
    if isinstance(value, tuple):
        return tuple(_mindspore(item) for item in value)
    return None if value is None else Tensor(value, mstype.int32 if value.dtype.kind == "i" else mstype.float32)
