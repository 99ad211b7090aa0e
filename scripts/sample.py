"""Sample images from a run folder.

  python scripts/sample.py --run runs/digits --num 64 --seed 0 --out samples.png --gif denoise.gif --npz samples.npz
  python scripts/sample.py --run runs/digits --sampler dpmpp_2m --steps 15
  python scripts/sample.py --run runs/digits_conditional --label all --guidance 2 --sampler dpmpp_2m --steps 15
"""

from functools import partial
from pathlib import Path
from typing import Literal, Optional, Tuple

import numpy as np
from jsonargparse import Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt
from mindspore import nn

from ms_diffusion import checkpoint, graphs, guidance, native, runtime, samplers, visualize
from ms_diffusion.classifier import guide
from ms_diffusion.config import Parser, RuntimeConfig, to_yaml
from ms_diffusion.data import to_uint8
from ms_diffusion.errors import check_writable, exit_on_user_error
from ms_diffusion.sampling import Loop, sample


def main() -> None:
    """Parse, load, sample, write."""
    parser = Parser(description=__doc__, usage="%(prog)s --run DIR [options]")
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument(
        "--weights", type=Optional[Literal["ema", "model"]], default=None,
        help="ema, the moving average, or model, those of the last step; the average where there is one",
    )
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
    parser.add_argument(
        "--rederive_eps", type=bool, default=True,
        help="make eps fit the clipped x_0, for ddim, pndm and others that use both; false is the papers' form",
    )
    parser.add_argument("--num", type=PositiveInt, default=64, help="images to draw")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="the same seed gives the same images")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="images at a time; changes no image")
    parser.add_argument("--out", type=str, default="samples.png", help="picture of all images, by its name's format")
    parser.add_argument("--gif", type=Optional[str], default=None, help="animation of up to 25 images being denoised")
    parser.add_argument(
        "--npz", type=Optional[str], default=None,
        help="arrays: samples, float32 (N, C, H, W) as sampled, images, uint8 (N, H, W, C), and the asked labels (N,)",
    )
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
    parser.add_argument("--runtime", type=RuntimeConfig, default=RuntimeConfig())
    options = parser.parse_args()
    check_writable(options.out, visualize.picture_suffixes())
    if options.gif:
        check_writable(options.gif, [".gif"])
    if options.npz:
        check_writable(options.npz, [".npz"])

    runtime.setup(parser.instantiate(options).runtime)
    run = checkpoint.load_run(options.run, options.weights)
    graphs.keep(to_yaml(run.config) + guidance_text(options), native.library())
    model, labels = guide(
        run, options.label, min(options.num, options.batch_size), weight=options.guidance,
        rescale=options.guidance_rescale, interval=options.guidance_interval, folder=options.classifier,
    )
    loop, steps = make_loop(run, model, options)
    frame_steps = visualize.frame_steps(steps) if options.gif else ()
    samples, frames = sample(
        loop, steps, run.config.image_shape, options.num, options.seed,
        batch_size=options.batch_size, frame_steps=frame_steps, progress=True,
        before=None if labels is None else lambda images: model.tell(guidance.label_images(images, labels)),
    )
    told = {} if labels is None else {"labels": guidance.label_images(range(options.num), labels)}

    images = to_uint8(samples)
    grid = visualize.label_grid(images, told["labels"]) if told else visualize.make_grid(images)
    visualize.save_picture(grid, options.out)
    print(f"{options.num} images after {run.step} training steps ({run.weights}): {Path(options.out)}")
    if options.gif:
        visualize.save_gif([visualize.make_grid(to_uint8(frame[:25])) for frame in frames], options.gif)
        print(f"denoising: {options.gif}")
    if options.npz:
        np.savez(options.npz, samples=samples, images=images.transpose(0, 2, 3, 1), **told)
        print(f"arrays: {options.npz}")


def guidance_text(options: Namespace) -> str:
    """What the compiled network follows from besides the run, in words."""
    weights = (options.guidance, options.guidance_rescale, options.guidance_interval)
    classifier = to_yaml(checkpoint.read_config(options.classifier)) if options.classifier else ""
    return f"guidance: {weights if options.label else None}\n{classifier}"


def make_loop(run: checkpoint.Run, model: nn.Cell, options: Namespace) -> tuple[Loop, int]:
    """The sampler that was asked for, with the run's network as `model`, and how many steps it takes."""
    names = (
        "spacing", "eta", "variance", "order", "churn", "churn_from", "churn_to", "churn_noise", "snr", "corrections",
        "tolerance",
    )
    chosen = {name: options[name] for name in names if options[name] is not None}
    jit, timesteps = options.runtime.mode == "graph", run.diffusion.timesteps
    ancestral = options.sampler == "ancestral"
    if ancestral and not chosen and options.steps in (None, timesteps):
        return partial(run.diffusion.p_sample_loop, run.diffusion.reverse_step(model, jit)), timesteps
    steps = options.steps or (timesteps if ancestral else min(20, timesteps))
    if ancestral:
        chosen.setdefault("variance", run.config.diffusion.variance)
    sampler = samplers.find(options.sampler, **chosen)
    samplers.check(sampler, run.diffusion.schedule, steps)
    denoise = run.diffusion.denoiser(model, jit, options.rederive_eps, chosen.get("variance") == "learned")
    return partial(sampler, denoise, run.diffusion.schedule, steps=steps), steps


if __name__ == "__main__":
    exit_on_user_error(main)
