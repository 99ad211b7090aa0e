"""Sample images from a run folder.

  python scripts/sample.py --run runs/digits --num 64 --seed 0 --out samples.png --gif denoise.gif --npz samples.npz
"""

from pathlib import Path
from typing import Literal, Optional

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ms_diffusion import checkpoint, graphs, native, runtime, visualize
from ms_diffusion.config import Parser, RuntimeConfig, to_yaml
from ms_diffusion.data import to_uint8
from ms_diffusion.errors import check_writable, exit_on_user_error
from ms_diffusion.samplers import sample


def main() -> None:
    """Parse, load, sample, write."""
    parser = Parser(description=__doc__, usage="%(prog)s --run DIR [options]")
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument(
        "--weights", type=Optional[Literal["ema", "model"]], default=None,
        help="ema, the moving average, or model, those of the last step; the average where there is one",
    )
    parser.add_argument("--num", type=PositiveInt, default=64, help="images to draw")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="the same seed gives the same images")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="images at a time; changes no image")
    parser.add_argument("--out", type=str, default="samples.png", help="picture of all images, by its name's format")
    parser.add_argument("--gif", type=Optional[str], default=None, help="animation of up to 25 images being denoised")
    parser.add_argument(
        "--npz", type=Optional[str], default=None,
        help="arrays: samples, float32 (N, C, H, W) as sampled, and images, uint8 (N, H, W, C)",
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
    graphs.keep(to_yaml(run.config), native.library())
    reverse_step = run.diffusion.reverse_step(run.model, jit=options.runtime.mode == "graph")
    frame_steps = visualize.frame_steps(run.diffusion.timesteps) if options.gif else ()
    samples, frames = sample(
        run.diffusion, reverse_step, run.config.image_shape, options.num, options.seed,
        batch_size=options.batch_size, frame_steps=frame_steps, progress=True,
    )

    images = to_uint8(samples)
    visualize.save_picture(visualize.make_grid(images), options.out)
    print(f"{options.num} images after {run.step} training steps ({run.weights}): {Path(options.out)}")
    if options.gif:
        visualize.save_gif([visualize.make_grid(to_uint8(frame[:25])) for frame in frames], options.gif)
        print(f"denoising: {options.gif}")
    if options.npz:
        np.savez(options.npz, samples=samples, images=images.transpose(0, 2, 3, 1))
        print(f"arrays: {options.npz}")


if __name__ == "__main__":
    exit_on_user_error(main)
