"""Every option of a run, each with its one default: frozen dataclasses, YAML files, dotted overrides.

The order is field < YAML < command line. An unknown key or a wrong type is an error that names the key.
The text under a field is the option's line in `--help` and in the README's table.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Optional, Sequence, Tuple, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from ms_diffusion.errors import UserError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _require(condition: bool, key: str, value: Any, mend: str) -> None:
    if not condition:
        raise UserError(f"{key} is {value!r}: {mend}")


def _require_choices(group: str, config: Any) -> None:
    """The command line checks the literals by itself; a Python program's are checked here. No number is infinite."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, float):
            _require(math.isfinite(value), f"{group}.{name}", value, "it must be a finite number")
        if get_origin(hint) is Literal:
            value, choices = getattr(config, name), get_args(hint)
            _require(value in choices, f"{group}.{name}", value, f"choose from {choices}")


@dataclass(frozen=True)
class ModelConfig:
    """The network, `Unet`; the defaults are the PyTorch baseline's."""

    dim: int = 28
    """Channels of the first stage, and of the time embedding; even, at least 4."""
    init_dim: Optional[int] = None
    """Channels after the first convolution; null means dim // 3 * 2."""
    out_dim: Optional[int] = None
    """Channels of the output; null means those of the input, or twice as many with diffusion.variance=learned."""
    dim_mults: Tuple[int, ...] = (1, 2, 4)
    """Channels of each stage in units of dim; every stage but the last halves the image."""
    channels: int = 1
    """Channels of the image: 1 is gray, 3 is colour; the data are converted to it."""
    with_time_emb: bool = True
    """Tell the network the time step; without it the network is the same at every noise level."""
    num_classes: int = 0
    """Classes of images that the network is told apart by their labels; 0 tells it none."""
    block: Literal["convnext", "resnet"] = "convnext"
    """The block of every stage."""
    convnext_mult: int = 2
    """Widening inside a ConvNeXt block."""
    resnet_groups: int = 4
    """Groups of the group norm in a ResNet block; must divide the channels of every stage."""
    conv_bias: bool = True
    """Biases on the blocks' and resampling convolutions: PyTorch's default; false is MindSpore's, so the tutorial's."""
    gelu: Literal["erf", "tanh"] = "erf"
    """The exact GELU is PyTorch's default; the tanh form is MindSpore's, so the tutorial's."""
    scale_values: bool = False
    """Divide the values of linear attention by height * width, as the tutorial does and the baseline does not."""
    norm: Literal["group", "layer", "layer_bias"] = "group"
    """Norm in ConvNeXt blocks and before attention: GroupNorm(1), or over channels with gain only or gain and bias."""
    attention_norm: Literal["group", "layer", "layer_bias"] = "group"
    """Norm after linear attention: the baseline's group, the tutorial's layer, or the post's first form, layer_bias."""

    def __post_init__(self) -> None:
        _require_choices("model", self)
        _require(self.dim >= 4 and self.dim % 2 == 0, "model.dim", self.dim, "it must be even and at least 4")
        for name in ("init_dim", "out_dim"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"model.{name}", value, "it must be null or at least 1")
        object.__setattr__(self, "dim_mults", tuple(self.dim_mults))
        _require(
            len(self.dim_mults) > 0 and all(m >= 1 for m in self.dim_mults),
            "model.dim_mults", self.dim_mults, "it must be one or more whole numbers, each at least 1",
        )
        _require(self.channels >= 1, "model.channels", self.channels, "it must be at least 1")
        _require(self.convnext_mult >= 1, "model.convnext_mult", self.convnext_mult, "it must be at least 1")
        _require(self.resnet_groups >= 1, "model.resnet_groups", self.resnet_groups, "it must be at least 1")
        _require(self.num_classes >= 0, "model.num_classes", self.num_classes, "it must not be negative")
        _require(
            self.with_time_emb or not self.num_classes, "model.num_classes", self.num_classes,
            "it must be 0 where model.with_time_emb is false, because labels are told with the time step",
        )
        if self.block == "resnet":
            widths = sorted({self.dim, *(self.dim * m for m in self.dim_mults)})
            _require(
                all(width % self.resnet_groups == 0 for width in widths),
                "model.resnet_groups", self.resnet_groups, f"it must divide the stages' channels {widths}",
            )

    @property
    def downscale(self) -> int:
        """The factor by which the network shrinks an image: height and width must be its multiples."""
        return 2 ** (len(self.dim_mults) - 1)


TUTORIAL = {"conv_bias": False, "gelu": "tanh", "scale_values": True, "attention_norm": "layer"}
"""What makes the baseline's network the MindSpore tutorial's, exactly."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The process, `GaussianDiffusion`."""

    timesteps: int = 200
    """T, the number of noise levels."""
    schedule: Literal["linear", "cosine", "quadratic", "sigmoid"] = "linear"
    """How beta_t grows with t."""
    beta_start: float = 1e-4
    """First beta at T = 1000; the cosine schedule has none."""
    beta_end: float = 0.02
    """Last beta at T = 1000; the cosine schedule has none."""
    scale_betas: bool = True
    """Multiply the betas by 1000 / T, so that x_T is noise at every T; the tutorial does not."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that x_T is noise alone; not for objective=eps, which says nothing there."""
    objective: Literal["eps", "x_start", "v"] = "eps"
    """What the network predicts: the noise (the paper's), the image, or v, a mixture of both (conversions.py)."""
    variance: Literal["fixed_small", "fixed_large", "learned"] = "fixed_small"
    """sigma_t^2 of the reverse step: beta-tilde_t (small, the tutorial's), beta_t (large), or learned between them."""
    loss: Literal["l1", "l2", "huber"] = "l2"
    """Distance between target and prediction; l2 is the paper's L_simple, huber the tutorial's."""
    loss_weight: Literal["constant", "p2", "min_snr", "vlb"] = "p2"
    """Weight of each t in the loss; p2 is constant while p2_gamma is 0; vlb makes the loss the variational bound."""
    p2_gamma: float = 0.0
    """Power of the p2 weight (k + SNR)^-gamma; 0 weights all t alike."""
    p2_k: float = 1.0
    """Offset k of the p2 weight."""
    min_snr_gamma: float = 5.0
    """min_snr only: SNR from which an error of x_0 weighs no more."""
    offset_noise: float = 0.0
    """Training adds to the noise one number for each whole channel, of this standard deviation; 0 adds none."""
    clip_x_start: bool = True
    """Clip the predicted x_0 to [-1, 1] while sampling."""

    def __post_init__(self) -> None:
        _require_choices("diffusion", self)
        _require(self.timesteps >= 2, "diffusion.timesteps", self.timesteps, "it must be at least 2")
        _require(
            0 < self.beta_start <= self.beta_end < 1, "diffusion.beta_start, diffusion.beta_end",
            (self.beta_start, self.beta_end), "they must satisfy 0 < beta_start <= beta_end < 1",
        )
        if self.schedule != "cosine" and self.scale_betas:
            largest = self.beta_end * 1000 / self.timesteps
            _require(
                largest < 1, "diffusion.timesteps", self.timesteps,
                f"scale_betas makes the last beta {largest:g}, and it must stay below 1; take more steps, "
                "or schedule=cosine, or scale_betas=false",
            )
        _require(self.p2_gamma >= 0, "diffusion.p2_gamma", self.p2_gamma, "it must not be negative")
        _require(self.p2_k > 0, "diffusion.p2_k", self.p2_k, "it must be positive")
        _require(
            self.p2_gamma == 0 or self.loss_weight == "p2", "diffusion.p2_gamma", self.p2_gamma,
            f"it is the weight p2's, and diffusion.loss_weight is {self.loss_weight}: choose one of them",
        )
        _require(self.min_snr_gamma > 0, "diffusion.min_snr_gamma", self.min_snr_gamma, "it must be positive")
        _require(self.offset_noise >= 0, "diffusion.offset_noise", self.offset_noise, "it must not be negative")
        _require(
            self.loss_weight != "vlb" or self.loss == "l2", "diffusion.loss", self.loss,
            "diffusion.loss_weight=vlb makes the bound of squared distances: choose diffusion.loss=l2",
        )
        _require(
            not self.zero_terminal_snr or self.objective != "eps", "diffusion.zero_terminal_snr",
            self.zero_terminal_snr, "x_T is then noise alone, and eps says nothing of the image: choose "
            "diffusion.objective=v",
        )


@dataclass(frozen=True)
class DataConfig:
    """The images."""

    name: Literal["digits", "fashion_mnist", "mnist", "cifar10", "images"] = "digits"
    """digits is embedded in scikit-learn (8x8, no download); images is a folder of pictures."""
    folder: Optional[str] = None
    """Where the files lie, and then the only place; null searches the system's package, the cache, the mirrors."""
    cache: str = "~/.cache/ms_diffusion"
    """Where downloads are kept."""
    download: bool = True
    """Ask the mirrors for what is not on this machine; digits and images never do."""
    image_size: int = 8
    """Height and width in pixels; other sizes are resized on the shorter side and cropped in the centre."""
    horizontal_flip: bool = False
    """Mirror each training image with probability 1/2; never for digits or letters."""
    undecodable: Literal["refuse", "skip"] = "refuse"
    """images only: where a picture cannot be decoded, end with its name, or name it and go on."""
    memory: float = 1.0
    """images only: GiB that the decoded pictures may take; a larger folder is read while training; 0 reads any so."""
    workers: Optional[int] = None
    """Threads that decode a folder read while training; null is the cores that the process may use but one, 1 to 8."""

    def __post_init__(self) -> None:
        _require_choices("data", self)
        _require(self.image_size >= 1, "data.image_size", self.image_size, "it must be at least 1")
        _require(self.memory >= 0, "data.memory", self.memory, "it must not be negative")
        _require(
            self.workers is None or self.workers >= 1, "data.workers", self.workers, "it must be null or at least 1"
        )
        for name in ("folder", "cache"):
            _require(getattr(self, name) != "", f"data.{name}", "", "give the path of a folder")
        _require(
            self.name != "digits" or self.folder is None,
            "data.folder", self.folder, "data.name=digits reads no folder: leave it out, or choose another data.name",
        )
        _require(
            self.name != "images" or self.folder is not None,
            "data.folder", self.folder, "data.name=images needs the folder that holds the pictures",
        )


@dataclass(frozen=True)
class TrainConfig:
    """The training."""

    steps: int = 2000
    """Steps of the whole run."""
    batch_size: int = 64
    """Images that one device takes at once."""
    accumulate: int = 1
    """Micro-batches of batch_size images whose gradients make one step."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of convolutions, dense layers and matrix products; weights, norms, softmax, loss and Adam stay in fp32."""
    lr: float = 1e-4
    """Largest learning rate, reached after the warm-up."""
    lr_min: float = 1e-7
    """Learning rate at the end of the cosine."""
    lr_warmup_steps: int = 0
    """Steps of linear growth before the cosine."""
    lr_decay_steps: Optional[int] = None
    """Step at which the cosine reaches lr_min; null means the last step of the run."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped; 0 does not clip."""
    loss_scale: float = 65536.0
    """First scale of the DynamicLossScaler."""
    loss_scale_factor: int = 2
    """The scale is divided by this after an overflow, multiplied after a window without one."""
    loss_scale_window: int = 1000
    """Steps without overflow before the scale grows."""
    loss_scale_max: float = 2.0**24
    """The scale grows no further: in fp32 nothing else would stop it."""
    max_skipped_steps: int = 50
    """Steps in a row that may overflow and be skipped; one more ends the run. From the first scale to 1 it is 16."""
    label_drop: float = 0.1
    """Probability with which an image's label is kept from the network, for guidance; only with model.num_classes."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which sampling uses; 0 keeps no average."""
    ema_ramp: float = 10.0
    """At the n-th update the decay is at most (1 + n) / (ema_ramp + n); 1 has no ramp."""
    ema_start: int = 0
    """Steps before the average begins; until then it is the weights themselves."""
    ema_every: int = 1
    """Steps between updates of the average."""
    seed: int = 0
    """Weights, order of the images, time steps and noise all follow from it."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl; each line holds the mean of the steps since the last."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 3
    """The newest checkpoints that are kept, in case one is damaged; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept as well; 0 keeps none for that."""
    sample_every: int = 1000
    """Steps between pictures of samples; 0 draws none."""
    sample_num: int = 16
    """Images in such a picture."""
    tensorboard: bool = True
    """Write the figures and the pictures of samples for TensorBoard too, into tensorboard/ of the run folder."""
    profile: int = 0
    """Steps to profile, after the first three; 0 profiles none."""
    check_ranks_every: int = 0
    """Steps between checks that all ranks hold equal weights; the start is always checked; 0 checks no more."""

    def __post_init__(self) -> None:
        _require_choices("train", self)
        for name in (
            "steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "sample_num", "loss_scale_window",
            "max_skipped_steps", "ema_ramp", "ema_every",
        ):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "it must be at least 1")
        for name in (
            "lr_warmup_steps", "sample_every", "max_grad_norm", "seed", "ema_start", "keep_checkpoints", "keep_every",
            "profile", "check_ranks_every",
        ):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "it must not be negative")
        _require(
            0 <= self.lr_min <= self.lr and self.lr > 0, "train.lr, train.lr_min", (self.lr, self.lr_min),
            "they must satisfy 0 <= lr_min <= lr and lr > 0",
        )
        _require(
            self.lr_decay_steps is None or self.lr_decay_steps >= 1,
            "train.lr_decay_steps", self.lr_decay_steps, "it must be null or at least 1",
        )
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "it must be in [0, 1)")
        _require(0 <= self.label_drop < 1, "train.label_drop", self.label_drop, "it must be in [0, 1)")
        _require(self.adam_eps > 0, "train.adam_eps", self.adam_eps, "it must be positive")
        _require(
            1 <= self.loss_scale <= self.loss_scale_max < 2.0**120, "train.loss_scale, train.loss_scale_max",
            (self.loss_scale, self.loss_scale_max), "they must satisfy 1 <= loss_scale <= loss_scale_max < 2^120",
        )
        factor = self.loss_scale_factor
        _require(factor >= 2, "train.loss_scale_factor", factor, "it must be at least 2")


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine."""

    device: Literal["auto", "CPU", "GPU", "Ascend"] = "auto"
    """Where to compute; auto takes Ascend, else GPU, else CPU, as this machine has them."""
    mode: Literal["graph", "pynative"] = "graph"
    """graph compiles each step once with ms.jit; pynative runs operator by operator, for debugging."""
    threads: Optional[int] = None
    """Cores that an operator on the CPU may use; null takes all that the process may use, shared among its ranks."""
    hf32: bool = False
    """Round float32 in convolutions and matrix products for speed: HF32 on Ascend, TF32 on a GPU; never on a CPU."""
    deterministic: bool = False
    """Ask Ascend or a GPU for the same bits in every run, which makes operators slower; a CPU gives them anyway."""
    jit_level: Literal["O0", "O1"] = "O0"
    """How far ms.jit optimises on Ascend and a GPU; O1 fuses operators and is experimental in MindSpore 2.8."""

    def __post_init__(self) -> None:
        _require_choices("runtime", self)
        allowed = self.threads is None or 1 <= self.threads <= 1024
        _require(allowed, "runtime.threads", self.threads, "it must be null or from 1 to 1024")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        factor = self.model.downscale
        _require(
            self.data.image_size % factor == 0, "data.image_size", self.data.image_size,
            f"it must be a multiple of {factor}, because model.dim_mults {self.model.dim_mults} halves the image "
            f"{len(self.model.dim_mults) - 1} times",
        )
        out_dim, channels = self.model.out_dim, self.model.channels
        if self.diffusion.variance == "learned":
            _require(
                out_dim in (None, 2 * channels), "model.out_dim", out_dim,
                f"it must be null or {2 * channels}, twice model.channels, because the network learns the variance too",
            )
            object.__setattr__(self, "model", dataclasses.replace(self.model, out_dim=2 * channels))
        else:
            _require(
                out_dim in (None, channels), "model.out_dim", out_dim,
                f"it must be null or model.channels, {channels}, because the network predicts one number for each of "
                "the image's",
            )

    @property
    def image_shape(self) -> Tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.model.channels, self.data.image_size, self.data.image_size)


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults and types in every line, the script's examples as they were written."""


class Parser(jsonargparse.ArgumentParser):
    """A command line whose mistakes raise `UserError`, in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **kwargs)

    def error(self, message: str, ex: Optional[Exception] = None) -> NoReturn:
        """Raise `UserError` with `message` in one line, and where help is."""
        line = " ".join(re.sub(r"<class '(\w+)'>", r"\1", message).split())
        raise UserError(f"{line} (see {self.prog} --help)") from ex


def add_options(parser: jsonargparse.ArgumentParser) -> None:
    """Give `parser` the option --config and one dotted option for every field of `Config`."""
    parser.add_argument("--config", action="config", help="YAML file that states what differs from the defaults")
    for group in dataclasses.fields(Config):
        parser.add_argument(f"--{group.name}", type=_GROUPS[group.name], default=_GROUPS[group.name]())


_GROUPS = {
    "model": ModelConfig, "diffusion": DiffusionConfig, "data": DataConfig,
    "train": TrainConfig, "runtime": RuntimeConfig,
}


def from_namespace(parser: jsonargparse.ArgumentParser, options: jsonargparse.Namespace) -> Config:
    """The `Config` of parsed options; raises `UserError` for a value that cannot be."""
    groups = parser.instantiate(options)
    return Config(**{name: groups[name] for name in _GROUPS})


def load(path: Optional[Union[str, Path]] = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration: the defaults, then the YAML file `path`, then `overrides`.

    `overrides` are command-line words, such as `["--train.steps", "500"]`.
    Raises `UserError`, naming the key, for an unknown key, a wrong type or a value that cannot be.
    """
    parser = Parser(prog="scripts/train.py")
    add_options(parser)
    words = ([] if path is None else [f"--config={path}"]) + list(overrides)
    try:
        return from_namespace(parser, parser.parse_args(words))
    except UserError as error:
        raise UserError(f"{path}: {error}" if path is not None else str(error)) from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back to an equal `Config`."""
    tree = dataclasses.asdict(config)
    tree["model"]["dim_mults"] = list(tree["model"]["dim_mults"])
    return yaml.safe_dump(tree, sort_keys=False)
