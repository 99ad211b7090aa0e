"""What the command lines that sample share: their options, and the run, labels and sampler that those ask for."""

from __future__ import annotations

from functools import partial
from typing import Callable, Literal, Optional, Sequence, Tuple

from jsonargparse import Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt
from mindspore import nn

from ms_diffusion import checkpoint, graphs, guidance, native, runtime, samplers
from ms_diffusion.classifier import guide
from ms_diffusion.config import Parser, RuntimeConfig, to_yaml
from ms_diffusion.schedules import NoiseSchedule

_SAMPLER_OPTIONS = (
    "spacing", "eta", "variance", "order", "churn", "churn_from", "churn_to", "churn_noise", "snr", "corrections",
    "tolerance",
)


def add_run(parser: Parser) -> None:
    """Which run, and which of its weights."""
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument(
        "--weights", type=Optional[Literal["ema", "model"]], default=None,
        help="ema, the moving average, or model, those of the last step; the average where there is one",
    )


def add_sampler(parser: Parser) -> None:
    """Which sampler, its steps, and its own options."""
    parser.add_argument("--sampler", type=str, default="ancestral", help="one of " + ", ".join(samplers.SAMPLERS))
    parser.add_argument(
        "--steps", type=Optional[PositiveInt], default=None, help="at most T; null means T for ancestral, else 20"
    )
    parser.add_argument(
        "--spacing", type=Optional[str], default=None,
        help=f"where the steps lie: {', '.join(samplers.SPACINGS)}; null means the sampler's own",
    )
    parser.add_argument("--eta", type=Optional[float], default=None, help="ddim: 0 to 1, DDPM's noise; null means 0")
    parser.add_argument(
        "--variance", type=Optional[str], default=None,
        help="ancestral: fixed_small, fixed_large, learned; null means the run's",
    )
    parser.add_argument("--order", type=Optional[int], default=None, help="unipc: from 1 to 4; null means 2")
    parser.add_argument("--churn", type=Optional[float], default=None, help="heun, euler: S_churn; null means 0")
    parser.add_argument(
        "--churn_from", type=Optional[float], default=None, help="heun, euler: S_tmin, a sigma; null means 0"
    )
    parser.add_argument(
        "--churn_to", type=Optional[float], default=None, help="heun, euler: S_tmax, a sigma; null means no end"
    )
    parser.add_argument("--churn_noise", type=Optional[float], default=None, help="heun, euler: S_noise; null means 1")
    parser.add_argument("--snr", type=Optional[float], default=None, help="predictor_corrector: null means 0.16")
    parser.add_argument(
        "--corrections", type=Optional[int], default=None, help="predictor_corrector: of each level; null means 1"
    )
    parser.add_argument("--tolerance", type=Optional[float], default=None, help="ode: of the solver; null means 1e-5")
    add_rederive_eps(parser)


def add_rederive_eps(parser: Parser) -> None:
    """What clipping means for the noise."""
    parser.add_argument(
        "--rederive_eps", type=bool, default=True,
        help="make eps fit the clipped x_0, for ddim, pndm and others that use both; false is the papers' form",
    )


def add_labels(parser: Parser) -> None:
    """Labels, and how strongly they guide."""
    parser.add_argument(
        "--label", type=Optional[str], default=None,
        help="3, 0,1,2 or all: the labels that the images take in turn; without it they have none",
    )
    parser.add_argument(
        "--guidance", type=Optional[NonNegativeFloat], default=None,
        help="weight of the label: 0 is none, 1 (where --label stands alone) the network's own, above 1 stronger",
    )
    parser.add_argument(
        "--guidance_rescale", type=ClosedUnitInterval, default=0.0,
        help="how much of the guided prediction's contrast is made that of the unguided one",
    )
    parser.add_argument(
        "--guidance_interval", type=Optional[Tuple[NonNegativeInt, NonNegativeInt]], default=None,
        help="[first,last] noise level t at which to guide; elsewhere the weight is 1",
    )
    parser.add_argument(
        "--classifier", type=Optional[str], default=None,
        help="folder of scripts/train_classifier.py, whose gradient guides in the place of the network's own labels",
    )


def open_run(
    options: Namespace, machine: RuntimeConfig, size: int
) -> tuple[checkpoint.Run, nn.Cell, Optional[list[int]]]:
    """The run, what samples from it in batches of `size`, and the labels that images take in turn, or None."""
    runtime.setup(machine)
    run = checkpoint.load_run(options.run, options.weights)
    graphs.keep(to_yaml(run.config) + _guidance_text(options), native.library())
    model, labels = guide(
        run, options.label, size, weight=options.guidance, rescale=options.guidance_rescale,
        interval=options.guidance_interval, folder=options.classifier,
    )
    return run, model, labels


def before_batch(model: nn.Cell, labels: Optional[Sequence[int]]) -> Optional[Callable[[range], None]]:
    """What `sampling.sample` is to do before each batch: tell the network its images' labels, where there are any."""
    return None if labels is None else lambda images: model.tell(guidance.label_images(images, labels))


def choose_sampler(run: checkpoint.Run, options: Namespace, schedule: NoiseSchedule) -> tuple[partial, int]:
    """The sampler that was asked for, its options filled in, and how many steps it takes on `schedule`."""
    chosen = {name: options[name] for name in _SAMPLER_OPTIONS if options.get(name) is not None}
    ancestral = options.sampler == "ancestral"
    steps = options.steps or (len(schedule) if ancestral else min(20, len(schedule)))
    if ancestral:
        chosen.setdefault("variance", run.config.diffusion.variance)
    sampler = samplers.find(options.sampler, **chosen)
    samplers.check(sampler, schedule, steps)
    return sampler, steps


def make_denoiser(run: checkpoint.Run, model: nn.Cell, options: Namespace, sampler: partial) -> samplers.Denoiser:
    """What `sampler`, which `samplers.find` found, asks; compiled in graph mode."""
    tell_variance = sampler.keywords.get("variance") == "learned"
    return run.diffusion.denoiser(model, options.runtime.mode == "graph", options.rederive_eps, tell_variance)


def is_algorithm_2(options: Namespace, timesteps: int) -> bool:
    """Whether all of DDPM's steps are asked for, and nothing special of them."""
    special = any(options[name] is not None for name in _SAMPLER_OPTIONS)
    return options.sampler == "ancestral" and not special and options.steps in (None, timesteps)


def _guidance_text(options: Namespace) -> str:
    """What the compiled network follows from besides the run, in words."""
    weights = (options.guidance, options.guidance_rescale, options.guidance_interval)
    classifier = to_yaml(checkpoint.read_config(options.classifier)) if options.classifier else ""
    return f"guidance: {weights if options.label else None}\n{classifier}"
