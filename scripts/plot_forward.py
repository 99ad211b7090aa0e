"""Draw the forward process: one photograph at several noise levels.

  python scripts/plot_forward.py --out forward.png
  python scripts/plot_forward.py --image cat.jpg --steps [0,50,100,150,199] --diffusion.scale_betas false
"""

from typing import List, Optional

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from mindspore import Tensor

from ms_diffusion import randomness, runtime, visualize
from ms_diffusion.config import DiffusionConfig, Parser, RuntimeConfig
from ms_diffusion.data import read_picture, to_float, to_uint8
from ms_diffusion.diffusion import build_diffusion
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error


def main() -> None:
    """Parse, add noise, draw."""
    parser = Parser(description=__doc__, usage="%(prog)s [options]")
    parser.add_argument("--image", type=Optional[str], default=None, help="a picture; null is matplotlib's photograph")
    parser.add_argument("--image_size", type=PositiveInt, default=128, help="pixels of the shorter side, then cropped")
    parser.add_argument("--steps", type=List[NonNegativeInt], default=[0, 50, 100, 150, 199], help="values of t")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the noise")
    parser.add_argument("--out", type=str, default="forward.png", help="the figure")
    parser.add_argument("--diffusion", type=DiffusionConfig, default=DiffusionConfig())
    parser.add_argument("--runtime", type=RuntimeConfig, default=RuntimeConfig())
    options = parser.parse_args()
    built = parser.instantiate(options)
    check_writable(options.out, visualize.picture_suffixes())
    if not options.steps or max(options.steps) >= built.diffusion.timesteps:
        raise UserError(f"--steps is {options.steps}: give one or more, from 0 to {built.diffusion.timesteps - 1}")
    runtime.setup(built.runtime)

    image = read_picture(options.image or visualize.photograph(), channels=3, size=options.image_size)
    x_start = to_float(np.repeat(image[None], len(options.steps), axis=0))
    noise = next(randomness.image_noise(options.seed, range(len(x_start)), x_start.shape[1:]))
    t = Tensor(np.array(options.steps, np.int32))
    x_t = build_diffusion(built.diffusion).q_sample(Tensor(x_start), t, Tensor(noise)).asnumpy()
    visualize.plot_forward([image, *to_uint8(x_t)], options.steps, options.out)
    print(f"forward process: {options.out}")


if __name__ == "__main__":
    exit_on_user_error(main)
