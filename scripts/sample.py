"""Sample images from a run folder.

  python scripts/sample.py --run runs/digits --num 64 --seed 0 --out samples.png --gif denoise.gif --npz samples.npz
  python scripts/sample.py --run runs/digits --sampler dpmpp_2m --steps 15
  python scripts/sample.py --run runs/digits_conditional --label all --guidance 2 --sampler dpmpp_2m --steps 15
"""

from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from mindspore import nn

from ms_diffusion import checkpoint, guidance, sampling_command, visualize
from ms_diffusion.config import Parser, RuntimeConfig
from ms_diffusion.data import to_uint8
from ms_diffusion.errors import check_writable, exit_on_user_error
from ms_diffusion.sampling import Loop, sample


def main() -> None:
    """Parse, load, sample, write."""
    parser = Parser(description=__doc__, usage="%(prog)s --run DIR [options]")
    sampling_command.add_run(parser)
    sampling_command.add_sampler(parser)
    parser.add_argument("--num", type=PositiveInt, default=64, help="images to draw")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="the same seed gives the same images")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="images at a time; changes no image")
    parser.add_argument("--out", type=str, default="samples.png", help="picture of all images, by its name's format")
    parser.add_argument("--gif", type=Optional[str], default=None, help="animation of up to 25 images being denoised")
    parser.add_argument(
        "--npz", type=Optional[str], default=None,
        help="arrays: samples, float32 (N, C, H, W) as sampled, images, uint8 (N, H, W, C), and the asked labels (N,)",
    )
    sampling_command.add_labels(parser)
    parser.add_argument("--runtime", type=RuntimeConfig, default=RuntimeConfig())
    options = parser.parse_args()
    check_writable(options.out, visualize.picture_suffixes())
    if options.gif:
        check_writable(options.gif, [".gif"])
    if options.npz:
        check_writable(options.npz, [".npz"])

    machine = parser.instantiate(options).runtime
    run, model, labels = sampling_command.open_run(options, machine, min(options.num, options.batch_size))
    loop, steps = make_loop(run, model, options)
    frame_steps = visualize.frame_steps(steps) if options.gif else ()
    samples, frames = sample(
        loop, steps, run.config.image_shape, options.num, options.seed,
        batch_size=options.batch_size, frame_steps=frame_steps, progress=True,
        before=sampling_command.before_batch(model, labels),
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


def make_loop(run: checkpoint.Run, model: nn.Cell, options: Namespace) -> tuple[Loop, int]:
    """The sampler that was asked for, with the run's network as `model`, and how many steps it takes."""
    diffusion, jit = run.diffusion, options.runtime.mode == "graph"
    if sampling_command.is_algorithm_2(options, diffusion.timesteps):
        return partial(diffusion.p_sample_loop, diffusion.reverse_step(model, jit)), diffusion.timesteps
    sampler, steps = sampling_command.choose_sampler(run, options, diffusion.schedule)
    denoise = sampling_command.make_denoiser(run, model, options, sampler)
    return partial(sampler, denoise, diffusion.schedule, steps=steps), steps


if __name__ == "__main__":
    exit_on_user_error(main)
