"""Our network and process against their PyTorch twins, from the schedule's tables to a sampled image.

Both get the same weights, the same images in the same order, the same t and the same noise. The order of the checks
is the order in which an error travels, so the first check that fails is the one to mend.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Callable, Iterator, Optional, Sequence

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from tqdm import tqdm

from ms_diffusion import batches, machine, runtime, torch_bridge, torch_twin
from ms_diffusion.comparison_report import TOLERANCES, Comparison, Row, measure
from ms_diffusion.config import Config, DiffusionConfig, TrainConfig
from ms_diffusion.data import ImageDataset
from ms_diffusion.diffusion import GaussianDiffusion, build_diffusion
from ms_diffusion.errors import UserError
from ms_diffusion.randomness import image_noise
from ms_diffusion.train_step import TrainState, learning_rates, make_train_step

Arrays = dict[str, np.ndarray]
"""Weights or gradients by their names."""
Batch = tuple[np.ndarray, ...]
"""Images, t, noise and, of a conditional network, labels."""


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
    batch = batches.draw_batch(dataset, config, 0)
    x_t, t = _array(pair.their_diffusion.q_sample(*map(_torch, batch[:3]))), batch[1]
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
    """What the inputs are, where they are not the network's."""


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
            unit = max(1.0, _rms(call.output))
            rows.append(measure("layer outputs", call.path, output, call.output, tolerance, unit=unit, note=call.note))
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
                    unit = max(1.0, _rms(theirs))
                    rows.append(measure("layer inputs", path, ours.asnumpy(), theirs, tolerance, unit=unit, note=note))
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

    def forward(*inputs: Tensor) -> Tensor:
        return pair.diffusion.p_losses(pair.model, *inputs)

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
    # Below it lies what rounding leaves of gradients that are zero: it came to 1.1e-6 of the whole.
    floor = 1e-2 * _rms(np.concatenate([gradient.ravel() for gradient in theirs.values()]))
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
    _their_update(twin, optimizer, config, learning_rates(config)[0])
    return {name: _array(parameter) for name, parameter in twin.named_parameters()}


def compare_training(
    pair: Pair, weights: Arrays, expected: Arrays, dataset: ImageDataset, steps: int, tolerance: float,
    curve_tolerance: float,
) -> tuple[list[Row], tuple[list[float], list[float]]]:
    """Our weights after the first step against `expected`, then the losses of `steps` steps in both frameworks."""
    config = pair.config.train
    train_step = make_train_step(TrainState(pair.model, config), pair.diffusion, pair.jit)
    their_optimizer = _adam(pair.twin, config)
    rates = learning_rates(config)
    rows, losses, their_losses = [], [], []
    with _progress(steps, "training") as bar:
        for step, rate in enumerate(rates[:steps]):
            batch = batches.draw_batch(dataset, pair.config, step)
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
    differences /= learning_rates(config)[0]
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


def about_this_machine(config: Config, command: str, weights: str) -> dict[str, str]:
    """What the numbers depend on: command, weights, mode, device, processor and versions."""
    versions = runtime.versions()
    return {
        "command": command, "weights": weights, "mode": config.runtime.mode, "device": versions.pop("device"),
        "processor": machine.processor(), **versions, "torch": torch.__version__,
    }
